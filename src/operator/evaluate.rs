//! Values of features at `now`, from a timeline.

use super::events::{EventRef, word_value};
use super::layout::{Layout, PartKind};
use super::partial::{add_series, decay, int_sum, merge_series};
use super::sketch::{READ_MAX, Sketch};
use super::span::{Range, Span};
use super::{Piece, Step, Timeline, sum, values};
use crate::error::Result;
use crate::model::{Aggregate, Millis, ScalarType, Value};

/// What to compute for a feature.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature {
    /// The aggregate.
    pub aggregate: Aggregate,
    /// Index of its series.
    pub series: usize,
    /// Its span.
    pub span: Span,
    /// `k` or `limit`.
    pub limit: usize,
    /// Quantile.
    pub q: f64,
    /// Bounds of a histogram.
    pub bounds: Vec<f64>,
    /// Half-life, `per` or `gap`.
    pub millis: Millis,
    /// Events up to which the answer must be exact.
    pub exact_limit: u64,
}

/// A computed value.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The value; null when there is none.
    pub value: Value,
    /// Whether a sketch answered.
    pub is_approximate: bool,
    /// The first event time at which an event could have a say in it.
    pub oldest: Millis,
}

impl Feature {
    /// Whether its value can be told from partial aggregates alone.
    pub fn is_in_partials(&self) -> bool {
        matches!(
            self.aggregate,
            Aggregate::Count
                | Aggregate::Rate
                | Aggregate::Sum
                | Aggregate::Mean
                | Aggregate::Variance
                | Aggregate::Stddev
                | Aggregate::VariancePop
                | Aggregate::StddevPop
                | Aggregate::Min
                | Aggregate::Max
                | Aggregate::Histogram
                | Aggregate::TimeSinceFirst
                | Aggregate::TimeSinceLast
                | Aggregate::DecayedSum
                | Aggregate::DecayedCount
        )
    }

    /// The parts that its series must keep.
    pub fn parts(&self, column: Option<ScalarType>) -> Vec<PartKind> {
        let mut parts = match self.aggregate {
            Aggregate::Sum | Aggregate::Mean if column == Some(ScalarType::Int64) => {
                vec![PartKind::SumInt]
            }
            Aggregate::Sum | Aggregate::Mean => vec![PartKind::SumFloat],
            Aggregate::Variance | Aggregate::Stddev | Aggregate::VariancePop | Aggregate::StddevPop => {
                vec![PartKind::Moments]
            }
            Aggregate::Min | Aggregate::Max => vec![PartKind::Extremes],
            Aggregate::Histogram => vec![PartKind::Histogram(self.bounds.clone())],
            Aggregate::TimeSinceFirst | Aggregate::TimeSinceLast => vec![PartKind::Times],
            Aggregate::DecayedSum | Aggregate::DecayedCount => {
                let is_count = self.aggregate == Aggregate::DecayedCount;
                vec![PartKind::Times, PartKind::Decay { half_life: self.millis, is_count }]
            }
            Aggregate::SessionCount => vec![PartKind::Times, PartKind::Breaks(self.millis)],
            _ => Vec::new(),
        };
        if let Span::Session { gap, .. } = self.span {
            parts.extend([PartKind::Times, PartKind::Breaks(gap)]);
        }
        parts
    }
}

/// Values of `features` at `now`, in their order.
///
/// # Errors
/// A row that cannot be read.
pub fn evaluate(
    layout: &Layout,
    timeline: &dyn Timeline,
    features: &[&Feature],
    now: Millis,
) -> Result<Vec<Answer>> {
    let mut ranges: Vec<Option<Range>> = Vec::with_capacity(features.len());
    // Features over the same range share one pass.
    let mut passes: Vec<Pass> = Vec::new();
    for feature in features {
        let range = feature.range(layout, timeline, now)?;
        if let Some(range) = range {
            let pass = match passes.iter_mut().find(|p| p.range == range) {
                Some(pass) => pass,
                None => {
                    passes.push(Pass { range, series: Vec::new(), words: Vec::new() });
                    passes.last_mut().expect("just pushed")
                }
            };
            if !pass.series.contains(&feature.series) {
                pass.series.push(feature.series);
            }
        }
        ranges.push(range);
    }
    for pass in &mut passes {
        pass.run(layout, timeline)?;
    }
    let empty = vec![0; layout.partial_words];
    let mut answers = Vec::with_capacity(features.len());
    for (feature, range) in features.iter().zip(ranges) {
        let words = passes.iter().find(|p| Some(p.range) == range).map_or(&empty[..], |p| &p.words[..]);
        let reading = Reading { layout, timeline, feature, now, range, words };
        let (value, is_approximate) = reading.value()?;
        answers.push(Answer { value, is_approximate, oldest: feature.oldest(range, now) });
    }
    Ok(answers)
}

struct Pass {
    range: Range,
    series: Vec<usize>,
    words: Vec<u64>,
}

impl Pass {
    fn run(&mut self, layout: &Layout, timeline: &dyn Timeline) -> Result<()> {
        let mut words = vec![0; layout.partial_words];
        let (lo, hi) = self.range;
        if lo == Millis::MIN
            && let Some(base) = timeline.base()
        {
            words.copy_from_slice(&base.words);
        }
        let series = &self.series;
        timeline.visit(lo, hi, false, &mut |piece| {
            match piece {
                Piece::Summary(other) => {
                    for index in series {
                        merge_series(layout, *index, &mut words, other);
                    }
                }
                Piece::Events(buf, from, to) => {
                    for i in from..to {
                        let event = buf.get(layout, i);
                        for index in series {
                            add_series(layout, *index, &mut words, event);
                        }
                    }
                }
                Piece::Sketch(_) => {}
            }
            Step::Next
        })?;
        self.words = words;
        Ok(())
    }
}

/// What a value is made of.
pub(super) enum Found<'a> {
    Event(EventRef<'a>),
    Sketch(&'a Sketch),
}

pub(super) struct Reading<'a> {
    pub layout: &'a Layout,
    pub timeline: &'a dyn Timeline,
    pub feature: &'a Feature,
    pub now: Millis,
    pub range: Option<Range>,
    pub words: &'a [u64],
}

impl Reading<'_> {
    pub(super) fn count(&self) -> u64 {
        self.words[self.layout.series[self.feature.series].count_at]
    }

    fn part(&self, kind: &PartKind) -> &[u64] {
        match self.layout.series[self.feature.series].part(kind) {
            Some(at) => &self.words[at..],
            None => &[0; 4],
        }
    }

    pub(super) fn column(&self) -> usize {
        self.layout.series[self.feature.series].column.unwrap_or(0)
    }

    /// Whether reading every event takes longer than anybody waits.
    pub(super) fn is_long(&self) -> bool {
        self.count() > self.feature.exact_limit.max(READ_MAX)
    }

    /// The value, and whether it is approximate.
    fn value(&self) -> Result<(Value, bool)> {
        let feature = self.feature;
        let count = self.count();
        let value = match feature.aggregate {
            Aggregate::Count => Value::Int(count as i64),
            Aggregate::Rate => match feature.span {
                Span::Sliding { length, .. } | Span::Hopping { length, .. } => {
                    Value::Float(count as f64 / (length as f64 / feature.millis as f64))
                }
                _ => Value::Null,
            },
            Aggregate::Sum => self.sum(),
            Aggregate::Histogram => {
                let counts = self.part(&PartKind::Histogram(feature.bounds.clone()));
                let counts = counts.iter().chain(std::iter::repeat(&0)).take(feature.bounds.len() + 1);
                Value::List(counts.map(|n| Value::Int(*n as i64)).collect())
            }
            Aggregate::SessionCount => self.session_count()?,
            Aggregate::DecayedSum | Aggregate::DecayedCount => self.decayed(),
            Aggregate::LastK
            | Aggregate::Distinct
            | Aggregate::DistinctValues
            | Aggregate::TopK
            | Aggregate::ValueCounts
            | Aggregate::Percentile
            | Aggregate::Median => return values::value(self),
            _ if count == 0 => Value::Null,
            Aggregate::Mean => self.mean(),
            Aggregate::Variance | Aggregate::Stddev | Aggregate::VariancePop | Aggregate::StddevPop => {
                self.deviation()
            }
            Aggregate::Min => self.extreme(0),
            Aggregate::Max => self.extreme(1),
            Aggregate::First => self.end(false)?,
            Aggregate::Last => self.end(true)?,
            Aggregate::TimeSinceFirst => self.since(self.part(&PartKind::Times)[0]),
            Aggregate::TimeSinceLast => self.since(self.part(&PartKind::Times)[1]),
            Aggregate::SessionDuration => {
                let times = self.part(&PartKind::Times);
                Value::Float((times[1] as i64 - times[0] as i64) as f64 / 1000.0)
            }
        };
        Ok((value, false))
    }

    fn since(&self, time: u64) -> Value {
        Value::Float((self.now - time as Millis) as f64 / 1000.0)
    }

    fn is_int(&self) -> bool {
        self.layout.columns.get(self.column()) == Some(&ScalarType::Int64)
    }

    fn sum(&self) -> Value {
        if self.is_int() {
            let total = int_sum(self.part(&PartKind::SumInt));
            return match i64::try_from(total) {
                Ok(total) => Value::Int(total),
                Err(_) => {
                    values::note_overflow();
                    Value::Null
                }
            };
        }
        float(sum::total(self.part(&PartKind::SumFloat)))
    }

    fn mean(&self) -> Value {
        let count = self.count() as f64;
        if self.is_int() {
            return float(int_sum(self.part(&PartKind::SumInt)) as f64 / count);
        }
        // Not the quotient of scaled parts: a sum out of range has no mean either.
        float(sum::total(self.part(&PartKind::SumFloat)) / count)
    }

    fn deviation(&self) -> Value {
        let aggregate = self.feature.aggregate;
        let is_sample = matches!(aggregate, Aggregate::Variance | Aggregate::Stddev);
        let count = self.count();
        if is_sample && count < 2 {
            return Value::Null;
        }
        let spread = f64::from_bits(self.part(&PartKind::Moments)[1]);
        let variance = spread / (count - u64::from(is_sample)) as f64;
        let is_root = matches!(aggregate, Aggregate::Stddev | Aggregate::StddevPop);
        float(if is_root { variance.sqrt() } else { variance })
    }

    fn extreme(&self, which: usize) -> Value {
        word_value(self.layout.columns[self.column()], self.part(&PartKind::Extremes)[which])
    }

    fn decayed(&self) -> Value {
        if self.count() == 0 {
            return Value::Float(0.0);
        }
        let is_count = self.feature.aggregate == Aggregate::DecayedCount;
        let half_life = self.feature.millis;
        let part = self.part(&PartKind::Decay { half_life, is_count });
        let mut held = [part[0], part[1]];
        let last = self.part(&PartKind::Times)[1] as Millis;
        sum::scale_plain(&mut held, decay(self.now - last, half_life));
        float(sum::total_plain(&held))
    }

    fn session_count(&self) -> Result<Value> {
        let (Some((lo, _)), true) = (self.range, self.count() > 0) else {
            return Ok(Value::Int(0));
        };
        let gap = self.feature.millis;
        let first = self.part(&PartKind::Times)[0] as Millis;
        let mut before = None;
        self.scan(lo.saturating_sub(gap + 1), lo - 1, true, |event| {
            before = Some(event.time());
            false
        })?;
        let starts = before.is_none_or(|t: Millis| first - t > gap);
        let breaks = self.part(&PartKind::Breaks(gap))[0];
        Ok(Value::Int(breaks as i64 + i64::from(starts)))
    }

    fn end(&self, is_last: bool) -> Result<Value> {
        let Some((lo, hi)) = self.range else {
            return Ok(Value::Null);
        };
        let column = self.column();
        let mut best = None;
        self.scan(lo, hi, is_last, |event| {
            best = Some((event.order(), event.value(column)));
            false
        })?;
        if lo == Millis::MIN
            && let Some(ends) = self.timeline.base().and_then(|b| b.ends.get(self.feature.series))
        {
            let other = if is_last { &ends.last } else { &ends.first };
            if let Some((order, value)) = other
                && best.as_ref().is_none_or(|(o, _)| if is_last { order > o } else { order < o })
            {
                return Ok(value.clone());
            }
        }
        Ok(best.map_or(Value::Null, |(_, value)| value))
    }

    /// Visits the feature's events in `lo..=hi` until `visit` returns false.
    pub(super) fn scan(
        &self,
        lo: Millis,
        hi: Millis,
        is_reverse: bool,
        mut visit: impl FnMut(EventRef<'_>) -> bool,
    ) -> Result<()> {
        self.look((lo, hi), is_reverse, Step::Descend, |found| match found {
            Found::Event(event) if !visit(event) => Step::Stop,
            _ => Step::Next,
        })
    }

    /// Visits the feature's events, or sketches of them if they are too many.
    pub(super) fn survey(&self, is_reverse: bool, visit: impl FnMut(Found<'_>) -> Step) -> Result<()> {
        let Some(range) = self.range else { return Ok(()) };
        let sketch = self.layout.sketch_index(self.feature.series).filter(|_| self.is_long());
        self.look(range, is_reverse, sketch.map_or(Step::Descend, Step::Sketch), visit)
    }

    fn look(
        &self,
        (lo, hi): Range,
        is_reverse: bool,
        at_summary: Step,
        mut visit: impl FnMut(Found<'_>) -> Step,
    ) -> Result<()> {
        let (layout, index) = (self.layout, self.feature.series);
        let count_at = layout.series[index].count_at;
        self.timeline.visit(lo, hi, is_reverse, &mut |piece| match piece {
            Piece::Summary(words) if words[count_at] == 0 => Step::Next,
            Piece::Summary(_) => at_summary,
            Piece::Sketch(sketch) => visit(Found::Sketch(sketch)),
            Piece::Events(buf, from, to) => {
                for step in 0..to - from {
                    let i = if is_reverse { to - 1 - step } else { from + step };
                    let event = buf.get(layout, i);
                    if event.is_in(index) && visit(Found::Event(event)) == Step::Stop {
                        return Step::Stop;
                    }
                }
                Step::Next
            }
        })
    }
}

/// A float value: null when it is not finite, and never −0.0.
pub(super) fn float(x: f64) -> Value {
    if x.is_finite() { Value::Float(x + 0.0) } else { Value::Null }
}
