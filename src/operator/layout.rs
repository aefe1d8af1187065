//! How the events of a group and their partial aggregates are laid out in words.

use std::hash::{Hash, Hasher};

use crate::model::{Aggregate, Millis, ScalarType};

/// A part of a partial aggregate beside its count.
#[derive(Clone, Debug, PartialEq)]
pub enum PartKind {
    /// Event times of the first and the last event: 2 words.
    Times,
    /// Exact integer sum: 2 words.
    SumInt,
    /// Compensated float sum: 4 words.
    SumFloat,
    /// Mean and sum of squared deviations: 2 words.
    Moments,
    /// Least and greatest: 2 words.
    Extremes,
    /// Counts between bounds: one word more than bounds.
    Histogram(Vec<f64>),
    /// Decayed to the last event time: 2 words, one of each scale.
    Decay {
        /// Half-life.
        half_life: Millis,
        /// Whether events weigh 1 instead of their value.
        is_count: bool,
    },
    /// Number of neighbours further apart than the gap: 1 word.
    Breaks(Millis),
}

impl PartKind {
    pub(super) fn words(&self) -> usize {
        match self {
            Self::Times | Self::SumInt | Self::Moments | Self::Extremes => 2,
            Self::SumFloat => 4,
            Self::Histogram(bounds) => bounds.len() + 1,
            Self::Breaks(_) => 1,
            Self::Decay { .. } => 2,
        }
    }
}

/// What the nodes above the events of a series keep of its values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SketchNeeds {
    /// Values at ranks.
    pub ranks: bool,
    /// Different values, as long as they are few.
    pub values: bool,
    /// The most frequent of them, when they are many.
    pub counts: bool,
    /// How many there are, when they are many.
    pub cardinality: bool,
    /// Those that were seen last.
    pub latest: bool,
}

impl SketchNeeds {
    /// What `aggregate` needs.
    pub fn of(aggregate: Aggregate) -> Self {
        let mut needs = Self::default();
        needs.add(aggregate);
        needs
    }

    fn add(&mut self, aggregate: Aggregate) {
        match aggregate {
            Aggregate::Percentile | Aggregate::Median => self.ranks = true,
            Aggregate::Distinct => (self.values, self.cardinality) = (true, true),
            Aggregate::TopK | Aggregate::ValueCounts => (self.values, self.counts) = (true, true),
            Aggregate::DistinctValues => (self.values, self.latest) = (true, true),
            _ => {}
        }
    }
}

/// The events for which a flag is set and a column is not null: what a feature is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Index of the column, if values matter.
    pub column: Option<usize>,
    /// Index of the flag, if not all events count.
    pub flag: Option<usize>,
    /// Word of the count in a partial.
    pub count_at: usize,
    /// Parts with their first words. `Times` comes first when it is there.
    pub parts: Vec<(PartKind, usize)>,
    /// What is kept of its values above the events.
    pub sketch: SketchNeeds,
}

impl Series {
    /// First word of the part `kind`.
    pub fn part(&self, kind: &PartKind) -> Option<usize> {
        self.parts.iter().find(|(k, _)| k == kind).map(|(_, at)| *at)
    }
}

/// Columns, flags and series of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layout {
    /// Types of the columns.
    pub columns: Vec<ScalarType>,
    /// Number of flags.
    pub flags: usize,
    /// Series.
    pub series: Vec<Series>,
    /// Words of a partial aggregate over all series.
    pub partial_words: usize,
    /// Series of which nodes keep a sketch.
    pub sketched: Vec<usize>,
    meta_words: usize,
}

impl Layout {
    /// A layout without series.
    pub fn new(columns: Vec<ScalarType>, flags: usize) -> Self {
        let meta_words = (flags + columns.len()).div_ceil(64);
        Self { columns, flags, series: Vec::new(), partial_words: 0, sketched: Vec::new(), meta_words }
    }

    /// The index of the series over `column` and `flag` with `parts` in it; it is added, or given
    /// the parts that it lacks.
    pub fn add_series(&mut self, column: Option<usize>, flag: Option<usize>, parts: Vec<PartKind>) -> usize {
        let known = self.series.iter().position(|s| s.column == column && s.flag == flag);
        let index = known.unwrap_or_else(|| {
            let series =
                Series { column, flag, count_at: 0, parts: Vec::new(), sketch: SketchNeeds::default() };
            self.series.push(series);
            self.series.len() - 1
        });
        for part in parts {
            if self.series[index].part(&part).is_none() {
                let at = if part == PartKind::Times { 0 } else { self.series[index].parts.len() };
                self.series[index].parts.insert(at, (part, 0));
            }
        }
        self.place();
        index
    }

    /// Has nodes keep what `aggregate` needs of the values of a series.
    pub fn add_sketch(&mut self, series: usize, aggregate: Aggregate) {
        let needs = &mut self.series[series].sketch;
        needs.add(aggregate);
        if *needs != SketchNeeds::default() && !self.sketched.contains(&series) {
            self.sketched.push(series);
        }
    }

    /// Place among the sketches of a node, if there is one of `series`.
    pub fn sketch_index(&self, series: usize) -> Option<usize> {
        self.sketched.iter().position(|s| *s == series)
    }

    fn place(&mut self) {
        let mut next = 0;
        for series in &mut self.series {
            series.count_at = next;
            next += 1;
            for (part, at) in &mut series.parts {
                *at = next;
                next += part.words();
            }
        }
        self.partial_words = next;
    }

    /// Words of one event: time, order, bits, columns.
    pub fn stride(&self) -> usize {
        2 + self.meta_words + self.columns.len()
    }

    /// Word and bit of flag `index`.
    pub fn flag_bit(&self, index: usize) -> (usize, u32) {
        (2 + index / 64, (index % 64) as u32)
    }

    /// Word and bit that say whether column `index` has a value.
    pub fn present_bit(&self, index: usize) -> (usize, u32) {
        self.flag_bit(self.flags + index)
    }

    /// Word of column `index`.
    pub fn column_at(&self, index: usize) -> usize {
        2 + self.meta_words + index
    }

    /// Whether a column holds strings, whose bytes stand apart.
    pub fn is_string(&self, index: usize) -> bool {
        self.columns[index] == ScalarType::String
    }

    /// A number that changes whenever stored rows would mean something else.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = twox_hash::XxHash64::with_seed(1);
        format!("{self:?}").hash(&mut hasher);
        hasher.finish()
    }
}
