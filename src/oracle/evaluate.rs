//! This file evaluates expressions by walking their typed trees.

use std::sync::Arc;

use crate::model::Value;

use super::check::{Form, Typed};
use super::functions;
use super::pattern;
use super::values::{compare, entry, finite, text_of};

/// The value of an expression, given those of its variables.
pub(super) fn evaluate(typed: &Typed, variables: &[Value]) -> Value {
    let value_of = |part: &Typed| evaluate(part, variables);
    match &typed.form {
        Form::Literal(value) => value.clone(),
        Form::Variable(index) => variables[*index].clone(),
        Form::Member(base, name) => member(&value_of(base), name),
        Form::Index(base, key) => index(&value_of(base), &value_of(key)),
        Form::List(items) => Value::List(items.iter().map(value_of).collect()),
        Form::Condition(condition, then, otherwise) => match value_of(condition) {
            Value::Bool(true) => value_of(then),
            Value::Bool(false) => value_of(otherwise),
            _ => Value::Null,
        },
        Form::Not(operand) => match value_of(operand) {
            Value::Bool(flag) => Value::Bool(!flag),
            _ => Value::Null,
        },
        Form::Negative(operand) => match value_of(operand) {
            Value::Int(number) => number.checked_neg().map_or(Value::Null, Value::Int),
            Value::Float(number) => finite(-number),
            _ => Value::Null,
        },
        Form::Logic(deciding, left, right) => logic(*deciding, &value_of(left), &value_of(right)),
        Form::In(item, container) => is_in(&value_of(item), &value_of(container)),
        Form::IsNull(result, operand) => Value::Bool(value_of(operand).is_null() == *result),
        Form::Compare(operator, left, right) => comparison(operator, &value_of(left), &value_of(right)),
        Form::Arithmetic(operator, left, right) => arithmetic(operator, &value_of(left), &value_of(right)),
        Form::Call(name, arguments) => {
            let arguments: Vec<Value> = arguments.iter().map(value_of).collect();
            functions::call(name, &arguments)
        }
        Form::Matches(text, written, compiled) => match (value_of(text), value_of(written)) {
            (Value::String(text), Value::String(written)) => match compiled {
                Some(compiled) => Value::Bool(compiled.is_match(&text)),
                None => pattern::compile(&written)
                    .map_or(Value::Null, |compiled| Value::Bool(compiled.is_match(&text))),
            },
            _ => Value::Null,
        },
        Form::Widen(operand) => widened(value_of(operand)),
    }
}

/// Whether a condition is true; null counts as false.
pub(super) fn is_true(condition: &Typed, variables: &[Value]) -> bool {
    evaluate(condition, variables) == Value::Bool(true)
}

/// Whether a rule is broken; null passes.
pub(super) fn is_false(condition: &Typed, variables: &[Value]) -> bool {
    evaluate(condition, variables) == Value::Bool(false)
}

fn widened(value: Value) -> Value {
    match value {
        Value::Int(number) => Value::Float(number as f64),
        Value::List(items) => Value::List(items.iter().cloned().map(widened).collect()),
        other => other,
    }
}

fn member(base: &Value, name: &str) -> Value {
    match base {
        Value::Map(entries) => entry(entries, name).cloned().unwrap_or(Value::Null),
        _ => Value::Null,
    }
}

fn index(base: &Value, key: &Value) -> Value {
    match (base, key) {
        (_, Value::Null) => Value::Null,
        (Value::List(items), Value::Int(at)) => {
            usize::try_from(*at).ok().and_then(|at| items.get(at)).cloned().unwrap_or(Value::Null)
        }
        (Value::Map(_), key) => member(base, &text_of(key)),
        _ => Value::Null,
    }
}

/// Three-valued logic: one operand that decides is enough, whatever the other is.
fn logic(deciding: bool, left: &Value, right: &Value) -> Value {
    if *left == Value::Bool(deciding) || *right == Value::Bool(deciding) {
        Value::Bool(deciding)
    } else if left.is_null() || right.is_null() {
        Value::Null
    } else {
        Value::Bool(!deciding)
    }
}

/// Here null is a value that a list can hold.
fn is_in(item: &Value, container: &Value) -> Value {
    match container {
        Value::List(items) => Value::Bool(items.contains(item)),
        Value::Map(entries) => Value::Bool(!item.is_null() && entry(entries, &text_of(item)).is_some()),
        _ => Value::Null,
    }
}

fn comparison(operator: &str, left: &Value, right: &Value) -> Value {
    if left.is_null() || right.is_null() {
        return Value::Null;
    }
    Value::Bool(match operator {
        "==" => left == right,
        "!=" => left != right,
        "<" => compare(left, right).is_lt(),
        "<=" => compare(left, right).is_le(),
        ">" => compare(left, right).is_gt(),
        _ => compare(left, right).is_ge(),
    })
}

fn arithmetic(operator: &str, left: &Value, right: &Value) -> Value {
    match (left, right) {
        (Value::Int(left), Value::Int(right)) => {
            integer(operator, *left, *right).map_or(Value::Null, Value::Int)
        }
        (Value::Float(left), Value::Float(right)) => float(operator, *left, *right),
        (Value::String(left), Value::String(right)) => Value::String(Arc::from(format!("{left}{right}"))),
        (Value::List(left), Value::List(right)) => {
            Value::List(left.iter().chain(right.iter()).cloned().collect())
        }
        _ => Value::Null,
    }
}

fn integer(operator: &str, left: i64, right: i64) -> Option<i64> {
    match operator {
        "+" => left.checked_add(right),
        "-" => left.checked_sub(right),
        "*" => left.checked_mul(right),
        "/" => left.checked_div(right),
        // The remainder of the least integer by −1 is 0, although the quotient overflows.
        _ if right == -1 => Some(0),
        _ => left.checked_rem(right),
    }
}

fn float(operator: &str, left: f64, right: f64) -> Value {
    finite(match operator {
        "+" => left + right,
        "-" => left - right,
        "*" => left * right,
        // By zero both give an infinity or no number, which is null either way.
        "/" => left / right,
        _ => left % right,
    })
}
