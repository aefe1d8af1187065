//! Partial aggregates: one event in, another partial in. All zero words are the empty partial.

use super::events::{EventRef, Order};
use super::layout::{Layout, PartKind, Series};
use super::sum;
use crate::model::{Millis, ScalarType, Value};

/// Accumulators of events that have left the raw timeline.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Base {
    /// Number of events.
    pub count: u64,
    /// Least event time.
    pub oldest: Millis,
    /// Greatest event time.
    pub newest: Millis,
    /// Partials of all series.
    pub words: Vec<u64>,
    /// First and last value of every series of a column, in the order of the series.
    pub ends: Vec<Ends>,
}

/// First and last value of a series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ends {
    /// Place and value of the first.
    pub first: Option<(Order, Value)>,
    /// Place and value of the last.
    pub last: Option<(Order, Value)>,
}

impl Base {
    /// Folds one event, in any order.
    pub fn add(&mut self, layout: &Layout, event: EventRef<'_>) {
        // As a partial of its own: adding wants events in order, merging does not.
        let mut single = vec![0; layout.partial_words];
        add(layout, &mut single, event);
        self.merge(layout, &single, 1, (event.time(), event.time()));
        for (index, ends) in self.ends.iter_mut().enumerate() {
            if let Some(column) = layout.series[index].column
                && event.is_in(index)
            {
                let order = event.order();
                if ends.first.as_ref().is_none_or(|(o, _)| order < *o) {
                    ends.first = Some((order, event.value(column)));
                }
                if ends.last.as_ref().is_none_or(|(o, _)| order > *o) {
                    ends.last = Some((order, event.value(column)));
                }
            }
        }
    }

    /// Folds `count` events with event times in `first..=last` of which only partials are left: first and
    /// last values are not told from now on.
    pub fn merge(&mut self, layout: &Layout, words: &[u64], count: u64, (first, last): (Millis, Millis)) {
        self.words.resize(layout.partial_words, 0);
        self.ends.resize(layout.series.len(), Ends::default());
        self.oldest = if self.count == 0 { first } else { self.oldest.min(first) };
        self.newest = if self.count == 0 { last } else { self.newest.max(last) };
        self.count += count;
        merge(layout, &mut self.words, words);
    }
}

/// Adds an event; for [`PartKind::Breaks`] it must not be before those already in `words`.
pub fn add(layout: &Layout, words: &mut [u64], event: EventRef<'_>) {
    for index in 0..layout.series.len() {
        add_series(layout, index, words, event);
    }
}

/// Adds an event to one series. What was folded early, since it came late, may be after it.
pub fn add_series(layout: &Layout, index: usize, words: &mut [u64], event: EventRef<'_>) {
    if !event.is_in(index) {
        return;
    }
    let series = &layout.series[index];
    let count = words[series.count_at];
    words[series.count_at] = count + 1;
    let time = event.time();
    let before = series.part(&PartKind::Times).map(|at| words[at + 1] as Millis);
    for (part, at) in &series.parts {
        let slot = &mut words[*at..];
        match part {
            PartKind::Times => {
                let (first, last) = (slot[0] as Millis, slot[1] as Millis);
                slot[0] = if count == 0 { time } else { first.min(time) } as u64;
                slot[1] = if count == 0 { time } else { last.max(time) } as u64;
            }
            PartKind::SumInt => {
                add_int(slot, i128::from(column_word(series, event) as i64));
            }
            PartKind::SumFloat => sum::add(slot, column_number(series, event)),
            PartKind::Moments => {
                let x = column_number(series, event);
                let mean = f64::from_bits(slot[0]);
                let delta = x - mean;
                let mean = mean + delta / (count + 1) as f64;
                slot[0] = mean.to_bits();
                slot[1] = (f64::from_bits(slot[1]) + delta * (x - mean)).to_bits();
            }
            PartKind::Extremes => {
                let word = column_word(series, event);
                let is_float = is_float(layout, series);
                if count == 0 || is_less(word, slot[0], is_float) {
                    slot[0] = word;
                }
                if count == 0 || is_less(slot[1], word, is_float) {
                    slot[1] = word;
                }
            }
            PartKind::Histogram(bounds) => {
                let place = if is_float(layout, series) {
                    let x = column_number(series, event);
                    bounds.partition_point(|b| *b < x)
                } else {
                    let x = i128::from(column_word(series, event) as i64);
                    bounds.partition_point(|b| (b.floor() as i128) < x)
                };
                slot[place] += 1;
            }
            PartKind::Decay { half_life, is_count } => {
                let x = if *is_count { 1.0 } else { column_number(series, event) };
                match before {
                    Some(before) if count > 0 && time < before => {
                        sum::add_plain(slot, x * decay(before - time, *half_life));
                    }
                    Some(before) if count > 0 => {
                        sum::scale_plain(slot, decay(time - before, *half_life));
                        sum::add_plain(slot, x);
                    }
                    _ => sum::add_plain(slot, x),
                }
            }
            PartKind::Breaks(gap) => {
                if count > 0 && before.is_some_and(|before| time - before > *gap) {
                    slot[0] += 1;
                }
            }
        }
    }
}

/// Merges `other` into all series; for [`PartKind::Breaks`] its events must not be before those of
/// `words`.
pub fn merge(layout: &Layout, words: &mut [u64], other: &[u64]) {
    for index in 0..layout.series.len() {
        merge_series(layout, index, words, other);
    }
}

/// Merges `other`; for [`PartKind::Breaks`] its events must not be before those of `words`.
pub fn merge_series(layout: &Layout, index: usize, words: &mut [u64], other: &[u64]) {
    let series = &layout.series[index];
    let at = series.count_at;
    let (n, m) = (words[at], other[at]);
    if m == 0 {
        return;
    }
    if n == 0 {
        let end = series.parts.last().map_or(at + 1, |(part, at)| at + part.words());
        words[at..end].copy_from_slice(&other[at..end]);
        return;
    }
    words[at] = n + m;
    let times = series.part(&PartKind::Times);
    let (ours, theirs) = match times {
        Some(t) => {
            ((words[t] as Millis, words[t + 1] as Millis), (other[t] as Millis, other[t + 1] as Millis))
        }
        None => ((0, 0), (0, 0)),
    };
    for (part, at) in &series.parts {
        let (slot, from) = (&mut words[*at..], &other[*at..]);
        match part {
            PartKind::Times => {
                slot[0] = ours.0.min(theirs.0) as u64;
                slot[1] = ours.1.max(theirs.1) as u64;
            }
            PartKind::SumInt => add_int(slot, int_sum(from)),
            PartKind::SumFloat => sum::merge(slot, from),
            PartKind::Moments => merge_moments(slot, n as f64, from, m as f64),
            PartKind::Extremes => {
                let is_float = is_float(layout, series);
                if is_less(from[0], slot[0], is_float) {
                    slot[0] = from[0];
                }
                if is_less(slot[1], from[1], is_float) {
                    slot[1] = from[1];
                }
            }
            PartKind::Histogram(bounds) => {
                for i in 0..=bounds.len() {
                    slot[i] += from[i];
                }
            }
            PartKind::Decay { half_life, .. } => {
                let latest = ours.1.max(theirs.1);
                let mut other = [from[0], from[1]];
                sum::scale_plain(slot, decay(latest - ours.1, *half_life));
                sum::scale_plain(&mut other, decay(latest - theirs.1, *half_life));
                sum::merge_plain(slot, &other);
            }
            PartKind::Breaks(gap) => {
                slot[0] += from[0] + u64::from(theirs.0 - ours.1 > *gap);
            }
        }
    }
}

/// Chan, Golub, LeVeque (1979): means and squared deviations of two samples together.
fn merge_moments(slot: &mut [u64], n: f64, from: &[u64], m: f64) {
    let (mean_a, mean_b) = (f64::from_bits(slot[0]), f64::from_bits(from[0]));
    let delta = mean_b - mean_a;
    let total = n + m;
    slot[0] = (mean_a + delta * (m / total)).to_bits();
    let spread = f64::from_bits(slot[1]) + f64::from_bits(from[1]);
    slot[1] = (spread + delta * delta * (n * m / total)).to_bits();
}

/// Weight of something `age` milliseconds old.
pub(super) fn decay(age: Millis, half_life: Millis) -> f64 {
    (-(age as f64) / half_life as f64).exp2()
}

/// The exact sum in two words.
pub(super) fn int_sum(words: &[u64]) -> i128 {
    (u128::from(words[1]) << 64 | u128::from(words[0])) as i128
}

fn add_int(slot: &mut [u64], x: i128) {
    let total = int_sum(slot).wrapping_add(x) as u128;
    slot[0] = total as u64;
    slot[1] = (total >> 64) as u64;
}

fn column_word(series: &Series, event: EventRef<'_>) -> u64 {
    series.column.map_or(0, |c| event.word(c))
}

fn column_number(series: &Series, event: EventRef<'_>) -> f64 {
    series.column.map_or(0.0, |c| event.number(c))
}

fn is_float(layout: &Layout, series: &Series) -> bool {
    series.column.is_some_and(|c| layout.columns[c] == ScalarType::Float64)
}

fn is_less(a: u64, b: u64, is_float: bool) -> bool {
    if is_float { f64::from_bits(a) < f64::from_bits(b) } else { (a as i64) < b as i64 }
}
