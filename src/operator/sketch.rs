//! Summaries of the values below a node, for values over more events than are worth reading.
//!
//! Nothing in them is left to chance: the same events in the same rows give the same summary.

use datasketches::hll::{HllSketch, HllType, HllUnion};
use hashbrown::HashMap;

use super::events::{EventRef, text_value, word_value};
use super::layout::{Layout, SketchNeeds};
use crate::model::{Millis, ScalarType, Value};

/// Up to so many events a value is computed from every one of them, whatever its `exact_limit`.
pub const READ_MAX: u64 = 1 << 17;

/// From so many events of an entity on, nodes get sketches: those that come before are read with the
/// first that may be used.
pub const SKETCH_FROM: u64 = READ_MAX / 8;

/// Values that stand for the ranks of a node; twice as many from the fifth and from the tenth level on.
const RANKS: usize = 512;
/// Different values that a summary of the lowest nodes, and of those above, keeps.
const CELLS_LOW: usize = 256;
const CELLS: usize = 1024;
/// Bytes that they may take, once there are enough of them for 1 %; and until then.
const CELL_BYTES: usize = 48 << 10;
const CELLS_ENOUGH: usize = 128;
const CELL_BYTES_MAX: usize = 256 << 10;
/// 2^14 registers: a relative standard error of 0.81 %.
const LG_REGISTERS: u8 = 14;

/// Values at evenly spaced ranks. A summary of summaries moves a rank by half a distance more: by
/// 1/1024 of the events on each of the first four levels, by half of that on the next five, and so on.
/// That is below 1 % up to level 16, which nobody's events reach.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranks {
    /// Number of events.
    pub events: u64,
    /// Ascending; of as many events as values these are the values themselves.
    pub values: Vec<f64>,
}

/// A cell as a map key: the bytes of a string, or the word of anything else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cell {
    /// Of a fixed size.
    Word(u64),
    /// A string.
    Text(Box<[u8]>),
}

/// How often and when last a value was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Events.
    pub count: u64,
    /// Time of the last.
    pub last: Millis,
}

/// Different values with their counts, which are too low by at most 1/129 of the events (Agarwal
/// et al.: *Mergeable summaries*, 2012, for the counters of Misra and Gries).
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Values, ascending.
    pub cells: Vec<(Cell, Seen)>,
    /// Whether some were let go of.
    pub is_cut: bool,
    /// How many there are, if some were let go of.
    pub cardinality: Option<Cardinality>,
}

/// An estimate of how many different values there are (Flajolet et al.: *HyperLogLog*, 2007).
#[derive(Clone, Debug)]
pub struct Cardinality(HllSketch);

impl Cardinality {
    /// Its stored form, as Apache DataSketches writes it.
    pub fn encode(&self) -> Vec<u8> {
        self.0.serialize()
    }

    /// Reads its stored form.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        HllSketch::deserialize(bytes).ok().map(Self)
    }
}

/// What is known of the values of a series below a node.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    /// For percentiles.
    pub ranks: Ranks,
    /// For everything that counts different values.
    pub tally: Tally,
}

impl Cell {
    /// The cell of column `index` of an event.
    pub fn of(layout: &Layout, index: usize, event: EventRef<'_>) -> Self {
        if layout.is_string(index) {
            Self::Text(event.text(index).into())
        } else {
            Self::Word(event.word(index))
        }
    }

    /// Its value in a column of this type.
    pub fn value(&self, scalar: ScalarType) -> Value {
        match self {
            Self::Text(bytes) => text_value(bytes),
            Self::Word(word) => word_value(scalar, *word),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Word(_) => 24,
            Self::Text(bytes) => 20 + bytes.len(),
        }
    }
}

/// Gathers ranks of events and of other summaries.
#[derive(Default)]
pub struct RankGatherer {
    points: Vec<(f64, f64)>,
    events: u64,
}

impl RankGatherer {
    /// One event.
    pub fn add(&mut self, value: f64) {
        self.points.push((value, 1.0));
        self.events += 1;
    }

    /// All events of a summary.
    pub fn merge(&mut self, ranks: &Ranks) {
        let weight = ranks.events as f64 / ranks.values.len().max(1) as f64;
        self.points.extend(ranks.values.iter().map(|v| (*v, weight)));
        self.events += ranks.events;
    }

    fn is_exact(&self) -> bool {
        self.points.len() as u64 == self.events
    }

    /// The value at quantile `q`, or one near it.
    pub fn quantile(self, q: f64) -> Option<f64> {
        let rank = q * self.events.saturating_sub(1) as f64 + 0.5;
        self.pick(&[rank]).first().copied()
    }

    fn finish(mut self, height: u8) -> Ranks {
        let events = self.events;
        let most = RANKS << (height / 5).min(2);
        if self.is_exact() && self.points.len() <= most {
            self.points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            return Ranks { events, values: self.points.into_iter().map(|(v, _)| v).collect() };
        }
        let step = events as f64 / most as f64;
        let targets: Vec<f64> = (0..most).map(|i| (i as f64 + 0.5) * step).collect();
        Ranks { events, values: self.pick(&targets) }
    }

    /// The values that cover `targets`, which ascend, when all stand in a row as wide as they weigh.
    fn pick(mut self, targets: &[f64]) -> Vec<f64> {
        self.points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let Some(last) = self.points.last().map(|p| p.0) else { return Vec::new() };
        let mut points = self.points.iter();
        let (mut value, mut end) = (last, 0.0);
        let cover = |target: &f64| {
            while end <= *target {
                let Some((next, weight)) = points.next() else { break };
                (value, end) = (*next, end + weight);
            }
            value
        };
        targets.iter().map(cover).collect()
    }
}

/// Gathers different values of events and of other summaries.
pub struct TallyGatherer {
    /// What was seen.
    pub cells: HashMap<Cell, Seen>,
    is_cut: bool,
    cardinality: Option<HllUnion>,
    needs: SketchNeeds,
}

impl TallyGatherer {
    /// Has seen nothing.
    pub fn new(needs: SketchNeeds) -> Self {
        Self { cells: HashMap::new(), is_cut: false, cardinality: None, needs }
    }

    /// Sees a cell; true if it is new.
    pub fn add(&mut self, cell: Cell, seen: Seen) -> bool {
        if let Some(union) = &mut self.cardinality {
            put(union, &cell);
        }
        let mut is_new = true;
        let entry = self.cells.entry(cell).and_modify(|s| {
            s.count += seen.count;
            s.last = s.last.max(seen.last);
            is_new = false;
        });
        entry.or_insert(seen);
        is_new
    }

    /// Sees all values of a summary.
    pub fn merge(&mut self, tally: &Tally) {
        self.is_cut |= tally.is_cut;
        if let Some(theirs) = &tally.cardinality {
            self.count_values();
            if let Some(union) = &mut self.cardinality {
                union.update(&theirs.0);
            }
        }
        for (cell, seen) in &tally.cells {
            self.add(cell.clone(), *seen);
        }
    }

    /// Number of different values, and whether every one of them is known.
    pub fn distinct(&self) -> (u64, bool) {
        match &self.cardinality {
            Some(union) if self.is_cut => (union.composite_estimate().round() as u64, false),
            _ => (self.cells.len() as u64, !self.is_cut),
        }
    }

    /// Whether counts are those of all events.
    pub fn is_exact(&self) -> bool {
        !self.is_cut
    }

    /// Begins to estimate how many values there are. The order of cells matters to what is stored.
    fn count_values(&mut self) {
        if self.cardinality.is_none()
            && self.needs.cardinality
            && let Ok(mut union) = HllUnion::new(LG_REGISTERS)
        {
            let mut cells: Vec<&Cell> = self.cells.keys().collect();
            cells.sort_unstable();
            for cell in cells {
                put(&mut union, cell);
            }
            self.cardinality = Some(union);
        }
    }

    /// None: too few values fit for the counts to be right enough.
    fn finish(mut self, height: u8) -> Option<Tally> {
        let most = if height <= 1 && !self.needs.latest { CELLS_LOW } else { CELLS };
        if self.cells.len() > most || self.cells.keys().map(Cell::bytes).sum::<usize>() > CELL_BYTES {
            self.cut(most)?;
        }
        if self.is_cut && !self.needs.counts {
            self.cells.clear();
        }
        let mut cells: Vec<(Cell, Seen)> = self.cells.into_iter().collect();
        cells.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let cardinality = self.cardinality.map(|union| Cardinality(union.to_sketch(HllType::Hll4)));
        Some(Tally { cells, is_cut: self.is_cut, cardinality })
    }

    /// Keeps the most frequent values, less the count of the first that goes.
    fn cut(&mut self, most: usize) -> Option<()> {
        let mut counts: Vec<(u64, usize)> =
            self.cells.iter().map(|(cell, seen)| (seen.count, cell.bytes())).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let mut bytes = 0;
        let kept = counts.iter().enumerate().take_while(|(index, (_, size))| {
            bytes += size;
            let room = if *index < CELLS_ENOUGH { CELL_BYTES_MAX } else { CELL_BYTES };
            *index < most && bytes <= room
        });
        let kept = kept.count();
        let Some((floor, _)) = counts.get(kept).copied() else { return Some(()) };
        if kept < CELLS_ENOUGH && self.needs.counts {
            return None;
        }
        self.count_values();
        self.is_cut = true;
        self.cells.retain(|_, seen| {
            seen.count = seen.count.saturating_sub(floor);
            seen.count > 0
        });
        Some(())
    }
}

fn put(union: &mut HllUnion, cell: &Cell) {
    match cell {
        Cell::Word(word) => union.update_value(*word),
        Cell::Text(bytes) => union.update_value(bytes),
    }
}

/// Gathers what is to be known of a series below a node.
pub struct Gatherer<'a> {
    layout: &'a Layout,
    series: usize,
    ranks: RankGatherer,
    tally: TallyGatherer,
}

impl<'a> Gatherer<'a> {
    /// Knows nothing yet of `series`.
    pub fn new(layout: &'a Layout, series: usize) -> Self {
        let tally = TallyGatherer::new(layout.series[series].sketch);
        Self { layout, series, ranks: RankGatherer::default(), tally }
    }

    /// One event.
    pub fn add(&mut self, event: EventRef<'_>) {
        let series = &self.layout.series[self.series];
        let (Some(column), true) = (series.column, event.is_in(self.series)) else { return };
        if series.sketch.ranks {
            self.ranks.add(event.number(column));
        }
        if series.sketch.values {
            self.tally.add(Cell::of(self.layout, column, event), Seen { count: 1, last: event.time() });
        }
    }

    /// All events of a summary.
    pub fn merge(&mut self, sketch: &Sketch) {
        self.ranks.merge(&sketch.ranks);
        self.tally.merge(&sketch.tally);
    }

    /// The summary for a node of this height; none: it would be too large.
    pub fn finish(self, height: u8) -> Option<Sketch> {
        Some(Sketch { ranks: self.ranks.finish(height), tally: self.tally.finish(height)? })
    }
}
