//! This file holds the functions of expressions.

use std::sync::Arc;

use crate::model::Value;

use super::time;
use super::values::{compare, finite, text_of};

/// Calls the function `name`, whose arguments have been typed.
pub(super) fn call(name: &str, arguments: &[Value]) -> Value {
    match name {
        "has" => return Value::Bool(!arguments[0].is_null()),
        "coalesce" => {
            let first = arguments.iter().find(|argument| !argument.is_null());
            return first.cloned().unwrap_or(Value::Null);
        }
        _ => {}
    }
    if arguments.iter().any(Value::is_null) {
        return Value::Null;
    }
    match (name, arguments) {
        ("min" | "max", [Value::List(items)]) => extreme(name, items),
        ("min" | "max", _) => extreme(name, arguments),
        ("int", [argument]) => to_int(argument),
        ("double", [argument]) => to_double(argument),
        ("string", [argument]) => Value::String(Arc::from(text_of(argument))),
        ("hour" | "weekday" | "day" | "month", [Value::Timestamp(instant), zone @ ..]) => {
            calendar(name, *instant, zone.first())
        }
        (_, [Value::String(text), rest @ ..]) => of_text(name, text, rest.first()),
        ("size", [Value::List(items)]) => Value::Int(items.len() as i64),
        ("size", [Value::Map(entries)]) => Value::Int(entries.len() as i64),
        ("contains", [Value::List(items), item]) => Value::Bool(items.contains(item)),
        ("abs", [Value::Int(number)]) => number.checked_abs().map_or(Value::Null, Value::Int),
        ("abs", [Value::Float(number)]) => finite(number.abs()),
        ("pow", [Value::Float(base), Value::Float(exponent)]) => finite(base.powf(*exponent)),
        (_, [Value::Float(number)]) => of_number(name, *number),
        _ => Value::Null,
    }
}

fn of_text(name: &str, text: &str, other: Option<&Value>) -> Value {
    let part = match other {
        Some(Value::String(part)) => &**part,
        _ => "",
    };
    match name {
        "size" => Value::Int(text.chars().count() as i64),
        "lower" => Value::String(Arc::from(text.to_lowercase())),
        "upper" => Value::String(Arc::from(text.to_uppercase())),
        "contains" => Value::Bool(text.contains(part)),
        "startsWith" => Value::Bool(text.starts_with(part)),
        "endsWith" => Value::Bool(text.ends_with(part)),
        _ => Value::Null,
    }
}

/// Infinities and what is no number become null: of a logarithm of at most 0 and of the root of
/// a negative number too.
fn of_number(name: &str, number: f64) -> Value {
    finite(match name {
        "floor" => number.floor(),
        "ceil" => number.ceil(),
        "round" => number.round(),
        "sqrt" => number.sqrt(),
        "log" => number.ln(),
        "exp" => number.exp(),
        _ => f64::NAN,
    })
}

fn extreme(name: &str, items: &[Value]) -> Value {
    if items.iter().any(Value::is_null) {
        return Value::Null;
    }
    let found = if name == "min" {
        items.iter().min_by(|left, right| compare(left, right))
    } else {
        items.iter().max_by(|left, right| compare(left, right))
    };
    found.cloned().unwrap_or(Value::Null)
}

fn to_int(argument: &Value) -> Value {
    /// 2⁶³, the first float above every int64; its negative is the least int64.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    match argument {
        Value::Int(number) => Value::Int(*number),
        Value::Float(number) => {
            let whole = number.trunc();
            if (-LIMIT..LIMIT).contains(&whole) { Value::Int(whole as i64) } else { Value::Null }
        }
        Value::Bool(flag) => Value::Int(i64::from(*flag)),
        // The contract is silent about it; as in CEL, it is whole seconds since the epoch.
        Value::Timestamp(instant) => Value::Int(instant.div_euclid(1000)),
        // Rust reads just what the oracle in Python takes: a sign and decimal digits.
        Value::String(text) => text.parse::<i64>().map_or(Value::Null, Value::Int),
        _ => Value::Null,
    }
}

fn to_double(argument: &Value) -> Value {
    match argument {
        Value::Int(number) => Value::Float(*number as f64),
        Value::Float(number) => Value::Float(*number),
        Value::Bool(flag) => Value::Float(f64::from(u8::from(*flag))),
        Value::String(text) => {
            // Rust also reads `inf` and `nan`, which are no numbers here.
            let is_plain = text.chars().all(|character| "+-.eE0123456789".contains(character));
            match text.parse::<f64>() {
                Ok(number) if is_plain => finite(number),
                _ => Value::Null,
            }
        }
        _ => Value::Null,
    }
}

fn calendar(name: &str, instant: i64, zone: Option<&Value>) -> Value {
    let parts = match zone {
        Some(Value::String(name)) => match time::zone(name) {
            Ok(zone) => time::local_parts(instant, Some(&zone)),
            Err(_) => return Value::Null,
        },
        _ => time::local_parts(instant, None),
    };
    Value::Int(match name {
        "hour" => parts.hour,
        "weekday" => parts.weekday,
        "day" => parts.day,
        _ => parts.month,
    })
}
