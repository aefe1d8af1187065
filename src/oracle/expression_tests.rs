//! Expressions whose values were computed by hand.

use super::tests::{map, texts};
use super::*;
use crate::model::ScalarType;

/// 2024-03-13T12:00:00Z, a Wednesday.
const START: i64 = 1_710_331_200_000;

fn variables() -> Vec<(String, Value)> {
    let named = [
        ("i", Value::Int(7)),
        ("j", Value::Int(-2)),
        ("big", Value::Int(i64::MAX)),
        ("z", Value::Null),
        ("f", Value::Float(2.5)),
        ("s", Value::from("Grüße")),
        ("b", Value::Bool(true)),
        ("t", Value::Timestamp(START)),
        ("l", texts(&["x", "y"])),
        ("m", map(&[("a", Value::Int(3)), ("5", Value::Int(1))])),
    ];
    named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn assert_evaluates(cases: &[(&str, Value)]) {
    for (expression, wanted) in cases {
        let value = evaluate_text(expression, &variables());
        assert_eq!(value.as_ref(), Ok(wanted), "{expression}");
    }
}

#[test]
fn expressions_have_the_values_of_their_static_types() {
    assert_evaluates(&[
        ("1 + 2 * 3", Value::Int(7)),
        ("1 - 2 - 3", Value::Int(-4)),
        ("-7 / 2", Value::Int(-3)),
        ("i % j", Value::Int(1)),
        ("-7.5 % 2", Value::Float(-1.5)),
        ("i + f", Value::Float(9.5)),
        ("b ? 1 : 2.5", Value::Float(1.0)),
        ("coalesce(i, 1.5) / 2", Value::Float(3.5)),
        ("-9223372036854775808", Value::Int(i64::MIN)),
        ("0.0 * -1.0", Value::Float(0.0)),
        ("false ? 1 : true ? 2 : 3", Value::Int(2)),
        ("i == 7.0 && 'a' < 'b'", Value::Bool(true)),
        ("i in [1.0, 7.0]", Value::Bool(true)),
        ("s.size() + size(l)", Value::Int(7)),
        ("s.matches('^Gr.*e$') && !matches(s, '^r')", Value::Bool(true)),
        ("round(-2.5) + floor(7)", Value::Float(4.0)),
        ("round(0.49999999999999994)", Value::Float(0.0)),
        ("max(3, 2.5)", Value::Float(3.0)),
        ("int(-2.9) + int('12')", Value::Int(10)),
        ("string(2.5) + 'a\\n\\u00e9'", Value::from("2.5a\né")),
        ("hour(t, 'America/New_York') * 100 + weekday(t)", Value::Int(803)),
        ("t.day() * 100 + t.month()", Value::Int(1303)),
        ("m['a'] + m[5]", Value::Int(4)),
        ("0x10 // the rest is a comment", Value::Int(16)),
    ]);
}

#[test]
fn null_goes_through_everything_but_what_asks_for_it() {
    for expression in [
        "z + 1",
        "z == z",
        "z && b",
        "!z",
        "z ? 1 : 2",
        "7 / 0",
        "7.0 / 0.0",
        "7 % 0",
        "big + 1",
        "-(-9223372036854775808)",
        "1e308 * 10.0",
        "sqrt(-1)",
        "log(0)",
        "exp(1000)",
        "pow(0, -1)",
        "int(1e30)",
        "int('x')",
        "m['zz']",
        "l[9]",
        "min(z, 1)",
        "s + z",
        "abs(-9223372036854775808)",
        "double('nan')",
        "'x' in z",
    ] {
        assert_eq!(evaluate_text(expression, &variables()), Ok(Value::Null), "{expression}");
    }
    assert_evaluates(&[
        ("z == null && null == z && i != null", Value::Bool(true)),
        ("has(z) || has(i)", Value::Bool(true)),
        ("coalesce(z, i)", Value::Int(7)),
        ("z in [1, null]", Value::Bool(true)),
        ("z in [1, 7]", Value::Bool(false)),
        ("z && false", Value::Bool(false)),
        ("z || true", Value::Bool(true)),
    ]);
    let null = ("x".to_owned(), Type::Scalar(ScalarType::Float64), Value::Null);
    let seven = ("i".to_owned(), Type::Scalar(ScalarType::Int64), Value::Int(7));
    assert_eq!(evaluate_typed("coalesce(x, i) / 2", &[null, seven]), Ok(Value::Float(3.5)));
}

#[test]
fn wrong_expressions_are_refused() {
    for expression in [
        "unknown",
        "1 + 'a'",
        "i && b",
        "size(1)",
        "'a' == 1",
        "foo(1)",
        "1 +",
        "(1",
        "1 2",
        "matches(s, '(')",
        "9223372036854775808",
        "hour(1)",
        "'it''s'",
        "null < 1",
        "t - t",
        "hour(t, 'Nowhere')",
        "'\\q'",
        "[1, 'a']",
        "in",
    ] {
        assert!(evaluate_text(expression, &variables()).is_err(), "{expression}");
    }
}

#[test]
fn patterns_mean_what_they_mean_in_re2() {
    assert_evaluates(&[
        (r"matches('é', r'\w')", Value::Bool(false)),
        (r"matches('é', r'^\W$')", Value::Bool(true)),
        (r"matches('e1', r'^\w\d$')", Value::Bool(true)),
        (r"matches('a[b', r'[[x]b')", Value::Bool(true)),
        (r"matches('7', r'^[[:digit:]\D]$')", Value::Bool(true)),
        (r"matches('&', r'^[a&&b]$')", Value::Bool(true)),
        (r"matches(']', r'^[]]$')", Value::Bool(true)),
    ]);
}
