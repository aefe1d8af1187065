//! Names and types: syntax tree to compiled nodes.

use jiff::tz::TimeZone;

use super::eval::{Arithmetic, Comparison, Node as Op};
use super::functions::{CalendarField, Function};
use super::parser::{Ast, Binary, Node};
use super::{Expr, ExprError};
use crate::model::names::nearest;
use crate::model::{ScalarType, Type, Value};

const STRING: Type = Type::Scalar(ScalarType::String);
const INT: Type = Type::Scalar(ScalarType::Int64);
const FLOAT: Type = Type::Scalar(ScalarType::Float64);
const BOOL: Type = Type::Scalar(ScalarType::Bool);
const TIMESTAMP: Type = Type::Scalar(ScalarType::Timestamp);

/// The names that an expression may use. A name may hold dots (`request.amount`).
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    variables: &'a [(String, Type)],
    /// What an unknown name is called in the message.
    noun: &'static str,
}

impl<'a> Scope<'a> {
    /// Fields of a source.
    pub fn of_fields(variables: &'a [(String, Type)]) -> Self {
        Self { variables, noun: "field" }
    }

    /// Features, request values and on-demand features.
    pub fn of_features(variables: &'a [(String, Type)]) -> Self {
        Self { variables, noun: "feature or request value" }
    }
}

pub(super) fn compile(node: &Node, scope: &Scope<'_>) -> Result<Expr, ExprError> {
    let mut checker = Checker { scope, variables: Vec::new() };
    let (root, value_type) = checker.check(node)?;
    if value_type == Type::Null {
        return Err(wrong(node, "the expression is always null"));
    }
    let mut variables = checker.variables;
    variables.sort_unstable();
    variables.dedup();
    Ok(Expr { root, value_type, variables })
}

struct Checker<'a> {
    scope: &'a Scope<'a>,
    variables: Vec<usize>,
}

type Typed = (Op, Type);

fn wrong(node: &Node, message: impl Into<String>) -> ExprError {
    ExprError { unknown: None, at: node.at, message: message.into() }
}

fn constant(value: Value) -> Op {
    Op::Constant(value)
}

/// The type that both have, with int64 widened to float64; null fits everything.
fn unify(a: Type, b: Type) -> Option<Type> {
    match (a, b) {
        _ if a == b => Some(a),
        (Type::Null, other) | (other, Type::Null) => Some(other),
        (INT, FLOAT) | (FLOAT, INT) => Some(FLOAT),
        (Type::List(x), Type::List(y)) if x.is_number() && y.is_number() => {
            Some(Type::List(ScalarType::Float64))
        }
        _ => None,
    }
}

fn widen((op, from): Typed, to: Type) -> Op {
    match (from, to, op) {
        (INT, FLOAT, Op::Constant(Value::Int(i))) => constant(Value::Float(i as f64)),
        (INT, FLOAT, op) => Op::ToFloat(Box::new(op)),
        (Type::List(ScalarType::Int64), Type::List(ScalarType::Float64), Op::List(items)) => {
            Op::List(items.into_iter().map(|item| widen((item, INT), FLOAT)).collect())
        }
        (Type::List(ScalarType::Int64), Type::List(ScalarType::Float64), Op::Constant(list)) => {
            constant(match list {
                Value::List(items) => Value::List(
                    items
                        .iter()
                        .map(|v| match v {
                            Value::Int(i) => Value::Float(*i as f64),
                            other => other.clone(),
                        })
                        .collect(),
                ),
                other => other,
            })
        }
        (Type::List(ScalarType::Int64), Type::List(ScalarType::Float64), op) => Op::ListToFloat(Box::new(op)),
        (_, _, op) => op,
    }
}

/// The type that both operands have. A list of nothing goes with any list.
fn unify_operands(a: &Typed, b: &Typed) -> Option<Type> {
    match (is_empty_list(&a.0), is_empty_list(&b.0), a.1, b.1) {
        (true, _, Type::List(_), other @ Type::List(_)) | (_, true, other @ Type::List(_), Type::List(_)) => {
            Some(other)
        }
        _ => unify(a.1, b.1),
    }
}

/// A list of nothing, or of nulls alone, whichever it is.
fn is_empty_list(op: &Op) -> bool {
    match op {
        Op::Constant(Value::List(items)) => items.iter().all(Value::is_null),
        Op::Coalesce(nodes) => nodes.iter().all(is_empty_list),
        Op::If(_, a, b) => is_empty_list(a) && is_empty_list(b),
        _ => false,
    }
}

impl Checker<'_> {
    fn check(&mut self, node: &Node) -> Result<Typed, ExprError> {
        match &node.ast {
            Ast::Null => Ok((constant(Value::Null), Type::Null)),
            Ast::Bool(b) => Ok((constant(Value::Bool(*b)), BOOL)),
            Ast::Int(i) => Ok((constant(Value::Int(*i)), INT)),
            Ast::Float(x) => Ok((constant(Value::Float(*x)), FLOAT)),
            Ast::Str(s) => Ok((constant(Value::from(s.as_str())), STRING)),
            Ast::Name(parts) => self.name(node, parts),
            Ast::List(items) => self.list(node, items),
            Ast::Not(operand) => {
                let op = self.expect(operand, BOOL)?;
                Ok((Op::Not(Box::new(op)), BOOL))
            }
            Ast::Neg(operand) => match self.check(operand)? {
                (op, INT) => Ok((Op::NegInt(Box::new(op)), INT)),
                (op, FLOAT) => Ok((Op::NegFloat(Box::new(op)), FLOAT)),
                (_, other) => Err(mismatch(operand, "a number", other)),
            },
            Ast::Binary(op, a, b) => self.binary(node, *op, a, b),
            Ast::If(condition, then, otherwise) => {
                let condition = self.expect(condition, BOOL)?;
                let (then_op, otherwise_op) = (self.check(then)?, self.check(otherwise)?);
                let Some(both) = unify_operands(&then_op, &otherwise_op) else {
                    return Err(mismatch(otherwise, &then_op.1.name(), otherwise_op.1));
                };
                let (then, otherwise) = (widen(then_op, both), widen(otherwise_op, both));
                Ok((Op::If(Box::new(condition), Box::new(then), Box::new(otherwise)), both))
            }
            Ast::Index(map, key) => {
                let (op, map_type) = self.check(map)?;
                let Type::Counts(key_type) = map_type else {
                    return Err(mismatch(map, "a map", map_type));
                };
                let key = self.expect(key, Type::Scalar(key_type))?;
                Ok((Op::Lookup(Box::new(op), Box::new(key)), INT))
            }
            Ast::Call(name, arguments) => self.call(node, name, arguments),
        }
    }

    fn expect(&mut self, node: &Node, want: Type) -> Result<Op, ExprError> {
        let typed = self.check(node)?;
        if typed.1 == Type::Null || typed.1 == want || (typed.1 == INT && want == FLOAT) {
            return Ok(widen(typed, want));
        }
        Err(mismatch(node, &want.name(), typed.1))
    }

    fn name(&mut self, node: &Node, parts: &[String]) -> Result<Typed, ExprError> {
        let name = parts.join(".");
        if let Some(index) = self.scope.variables.iter().position(|(n, _)| *n == name) {
            self.variables.push(index);
            return Ok((Op::Variable(index), self.scope.variables[index].1));
        }
        let nearest = nearest(&name, self.scope.variables.iter().map(|(n, _)| n.as_str()));
        let hint = nearest.map_or_else(String::new, |n| format!("; did you mean `{n}`"));
        let error = wrong(node, format!("unknown {} `{name}`{hint}", self.scope.noun));
        Err(ExprError { unknown: Some(name), ..error })
    }

    fn list(&mut self, node: &Node, items: &[Node]) -> Result<Typed, ExprError> {
        let mut ops = Vec::with_capacity(items.len());
        let mut item_type = Type::Null;
        for item in items {
            let typed = self.check(item)?;
            item_type =
                unify(item_type, typed.1).ok_or_else(|| mismatch(item, &item_type.name(), typed.1))?;
            ops.push(typed);
        }
        let scalar = match item_type {
            Type::Scalar(scalar) => scalar,
            // An empty list, or one of nulls, fits any type: strings stand for them.
            Type::Null => ScalarType::String,
            other => return Err(wrong(node, format!("a list cannot hold a {}", other.name()))),
        };
        let ops: Vec<Op> = ops.into_iter().map(|typed| widen(typed, item_type)).collect();
        let list_type = Type::List(scalar);
        let constants: Option<Vec<Value>> = ops
            .iter()
            .map(|op| if let Op::Constant(value) = op { Some(value.clone()) } else { None })
            .collect();
        Ok((constants.map_or(Op::List(ops), |v| constant(Value::List(v.into()))), list_type))
    }

    fn binary(&mut self, node: &Node, op: Binary, a: &Node, b: &Node) -> Result<Typed, ExprError> {
        match op {
            Binary::And | Binary::Or => {
                let (a, b) = (self.expect(a, BOOL)?, self.expect(b, BOOL)?);
                let (a, b) = (Box::new(a), Box::new(b));
                Ok((if op == Binary::And { Op::And(a, b) } else { Op::Or(a, b) }, BOOL))
            }
            Binary::In => self.membership(a, b),
            Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Rem => self.arithmetic(op, a, b),
            _ => self.comparison(node, op, a, b),
        }
    }

    fn membership(&mut self, item: &Node, list: &Node) -> Result<Typed, ExprError> {
        let (item_op, list_op) = (self.check(item)?, self.check(list)?);
        match list_op.1 {
            Type::List(scalar) => {
                let wanted = if is_empty_list(&list_op.0) { item_op.1 } else { Type::Scalar(scalar) };
                let both =
                    unify(item_op.1, wanted).ok_or_else(|| mismatch(item, scalar.name(), item_op.1))?;
                let list_type = match both {
                    Type::Scalar(s) => Type::List(s),
                    _ => list_op.1,
                };
                let (item, list) = (widen(item_op, both), widen(list_op, list_type));
                Ok((Op::In(Box::new(item), Box::new(list)), BOOL))
            }
            Type::Counts(key) if matches!(item_op.1, Type::Null) || item_op.1 == Type::Scalar(key) => {
                Ok((Op::InKeys(Box::new(item_op.0), Box::new(list_op.0)), BOOL))
            }
            Type::Counts(key) => Err(mismatch(item, key.name(), item_op.1)),
            other => Err(mismatch(list, "a list or a map", other)),
        }
    }

    fn arithmetic(&mut self, op: Binary, a: &Node, b: &Node) -> Result<Typed, ExprError> {
        let (left, right) = (self.check(a)?, self.check(b)?);
        let arithmetic = match op {
            Binary::Add => Arithmetic::Add,
            Binary::Sub => Arithmetic::Sub,
            Binary::Mul => Arithmetic::Mul,
            Binary::Div => Arithmetic::Div,
            _ => Arithmetic::Rem,
        };
        if op == Binary::Add && left.1 == STRING {
            if right.1 != STRING && right.1 != Type::Null {
                return Err(mismatch(b, "string", right.1));
            }
            return Ok((Op::Concat(Box::new(left.0), Box::new(right.0)), STRING));
        }
        for (node, found) in [(a, left.1), (b, right.1)] {
            if !matches!(found, INT | FLOAT | Type::Null) {
                return Err(mismatch(node, "a number", found));
            }
        }
        match unify(left.1, right.1) {
            Some(FLOAT) => {
                let (l, r) = (widen(left, FLOAT), widen(right, FLOAT));
                Ok((Op::Float(arithmetic, Box::new(l), Box::new(r)), FLOAT))
            }
            _ => Ok((Op::Int(arithmetic, Box::new(left.0), Box::new(right.0)), INT)),
        }
    }

    fn comparison(&mut self, node: &Node, op: Binary, a: &Node, b: &Node) -> Result<Typed, ExprError> {
        let (left, right) = (self.check(a)?, self.check(b)?);
        let comparison = match op {
            Binary::Eq => Comparison::Eq,
            Binary::Ne => Comparison::Ne,
            Binary::Lt => Comparison::Lt,
            Binary::Le => Comparison::Le,
            Binary::Gt => Comparison::Gt,
            _ => Comparison::Ge,
        };
        let is_equality = matches!(comparison, Comparison::Eq | Comparison::Ne);
        let against_null = match (&a.ast, &b.ast) {
            (_, Ast::Null) => Some(&left),
            (Ast::Null, _) => Some(&right),
            _ => None,
        };
        if let (true, Some((operand, _))) = (is_equality, against_null) {
            let is_null = Op::IsNull(Box::new(operand.clone()));
            let op = if comparison == Comparison::Eq { is_null } else { Op::Not(Box::new(is_null)) };
            return Ok((op, BOOL));
        }
        let (left_name, right_name) = (left.1.name(), right.1.name());
        let both = unify_operands(&left, &right).filter(|both| match both {
            Type::Scalar(ScalarType::Bool) | Type::List(_) => is_equality,
            Type::Scalar(_) | Type::Null => true,
            _ => false,
        });
        let Some(both) = both else {
            return Err(wrong(node, format!("cannot compare {left_name} with {right_name}")));
        };
        let (l, r) = (widen(left, both), widen(right, both));
        Ok((Op::Compare(comparison, Box::new(l), Box::new(r)), BOOL))
    }

    fn call(&mut self, node: &Node, name: &str, args: &[Node]) -> Result<Typed, ExprError> {
        let Some((_, fewest, most)) = ARITIES.iter().find(|(n, ..)| *n == name) else {
            let hint = nearest(name, ARITIES.iter().map(|(n, ..)| *n))
                .map_or_else(String::new, |n| format!("; did you mean `{n}`"));
            return Err(wrong(node, format!("unknown function `{name}`{hint}")));
        };
        if args.len() < *fewest || args.len() > *most {
            let wanted = match (fewest, most) {
                (a, b) if a == b => a.to_string(),
                (a, &usize::MAX) => format!("at least {a}"),
                (a, b) => format!("{a} to {b}"),
            };
            let message = format!("`{name}` takes {wanted} arguments, not {}", args.len());
            return Err(wrong(node, message));
        }
        match name {
            "has" => Ok((Op::Not(Box::new(Op::IsNull(Box::new(self.check(&args[0])?.0)))), BOOL)),
            "coalesce" => self.same_type(args, Op::Coalesce, |_| true),
            "min" | "max" => {
                let make = if name == "min" { Op::Least } else { Op::Greatest };
                self.same_type(args, make, |t| matches!(t, INT | FLOAT | TIMESTAMP | Type::Null))
            }
            "matches" => self.matches(args),
            "hour" => self.calendar(CalendarField::Hour, args),
            "weekday" => self.calendar(CalendarField::Weekday, args),
            "day" => self.calendar(CalendarField::Day, args),
            "month" => self.calendar(CalendarField::Month, args),
            "size" => {
                let (op, found) = self.check(&args[0])?;
                if matches!(found, INT | FLOAT | BOOL | TIMESTAMP) {
                    return Err(mismatch(&args[0], "a string, a list or a map", found));
                }
                Ok((Op::Call(Function::Size, vec![op]), INT))
            }
            "abs" => match self.check(&args[0])? {
                (op, INT) => Ok((Op::Call(Function::AbsInt, vec![op]), INT)),
                (op, FLOAT | Type::Null) => Ok((Op::Call(Function::AbsFloat, vec![op]), FLOAT)),
                (_, other) => Err(mismatch(&args[0], "a number", other)),
            },
            "int" => self.conversion(Function::ToInt, &args[0], INT, &[]),
            "double" => self.conversion(Function::ToDouble, &args[0], FLOAT, &[BOOL, TIMESTAMP]),
            "string" => self.conversion(Function::ToString, &args[0], STRING, &[]),
            _ => self.plain(name, args),
        }
    }

    fn plain(&mut self, name: &str, args: &[Node]) -> Result<Typed, ExprError> {
        let (function, argument, result) = match name {
            "contains" => (Function::Contains, STRING, BOOL),
            "startsWith" => (Function::StartsWith, STRING, BOOL),
            "endsWith" => (Function::EndsWith, STRING, BOOL),
            "lower" => (Function::Lower, STRING, STRING),
            "upper" => (Function::Upper, STRING, STRING),
            "floor" => (Function::Floor, FLOAT, FLOAT),
            "ceil" => (Function::Ceil, FLOAT, FLOAT),
            "round" => (Function::Round, FLOAT, FLOAT),
            "sqrt" => (Function::Sqrt, FLOAT, FLOAT),
            "log" => (Function::Log, FLOAT, FLOAT),
            "exp" => (Function::Exp, FLOAT, FLOAT),
            _ => (Function::Pow, FLOAT, FLOAT),
        };
        let ops: Result<Vec<Op>, ExprError> = args.iter().map(|a| self.expect(a, argument)).collect();
        Ok((Op::Call(function, ops?), result))
    }

    fn conversion(
        &mut self,
        function: Function,
        arg: &Node,
        to: Type,
        refused: &[Type],
    ) -> Result<Typed, ExprError> {
        let (op, found) = self.check(arg)?;
        if !matches!(found, Type::Scalar(_) | Type::Null) || refused.contains(&found) {
            return Err(wrong(arg, format!("a {} cannot become {}", found.name(), to.name())));
        }
        Ok((Op::Call(function, vec![op]), to))
    }

    fn same_type(
        &mut self,
        args: &[Node],
        make: fn(Vec<Op>) -> Op,
        is_allowed: fn(Type) -> bool,
    ) -> Result<Typed, ExprError> {
        let mut all = Type::Null;
        let mut ops: Vec<Typed> = Vec::with_capacity(args.len());
        // Lists of nothing tell no type while there are others.
        let mut is_open = true;
        for arg in args {
            let typed = self.check(arg)?;
            if !is_allowed(typed.1) {
                return Err(mismatch(arg, "a number or a timestamp", typed.1));
            }
            let is_empty = is_empty_list(&typed.0);
            let are_lists = matches!((all, typed.1), (Type::List(_), Type::List(_)));
            if are_lists && is_open {
                all = typed.1;
            } else if !(are_lists && is_empty) {
                all = unify(all, typed.1).ok_or_else(|| mismatch(arg, &all.name(), typed.1))?;
            }
            is_open &= is_empty || typed.1 == Type::Null;
            ops.push(typed);
        }
        Ok((make(ops.into_iter().map(|typed| widen(typed, all)).collect()), all))
    }

    fn matches(&mut self, args: &[Node]) -> Result<Typed, ExprError> {
        let text = self.expect(&args[0], STRING)?;
        let Ast::Str(pattern) = &args[1].ast else {
            return Err(wrong(&args[1], "the pattern of `matches` must be a string literal"));
        };
        let regex = super::pattern::compile(pattern)
            .map_err(|why| wrong(&args[1], format!("not a regular expression of RE2: {why}")))?;
        Ok((Op::Matches(Box::new(text), Box::new(regex)), BOOL))
    }

    fn calendar(&mut self, field: CalendarField, args: &[Node]) -> Result<Typed, ExprError> {
        let at = self.expect(&args[0], TIMESTAMP)?;
        let zone = match args.get(1).map(|n| (&n.ast, n)) {
            None => TimeZone::UTC,
            Some((Ast::Str(name), node)) => {
                TimeZone::get(name).map_err(|_| wrong(node, format!("unknown time zone `{name}`")))?
            }
            Some((_, node)) => return Err(wrong(node, "the zone must be a string literal")),
        };
        Ok((Op::Calendar(field, Box::new(at), zone), INT))
    }
}

fn mismatch(node: &Node, wanted: &str, found: Type) -> ExprError {
    wrong(node, format!("expected {wanted}, found {}", found.name()))
}

/// Functions with the fewest and the most arguments they take.
const ARITIES: [(&str, usize, usize); 26] = [
    ("has", 1, 1),
    ("size", 1, 1),
    ("contains", 2, 2),
    ("startsWith", 2, 2),
    ("endsWith", 2, 2),
    ("matches", 2, 2),
    ("lower", 1, 1),
    ("upper", 1, 1),
    ("abs", 1, 1),
    ("floor", 1, 1),
    ("ceil", 1, 1),
    ("round", 1, 1),
    ("sqrt", 1, 1),
    ("log", 1, 1),
    ("exp", 1, 1),
    ("pow", 2, 2),
    ("min", 2, usize::MAX),
    ("max", 2, usize::MAX),
    ("int", 1, 1),
    ("double", 1, 1),
    ("string", 1, 1),
    ("coalesce", 1, usize::MAX),
    ("hour", 1, 2),
    ("weekday", 1, 2),
    ("day", 1, 2),
    ("month", 1, 2),
];
