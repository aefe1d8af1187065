//! Sketches of nodes: one row for each series that has one.
//!
//! Row: events u64, number of ranks u32, ranks f64; flags u8 (1: cut, 2: has a cardinality), number of
//! values u32, each as kind u8, word or text, count u64, last i64; cardinality as Apache DataSketches
//! writes it.

use super::unit::{Entry, Unit};
use super::view::{RowSource, UnitView};
use crate::codec::bytes::{Reader, put_bytes};
use crate::error::{Error, Result};
use crate::operator::Layout;
use crate::operator::sketch::{Cardinality, Cell, Gatherer, Ranks, SKETCH_FROM, Seen, Sketch, Tally};

/// Events of a node between two sketches of it, when late ones come in.
const EVERY_LOW: u64 = 1024;
const EVERY: u64 = 8192;

/// In place of the row of a sketch that would be too large.
const NO_ROW: u64 = u64::MAX;

/// Whether a node that late events have changed, and whose sketch went with the first, gets another.
pub(super) fn is_sketch_due(height: u8, events: u64) -> bool {
    events.is_multiple_of(if height <= 1 { EVERY_LOW } else { EVERY })
}

impl Unit {
    /// A node over `children` with sketches, its own and those that children lack.
    pub(super) fn add_sketched_node(
        &mut self,
        layout: &Layout,
        mut children: Vec<Entry>,
        rows: &dyn RowSource,
    ) -> Result<Entry> {
        if layout.sketched.is_empty() || self.events(layout) < SKETCH_FROM {
            return Ok(self.add_node(layout, &children));
        }
        for child in children.iter_mut().filter(|c| c.height > 0 && c.sketches.is_empty()) {
            let below = UnitView { unit: self, layout, rows }.node(child.row)?;
            child.sketches = self.add_sketches(layout, &below, child.height, rows)?;
        }
        let mut node = self.add_node(layout, &children);
        node.sketches = self.add_sketches(layout, &children, node.height, rows)?;
        Ok(node)
    }

    fn add_sketches(
        &mut self,
        layout: &Layout,
        children: &[Entry],
        height: u8,
        rows: &dyn RowSource,
    ) -> Result<Box<[u64]>> {
        let sketches = UnitView { unit: self, layout, rows }.sketches_over(children, height)?;
        let row = |sketch: Option<Sketch>| sketch.map_or(NO_ROW, |s| self.add_row(encode_sketch(&s)));
        Ok(sketches.into_iter().map(row).collect())
    }

    /// Drops the row of an entry and its sketches.
    pub(super) fn drop_entry(&mut self, entry: &Entry) {
        if !entry.is_tile() {
            self.drop_row(entry.row);
        }
        for row in entry.sketches.iter().filter(|row| **row != NO_ROW) {
            self.drop_row(*row);
        }
    }
}

impl UnitView<'_> {
    /// One of the sketches of a node, if it has them.
    pub(super) fn sketch(&self, entry: &Entry, index: usize) -> Result<Option<Sketch>> {
        let row = entry.sketches.get(index).filter(|row| **row != NO_ROW);
        row.map(|row| self.with_row(*row, decode_sketch)).transpose()
    }

    /// What a node of this height over `children` is to know; none of a series of which it would be too
    /// much.
    fn sketches_over(&self, children: &[Entry], height: u8) -> Result<Vec<Option<Sketch>>> {
        let layout = self.layout;
        if children.iter().any(Entry::is_tile) {
            // Nobody asks: it is older than any event that is asked for by itself.
            return Ok(layout.sketched.iter().map(|_| None).collect());
        }
        let all = layout.sketched.iter().map(|series| Some(Gatherer::new(layout, *series)));
        let mut all: Vec<Option<Gatherer<'_>>> = all.collect();
        for child in children {
            if child.height == 0 {
                let page = self.page(child.row)?;
                for event in 0..page.len(layout) {
                    all.iter_mut().flatten().for_each(|gatherer| gatherer.add(page.get(layout, event)));
                }
                continue;
            }
            let below = if child.sketches.is_empty() {
                self.sketches_over(&self.node(child.row)?, child.height)?
            } else {
                (0..all.len()).map(|index| self.sketch(child, index)).collect::<Result<_>>()?
            };
            for (gatherer, sketch) in all.iter_mut().zip(below) {
                match (gatherer.as_mut(), sketch) {
                    (Some(gatherer), Some(sketch)) => gatherer.merge(&sketch),
                    _ => *gatherer = None,
                }
            }
        }
        Ok(all.into_iter().map(|gatherer| gatherer?.finish(height)).collect())
    }
}

fn encode_sketch(sketch: &Sketch) -> Vec<u8> {
    let Sketch { ranks, tally } = sketch;
    let mut out = Vec::new();
    out.extend(ranks.events.to_le_bytes());
    out.extend((ranks.values.len() as u32).to_le_bytes());
    for value in &ranks.values {
        out.extend(value.to_le_bytes());
    }
    out.push(u8::from(tally.is_cut) | u8::from(tally.cardinality.is_some()) << 1);
    out.extend((tally.cells.len() as u32).to_le_bytes());
    for (cell, seen) in &tally.cells {
        match cell {
            Cell::Word(word) => {
                out.push(0);
                out.extend(word.to_le_bytes());
            }
            Cell::Text(bytes) => {
                out.push(1);
                put_bytes(&mut out, bytes);
            }
        }
        out.extend(seen.count.to_le_bytes());
        out.extend(seen.last.to_le_bytes());
    }
    if let Some(cardinality) = &tally.cardinality {
        out.extend(cardinality.encode());
    }
    out
}

/// Reads a row of a sketch.
///
/// # Errors
/// Bytes that are none.
fn decode_sketch(bytes: &[u8]) -> Result<Sketch> {
    decode(&mut Reader(bytes)).ok_or_else(|| Error::corrupted("a sketch cannot be read"))
}

fn decode(reader: &mut Reader<'_>) -> Option<Sketch> {
    let events = reader.u64()?;
    let values: Option<Vec<f64>> = (0..reader.u32()?).map(|_| reader.u64().map(f64::from_bits)).collect();
    let ranks = Ranks { events, values: values? };
    let flags = reader.u8()?;
    let mut cells = Vec::new();
    for _ in 0..reader.u32()? {
        let cell = match reader.u8()? {
            0 => Cell::Word(reader.u64()?),
            _ => Cell::Text(reader.bytes()?.into()),
        };
        cells.push((cell, Seen { count: reader.u64()?, last: reader.i64()? }));
    }
    let cardinality = if flags & 2 == 0 { None } else { Some(Cardinality::decode(reader.0)?) };
    Some(Sketch { ranks, tally: Tally { cells, is_cut: flags & 1 == 1, cardinality } })
}
