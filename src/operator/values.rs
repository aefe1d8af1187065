//! Aggregates that need the values themselves: distinct, rankings, quantiles, the last k.

use std::sync::atomic::{AtomicU64, Ordering as Memory};

use hashbrown::HashMap;

use super::evaluate::{Reading, float};
use super::events::EventRef;
use crate::error::Result;
use crate::model::{Aggregate, Millis, Value};

static OVERFLOWS: AtomicU64 = AtomicU64::new(0);

pub(super) fn note_overflow() {
    OVERFLOWS.fetch_add(1, Memory::Relaxed);
}

/// Integer sums that were outside int64 in this process (`feature_pipeline_overflow_total`).
pub fn overflows() -> u64 {
    OVERFLOWS.load(Memory::Relaxed)
}

/// A cell as a map key: the bytes of a string, or the word of anything else.
#[derive(PartialEq, Eq, Hash)]
enum Cell {
    Word(u64),
    Text(Box<[u8]>),
}

struct Seen {
    count: u64,
    last: Millis,
    value: Value,
}

pub(super) fn value(reading: &Reading<'_>) -> Result<Value> {
    Ok(match reading.feature.aggregate {
        Aggregate::LastK => last_k(reading)?,
        Aggregate::Percentile | Aggregate::Median => percentile(reading)?,
        aggregate => {
            let seen = tally(reading)?;
            match aggregate {
                Aggregate::Distinct => Value::Int(seen.len() as i64),
                Aggregate::DistinctValues => distinct_values(seen, reading.feature.limit),
                Aggregate::TopK => top_k(seen, reading.feature.limit),
                _ => value_counts(seen, reading.feature.limit),
            }
        }
    })
}

fn last_k(reading: &Reading<'_>) -> Result<Value> {
    let column = reading.column();
    let k = reading.feature.limit;
    let mut items = Vec::new();
    if let Some((lo, hi)) = reading.range {
        reading.scan(lo, hi, true, |event| {
            items.push(event.value(column));
            items.len() < k
        })?;
    }
    Ok(Value::List(items.into()))
}

fn percentile(reading: &Reading<'_>) -> Result<Value> {
    let column = reading.column();
    let mut numbers: Vec<f64> = Vec::with_capacity(reading.count() as usize);
    if let Some((lo, hi)) = reading.range {
        reading.scan(lo, hi, false, |event| {
            numbers.push(event.number(column));
            true
        })?;
    }
    if numbers.is_empty() {
        return Ok(Value::Null);
    }
    let rank = reading.feature.q * (numbers.len() - 1) as f64;
    let index = rank.floor() as usize;
    let (_, low, above) = numbers.select_nth_unstable_by(index, f64::total_cmp);
    let low = *low;
    let fraction = rank - index as f64;
    if fraction == 0.0 {
        return Ok(float(low));
    }
    let high = above.iter().copied().fold(f64::INFINITY, f64::min);
    let distance = high - low;
    if distance.is_finite() {
        return Ok(float(low + distance * fraction));
    }
    // The difference of two finite numbers may be infinite; their weighted mean is not.
    Ok(float(low * (1.0 - fraction) + high * fraction))
}

fn tally(reading: &Reading<'_>) -> Result<HashMap<Cell, Seen>> {
    let column = reading.column();
    let is_text = reading.layout.is_string(column);
    let mut seen: HashMap<Cell, Seen> = HashMap::new();
    let mut note = |event: EventRef<'_>| {
        let cell =
            if is_text { Cell::Text(event.text(column).into()) } else { Cell::Word(event.word(column)) };
        let time = event.time();
        seen.entry(cell)
            .and_modify(|s| {
                s.count += 1;
                s.last = time;
            })
            .or_insert_with(|| Seen { count: 1, last: time, value: event.value(column) });
        true
    };
    if let Some((lo, hi)) = reading.range {
        reading.scan(lo, hi, false, &mut note)?;
    }
    Ok(seen)
}

fn distinct_values(seen: HashMap<Cell, Seen>, limit: usize) -> Value {
    let mut entries: Vec<Seen> = seen.into_values().collect();
    entries.sort_unstable_by(|a, b| b.last.cmp(&a.last).then_with(|| a.value.order(&b.value)));
    Value::List(entries.into_iter().take(limit).map(|s| s.value).collect())
}

fn ranked(seen: HashMap<Cell, Seen>, limit: usize) -> impl Iterator<Item = Seen> {
    let mut entries: Vec<Seen> = seen.into_values().collect();
    entries.sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.value.order(&b.value)));
    entries.into_iter().take(limit)
}

fn top_k(seen: HashMap<Cell, Seen>, k: usize) -> Value {
    let item = |s: Seen| {
        let count = Value::Int(s.count as i64);
        Value::Map([("value".into(), s.value), ("count".into(), count)].into())
    };
    Value::List(ranked(seen, k).map(item).collect())
}

fn value_counts(seen: HashMap<Cell, Seen>, limit: usize) -> Value {
    let entry = |s: Seen| (s.value.plain_text().into(), Value::Int(s.count as i64));
    Value::Map(ranked(seen, limit).map(entry).collect())
}
