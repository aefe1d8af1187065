//! The compiled evaluator against the naive one, which shares no code with it.

use proptest::prelude::*;

use super::{Expr, Scope, Val};
use crate::model::{ScalarType, Type, Value};
use crate::oracle::evaluate_typed;

const FIELDS: [(&str, Type); 11] = [
    ("i", Type::Scalar(ScalarType::Int64)),
    ("j", Type::Scalar(ScalarType::Int64)),
    ("x", Type::Scalar(ScalarType::Float64)),
    ("y", Type::Scalar(ScalarType::Float64)),
    ("s", Type::Scalar(ScalarType::String)),
    ("p", Type::Scalar(ScalarType::Bool)),
    ("q", Type::Scalar(ScalarType::Bool)),
    ("t", Type::Scalar(ScalarType::Timestamp)),
    ("ints", Type::List(ScalarType::Int64)),
    ("floats", Type::List(ScalarType::Float64)),
    ("texts", Type::List(ScalarType::String)),
];

/// Texts of expressions by type: numbers, truth values, strings.
fn number(depth: u32) -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        Just("i".to_owned()),
        Just("j".to_owned()),
        Just("x".to_owned()),
        Just("y".to_owned()),
        (-3_i64..4).prop_map(|n| format!("({n})")),
        Just("2.5".to_owned()),
        Just("9223372036854775807".to_owned()),
    ];
    if depth == 0 {
        return leaf.boxed();
    }
    let inner = number(depth - 1);
    prop_oneof![
        leaf,
        (inner.clone(), prop::sample::select(vec!["+", "-", "*", "/", "%"]), inner.clone())
            .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
        (prop::sample::select(vec!["abs", "floor", "ceil", "round", "sqrt", "-"]), inner.clone())
            .prop_map(|(f, a)| format!("{f}({a})")),
        (prop::sample::select(vec!["min", "max", "coalesce"]), inner.clone(), inner.clone())
            .prop_map(|(f, a, b)| format!("{f}({a}, {b})")),
        (truth(depth - 1), inner.clone(), inner.clone()).prop_map(|(c, a, b)| format!("({c} ? {a} : {b})")),
        inner.prop_map(|a| format!("int({a})")),
        text(depth - 1).prop_map(|s| format!("size({s})")),
        prop::sample::select(vec!["hour", "weekday", "day", "month"])
            .prop_map(|f| format!("{f}(t, 'America/New_York')")),
    ]
    .boxed()
}

fn truth(depth: u32) -> BoxedStrategy<String> {
    let leaf = prop_oneof![Just("p".to_owned()), Just("q".to_owned()), Just("true".to_owned())];
    if depth == 0 {
        return leaf.boxed();
    }
    let inner = truth(depth - 1);
    prop_oneof![
        leaf,
        (number(depth - 1), prop::sample::select(vec!["==", "!=", "<", "<=", ">", ">="]), number(depth - 1))
            .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
        (inner.clone(), prop::sample::select(vec!["&&", "||"]), inner.clone())
            .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
        inner.clone().prop_map(|a| format!("!{a}")),
        prop::sample::select(vec!["i", "x", "s", "p"]).prop_map(|v| format!("({v} == null)")),
        prop::sample::select(vec!["i", "x", "s", "p"]).prop_map(|v| format!("has({v})")),
        (number(depth - 1), list(depth - 1)).prop_map(|(a, l)| format!("({a} in {l})")),
        (list(depth - 1), prop::sample::select(vec!["==", "!="]), list(depth - 1))
            .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
        (text(depth - 1), prop::sample::select(vec!["contains", "startsWith", "endsWith"]), text(depth - 1))
            .prop_map(|(a, f, b)| format!("{a}.{f}({b})")),
        (text(depth - 1), prop::sample::select(vec!["['a', 'ab', '']", "texts", "[]"]))
            .prop_map(|(a, l)| format!("({a} in {l})")),
        text(depth - 1).prop_map(|a| format!("matches({a}, '^a+b?')")),
    ]
    .boxed()
}

/// Lists of numbers, of either type.
fn list(depth: u32) -> BoxedStrategy<String> {
    let leaf = prop::sample::select(vec!["ints", "floats", "[1, 2, 3]", "[0.5, null]", "[]"]);
    let leaf = leaf.prop_map(str::to_owned);
    if depth == 0 {
        return leaf.boxed();
    }
    let inner = list(depth - 1);
    prop_oneof![
        leaf,
        (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("coalesce({a}, {b})")),
        (truth(depth - 1), inner.clone(), inner).prop_map(|(c, a, b)| format!("({c} ? {a} : {b})")),
        (number(depth - 1), number(depth - 1)).prop_map(|(a, b)| format!("[{a}, {b}]")),
    ]
    .boxed()
}

fn text(depth: u32) -> BoxedStrategy<String> {
    let leaf = prop_oneof![Just("s".to_owned()), Just("'ab'".to_owned()), Just("''".to_owned())];
    if depth == 0 {
        return leaf.boxed();
    }
    let inner = text(depth - 1);
    prop_oneof![
        leaf,
        (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} + {b})")),
        (prop::sample::select(vec!["lower", "upper"]), inner).prop_map(|(f, a)| format!("{f}({a})")),
    ]
    .boxed()
}

fn values() -> impl Strategy<Value = Vec<Value>> {
    let int = || {
        prop_oneof![
            Just(Value::Null),
            (-3_i64..4).prop_map(Value::Int),
            Just(Value::Int(i64::MIN)),
            Just(Value::Int(i64::MAX)),
        ]
    };
    let float = || {
        prop_oneof![
            Just(Value::Null),
            prop::sample::select(vec![-2.5, -1.0, -0.5, 0.0, 0.5, 1.5, 1e300, -1e300]).prop_map(Value::Float),
        ]
    };
    let string = prop_oneof![Just(Value::Null), "[aAbé]{0,3}".prop_map(|s| Value::from(s.as_str()))];
    let truth = || prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::Bool)];
    let time = prop_oneof![
        Just(Value::Null),
        (-1_000_000_000_000_i64..2_000_000_000_000).prop_map(Value::Timestamp),
    ];
    let of = |items: Vec<Value>| Value::List(items.into());
    let ints = prop_oneof![Just(Value::Null), prop::collection::vec(int(), 0..3).prop_map(of)];
    let floats = prop_oneof![Just(Value::Null), prop::collection::vec(float(), 0..3).prop_map(of)];
    let texts = prop_oneof![Just(Value::Null), Just(of(vec![Value::from("a"), Value::Null]))];
    let lists = (ints, floats, texts).prop_map(|(a, b, c)| [a, b, c]);
    ((int(), int(), float(), float()), string, truth(), truth(), time, lists)
        .prop_map(|((i, j, x, y), s, p, q, t, lists)| [vec![i, j, x, y, s, p, q, t], lists.into()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn compiled_and_naive_evaluators_agree(
        text in prop_oneof![number(3), truth(3), text(3)],
        values in values(),
    ) {
        let scope: Vec<(String, Type)> =
            FIELDS.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect();
        let Ok(expr) = Expr::compile(&text, &Scope::of_fields(&scope)) else {
            // Some texts are over the limits; none is of a wrong type by construction.
            prop_assert!(text.len() > 500 || text.contains("int("), "{}", text);
            return Ok(());
        };
        let variables: Vec<Val<'_>> = values.iter().map(Val::of).collect();
        let ours = expr.eval(&variables).to_value();
        let named: Vec<(String, Type, Value)> = FIELDS
            .iter()
            .zip(&values)
            .map(|((name, kind), value)| ((*name).to_owned(), *kind, value.clone()))
            .collect();
        let theirs = evaluate_typed(&text, &named);
        prop_assert_eq!(Ok(ours), theirs, "{}", text);
    }
}

fn value_of(text: &str) -> Result<Value, super::ExprError> {
    let scope: Vec<(String, Type)> = FIELDS.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect();
    let expr = Expr::compile(text, &Scope::of_fields(&scope))?;
    let variables: Vec<Val<'_>> = FIELDS.iter().map(|_| Val::Null).collect();
    Ok(expr.eval(&variables).to_value())
}

#[test]
fn literals_are_those_of_cel() {
    for (text, expected) in [
        (r#"r'^\d' + R"\n""#, Value::from(r"^\d\n")),
        (r"'\a\b\f\v\101\X41'", Value::from("\u{7}\u{8}\u{c}\u{b}AA")),
        ("'''it's'''", Value::from("it's")),
        ("\"\"\"a\nb\"\"\"", Value::from("a\nb")),
        (".5 + 1.0", Value::Float(1.5)),
        ("0XfF", Value::Int(255)),
        ("1 // one\n + 1", Value::Int(2)),
        ("double(' 12')", Value::Null),
    ] {
        assert_eq!(value_of(text), Ok(expected), "{text}");
    }
    assert!(value_of("'a\nb'").is_err());
}

#[test]
fn the_depth_of_the_tree_is_limited_and_not_the_length_of_a_choice() {
    let choice = vec!["p"; 800].join("||");
    assert_eq!(value_of(&choice), Ok(Value::Null));
    assert_eq!(value_of(&format!("{choice}||true")), Ok(Value::Bool(true)));
    let sum = |terms: usize| vec!["1"; terms].join("+");
    assert_eq!(value_of(&sum(64)), Ok(Value::Int(64)));
    assert!(value_of(&sum(65)).is_err_and(|e| e.message.contains("deeper than 64")));
    // Each level of operators and each bracket used to begin anew.
    let hidden = format!("(({}){})", sum(40), "*1".repeat(40));
    assert!(value_of(&hidden).is_err());
    assert!(value_of(&format!("{}1{}", "(".repeat(70), ")".repeat(70))).is_err());
}
