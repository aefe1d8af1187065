//! The built-in functions.

use std::borrow::Cow;

use jiff::tz::TimeZone;

use super::Val;
use super::eval::{Node, finite, int, null};
use super::stats::NullCause;
use crate::model::{decimal, time};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CalendarField {
    Hour,
    Weekday,
    Day,
    Month,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Lower,
    Upper,
    AbsInt,
    AbsFloat,
    Floor,
    Ceil,
    Round,
    Sqrt,
    Log,
    Exp,
    Pow,
    ToInt,
    ToDouble,
    ToString,
}

/// Evaluates `function`: null when any argument is.
pub(super) fn call<'a>(function: Function, nodes: &'a [Node], vars: &'a [Val<'a>]) -> Val<'a> {
    let first = nodes[0].eval(vars);
    let second = nodes.get(1).map(|n| n.eval(vars));
    match (function, first, second) {
        (_, Val::Null, _) | (_, _, Some(Val::Null)) => Val::Null,
        (Function::Size, Val::Str(s), _) => Val::Int(s.chars().count() as i64),
        (Function::Size, Val::List(items), _) => Val::Int(items.len() as i64),
        (Function::Size, Val::Map(entries), _) => Val::Int(entries.len() as i64),
        (Function::Contains, Val::Str(a), Some(Val::Str(b))) => Val::Bool(a.contains(b.as_ref())),
        (Function::StartsWith, Val::Str(a), Some(Val::Str(b))) => Val::Bool(a.starts_with(b.as_ref())),
        (Function::EndsWith, Val::Str(a), Some(Val::Str(b))) => Val::Bool(a.ends_with(b.as_ref())),
        (Function::Lower, Val::Str(s), _) => Val::Str(Cow::Owned(s.to_lowercase())),
        (Function::Upper, Val::Str(s), _) => Val::Str(Cow::Owned(s.to_uppercase())),
        (Function::AbsInt, Val::Int(i), _) => int(i.checked_abs()),
        (Function::AbsFloat, Val::Float(x), _) => finite(x.abs()),
        (Function::Floor, Val::Float(x), _) => finite(x.floor()),
        (Function::Ceil, Val::Float(x), _) => finite(x.ceil()),
        // f64::round goes half away from zero, as the language says.
        (Function::Round, Val::Float(x), _) => finite(x.round()),
        (Function::Sqrt, Val::Float(x), _) if x < 0.0 => null(NullCause::Domain),
        (Function::Sqrt, Val::Float(x), _) => finite(x.sqrt()),
        (Function::Log, Val::Float(x), _) if x <= 0.0 => null(NullCause::Domain),
        (Function::Log, Val::Float(x), _) => finite(x.ln()),
        (Function::Exp, Val::Float(x), _) => finite(x.exp()),
        (Function::Pow, Val::Float(x), Some(Val::Float(y))) => finite(x.powf(y)),
        (Function::ToInt, value, _) => to_int(value),
        (Function::ToDouble, value, _) => to_double(value),
        (Function::ToString, Val::Str(s), _) => Val::Str(s),
        (Function::ToString, value, _) => Val::Str(Cow::Owned(value.to_value().plain_text())),
        _ => Val::Null,
    }
}

fn to_int(value: Val<'_>) -> Val<'_> {
    match value {
        Val::Int(i) => Val::Int(i),
        Val::Float(x) => {
            let x = x.trunc();
            // 2^63 itself is out of range, and exactly representable.
            let fits = (-9.223_372_036_854_775_8e18..9.223_372_036_854_775_8e18).contains(&x);
            if fits { Val::Int(x as i64) } else { null(NullCause::Overflow) }
        }
        Val::Timestamp(t) => Val::Int(t.div_euclid(1000)),
        Val::Str(s) => s.parse().map_or_else(|_| null(NullCause::Domain), Val::Int),
        Val::Bool(b) => Val::Int(i64::from(b)),
        _ => Val::Null,
    }
}

fn to_double(value: Val<'_>) -> Val<'_> {
    match value {
        Val::Int(i) => Val::Float(i as f64),
        Val::Float(x) => Val::Float(x),
        Val::Str(s) => {
            let is_number = s.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
            match decimal::float64(&s) {
                Some(x) if is_number => Val::Float(x),
                _ => null(NullCause::Domain),
            }
        }
        _ => Val::Null,
    }
}

pub(super) fn calendar<'a>(field: CalendarField, t: i64, zone: &TimeZone) -> Val<'a> {
    let Some(civil) = time::civil_in(t, zone) else {
        return Val::Null;
    };
    Val::Int(match field {
        CalendarField::Hour => i64::from(civil.hour()),
        CalendarField::Weekday => i64::from(civil.weekday().to_monday_one_offset()),
        CalendarField::Day => i64::from(civil.day()),
        CalendarField::Month => i64::from(civil.month()),
    })
}
