//! Raw JSON values to typed ones (SEMANTICS §3).

use std::borrow::Cow;

use super::json::{Raw, unescape};
use crate::expr::Val;
use crate::model::{ScalarType, decimal, time};
use crate::topology::TimeText;

/// How a field wants its value.
#[derive(Clone, Copy)]
pub struct Want<'a> {
    /// Its type.
    pub scalar: ScalarType,
    /// Whether text and numbers are taken for each other.
    pub coerce: bool,
    /// Longest string.
    pub max_bytes: usize,
    /// How a timestamp is written.
    pub time: &'a TimeText,
}

/// The value as `want`s it; `None` when it has another type or does not fit. Null stays null.
pub fn convert<'a>(raw: Raw<'a>, want: Want<'_>) -> Option<Val<'a>> {
    if matches!(raw, Raw::Missing | Raw::Null) {
        return Some(Val::Null);
    }
    match want.scalar {
        ScalarType::String => {
            let text = match raw {
                Raw::Text(text, false) => Cow::Borrowed(text),
                Raw::Text(text, true) => Cow::Owned(unescape(text)?),
                Raw::Number(text) if want.coerce => Cow::Borrowed(text),
                _ => return None,
            };
            (text.len() <= want.max_bytes).then_some(Val::Str(text))
        }
        ScalarType::Int64 => with_number(raw, want.coerce, |n| decimal::int64(n).map(Val::Int)),
        ScalarType::Float64 => with_number(raw, want.coerce, |n| decimal::float64(n).map(Val::Float)),
        ScalarType::Bool => match raw {
            Raw::Bool(b) => Some(Val::Bool(b)),
            Raw::Text(..) if want.coerce => match plain(raw)?.trim() {
                "true" => Some(Val::Bool(true)),
                "false" => Some(Val::Bool(false)),
                _ => None,
            },
            _ => None,
        },
        ScalarType::Timestamp => timestamp(raw, want.time, want.coerce).map(Val::Timestamp),
    }
}

/// The text of a string.
fn plain(raw: Raw<'_>) -> Option<Cow<'_, str>> {
    match raw {
        Raw::Text(text, false) => Some(Cow::Borrowed(text)),
        Raw::Text(text, true) => Some(Cow::Owned(unescape(text)?)),
        _ => None,
    }
}

fn with_number<T>(raw: Raw<'_>, coerce: bool, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    match raw {
        Raw::Number(text) => read(text),
        Raw::Text(..) if coerce => {
            let text = plain(raw)?;
            let text = text.trim();
            if is_json_number(text) { read(text) } else { None }
        }
        _ => None,
    }
}

fn is_json_number(text: &str) -> bool {
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|e| digits(e.strip_prefix(['+', '-']).unwrap_or(e)))
}

/// A timestamp in milliseconds.
pub fn timestamp(raw: Raw<'_>, form: &TimeText, coerce: bool) -> Option<i64> {
    match form {
        TimeText::Rfc3339(zone) => time::parse_rfc3339(&plain(raw)?, zone.as_ref()),
        TimeText::Unix(digits) => with_number(raw, coerce, |text| {
            let digits = i64::from(*digits);
            if let (Some(whole), true) = (decimal::int64(text), digits < 6) {
                return time::in_range(i128::from(whole) * if digits == 0 { 1000 } else { 1 });
            }
            // Only seconds may have a fraction; all are floored to the millisecond.
            if digits > 0 && !decimal::scaled(text, 0)?.is_exact {
                return None;
            }
            time::in_range(decimal::scaled(text, 3 - digits)?.floor)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_follow_the_decimal_text() {
        let rfc = TimeText::Rfc3339(None);
        let want = |scalar, coerce| Want { scalar, coerce, max_bytes: 4, time: &rfc };
        let shown = |raw, w| convert(raw, w).map(|v| format!("{:?}", v.to_value()));
        for (raw, scalar, coerce, expected) in [
            (Raw::Number("5.0"), ScalarType::Int64, false, Some("Int(5)")),
            (Raw::Number("5.5"), ScalarType::Int64, false, None),
            (Raw::Text("5", false), ScalarType::Int64, false, None),
            (Raw::Text(" 5 ", false), ScalarType::Int64, true, Some("Int(5)")),
            (Raw::Text("05", false), ScalarType::Int64, true, None),
            (Raw::Number("1e999"), ScalarType::Float64, false, None),
            (Raw::Number("1.50"), ScalarType::String, true, Some("String(\"1.50\")")),
            (Raw::Text("abcde", false), ScalarType::String, false, None),
            (Raw::Text("true", false), ScalarType::Bool, true, Some("Bool(true)")),
            (Raw::Bool(true), ScalarType::String, true, None),
            (Raw::Container, ScalarType::String, true, None),
        ] {
            assert_eq!(shown(raw, want(scalar, coerce)).as_deref(), expected, "{raw:?} {scalar:?}");
        }
    }

    #[test]
    fn unix_times_are_floored() {
        for (text, digits, want) in [
            ("1.0019", 0, Some(1001)),
            ("-0.0001", 0, Some(-1)),
            ("1001", 3, Some(1001)),
            ("1001.5", 3, None),
            ("1999", 6, Some(1)),
            ("1e30", 0, None),
        ] {
            assert_eq!(timestamp(Raw::Number(text), &TimeText::Unix(digits), false), want, "{text}");
        }
    }
}
