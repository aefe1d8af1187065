//! Small cases whose results were computed by hand.

use std::sync::Arc;

use super::key::{KeyPart, partition_of};
use super::*;
use crate::config::DefinitionFiles;

/// 2024-03-13T12:00:00Z, a Wednesday.
const START: i64 = 1_710_331_200_000;
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Definitions that lack their features only.
const BASE: &str = r#"
entities:
  user: { key: u, type: string }
sources:
  events:
    key: u
    event_time: { path: ts, format: unix_ms }
    grace: 30d
    event_id: id
    fields:
      u: { type: string }
      x: { type: float64, nullable: true }
      n: { type: int64, nullable: true }
      s: { type: string, nullable: true }
      b: { type: bool, nullable: true }
    validate: ["n != 100"]
feature_groups:
  g:
    entity: user
    source: events
    history: 3650d
    features:
"#;

/// An oracle that is being filled.
struct Log {
    oracle: Oracle,
    offsets: BTreeMap<u32, u64>,
}

impl Log {
    /// A log without records, for features that stand one on a line.
    fn of(features: &str) -> Self {
        Self::with(BASE, features, 1)
    }

    fn with(base: &str, features: &str, partitions: u32) -> Self {
        let lines = features.lines().map(|line| format!("      {}\n", line.trim()));
        let text = format!("{base}{}", lines.collect::<String>());
        let files = DefinitionFiles::of_text(&text);
        assert!(files.mistakes.is_empty(), "{:?}", files.mistakes);
        let oracle = Oracle::new(&files.definitions, partitions);
        Self { oracle: oracle.expect("the definitions are right"), offsets: BTreeMap::new() }
    }

    fn record(&mut self, partition: u32, timestamp: i64, payload: Option<&str>) {
        let offset = self.offsets.entry(partition).or_insert(0);
        self.oracle.push(&OracleRecord {
            topic: "events".to_owned(),
            partition,
            offset: *offset,
            timestamp,
            key: None,
            value: payload.map(|payload| payload.as_bytes().to_vec()),
        });
        *offset += 1;
    }

    /// An event of the user `a`, unless `fields` name another one: of a repeated key the last
    /// counts.
    fn event(&mut self, partition: u32, time: i64, fields: &str) {
        let comma = if fields.is_empty() { "" } else { "," };
        let payload = format!("{{\"ts\":{time},\"u\":\"a\"{comma}{fields}}}");
        self.record(partition, time, Some(&payload));
    }

    fn cell(&self, feature: &str, user: &str, now: i64) -> OracleCell {
        self.oracle.lookup("g", feature, &[Value::from(user)], now)
    }

    fn value(&self, feature: &str, now: i64) -> Value {
        self.cell(feature, "a", now).value
    }

    fn values(&self, feature: &str, times: &[i64]) -> Vec<Value> {
        times.iter().map(|now| self.value(feature, *now)).collect()
    }
}

fn ints(numbers: &[i64]) -> Vec<Value> {
    numbers.iter().copied().map(Value::Int).collect()
}

/// A list of texts.
pub(super) fn texts(items: &[&str]) -> Value {
    Value::List(items.iter().map(|item| Value::from(*item)).collect())
}

/// A map with these entries.
pub(super) fn map(entries: &[(&str, Value)]) -> Value {
    let entries = entries.iter().map(|(name, value)| (Arc::<str>::from(*name), value.clone()));
    Value::Map(entries.collect())
}

#[test]
fn a_record_ends_in_the_first_way_that_fits() {
    let base = BASE.replace("grace: 30d", "grace: 10m");
    let mut log = Log::with(&base, "c: { aggregate: count, window: 1h }", 1);
    log.record(0, START, None);
    log.record(0, START, Some("[]"));
    log.record(0, START, Some(r#"{"u":"a"}"#));
    log.record(0, START, Some(r#"{"ts":"x"}"#));
    log.record(0, START, Some(r#"{"ts":"x","u":"a"}"#));
    let mut at = |time: i64, fields: &str| {
        let payload = format!("{{\"ts\":{time},\"u\":\"a\"{fields}}}");
        log.record(0, START, Some(&payload));
    };
    at(START, r#","u":5"#);
    at(START, r#","id":5.5"#);
    at(START + HOUR + 1, "");
    at(START + HOUR + 1, r#","n":100"#);
    at(START, r#","n":100"#);
    at(START, r#","n":9.9e1"#);
    at(START - 10 * MINUTE, "");
    at(START - 10 * MINUTE - 1, "");
    let wanted = [
        ("read", 13),
        ("ignored", 0),
        ("accepted", 2),
        ("late", 1),
        ("malformed", 2),
        ("missing_field", 2),
        ("wrong_type", 3),
        ("ahead", 2),
        ("rule", 1),
    ];
    let wanted: BTreeMap<String, u64> =
        wanted.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    assert_eq!(log.oracle.source_counts("events"), wanted);
    assert_eq!(log.oracle.stream_time("g"), Some(START));
}

#[test]
fn a_clock_that_runs_ahead_moves_no_stream_time() {
    let mut log = Log::of("c: { aggregate: count, window: 1h }");
    let payload = format!("{{\"ts\":{},\"u\":\"a\"}}", START + HOUR);
    log.record(0, START, Some(&payload));
    assert_eq!(log.oracle.stream_time("g"), Some(START));
    assert_eq!(log.value("c", START + HOUR), Value::Int(1));
}

#[test]
fn an_event_ends_in_the_first_way_that_fits() {
    let base = BASE
        .replace("u: { type: string }", "u: { type: string, nullable: true }")
        .replace("history: 3650d", "history: 3650d\n    where: \"n > 0\"");
    let mut log = Log::with(&base, "c: { aggregate: count, window: 1h }", 2);
    log.event(0, START, r#""id":1,"n":1"#);
    log.event(0, START, r#""id":1,"n":1"#);
    log.event(0, START, r#""id":"1","n":1"#);
    log.event(0, START + 1, r#""id":1,"n":1"#);
    log.event(1, START, r#""id":1,"n":1"#);
    log.event(0, START, r#""id":2,"n":0"#);
    log.event(0, START, r#""id":2,"n":1"#);
    log.event(0, START, r#""id":2"#);
    log.event(0, START, r#""u":null,"id":1,"n":1"#);
    log.event(0, START, r#""n":1"#);
    log.event(0, START, r#""n":1"#);
    log.event(0, START, r#""u":"b","id":1,"n":1"#);
    let counts: Vec<(String, u64)> = log.oracle.group_counts("g").into_iter().collect();
    let wanted = [("applied", 8), ("duplicate", 1), ("filtered", 2), ("no_entity", 1)];
    assert_eq!(counts, wanted.map(|(name, count)| (name.to_owned(), count)));
    assert_eq!(log.value("c", START + 1), Value::Int(7));
    let entities = vec![vec![Value::from("a")], vec![Value::from("b")]];
    assert_eq!(log.oracle.entities("g"), entities);
}

#[test]
fn windows_hold_their_ends_and_not_their_starts_unless_they_have_tiles() {
    let mut log = Log::of(
        "exact: { aggregate: count, window: 1h }
         tiled: { aggregate: count, window: 30d }
         hopping: { aggregate: count, window: 1h, hop: 5m }
         day: { aggregate: count, since: day, zone: America/New_York }
         life: { aggregate: count, window: lifetime }",
    );
    log.event(0, START, "");
    let at = |offsets: &[i64]| offsets.iter().map(|offset| START + offset).collect::<Vec<i64>>();
    assert_eq!(log.values("exact", &at(&[-1, 0, HOUR - 1, HOUR])), ints(&[0, 1, 1, 0]));
    // 30 days have tiles of 30 minutes; noon is the start of one.
    let tiled = at(&[30 * DAY, 30 * DAY + 30 * MINUTE - 1, 30 * DAY + 30 * MINUTE]);
    assert_eq!(log.values("tiled", &tiled), ints(&[1, 1, 0]));
    let hops = at(&[0, 5 * MINUTE - 1, 5 * MINUTE, HOUR + 5 * MINUTE - 1, HOUR + 5 * MINUTE]);
    assert_eq!(log.values("hopping", &hops), ints(&[0, 0, 1, 1, 0]));
    // Midnight in New York is at 04:00Z.
    assert_eq!(log.values("day", &at(&[16 * HOUR - 1, 16 * HOUR])), ints(&[1, 0]));
    assert_eq!(log.values("life", &at(&[1000 * DAY])), ints(&[1]));
}

#[test]
fn sessions_end_where_the_gap_is_exceeded() {
    let mut log = Log::of(
        "s: { aggregate: count, of: x, session: 30m }
         short: { aggregate: count, session: 30m, max: 35m }
         length: { aggregate: session_duration, gap: 30m }
         starts: { aggregate: session_count, gap: 30m, window: 2h }
         life: { aggregate: count, window: lifetime }",
    );
    for minute in [0, 30, 61, 70, 100] {
        log.event(0, START + minute * MINUTE, r#""x":1.5"#);
    }
    log.event(0, START + 105 * MINUTE, "");
    let at = |minutes: i64| START + minutes * MINUTE;
    let times = [at(30), at(60), at(60) + 1, at(61), at(130), at(130) + 1];
    assert_eq!(log.values("s", &times), ints(&[2, 2, 0, 1, 3, 0]));
    assert_eq!(log.value("short", at(105)), Value::Int(2));
    assert_eq!(log.value("length", at(105)), Value::Float(44.0 * 60.0));
    assert_eq!(log.value("length", at(10)), Value::Float(0.0));
    assert_eq!(log.value("length", at(200)), Value::Null);
    // The predecessor of the first event in the window lies before it, and counts.
    let times = [at(105), at(119), at(120), at(140)];
    assert_eq!(log.values("starts", &times), ints(&[2, 2, 1, 1]));
}

/// Every aggregate, with its value over four events, and over none.
fn aggregates() -> Vec<(&'static str, &'static str, Value, Value)> {
    let (int, float, null) = (Value::Int, Value::Float, Value::Null);
    let list = |values: &[i64]| Value::List(ints(values).into());
    let top = Value::List(Arc::from([
        map(&[("value", Value::from("p")), ("count", int(2))]),
        map(&[("value", Value::from("q")), ("count", int(1))]),
    ]));
    let by_text = map(&[("p", int(2)), ("q", int(1)), ("r", int(1))]);
    let by_flag = map(&[("true", int(1)), ("false", int(1))]);
    let none = || Value::List(Arc::from([]));
    vec![
        ("count", "", int(4), int(0)),
        ("count", "of: x", int(3), int(0)),
        ("sum", "of: x", float(7.0), float(0.0)),
        ("sum", "of: n", int(7), int(0)),
        ("sum", "of: 'n * 2', where: \"s == 'p' || b\"", int(16), int(0)),
        ("mean", "of: x", float(7.0 / 3.0), null.clone()),
        ("variance", "of: x", float(7.0 / 3.0), null.clone()),
        ("stddev_pop", "of: x", float((14.0_f64 / 9.0).sqrt()), null.clone()),
        ("min", "of: n", int(-1), null.clone()),
        ("max", "of: event_time", Value::Timestamp(START + 2 * MINUTE), null.clone()),
        ("first", "of: s", Value::from("p"), null.clone()),
        ("last", "of: x", float(4.0), null.clone()),
        ("last_k", "of: s, k: 2", texts(&["r", "p"]), none()),
        ("distinct", "of: s", int(3), int(0)),
        ("distinct_values", "of: s", texts(&["r", "p", "q"]), none()),
        ("top_k", "of: s, k: 2", top, none()),
        ("value_counts", "of: s", by_text, map(&[])),
        ("value_counts", "of: b", by_flag, map(&[])),
        ("histogram", "of: x, bounds: [1, 2.5]", list(&[1, 1, 1]), list(&[0, 0, 0])),
        ("percentile", "of: x, q: 0.25", float(1.5), null.clone()),
        ("median", "of: n", float(4.0), null.clone()),
        ("rate", "per: 1m", float(4.0 / 60.0), float(0.0)),
        ("time_since_first", "", float(180.0), null.clone()),
        ("time_since_last", "of: n", float(120.0), null),
    ]
}

#[test]
fn aggregates_of_four_events_and_of_none() {
    let mut features = String::new();
    for (index, (aggregate, keys, ..)) in aggregates().iter().enumerate() {
        let comma = if keys.is_empty() { "" } else { ", " };
        let line = format!("f{index}: {{ aggregate: {aggregate}{comma}{keys}, window: 1h }}\n");
        features.push_str(&line);
    }
    features.push_str("decayed: { aggregate: decayed_sum, of: x, half_life: 1m }");
    let mut log = Log::of(&features);
    log.event(0, START, r#""x":1.0,"n":4,"s":"p","b":true"#);
    log.event(0, START + MINUTE, r#""x":2.0,"n":-1,"s":"q","b":false"#);
    log.event(0, START + MINUTE, r#""x":4.0,"n":4,"s":"p""#);
    log.event(0, START + 2 * MINUTE, r#""s":"r""#);
    for (index, (aggregate, keys, wanted, empty)) in aggregates().iter().enumerate() {
        let name = format!("f{index}");
        let value = log.value(&name, START + 3 * MINUTE);
        assert!(is_equal(wanted, &value, 1.0), "{aggregate} {keys}: {value:?}");
        let late = log.cell(&name, "a", START + 5 * HOUR);
        assert!(is_equal(empty, &late.value, IDENTICAL), "{aggregate} {keys}: {late:?}");
        let unknown = log.cell(&name, "zz", START);
        assert_eq!((&unknown.value, unknown.status), (empty, "NOT_FOUND"), "{aggregate}");
    }
    let decayed = log.cell("decayed", "a", START + 3 * MINUTE);
    assert!(is_equal(&Value::Float(1.625), &decayed.value, decayed.scale), "{decayed:?}");
    assert_eq!(decayed.events, 3);
}

#[test]
fn the_order_of_events_is_time_then_partition_then_offset() {
    let mut log = Log::with(
        BASE,
        "last: { aggregate: last_k, of: n, k: 9, window: 1h }
         seen: { aggregate: distinct_values, of: n, window: 1h }
         top: { aggregate: top_k, of: n, k: 1, window: 1h }",
        2,
    );
    log.event(1, START + 5, r#""n":10"#);
    log.event(0, START + 5, r#""n":9"#);
    log.event(1, START, r#""n":3"#);
    log.event(0, START + 5, r#""n":4"#);
    let list = |values: &[i64]| Value::List(ints(values).into());
    assert_eq!(log.value("last", START + 5), list(&[10, 4, 9, 3]));
    assert_eq!(log.value("seen", START + 5), list(&[4, 9, 10, 3]));
    let top = map(&[("value", Value::Int(3)), ("count", Value::Int(1))]);
    assert_eq!(log.value("top", START + 5), Value::List(Arc::from([top])));
}

#[test]
fn sums_outside_of_their_type_are_null() {
    let mut log = Log::of(
        "n: { aggregate: sum, of: n, window: 1h, default: 5 }
         x: { aggregate: sum, of: x, window: 1h }
         v: { aggregate: variance, of: x, window: 1h }
         same: { aggregate: stddev, of: '0.1', window: 1h }",
    );
    log.event(0, START, r#""n":9223372036854775807,"x":1.7e308"#);
    log.event(0, START + 1, r#""n":1,"x":1.7e308"#);
    log.event(0, START + 2, r#""n":-1"#);
    assert_eq!(log.values("n", &[START, START + 1, START + 2]), ints(&[i64::MAX, 5, i64::MAX]));
    assert_eq!(log.cell("n", "a", START + 1).status, "DEFAULTED");
    assert_eq!(log.cell("x", "a", START + 1).status, "NULL_VALUE");
    assert_eq!(log.value("v", START + 1), Value::Float(0.0));
    assert_eq!(log.value("same", START + 2), Value::Float(0.0));
}

#[test]
fn statuses_follow_the_table() {
    let base = BASE.replace("history: 3650d", "history: 1h");
    let mut log = Log::with(
        &base,
        "c: { aggregate: count, window: 1h, default: 7 }
         m: { aggregate: mean, of: x, window: 1h, default: 1, ttl: 10m }
         n: { aggregate: mean, of: x, window: 1h }",
        1,
    );
    log.event(0, START, r#""x":1.5"#);
    log.event(0, START + 2 * MINUTE, r#""u":"b""#);
    let stream_time = START + 2 * MINUTE;
    let (one, seven) = (Value::Float(1.0), Value::Int(7));
    for (feature, user, now, value, status, timestamp) in [
        ("c", "a", START + HOUR, Value::Int(0), "PRESENT", START),
        ("c", "a", START + HOUR + 1, seven.clone(), "NOT_FOUND", 0),
        ("n", "a", START + HOUR + 1, Value::Null, "NOT_FOUND", 0),
        ("m", "a", START + 10 * MINUTE, Value::Float(1.5), "PRESENT", START),
        ("m", "a", START + 10 * MINUTE + 1, one.clone(), "OUTSIDE_MAX_AGE", START),
        ("n", "a", START + HOUR, Value::Null, "NULL_VALUE", START),
        ("m", "b", START + 3 * MINUTE, one, "DEFAULTED", stream_time),
        ("c", "b", stream_time - HOUR, seven, "NOT_FOUND", 0),
        ("c", "b", stream_time - HOUR - 1, Value::Null, "OUT_OF_RANGE", 0),
    ] {
        let cell = log.cell(feature, user, now);
        let found = (cell.value, cell.status, cell.timestamp);
        assert_eq!(found, (value, status, timestamp), "{feature} of {user} at {now}");
    }
}

#[test]
fn the_readable_past_depends_on_the_partition_of_the_entity() {
    let in_two = |user: &str| partition_of(&[KeyPart::Text(user.to_owned())], 2);
    let other = ["b", "c", "d", "e", "f", "g"].into_iter().find(|user| in_two(user) != in_two("a"));
    let other = other.expect("not all names have the same partition");
    let base = BASE.replace("history: 3650d", "history: 1h");
    for (base, wanted) in [
        (base.clone(), ["PRESENT", "OUT_OF_RANGE"]),
        // Behind a repartition topic, one stream time is that of all.
        (base.replace("    key: u\n", ""), ["OUT_OF_RANGE", "OUT_OF_RANGE"]),
    ] {
        let mut log = Log::with(&base, "c: { aggregate: count, window: lifetime }", 2);
        log.event(in_two("a"), START, "");
        log.event(in_two(other), START + 10 * HOUR, &format!("\"u\":\"{other}\""));
        let statuses = ["a", other].map(|user| log.cell("c", user, START).status);
        assert_eq!(statuses, wanted);
        assert_eq!(log.cell("c", "a", START + 9 * HOUR).status, "PRESENT");
    }
}

#[test]
fn windows_that_reach_behind_a_cut_are_warming() {
    let features = "
        c: { aggregate: count, window: 1h }
        all: { aggregate: count, window: lifetime, default: 7 }
        none: { aggregate: max, of: n, window: 1h, default: 7 }
        runs: { aggregate: session_count, gap: 10m, window: 30m }
        run: { aggregate: count, session: 10m }";
    let mut log = Log::of(features.trim());
    log.oracle.cut("events", 0);
    log.event(0, START, "");
    log.event(0, START + 50 * MINUTE, "");
    let statuses = |now: i64| ["c", "all", "none", "runs", "run"].map(|f| log.cell(f, "a", now).status);
    let warming = "WARMING";
    assert_eq!(statuses(START + 50 * MINUTE), [warming, warming, warming, "PRESENT", "PRESENT"]);
    assert_eq!(statuses(START + 39 * MINUTE), [warming, warming, warming, warming, "PRESENT"]);
    assert_eq!(statuses(START + 9 * MINUTE), [warming; 5]);
    assert_eq!(log.value("none", START + 50 * MINUTE), Value::Null);
    // The window is (now − 1h, now], and everything from START on is known.
    assert_eq!(log.cell("c", "a", START + HOUR - 2).status, warming);
    assert_eq!(log.cell("c", "a", START + HOUR - 1).status, "PRESENT");
}

#[test]
fn floats_are_equal_within_their_scale() {
    let (half, near) = (Value::Float(0.5), Value::Float(0.5 + 1.9));
    assert!(is_equal(&half, &near, 2e9));
    assert!(!is_equal(&half, &near, 1e9));
    assert!(!is_equal(&half, &Value::Float(0.5 + 1e-12), IDENTICAL));
    assert!(!is_equal(&Value::Float(0.0), &Value::Float(-0.0), 1.0));
    assert!(!is_equal(&Value::Int(1), &Value::Float(1.0), 1.0));
    let (left, right) = (("a", Value::Int(1)), ("b", Value::Int(2)));
    let turned = map(&[right.clone(), left.clone()]);
    assert!(is_equal(&map(&[left, right]), &turned, 0.0));
}
