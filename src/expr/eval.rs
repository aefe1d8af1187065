//! Compiled nodes and their evaluation.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::sync::Arc;

use jiff::tz::TimeZone;
use regex::Regex;

use super::Val;
use super::functions;
use super::stats::{NullCause, note};
use crate::model::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Comparison {
    pub(super) fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Eq => order == Ordering::Equal,
            Self::Ne => order != Ordering::Equal,
            Self::Lt => order == Ordering::Less,
            Self::Le => order != Ordering::Greater,
            Self::Gt => order == Ordering::Greater,
            Self::Ge => order != Ordering::Less,
        }
    }
}

/// A typed operation. Operands have been made to agree by the checker.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Constant(Value),
    Variable(usize),
    ToFloat(Box<Node>),
    ListToFloat(Box<Node>),
    List(Vec<Node>),
    Not(Box<Node>),
    NegInt(Box<Node>),
    NegFloat(Box<Node>),
    Int(Arithmetic, Box<Node>, Box<Node>),
    Float(Arithmetic, Box<Node>, Box<Node>),
    Concat(Box<Node>, Box<Node>),
    Compare(Comparison, Box<Node>, Box<Node>),
    IsNull(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    If(Box<Node>, Box<Node>, Box<Node>),
    In(Box<Node>, Box<Node>),
    InKeys(Box<Node>, Box<Node>),
    Lookup(Box<Node>, Box<Node>),
    Coalesce(Vec<Node>),
    Least(Vec<Node>),
    Greatest(Vec<Node>),
    Matches(Box<Node>, Box<Regex>),
    Calendar(functions::CalendarField, Box<Node>, TimeZone),
    Call(functions::Function, Vec<Node>),
}

impl Node {
    pub(super) fn eval<'a>(&'a self, vars: &'a [Val<'a>]) -> Val<'a> {
        match self {
            Self::Constant(value) => Val::of(value),
            Self::Variable(index) => vars[*index].borrowed(),
            Self::ToFloat(node) => match node.eval(vars) {
                Val::Int(i) => Val::Float(i as f64),
                other => other,
            },
            Self::ListToFloat(node) => match node.eval(vars) {
                Val::List(items) => Val::List(items.iter().map(float_of).collect()),
                other => other,
            },
            Self::List(items) => {
                Val::List(Cow::Owned(items.iter().map(|n| n.eval(vars).to_value()).collect()))
            }
            Self::Not(node) => match node.eval(vars) {
                Val::Bool(b) => Val::Bool(!b),
                _ => Val::Null,
            },
            Self::NegInt(node) => match node.eval(vars) {
                Val::Int(i) => int(i.checked_neg()),
                _ => Val::Null,
            },
            Self::NegFloat(node) => match node.eval(vars) {
                Val::Float(x) => finite(-x),
                _ => Val::Null,
            },
            Self::Int(op, a, b) => match (a.eval(vars), b.eval(vars)) {
                (Val::Int(a), Val::Int(b)) => int_arithmetic(*op, a, b),
                _ => Val::Null,
            },
            Self::Float(op, a, b) => match (a.eval(vars), b.eval(vars)) {
                (Val::Float(a), Val::Float(b)) => float_arithmetic(*op, a, b),
                _ => Val::Null,
            },
            Self::Concat(a, b) => match (a.eval(vars), b.eval(vars)) {
                (Val::Str(a), Val::Str(b)) => Val::Str(Cow::Owned(format!("{a}{b}"))),
                _ => Val::Null,
            },
            Self::Compare(op, a, b) => match order(&a.eval(vars), &b.eval(vars)) {
                Some(order) => Val::Bool(op.holds(order)),
                None => Val::Null,
            },
            Self::IsNull(node) => Val::Bool(node.eval(vars).is_null()),
            Self::And(a, b) => and(a.eval(vars), || b.eval(vars)),
            Self::Or(a, b) => or(a.eval(vars), || b.eval(vars)),
            Self::If(condition, then, otherwise) => match condition.eval(vars) {
                Val::Bool(true) => then.eval(vars),
                Val::Bool(false) => otherwise.eval(vars),
                _ => Val::Null,
            },
            Self::In(item, list) => is_in(&item.eval(vars), &list.eval(vars)),
            Self::InKeys(key, map) => match (key.eval(vars), map.eval(vars)) {
                (_, Val::Null) => Val::Null,
                (key, map) => Val::Bool(find(&map, &key).is_some()),
            },
            Self::Lookup(map, key) => {
                let (map, key) = (map.eval(vars), key.eval(vars));
                find(&map, &key).map_or(Val::Null, |value| Val::of(&value).into_owned())
            }
            Self::Coalesce(nodes) => {
                nodes.iter().map(|n| n.eval(vars)).find(|v| !v.is_null()).unwrap_or_default()
            }
            Self::Least(nodes) => extreme(nodes, vars, Ordering::Less),
            Self::Greatest(nodes) => extreme(nodes, vars, Ordering::Greater),
            Self::Matches(node, regex) => match node.eval(vars) {
                Val::Str(text) => Val::Bool(regex.is_match(&text)),
                _ => Val::Null,
            },
            Self::Calendar(field, node, zone) => match node.eval(vars) {
                Val::Timestamp(t) => functions::calendar(*field, t, zone),
                _ => Val::Null,
            },
            Self::Call(function, nodes) => functions::call(*function, nodes, vars),
        }
    }
}

impl Node {
    /// Calls `visit` with the index of every variable in the tree.
    pub(super) fn visit_variables(&mut self, visit: &mut impl FnMut(&mut usize)) {
        match self {
            Self::Variable(index) => visit(index),
            Self::Constant(_) => {}
            Self::ToFloat(a)
            | Self::ListToFloat(a)
            | Self::Not(a)
            | Self::NegInt(a)
            | Self::NegFloat(a)
            | Self::IsNull(a)
            | Self::Matches(a, _)
            | Self::Calendar(_, a, _) => a.visit_variables(visit),
            Self::Int(_, a, b)
            | Self::Float(_, a, b)
            | Self::Compare(_, a, b)
            | Self::Concat(a, b)
            | Self::And(a, b)
            | Self::Or(a, b)
            | Self::In(a, b)
            | Self::InKeys(a, b)
            | Self::Lookup(a, b) => {
                a.visit_variables(visit);
                b.visit_variables(visit);
            }
            Self::If(a, b, c) => {
                for node in [a, b, c] {
                    node.visit_variables(visit);
                }
            }
            Self::List(nodes)
            | Self::Coalesce(nodes)
            | Self::Least(nodes)
            | Self::Greatest(nodes)
            | Self::Call(_, nodes) => {
                for node in nodes {
                    node.visit_variables(visit);
                }
            }
        }
    }
}

impl Val<'_> {
    fn into_owned(self) -> Val<'static> {
        match self {
            Val::Null => Val::Null,
            Val::Bool(b) => Val::Bool(b),
            Val::Int(i) => Val::Int(i),
            Val::Float(x) => Val::Float(x),
            Val::Timestamp(t) => Val::Timestamp(t),
            Val::Str(s) => Val::Str(Cow::Owned(s.into_owned())),
            Val::List(items) => Val::List(Cow::Owned(items.into_owned())),
            Val::Map(entries) => Val::Map(Cow::Owned(entries.into_owned())),
        }
    }
}

/// An item of a list of float64, of one of int64.
fn float_of(item: &Value) -> Value {
    match item {
        Value::Int(i) => Value::Float(*i as f64),
        other => other.clone(),
    }
}

/// Order of two values of one type; `None` when either is null.
pub(super) fn order(a: &Val<'_>, b: &Val<'_>) -> Option<Ordering> {
    Some(match (a, b) {
        (Val::Float(a), Val::Float(b)) => a.total_cmp(b),
        (Val::Int(a), Val::Int(b)) | (Val::Timestamp(a), Val::Timestamp(b)) => a.cmp(b),
        (Val::Str(a), Val::Str(b)) => a.as_bytes().cmp(b.as_bytes()),
        (Val::Bool(a), Val::Bool(b)) => a.cmp(b),
        (Val::List(a), Val::List(b)) => {
            if a == b {
                Ordering::Equal
            } else {
                Ordering::Less
            }
        }
        _ => return None,
    })
}

fn and<'a>(a: Val<'a>, b: impl FnOnce() -> Val<'a>) -> Val<'a> {
    match a {
        Val::Bool(false) => Val::Bool(false),
        Val::Bool(true) => b(),
        _ => match b() {
            Val::Bool(false) => Val::Bool(false),
            _ => Val::Null,
        },
    }
}

fn or<'a>(a: Val<'a>, b: impl FnOnce() -> Val<'a>) -> Val<'a> {
    match a {
        Val::Bool(true) => Val::Bool(true),
        Val::Bool(false) => b(),
        _ => match b() {
            Val::Bool(true) => Val::Bool(true),
            _ => Val::Null,
        },
    }
}

fn is_in<'a>(item: &Val<'_>, list: &Val<'_>) -> Val<'a> {
    let Val::List(items) = list else {
        return Val::Null;
    };
    let found = items.iter().any(|other| {
        let other = Val::of(other);
        match item {
            Val::Null => other.is_null(),
            _ => order(item, &other) == Some(Ordering::Equal),
        }
    });
    Val::Bool(found)
}

/// The entry of a map by the plain text of `key`.
fn find(map: &Val<'_>, key: &Val<'_>) -> Option<Value> {
    let Val::Map(entries) = map else {
        return None;
    };
    let text: Cow<'_, str> = match key {
        Val::Null => return None,
        Val::Str(s) => Cow::Borrowed(s.as_ref()),
        other => Cow::Owned(other.to_value().plain_text()),
    };
    entries.iter().find(|(k, _): &&(Arc<str>, Value)| **k == *text).map(|(_, v)| v.clone())
}

fn extreme<'a>(nodes: &'a [Node], vars: &'a [Val<'a>], keep: Ordering) -> Val<'a> {
    let mut best: Option<Val<'a>> = None;
    for node in nodes {
        let value = node.eval(vars);
        if value.is_null() {
            return Val::Null;
        }
        if best.as_ref().is_none_or(|b| order(&value, b) == Some(keep)) {
            best = Some(value);
        }
    }
    best.unwrap_or_default()
}

pub(super) fn int<'a>(result: Option<i64>) -> Val<'a> {
    result.map_or_else(|| null(NullCause::Overflow), Val::Int)
}

/// A float result: null when it is not finite, and never −0.0.
pub(super) fn finite<'a>(x: f64) -> Val<'a> {
    if x.is_finite() { Val::Float(x + 0.0) } else { null(NullCause::NonFinite) }
}

pub(super) fn null<'a>(cause: NullCause) -> Val<'a> {
    note(cause);
    Val::Null
}

fn int_arithmetic<'a>(op: Arithmetic, a: i64, b: i64) -> Val<'a> {
    match op {
        Arithmetic::Add => int(a.checked_add(b)),
        Arithmetic::Sub => int(a.checked_sub(b)),
        Arithmetic::Mul => int(a.checked_mul(b)),
        Arithmetic::Div | Arithmetic::Rem if b == 0 => null(NullCause::DivisionByZero),
        Arithmetic::Div => int(a.checked_div(b)),
        // i64::MIN % −1 is 0, although the machine's division overflows.
        Arithmetic::Rem => Val::Int(a.wrapping_rem(b)),
    }
}

fn float_arithmetic<'a>(op: Arithmetic, a: f64, b: f64) -> Val<'a> {
    match op {
        Arithmetic::Add => finite(a + b),
        Arithmetic::Sub => finite(a - b),
        Arithmetic::Mul => finite(a * b),
        Arithmetic::Div | Arithmetic::Rem if b == 0.0 => null(NullCause::DivisionByZero),
        Arithmetic::Div => finite(a / b),
        Arithmetic::Rem => finite(a % b),
    }
}
