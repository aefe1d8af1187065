//! Values over more events than are read one by one, against counts of the events themselves.

use std::cell::Cell as Count;
use std::collections::{BTreeMap, BTreeSet};

use super::insert::Arrival;
use super::unit::{Entry, Unit, UnitRules, encode_entries};
use super::view::{RowSource, UnitView, decode_node};
use crate::error::{Error, Result};
use crate::expr::Val;
use crate::model::{Aggregate, Millis, ScalarType, Value};
use crate::operator::{Answer, EventBuf, Feature, Layout, Order, Span, evaluate};

/// More than [`crate::operator::sketch::READ_MAX`].
const EVENTS: u64 = 300_000;
const SECOND: Millis = 1000;

#[derive(Default)]
struct Rows {
    rows: BTreeMap<u64, Vec<u8>>,
    read: Count<usize>,
}

impl RowSource for Rows {
    fn row(&self, id: u64) -> Result<Vec<u8>> {
        self.read.set(self.read.get() + 1);
        self.rows.get(&id).cloned().ok_or_else(|| Error::corrupted(format!("row {id} is missing")))
    }
}

struct Event {
    time: Millis,
    offset: u64,
    user: String,
    country: String,
    amount: f64,
}

/// A skewed choice of many users, few countries, and amounts that drift.
fn event(index: u64) -> Event {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 11;
    let share = z as f64 / (1_u64 << 53) as f64;
    Event {
        time: index as Millis * SECOND,
        offset: index,
        user: format!("user-{}", (share.powi(4) * 60_000.0) as u64),
        country: format!("C{}", z % 40),
        amount: share.powi(3) * 1000.0 + index as f64 / 1000.0,
    }
}

fn layout() -> Layout {
    let mut layout = Layout::new(vec![ScalarType::String, ScalarType::String, ScalarType::Float64], 0);
    for (column, aggregate) in [
        (0, Aggregate::Distinct),
        (0, Aggregate::TopK),
        (0, Aggregate::DistinctValues),
        (1, Aggregate::Distinct),
        (1, Aggregate::TopK),
        (1, Aggregate::DistinctValues),
        (2, Aggregate::Percentile),
    ] {
        let series = layout.add_series(Some(column), None, Vec::new());
        layout.add_sketch(series, aggregate);
    }
    layout
}

fn feature(aggregate: Aggregate, series: usize, length: Millis) -> Feature {
    let span = Span::Sliding { length, tile: None };
    let (bounds, exact_limit) = (Vec::new(), 10_000);
    Feature { aggregate, series, span, limit: 10, q: 0.95, bounds, millis: 0, exact_limit }
}

/// A unit that has taken the events in this order, its rows written every so often.
fn unit(layout: &Layout, events: impl Iterator<Item = Event>, write_every: u64) -> (Unit, Rows) {
    let rules = UnitRules { horizon: None, has_base: false, fold: None, grace: 0 };
    let (mut unit, mut rows, mut single) = (Unit::default(), Rows::default(), EventBuf::default());
    for (offset, event) in events.enumerate() {
        let order = Order::new(event.time, 0, event.offset);
        let columns = [
            Val::Str(event.user.as_str().into()),
            Val::Str(event.country.as_str().into()),
            Val::Float(event.amount),
        ];
        single.set_single(layout, order, std::iter::empty(), columns.into_iter());
        let (offset, advance) = (offset as u64, event.time);
        let arrival = Arrival { event: &single, offset, advance, stream_time: 0, id: None };
        unit.apply(layout, &rules, arrival, &rows).expect("applied");
        if offset % write_every == 0 {
            let (fresh, dead) = unit.unwritten();
            for (id, bytes) in fresh {
                rows.rows.insert(*id, bytes.to_vec());
            }
            for id in dead {
                assert!(rows.rows.remove(id).is_some(), "row {id} is deleted and was never there");
            }
            unit.mark_written();
        }
    }
    (unit, rows)
}

/// As so many partitions that are read one after the other, the first of which has most.
fn by_partition(events: u64, partitions: u64) -> impl Iterator<Item = Event> {
    let is_in = move |index: u64, partition: u64| (index % 7 / 3).min(partitions - 1) == partition;
    (0..partitions).flat_map(move |p| (0..events).filter(move |i| is_in(*i, p)).map(event))
}

/// All that the unit refers to, from the newest down.
fn entries(view: &UnitView<'_>) -> Vec<Entry> {
    let (mut found, mut open) = (Vec::new(), view.unit.entries().to_vec());
    while let Some(entry) = open.pop() {
        if entry.height > 0 {
            open.extend(view.node(entry.row).expect("a node"));
        }
        found.push(entry);
    }
    found
}

fn ask(view: &UnitView<'_>, feature: &Feature) -> Answer {
    let now = EVENTS as Millis * SECOND;
    evaluate(view.layout, view, &[feature], now).expect("evaluated").remove(0)
}

fn number(value: &Value) -> f64 {
    match value {
        Value::Int(n) => *n as f64,
        Value::Float(x) => *x,
        other => panic!("{other:?} is no number"),
    }
}

fn ranking(answer: &Answer) -> Vec<(String, f64)> {
    let Value::List(items) = &answer.value else { panic!("{:?}", answer.value) };
    let field = |item: &Value, name: &str| {
        let Value::Map(fields) = item else { panic!("{item:?}") };
        fields.iter().find(|(n, _)| &**n == name).map(|(_, v)| v.clone()).expect("field")
    };
    items.iter().map(|item| (field(item, "value").plain_text(), number(&field(item, "count")))).collect()
}

fn check(view: &UnitView<'_>, events: u64) {
    let length = events as Millis * SECOND;
    let mut counts: [BTreeMap<String, u64>; 2] = Default::default();
    let mut newest: [Vec<String>; 2] = Default::default();
    let mut amounts = Vec::new();
    for event in
        (EVENTS - events..EVENTS).rev().map(event).filter(|e| e.time > (EVENTS - events) as Millis * SECOND)
    {
        for (which, value) in [event.user, event.country].into_iter().enumerate() {
            if !counts[which].contains_key(&value) {
                newest[which].push(value.clone());
            }
            *counts[which].entry(value).or_default() += 1;
        }
        amounts.push(event.amount);
    }
    amounts.sort_by(f64::total_cmp);
    for series in 0..2 {
        let is_few = series == 1;
        let distinct = ask(view, &feature(Aggregate::Distinct, series, length));
        let (found, wanted) = (number(&distinct.value), counts[series].len() as f64);
        assert!((found - wanted).abs() <= 0.03 * wanted, "{found} distinct, {wanted} wanted");
        assert!(!is_few || found == wanted);
        assert_eq!(distinct.is_approximate, !is_few);
        let top = ask(view, &feature(Aggregate::TopK, series, length));
        for (value, count) in ranking(&top) {
            let wanted = counts[series][&value] as f64;
            assert!((count - wanted).abs() <= 0.01 * events as f64, "{value}: {count}, {wanted} wanted");
            assert!(!is_few || count == wanted);
        }
        let mut most: Vec<u64> = counts[series].values().copied().collect();
        most.sort_by(|a, b| b.cmp(a));
        for (rank, (_, count)) in ranking(&top).iter().enumerate() {
            assert!((count - most[rank] as f64).abs() <= 0.01 * events as f64);
        }
        let last = ask(view, &feature(Aggregate::DistinctValues, series, length));
        let wanted: Vec<Value> = newest[series].iter().take(10).map(|v| Value::from(v.as_str())).collect();
        assert_eq!((last.value, last.is_approximate), (Value::List(wanted.into()), false));
    }
    let p95 = ask(view, &feature(Aggregate::Percentile, 2, length));
    let found = number(&p95.value);
    let rank = amounts.partition_point(|x| *x < found) as f64 / amounts.len() as f64;
    assert!((rank - 0.95).abs() <= 0.01, "rank {rank} of {found}");
    assert!(p95.is_approximate);
}

#[test]
fn values_over_many_events_are_as_near_as_promised() {
    let layout = layout();
    let (unit, rows) = unit(&layout, by_partition(EVENTS, 1), 1000);
    let view = UnitView { unit: &unit, layout: &layout, rows: &rows };
    rows.read.set(0);
    for events in [EVENTS, EVENTS - 77_777, 140_000] {
        check(&view, events);
    }
    // Eleven answers for each of three windows; there are about 5,000 pages.
    let read = rows.read.get() / 33;
    assert!(read < 300, "{read} rows for an answer");
}

#[test]
fn late_events_leave_no_sketch_that_lacks_them() {
    let layout = layout();
    let (unit, rows) = unit(&layout, by_partition(EVENTS, 2), 1000);
    let view = UnitView { unit: &unit, layout: &layout, rows: &rows };
    for events in [EVENTS, EVENTS - 77_777] {
        check(&view, events);
    }
    let (mut referenced, mut sketches) = (BTreeSet::new(), 0);
    for entry in entries(&view) {
        referenced.insert(entry.row);
        referenced.extend(&entry.sketches);
        if let Some(sketch) = view.sketch(&entry, 2).expect("a sketch") {
            assert_eq!(sketch.ranks.events, entry.events);
            sketches += 1;
        }
    }
    assert!(sketches > 50, "{sketches} sketches");
    let (fresh, dead) = unit.unwritten();
    let mut stored: BTreeSet<u64> =
        rows.rows.keys().copied().chain(fresh.iter().map(|(id, _)| *id)).collect();
    stored.retain(|id| !dead.contains(id));
    assert!(referenced == stored, "rows that nothing refers to, or that are missing");
}

#[test]
fn one_order_of_events_gives_one_set_of_rows() {
    let layout = layout();
    let (one, one_rows) = unit(&layout, by_partition(40_000, 3), 100);
    let (other, other_rows) = unit(&layout, by_partition(40_000, 3), 7_777);
    let all = |unit: &Unit, rows: Rows| {
        let mut rows = rows.rows;
        let (fresh, dead) = unit.unwritten();
        rows.extend(fresh.iter().map(|(id, bytes)| (*id, bytes.to_vec())));
        rows.retain(|id, _| !dead.contains(id));
        (unit.encode_head(&layout), rows)
    };
    let (one, other) = (all(&one, one_rows), all(&other, other_rows));
    assert!(one == other, "rows differ");
}

#[test]
fn a_node_may_have_any_number_of_sketches() {
    let layout = layout();
    let words = vec![7; layout.partial_words].into();
    let order = Order::new(1, 0, 1);
    let sketches = (0..300).collect();
    let entry = Entry { row: 1, height: 2, lo: order, hi: order, events: 9, words, sketches };
    let mut bytes = Vec::new();
    encode_entries(std::slice::from_ref(&entry), &mut bytes);
    assert_eq!(decode_node(&layout, &bytes).expect("readable"), [entry]);
}
