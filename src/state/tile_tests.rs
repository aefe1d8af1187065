//! Units whose old events are tiles, against the events themselves.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::insert::Arrival;
use super::unit::{Entry, Unit, UnitRules};
use super::view::{RowSource, UnitView};
use crate::error::{Error, Result};
use crate::expr::Val;
use crate::model::{Aggregate, Millis, ScalarType, Value};
use crate::operator::{EventBuf, Feature, Fold, Layout, Order, Span, evaluate};

const SECOND: Millis = 1000;
const WIDTH: Millis = 10 * SECOND;
const LONG: Millis = 10_000 * SECOND;
const LONGER: Millis = 30_000 * SECOND;
const SHORT: Millis = 600 * SECOND;
const HISTORY: Millis = 100 * SECOND;

const RULES: UnitRules = UnitRules {
    horizon: Some(LONGER + 30 * SECOND + HISTORY + 1),
    has_base: true,
    fold: Some(Fold { after: SHORT + HISTORY + 1, width: WIDTH }),
    grace: 0,
};

#[derive(Clone, Copy, Debug)]
struct Event {
    time: Millis,
    x: Option<f64>,
    n: i64,
    is_flagged: bool,
}

#[derive(Default)]
struct Rows(BTreeMap<u64, Vec<u8>>);

impl RowSource for Rows {
    fn row(&self, id: u64) -> Result<Vec<u8>> {
        self.0.get(&id).cloned().ok_or_else(|| Error::corrupted(format!("row {id} is missing")))
    }
}

/// The unit as it comes back from the store now and then.
struct Stored {
    layout: Layout,
    unit: Unit,
    rows: Rows,
    single: EventBuf,
    offset: u64,
}

impl Stored {
    fn new(layout: Layout) -> Self {
        Self { layout, unit: Unit::default(), rows: Rows::default(), single: EventBuf::default(), offset: 0 }
    }

    fn apply(&mut self, event: Event) {
        let order = Order::new(event.time, 0, self.offset);
        let columns = [event.x.map_or(Val::Null, Val::Float), Val::Int(event.n)];
        self.single.set_single(&self.layout, order, std::iter::once(event.is_flagged), columns.into_iter());
        let (offset, advance) = (self.offset, event.time);
        let arrival = Arrival { event: &self.single, offset, advance, stream_time: 0, id: None };
        self.unit.apply(&self.layout, &RULES, arrival, &self.rows).expect("applied");
        self.offset += 1;
        if self.offset.is_multiple_of(50) {
            self.write();
        }
    }

    fn write(&mut self) {
        let (fresh, dead) = self.unit.unwritten();
        for (id, bytes) in fresh {
            self.rows.0.insert(*id, bytes.to_vec());
        }
        for id in dead {
            assert!(self.rows.0.remove(id).is_some(), "row {id} is deleted and was never there");
        }
        let head = self.unit.encode_head(&self.layout);
        self.unit = Unit::decode_head(&self.layout, &head).expect("readable");
    }

    fn view(&self) -> UnitView<'_> {
        UnitView { unit: &self.unit, layout: &self.layout, rows: &self.rows }
    }

    /// Tiles, pages, and events of pages.
    fn leaves(&self) -> (usize, usize, u64) {
        let (mut open, mut found) = (self.unit.entries().to_vec(), (0, 0, 0));
        while let Some(entry) = open.pop() {
            match entry {
                Entry { height: 1.., row, .. } => open.extend(self.view().node(row).expect("a node")),
                entry if entry.is_tile() => found.0 += 1,
                entry => (found.1, found.2) = (found.1 + 1, found.2 + entry.events),
            }
        }
        found
    }
}

const AGGREGATES: [Aggregate; 11] = [
    Aggregate::Count,
    Aggregate::Rate,
    Aggregate::Sum,
    Aggregate::Mean,
    Aggregate::Stddev,
    Aggregate::VariancePop,
    Aggregate::Min,
    Aggregate::Max,
    Aggregate::Histogram,
    Aggregate::TimeSinceFirst,
    Aggregate::TimeSinceLast,
];
const BOUNDS: [f64; 2] = [-10.0, 25.0];

/// Column, flag.
const SERIES: [(Option<usize>, Option<usize>); 3] = [(Some(0), None), (Some(1), None), (Some(0), Some(0))];

fn plan() -> (Layout, Vec<(Feature, usize)>) {
    let mut layout = Layout::new(vec![ScalarType::Float64, ScalarType::Int64], 1);
    let mut features = Vec::new();
    let spans = [
        Span::Sliding { length: LONG, tile: Some(WIDTH) },
        Span::Sliding { length: LONGER, tile: Some(3 * WIDTH) },
        Span::Sliding { length: SHORT, tile: None },
        Span::Lifetime,
    ];
    for (of, (column, flag)) in SERIES.iter().enumerate() {
        for (span, aggregate) in spans.iter().flat_map(|s| AGGREGATES.map(|a| (s, a))) {
            let mut feature = feature(aggregate, span.clone());
            let scalar = column.map(|c| layout.columns[c]);
            feature.series = layout.add_series(*column, *flag, feature.parts(scalar));
            features.push((feature, of));
        }
        for aggregate in [Aggregate::LastK, Aggregate::Median] {
            let mut feature = feature(aggregate, Span::Sliding { length: SHORT, tile: None });
            feature.series = layout.add_series(*column, *flag, Vec::new());
            features.push((feature, of));
        }
    }
    (layout, features)
}

fn feature(aggregate: Aggregate, span: Span) -> Feature {
    let (bounds, exact_limit) = (BOUNDS.to_vec(), 10_000);
    Feature { aggregate, series: 0, span, limit: 3, q: 0.5, bounds, millis: 60 * SECOND, exact_limit }
}

/// From the events themselves, in a few lines that know nothing of the engine. The second is a scale
/// for floats.
fn expected(events: &[Event], feature: &Feature, of: usize, now: Millis) -> (Value, f64) {
    let first = match feature.span {
        Span::Sliding { length, tile: None } => now - length + 1,
        Span::Sliding { length, tile: Some(width) } => (now - length).div_euclid(width) * width,
        _ => Millis::MIN,
    };
    let mut inside: Vec<(Millis, f64)> = events
        .iter()
        .filter(|e| first <= e.time && e.time <= now && (of != 2 || e.is_flagged))
        .filter_map(|e| Some((e.time, if of == 1 { e.n as f64 } else { e.x? })))
        .collect();
    inside.sort_by_key(|(time, _)| *time);
    let values: Vec<f64> = inside.iter().map(|(_, x)| *x).collect();
    let scale: f64 = values.iter().map(|x| x.abs()).sum::<f64>() + 1.0;
    let (n, total) = (values.len() as f64, values.iter().sum::<f64>());
    let number = |x: f64| if of == 1 { Value::Int(x as i64) } else { Value::Float(x) };
    let spread = || values.iter().map(|x| (x - total / n).powi(2)).sum::<f64>();
    let shown = |some: &mut dyn Iterator<Item = f64>| Value::List(some.map(number).collect());
    let value = match feature.aggregate {
        Aggregate::Count => Value::Int(n as i64),
        Aggregate::Rate => match feature.span {
            Span::Sliding { length, .. } => Value::Float(n / (length as f64 / (60 * SECOND) as f64)),
            _ => Value::Null,
        },
        Aggregate::Sum => number(total),
        Aggregate::Histogram => {
            let of_bin = |x: &f64| BOUNDS.iter().filter(|b| **b < *x).count();
            let bin = |i: usize| Value::Int(values.iter().filter(|x| of_bin(x) == i).count() as i64);
            Value::List((0..3).map(bin).collect())
        }
        Aggregate::LastK => shown(&mut values.iter().rev().take(3).copied()),
        _ if values.is_empty() => Value::Null,
        Aggregate::Stddev if values.len() < 2 => Value::Null,
        Aggregate::Mean => Value::Float(total / n),
        Aggregate::Stddev => Value::Float((spread() / (n - 1.0)).sqrt()),
        Aggregate::VariancePop => Value::Float(spread() / n),
        Aggregate::Min => number(values.iter().copied().fold(f64::INFINITY, f64::min)),
        Aggregate::Max => number(values.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
        Aggregate::TimeSinceFirst => Value::Float((now - inside[0].0) as f64 / 1000.0),
        Aggregate::TimeSinceLast => Value::Float((now - inside[inside.len() - 1].0) as f64 / 1000.0),
        Aggregate::Median => {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
            Value::Float(f64::midpoint(sorted[low], sorted[high]))
        }
        other => unreachable!("{other:?} is not among the features"),
    };
    (value, scale)
}

fn is_near(a: &Value, b: &Value, scale: f64) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => (a - b).abs() <= 1e-9 * scale.max(a.abs()).max(b.abs()),
        _ => a == b,
    }
}

fn event() -> impl Strategy<Value = (Millis, Event)> {
    let later = prop_oneof![
        400 => 0..SECOND / 3,
        10 => 0..40 * SECOND,
        20 => -2 * SHORT..0,
        20 => -LONG..0,
        5 => -LONGER - SHORT..0,
        1 => 0..SHORT * 3,
    ];
    let x = prop_oneof![6 => (-5_000..5_000_i64).prop_map(|x| Some(x as f64 / 64.0)), 1 => Just(None)];
    (later, x, -100..100_i64, any::<bool>())
        .prop_map(|(later, x, n, is_flagged)| (later, Event { time: 0, x, n, is_flagged }))
}

/// A few choices many times over: what matters is how events lie to one another.
fn stream() -> impl Strategy<Value = Vec<(Millis, Event)>> {
    (vec(event(), 200..600), 1..30_usize)
        .prop_map(|(events, times)| (0..times).flat_map(|_| events.clone()).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn tiles_answer_as_their_events_would(
        stream in stream(),
        looks in vec((-HISTORY..=LONGER, 0..8000_usize), 6),
    ) {
        let (layout, features) = plan();
        let plans: Vec<&Feature> = features.iter().map(|(f, _)| f).collect();
        let (mut stored, mut events, mut newest) = (Stored::new(layout), Vec::new(), 1_000_000_000_i64);
        for (index, (later, event)) in stream.iter().enumerate() {
            let time = newest + later;
            newest = newest.max(time);
            events.push(Event { time, ..*event });
            stored.apply(Event { time, ..*event });
            for (ahead, at) in &looks {
                if index + 1 != stream.len() && *at != index {
                    continue;
                }
                let now = newest + ahead;
                let found = evaluate(&stored.layout, &stored.view(), &plans, now).expect("evaluated");
                for ((feature, of), answer) in features.iter().zip(found) {
                    let (value, scale) = expected(&events, feature, *of, now);
                    prop_assert!(
                        is_near(&answer.value, &value, scale),
                        "{feature:?} of {of} at {now}: {:?} instead of {value:?}", answer.value,
                    );
                }
                let latest = events.iter().map(|e| e.time).filter(|t| *t <= now).max();
                prop_assert_eq!(stored.view().newest_at(now).expect("readable"), latest);
            }
        }
    }
}

/// 2 million events of 28 hours would be more than 15,000 pages.
#[test]
fn a_busy_entity_takes_no_more_room_than_its_tiles() {
    let mut stored = Stored::new(plan().0);
    for index in 0..2_000_000_i64 {
        // Ten partitions, each up to a second behind the others, and one record in 1000 hours late.
        let behind = index % 10 * 100 + if index % 1000 == 0 { index % 7 * SHORT * 2 } else { 0 };
        let time = 1_000_000_000 + index * 50 - behind;
        stored.apply(Event { time, x: Some(index as f64), n: index, is_flagged: index % 2 == 0 });
    }
    stored.write();
    let (tiles, pages, events) = stored.leaves();
    let most_tiles = ((LONGER + SHORT) / WIDTH) as usize;
    assert!((most_tiles / 2..most_tiles + 100).contains(&tiles), "{tiles} tiles");
    assert!(events < ((SHORT + HISTORY + WIDTH) / 50) as u64 + 300, "{events} events in {pages} pages");
    assert!(stored.rows.0.len() < 600, "{} rows", stored.rows.0.len());
}
