//! This file gives every part of an expression its static type, and makes explicit where an
//! int64 becomes a float64.

use regex::Regex;

use crate::model::{ScalarType, Type, Value};

use super::check_call::check_call;
use super::parser::{Syntax, parse};

/// The static type of an expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    /// Of the literal `null` only.
    Null,
    /// Truth value.
    Bool,
    /// Integer.
    Int,
    /// Float.
    Float,
    /// Point in time.
    Timestamp,
    /// Text.
    String,
    /// List of values of one type.
    List(Box<Shape>),
    /// Map from texts to values of one type.
    Map(Box<Shape>),
    /// Map with known names, such as an entry of `top_k`.
    Record(Vec<(String, Shape)>),
}

impl Shape {
    /// The shape of values of a declared type.
    pub(super) fn of_scalar(scalar: ScalarType) -> Self {
        match scalar {
            ScalarType::String => Self::String,
            ScalarType::Int64 => Self::Int,
            ScalarType::Float64 => Self::Float,
            ScalarType::Bool => Self::Bool,
            ScalarType::Timestamp => Self::Timestamp,
        }
    }

    /// The shape of values of a feature's type.
    pub(super) fn of_type(kind: Type) -> Self {
        match kind {
            Type::Null => Self::Null,
            Type::Scalar(scalar) => Self::of_scalar(scalar),
            Type::List(scalar) => Self::List(Box::new(Self::of_scalar(scalar))),
            Type::Counts(_) => Self::Map(Box::new(Self::Int)),
            Type::Ranking(scalar) => {
                let entry = [("value", Self::of_scalar(scalar)), ("count", Self::Int)];
                let entry = entry.map(|(name, shape)| (name.to_owned(), shape));
                Self::List(Box::new(Self::Record(entry.into())))
            }
        }
    }

    /// The narrowest shape that a value can have.
    pub(super) fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Bool,
            Value::Int(_) => Self::Int,
            Value::Float(_) => Self::Float,
            Value::Timestamp(_) => Self::Timestamp,
            Value::String(_) => Self::String,
            Value::List(items) => {
                let shapes = items.iter().map(Self::of_value);
                let common = shapes
                    .fold(Ok(Self::Null), |common: Result<Self, String>, shape| unify(&common?, &shape));
                // A list of values that do not go together cannot be used by any expression.
                Self::List(Box::new(common.unwrap_or(Self::Null)))
            }
            Value::Map(entries) => {
                let mut shapes = entries.iter().map(|(_, value)| Self::of_value(value));
                let first = shapes.next().unwrap_or(Self::Null);
                if shapes.all(|shape| shape == first) {
                    return Self::Map(Box::new(first));
                }
                let named =
                    entries.iter().map(|(name, value)| (name.to_string(), Self::of_value(value))).collect();
                Self::Record(named)
            }
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Int | Self::Float)
    }

    fn is_condition(&self) -> bool {
        matches!(self, Self::Bool | Self::Null)
    }
}

/// The narrowest shape that values of both shapes fit.
pub(super) fn unify(left: &Shape, right: &Shape) -> Result<Shape, String> {
    match (left, right) {
        (left, right) if left == right => Ok(left.clone()),
        (Shape::Null, other) | (other, Shape::Null) => Ok(other.clone()),
        (left, right) if left.is_number() && right.is_number() => Ok(Shape::Float),
        (Shape::List(left), Shape::List(right)) => Ok(Shape::List(Box::new(unify(left, right)?))),
        _ => Err(format!("{left:?} and {right:?} do not go together")),
    }
}

/// An expression whose every part has a static type.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    /// Its static type.
    pub(super) shape: Shape,
    /// What it is made of.
    pub(super) form: Form,
}

/// What a typed expression is made of.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// A constant.
    Literal(Value),
    /// A variable, by its index.
    Variable(usize),
    /// An entry of a map or a record.
    Member(Box<Typed>, String),
    /// An entry of a map, or an item of a list.
    Index(Box<Typed>, Box<Typed>),
    /// A list.
    List(Vec<Typed>),
    /// `a ? b : c`.
    Condition(Box<Typed>, Box<Typed>, Box<Typed>),
    /// `!`.
    Not(Box<Typed>),
    /// `-`.
    Negative(Box<Typed>),
    /// `&&` and `||`; the flag is the operand that decides alone.
    Logic(bool, Box<Typed>, Box<Typed>),
    /// `in`.
    In(Box<Typed>, Box<Typed>),
    /// Comparison with the literal `null`; the flag says what null gives.
    IsNull(bool, Box<Typed>),
    /// Comparison of two values of one shape.
    Compare(&'static str, Box<Typed>, Box<Typed>),
    /// `+ - * / %` of two values of one shape.
    Arithmetic(&'static str, Box<Typed>, Box<Typed>),
    /// A function by its name.
    Call(String, Vec<Typed>),
    /// `matches`; a pattern that is a literal is compiled once.
    Matches(Box<Typed>, Box<Typed>, Option<Regex>),
    /// Integers in it become floats.
    Widen(Box<Typed>),
}

impl Typed {
    /// The same expression as one of a wider shape.
    pub(super) fn widened(self, shape: &Shape) -> Self {
        if self.shape == *shape {
            return self;
        }
        Self { shape: shape.clone(), form: Form::Widen(Box::new(self)) }
    }
}

/// Parses and types `source`; `scope` names the variables in the order of their indices.
pub(super) fn compile(source: &str, scope: &[(String, Shape)]) -> Result<Typed, String> {
    parse(source)
        .and_then(|syntax| check(&syntax, scope))
        .map_err(|message| format!("{message} in `{source}`"))
}

/// Compiles a rule or a filter.
pub(super) fn compile_condition(source: &str, scope: &[(String, Shape)]) -> Result<Typed, String> {
    let typed = compile(source, scope)?;
    if !typed.shape.is_condition() {
        return Err(format!("`{source}` is {:?}, not a condition", typed.shape));
    }
    Ok(typed)
}

/// Compiles an expression whose type was declared.
pub(super) fn compile_as(source: &str, scope: &[(String, Shape)], shape: &Shape) -> Result<Typed, String> {
    let typed = compile(source, scope)?;
    if unify(&typed.shape, shape).as_ref() != Ok(shape) {
        return Err(format!("`{source}` is {:?}, not {shape:?}", typed.shape));
    }
    Ok(typed.widened(shape))
}

fn check(syntax: &Syntax, scope: &[(String, Shape)]) -> Result<Typed, String> {
    match syntax {
        Syntax::Literal(value) => {
            Ok(Typed { shape: Shape::of_value(value), form: Form::Literal(value.clone()) })
        }
        Syntax::Name(name) => variable(name, scope).ok_or_else(|| format!("`{name}` is an unknown name")),
        Syntax::Member(base, name) => check_member(base, name, scope),
        Syntax::Index(base, key) => check_index(check(base, scope)?, check(key, scope)?),
        Syntax::List(items) => check_list(items, scope),
        Syntax::Unary(operator, operand) => check_unary(*operator, check(operand, scope)?),
        Syntax::Binary(operator, left, right) => {
            check_binary(*operator, check(left, scope)?, check(right, scope)?)
        }
        Syntax::Condition(condition, then, otherwise) => {
            let condition = check(condition, scope)?;
            if !condition.shape.is_condition() {
                return Err(format!("a condition is {:?}", condition.shape));
            }
            let then = check(then, scope)?;
            let otherwise = check(otherwise, scope)?;
            let shape = unify(&then.shape, &otherwise.shape)?;
            let then = Box::new(then.widened(&shape));
            let otherwise = Box::new(otherwise.widened(&shape));
            Ok(Typed { shape, form: Form::Condition(Box::new(condition), then, otherwise) })
        }
        Syntax::Call(name, arguments) => {
            let arguments: Result<Vec<Typed>, String> =
                arguments.iter().map(|argument| check(argument, scope)).collect();
            check_call(name, arguments?)
        }
    }
}

fn variable(name: &str, scope: &[(String, Shape)]) -> Option<Typed> {
    let index = scope.iter().position(|(known, _)| known == name)?;
    Some(Typed { shape: scope[index].1.clone(), form: Form::Variable(index) })
}

fn check_member(base: &Syntax, name: &str, scope: &[(String, Shape)]) -> Result<Typed, String> {
    // Names such as request.amount stand in the scope as a whole.
    if let Syntax::Name(first) = base
        && let Some(typed) = variable(&format!("{first}.{name}"), scope)
    {
        return Ok(typed);
    }
    let base = check(base, scope)?;
    let shape = match &base.shape {
        Shape::Null => Shape::Null,
        Shape::Map(item) => (**item).clone(),
        Shape::Record(entries) => entries
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, shape)| shape.clone())
            .ok_or_else(|| format!("there is no member `{name}`"))?,
        other => return Err(format!("{other:?} has no members")),
    };
    Ok(Typed { shape, form: Form::Member(Box::new(base), name.to_owned()) })
}

fn check_index(base: Typed, key: Typed) -> Result<Typed, String> {
    let shape = match (&base.shape, &key.shape) {
        (Shape::Null, _) => Shape::Null,
        (Shape::Map(item), Shape::String | Shape::Int | Shape::Bool | Shape::Null)
        | (Shape::List(item), Shape::Int | Shape::Null) => (**item).clone(),
        (base, key) => return Err(format!("{base:?} has no index of {key:?}")),
    };
    Ok(Typed { shape, form: Form::Index(Box::new(base), Box::new(key)) })
}

fn check_list(items: &[Syntax], scope: &[(String, Shape)]) -> Result<Typed, String> {
    let mut typed = Vec::new();
    let mut common = Shape::Null;
    for item in items {
        let item = check(item, scope)?;
        common = unify(&common, &item.shape)?;
        typed.push(item);
    }
    let typed = typed.into_iter().map(|item| item.widened(&common)).collect();
    Ok(Typed { shape: Shape::List(Box::new(common)), form: Form::List(typed) })
}

fn check_unary(operator: char, operand: Typed) -> Result<Typed, String> {
    if operator == '!' {
        if !operand.shape.is_condition() {
            return Err(format!("`!` of {:?}", operand.shape));
        }
        return Ok(Typed { shape: Shape::Bool, form: Form::Not(Box::new(operand)) });
    }
    if !operand.shape.is_number() && operand.shape != Shape::Null {
        return Err(format!("`-` of {:?}", operand.shape));
    }
    Ok(Typed { shape: operand.shape.clone(), form: Form::Negative(Box::new(operand)) })
}

fn check_binary(operator: &'static str, left: Typed, right: Typed) -> Result<Typed, String> {
    match operator {
        "&&" | "||" => {
            if !left.shape.is_condition() || !right.shape.is_condition() {
                return Err(format!("`{operator}` of {:?} and {:?}", left.shape, right.shape));
            }
            let form = Form::Logic(operator == "||", Box::new(left), Box::new(right));
            Ok(Typed { shape: Shape::Bool, form })
        }
        "in" => check_in(left, right),
        "+" | "-" | "*" | "/" | "%" => {
            let shape = unify(&left.shape, &right.shape)?;
            let is_joined = operator == "+" && matches!(shape, Shape::String | Shape::List(_));
            if !shape.is_number() && shape != Shape::Null && !is_joined {
                return Err(format!("`{operator}` of {shape:?}"));
            }
            let left = Box::new(left.widened(&shape));
            let right = Box::new(right.widened(&shape));
            Ok(Typed { shape, form: Form::Arithmetic(operator, left, right) })
        }
        _ => check_comparison(operator, left, right),
    }
}

fn check_in(item: Typed, container: Typed) -> Result<Typed, String> {
    let (item, container) = match &container.shape {
        Shape::Null | Shape::Map(_) => (item, container),
        Shape::List(known) => {
            let shape = unify(&item.shape, known)?;
            let list = Shape::List(Box::new(shape.clone()));
            (item.widened(&shape), container.widened(&list))
        }
        other => return Err(format!("`in` of {other:?}")),
    };
    Ok(Typed { shape: Shape::Bool, form: Form::In(Box::new(item), Box::new(container)) })
}

fn check_comparison(operator: &'static str, left: Typed, right: Typed) -> Result<Typed, String> {
    let is_equality = matches!(operator, "==" | "!=");
    let is_null = |typed: &Typed| matches!(typed.form, Form::Literal(Value::Null));
    if is_null(&left) || is_null(&right) {
        if !is_equality {
            return Err(format!("`{operator}` with null"));
        }
        let operand = if is_null(&right) { left } else { right };
        let form = Form::IsNull(operator == "==", Box::new(operand));
        return Ok(Typed { shape: Shape::Bool, form });
    }
    let shape = unify(&left.shape, &right.shape)?;
    let is_nested = matches!(shape, Shape::List(_) | Shape::Map(_) | Shape::Record(_));
    if is_nested && !is_equality {
        return Err(format!("`{operator}` of {shape:?}"));
    }
    let left = Box::new(left.widened(&shape));
    let right = Box::new(right.widened(&shape));
    Ok(Typed { shape: Shape::Bool, form: Form::Compare(operator, left, right) })
}
