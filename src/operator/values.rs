//! Aggregates that need the values themselves: distinct, rankings, quantiles, the last k.

use std::sync::atomic::{AtomicU64, Ordering as Memory};

use super::Step;
use super::evaluate::{Found, Reading, float};
use super::layout::SketchNeeds;
use super::sketch::{Cell, RankGatherer, Seen, TallyGatherer};
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

/// The value, and whether it is approximate.
pub(super) fn value(reading: &Reading<'_>) -> Result<(Value, bool)> {
    let limit = reading.feature.limit;
    Ok(match reading.feature.aggregate {
        Aggregate::LastK => (last_k(reading)?, false),
        Aggregate::DistinctValues => (distinct_values(reading)?, false),
        Aggregate::Percentile | Aggregate::Median if reading.is_long() => near_percentile(reading)?,
        Aggregate::Percentile | Aggregate::Median => (percentile(reading)?, false),
        aggregate => {
            let tally = tally(reading)?;
            match aggregate {
                Aggregate::Distinct => {
                    let (count, is_exact) = tally.distinct();
                    (Value::Int(count as i64), !is_exact)
                }
                Aggregate::TopK => (top_k(ranked(reading, &tally, limit)), !tally.is_exact()),
                _ => (value_counts(ranked(reading, &tally, limit)), !tally.is_exact()),
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

/// A value whose rank is off by less than 1 % of the events (see [`super::sketch::Ranks`]).
fn near_percentile(reading: &Reading<'_>) -> Result<(Value, bool)> {
    let column = reading.column();
    let mut ranks = RankGatherer::default();
    reading.survey(false, |found| {
        match found {
            Found::Event(event) => ranks.add(event.number(column)),
            Found::Sketch(sketch) => ranks.merge(&sketch.ranks),
        }
        Step::Next
    })?;
    Ok((ranks.quantile(reading.feature.q).map_or(Value::Null, float), true))
}

fn tally(reading: &Reading<'_>) -> Result<TallyGatherer> {
    let column = reading.column();
    let mut tally = TallyGatherer::new(SketchNeeds::of(reading.feature.aggregate));
    reading.survey(false, |found| {
        match found {
            Found::Event(event) => {
                let seen = Seen { count: 1, last: event.time() };
                tally.add(Cell::of(reading.layout, column, event), seen);
            }
            Found::Sketch(sketch) => tally.merge(&sketch.tally),
        }
        Step::Next
    })?;
    Ok(tally)
}

/// From the newest back, until what is left cannot be among them.
fn distinct_values(reading: &Reading<'_>) -> Result<Value> {
    let (column, limit) = (reading.column(), reading.feature.limit);
    let mut tally = TallyGatherer::new(SketchNeeds::of(reading.feature.aggregate));
    let mut earliest = Millis::MAX;
    reading.survey(true, |found| {
        match found {
            Found::Event(event) => {
                let last = event.time();
                if tally.cells.len() >= limit && last < earliest {
                    return Step::Stop;
                }
                if tally.add(Cell::of(reading.layout, column, event), Seen { count: 1, last }) {
                    earliest = last;
                }
            }
            Found::Sketch(sketch) if sketch.tally.is_cut => return Step::Descend,
            Found::Sketch(sketch) => {
                let newest = sketch.tally.cells.iter().map(|(_, seen)| seen.last).max();
                if tally.cells.len() >= limit && newest.is_some_and(|newest| newest < earliest) {
                    return Step::Stop;
                }
                for (cell, seen) in &sketch.tally.cells {
                    if tally.add(cell.clone(), *seen) {
                        earliest = earliest.min(seen.last);
                    }
                }
            }
        }
        Step::Next
    })?;
    let mut entries: Vec<(Value, Millis)> =
        cells(reading, &tally).map(|(value, seen)| (value, seen.last)).collect();
    entries.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.order(&b.0)));
    Ok(Value::List(entries.into_iter().take(limit).map(|(value, _)| value).collect()))
}

fn cells<'t>(
    reading: &Reading<'_>,
    tally: &'t TallyGatherer,
) -> impl Iterator<Item = (Value, Seen)> + use<'t> {
    let scalar = reading.layout.columns[reading.column()];
    tally.cells.iter().map(move |(cell, seen)| (cell.value(scalar), *seen))
}

fn ranked(
    reading: &Reading<'_>,
    tally: &TallyGatherer,
    limit: usize,
) -> impl Iterator<Item = (Value, Value)> {
    let mut entries: Vec<(Value, u64)> =
        cells(reading, tally).map(|(value, seen)| (value, seen.count)).collect();
    entries.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.order(&b.0)));
    entries.into_iter().take(limit).map(|(value, count)| (value, Value::Int(count as i64)))
}

fn top_k(ranked: impl Iterator<Item = (Value, Value)>) -> Value {
    Value::List(
        ranked.map(|(value, n)| Value::Map([("value".into(), value), ("count".into(), n)].into())).collect(),
    )
}

fn value_counts(ranked: impl Iterator<Item = (Value, Value)>) -> Value {
    Value::Map(ranked.map(|(value, count)| (value.plain_text().into(), count)).collect())
}
