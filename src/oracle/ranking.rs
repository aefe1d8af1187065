//! This file computes the aggregates that look at different values: distinct, rankings,
//! histograms.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::model::Value;

use super::values::{compare, text_of};
use super::window::Windowed;

/// One of the different values of a window.
struct Tally {
    value: Value,
    count: i64,
    /// Event time of its last event.
    last_seen: i64,
}

/// The different values, ascending.
fn tallies(windowed: &Windowed) -> Vec<Tally> {
    let mut seen: Vec<(&Value, i64)> = windowed.values.iter().zip(windowed.times.iter().copied()).collect();
    // The sort is stable, so that equal values stay in the order of their events.
    seen.sort_by(|(left, _), (right, _)| compare(left, right));
    let mut found: Vec<Tally> = Vec::new();
    for (value, time) in seen {
        match found.last_mut() {
            Some(tally) if tally.value == *value => {
                tally.count += 1;
                tally.last_seen = time;
            }
            _ => found.push(Tally { value: value.clone(), count: 1, last_seen: time }),
        }
    }
    found
}

/// The different values by descending count, equal counts by ascending value.
fn by_count(windowed: &Windowed, limit: usize) -> Vec<Tally> {
    let mut found = tallies(windowed);
    // A stable sort keeps equal counts by ascending value.
    found.sort_by_key(|tally| Reverse(tally.count));
    found.truncate(limit);
    found
}

/// The last values, newest first.
pub(super) fn last_values(values: &[Value], limit: usize) -> Value {
    Value::List(values.iter().rev().take(limit).cloned().collect())
}

/// The number of different values.
pub(super) fn distinct(windowed: &Windowed) -> Value {
    Value::Int(tallies(windowed).len() as i64)
}

/// The different values, most recently seen first, ties by ascending value.
pub(super) fn distinct_values(windowed: &Windowed, limit: usize) -> Value {
    let mut found = tallies(windowed);
    found.sort_by_key(|tally| Reverse(tally.last_seen));
    Value::List(found.into_iter().take(limit).map(|tally| tally.value).collect())
}

/// The most frequent values with their counts.
pub(super) fn top_values(windowed: &Windowed, limit: usize) -> Value {
    let entries = by_count(windowed, limit).into_iter().map(|tally| {
        let entry: Vec<(Arc<str>, Value)> =
            vec![("value".into(), tally.value), ("count".into(), Value::Int(tally.count))];
        Value::Map(entry.into())
    });
    Value::List(entries.collect())
}

/// The counts of the most frequent values, by their texts.
pub(super) fn value_counts(windowed: &Windowed, limit: usize) -> Value {
    let entries = by_count(windowed, limit)
        .into_iter()
        .map(|tally| (Arc::<str>::from(text_of(&tally.value)), Value::Int(tally.count)));
    Value::Map(entries.collect())
}

/// The counts of values by the intervals that end with the bounds, which belong to them.
pub(super) fn histogram(values: &[Value], bounds: &[f64]) -> Value {
    let mut counts = vec![0; bounds.len() + 1];
    for value in values {
        counts[bounds.partition_point(|bound| is_below(*bound, value))] += 1;
    }
    Value::List(counts.into_iter().map(Value::Int).collect())
}

/// Whether a bound is below a number; integers are not rounded for it.
fn is_below(bound: f64, value: &Value) -> bool {
    match value {
        Value::Int(number) => (bound.floor() as i128) < i128::from(*number),
        Value::Float(number) => bound < *number,
        _ => false,
    }
}
