//! This file compares values and shows them as text.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::model::Value;

use super::time;

/// The ascending order of two values of one type; texts are ordered by their bytes.
pub(super) fn compare(left: &Value, right: &Value) -> Ordering {
    match (left, right) {
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Int(left), Value::Int(right)) | (Value::Timestamp(left), Value::Timestamp(right)) => {
            left.cmp(right)
        }
        // Floats are finite, so that every two of them have an order.
        (Value::Float(left), Value::Float(right)) => left.partial_cmp(right).unwrap_or(Ordering::Equal),
        (Value::String(left), Value::String(right)) => left.as_bytes().cmp(right.as_bytes()),
        _ => Ordering::Equal,
    }
}

/// A scalar as the function `string` and the keys of `value_counts` show it.
pub(super) fn text_of(value: &Value) -> String {
    match value {
        Value::Bool(flag) => flag.to_string(),
        Value::Int(number) => number.to_string(),
        // The shortest digits that give the number back, always with a fraction or an exponent.
        Value::Float(number) => format!("{number:?}"),
        Value::Timestamp(instant) => time::format_rfc3339(*instant),
        Value::String(text) => text.to_string(),
        Value::Null | Value::List(_) | Value::Map(_) => String::new(),
    }
}

/// A number as a float; what is no number is 0.
pub(super) fn as_float(value: &Value) -> f64 {
    match value {
        Value::Int(number) => *number as f64,
        Value::Float(number) => *number,
        _ => 0.0,
    }
}

/// A float result: null unless it is finite, and never −0.0.
pub(super) fn finite(number: f64) -> Value {
    if number.is_finite() { Value::Float(number + 0.0) } else { Value::Null }
}

/// The entry of a map.
pub(super) fn entry<'a>(entries: &'a [(Arc<str>, Value)], name: &str) -> Option<&'a Value> {
    entries.iter().find(|(known, _)| **known == *name).map(|(_, value)| value)
}
