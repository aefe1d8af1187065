//! This file computes the aggregates from the events of a window (SEMANTICS §5).

use crate::config::definitions::WindowDef;
use crate::model::{Aggregate, Value};

use super::check::Shape;
use super::feature::Feature;
use super::ranking;
use super::sum::{exact_sum, magnitude_sum};
use super::values::{as_float, compare, finite};
use super::window::Windowed;

/// The value of a feature over the events of its window, and the scale of its float results.
pub(super) fn fold(feature: &Feature, windowed: &Windowed, now: i64) -> (Value, f64) {
    let definition = &feature.definition;
    let values = &windowed.values;
    let (first, last) = (windowed.times.first(), windowed.times.last());
    let unscaled = match definition.aggregate {
        Aggregate::Sum => return sum(feature, values),
        Aggregate::Mean => return mean(values),
        Aggregate::Variance | Aggregate::Stddev | Aggregate::VariancePop | Aggregate::StddevPop => {
            return deviation(definition.aggregate, values);
        }
        Aggregate::Percentile | Aggregate::Median => return percentile(definition.q, values),
        Aggregate::DecayedSum | Aggregate::DecayedCount => {
            return decayed(feature, windowed, now);
        }
        Aggregate::Count => Value::Int(windowed.times.len() as i64),
        Aggregate::Rate => rate(feature, windowed.times.len()),
        Aggregate::TimeSinceFirst => seconds(first, Some(&now)),
        Aggregate::TimeSinceLast => seconds(last, Some(&now)),
        Aggregate::SessionDuration => seconds(first, last),
        Aggregate::SessionCount => session_count(windowed, definition.span),
        Aggregate::Min => extreme(values.iter().min_by(|left, right| compare(left, right))),
        Aggregate::Max => extreme(values.iter().max_by(|left, right| compare(left, right))),
        Aggregate::First => extreme(values.first()),
        Aggregate::Last => extreme(values.last()),
        Aggregate::LastK => ranking::last_values(values, definition.limit),
        Aggregate::Distinct => ranking::distinct(windowed),
        Aggregate::DistinctValues => ranking::distinct_values(windowed, definition.limit),
        Aggregate::TopK => ranking::top_values(windowed, definition.limit),
        Aggregate::ValueCounts => ranking::value_counts(windowed, definition.limit),
        Aggregate::Histogram => ranking::histogram(values, &definition.bounds),
    };
    (unscaled, 0.0)
}

fn extreme(value: Option<&Value>) -> Value {
    value.cloned().unwrap_or(Value::Null)
}

/// Seconds from one point in time to another.
fn seconds(from: Option<&i64>, to: Option<&i64>) -> Value {
    match (from, to) {
        (Some(from), Some(to)) => Value::Float((to - from) as f64 / 1000.0),
        _ => Value::Null,
    }
}

fn rate(feature: &Feature, count: usize) -> Value {
    let definition = &feature.definition;
    match &definition.window {
        WindowDef::Sliding { length, .. } | WindowDef::Hopping { length, .. } => {
            finite(count as f64 / (*length as f64 / definition.span as f64))
        }
        _ => Value::Null,
    }
}

/// The events whose predecessor is farther than the gap, or that have none.
fn session_count(windowed: &Windowed, gap: i64) -> Value {
    let mut previous = windowed.previous;
    let mut count = 0;
    for time in &windowed.times {
        if previous.is_none_or(|previous| time - previous > gap) {
            count += 1;
        }
        previous = Some(*time);
    }
    Value::Int(count)
}

fn floats(values: &[Value]) -> Vec<f64> {
    values.iter().map(as_float).collect()
}

/// The sum, when all values are integers.
fn integer_sum(values: &[Value]) -> Option<i128> {
    values
        .iter()
        .map(|value| match value {
            Value::Int(number) => Some(i128::from(*number)),
            _ => None,
        })
        .sum()
}

fn largest_magnitude(numbers: &[f64]) -> f64 {
    numbers.iter().fold(0.0, |largest, number| number.abs().max(largest))
}

fn sum(feature: &Feature, values: &[Value]) -> (Value, f64) {
    if feature.shape == Shape::Int {
        let sum = integer_sum(values).and_then(|sum| i64::try_from(sum).ok());
        return (sum.map_or(Value::Null, Value::Int), 0.0);
    }
    let numbers = floats(values);
    (exact_sum(&numbers).map_or(Value::Null, Value::Float), magnitude_sum(&numbers))
}

fn mean(values: &[Value]) -> (Value, f64) {
    if values.is_empty() {
        return (Value::Null, 0.0);
    }
    let numbers = floats(values);
    let sum = match integer_sum(values) {
        Some(sum) => Some(sum as f64),
        None => exact_sum(&numbers),
    };
    let mean = sum.map_or(Value::Null, |sum| finite(sum / numbers.len() as f64));
    (mean, largest_magnitude(&numbers))
}

fn deviation(aggregate: Aggregate, values: &[Value]) -> (Value, f64) {
    let Some(first) = values.first() else {
        return (Value::Null, 0.0);
    };
    let is_root = matches!(aggregate, Aggregate::Stddev | Aggregate::StddevPop);
    let is_sample = matches!(aggregate, Aggregate::Stddev | Aggregate::Variance);
    let numbers = floats(values);
    let largest = largest_magnitude(&numbers);
    let scale = if is_root { largest } else { largest * largest };
    if is_sample && values.len() == 1 {
        return (Value::Null, scale);
    }
    if values.iter().all(|value| value == first) {
        return (Value::Float(0.0), scale);
    }
    let Some(squares) = squares_about_mean(&numbers) else {
        return (Value::Null, scale);
    };
    let divisor = if is_sample { numbers.len() - 1 } else { numbers.len() };
    let variance = squares / divisor as f64;
    (finite(if is_root { variance.sqrt() } else { variance }), scale)
}

/// The sum of the squares of the distances from the mean; none when it is not finite on the way.
fn squares_about_mean(numbers: &[f64]) -> Option<f64> {
    let count = numbers.len() as f64;
    let mean = exact_sum(numbers)? / count;
    let distances: Vec<f64> = numbers.iter().map(|number| number - mean).collect();
    let squares: Vec<f64> = distances.iter().map(|distance| distance * distance).collect();
    // The rounded mean is a little off; the distances tell by how much.
    let error = exact_sum(&distances)?;
    let corrected = exact_sum(&squares)? - error * error / count;
    Some(corrected.max(0.0))
}

/// Linear interpolation between closest ranks.
fn percentile(q: f64, values: &[Value]) -> (Value, f64) {
    let mut numbers = floats(values);
    numbers.sort_by(f64::total_cmp);
    let Some(last) = numbers.len().checked_sub(1) else {
        return (Value::Null, 0.0);
    };
    let rank = q * last as f64;
    let lower = rank.floor() as usize;
    let mut value = numbers[lower];
    if rank > lower as f64 {
        value += (numbers[lower + 1] - value) * (rank - lower as f64);
    }
    (finite(value), largest_magnitude(&numbers))
}

fn decayed(feature: &Feature, windowed: &Windowed, now: i64) -> (Value, f64) {
    let half_life = feature.definition.span as f64;
    let is_sum = feature.definition.aggregate == Aggregate::DecayedSum;
    let terms: Vec<f64> = windowed
        .times
        .iter()
        .zip(&windowed.values)
        .map(|(time, value)| {
            let weight = ((time - now) as f64 / half_life).exp2();
            if is_sum { as_float(value) * weight } else { weight }
        })
        .collect();
    (exact_sum(&terms).map_or(Value::Null, Value::Float), magnitude_sum(&terms))
}
