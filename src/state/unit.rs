//! One unit in memory, and the stored form of its HEAD row.
//!
//! HEAD, version 2: version u8, flags u8 (1: has a base, 2: has been folded), next offset u64, row
//! clock i64, greatest event time i64, next row id u64; time before which it was folded i64; base;
//! entries; id chunks; tail. Entry: row id u64, height u8, first and last order, events u64, partial
//! words, rows of sketches.

use std::sync::Arc;

use super::ids::{Chunk, ChunkData, IdSet, decode as decode_ids, encode as encode_ids};
use crate::codec::bytes::{Reader, put_bytes};
use crate::error::{Error, Result};
use crate::model::{Millis, Offset, Value, time};
use crate::operator::partial::{Base, Ends};
use crate::operator::{EventBuf, Fold, Layout, Order};

const VERSION: u8 = 3;

/// What decides about the layout of a unit beside its events.
#[derive(Clone, Debug)]
pub struct UnitRules {
    /// How long raw events are kept behind the row clock; `None`: for ever.
    pub horizon: Option<Millis>,
    /// Whether events that leave the horizon are accumulated.
    pub has_base: bool,
    /// When events are folded into tiles; none: they stay until they leave the horizon.
    pub fold: Option<Fold>,
    /// How late an event may be: how long ids are kept.
    pub grace: Millis,
}

/// A row below HEAD: where it is and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its row id; a tile has none.
    pub row: u64,
    /// 0: a page of events, or a tile; above: a node of entries of the height below.
    pub height: u8,
    /// Place of the first event.
    pub lo: Order,
    /// Place of the last event.
    pub hi: Order,
    /// Number of events.
    pub events: u64,
    /// Their partial aggregates.
    pub words: Box<[u64]>,
    /// Rows of its sketches, in the layout's order; empty: there are none, or none any more.
    pub sketches: Box<[u64]>,
}

/// A unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Next offset of its input: every offset below is in it or was judged without it.
    pub next_offset: Offset,
    /// Greatest advance of its events.
    pub row_clock: Millis,
    /// Greatest event time.
    pub newest: Millis,
    pub(super) next_row: u64,
    /// What ended before this is folded, as far as it is worth it.
    pub(super) folded_to: Millis,
    pub(super) base: Option<Box<Base>>,
    pub(super) tail: EventBuf,
    pub(super) entries: Vec<Entry>,
    pub(super) ids: IdSet,
    /// Rows that the store does not have yet, by ascending id.
    fresh: Vec<(u64, Arc<[u8]>)>,
    /// Bytes of fresh rows: a hot unit has thousands, and is measured at each event.
    fresh_bytes: usize,
    /// Rows that the store still has.
    pub(super) dead: Vec<u64>,
    /// First offset whose change is in no copy that was made to be written.
    pub dirty_from: Option<Offset>,
    /// Of `fresh` and `dead`, how many lead them that are on their way to the store, with HEAD.
    in_flight: Option<(usize, usize)>,
}

impl Unit {
    /// Reads what an arrival will look at first, so that it is in the processor's caches by then. The
    /// number means nothing.
    pub(super) fn touch(&self) -> u64 {
        self.next_offset
            ^ self.tail.touch()
            ^ self.entries.len() as u64
            ^ u64::from(self.dirty_from.is_some())
    }
}

impl Default for Unit {
    fn default() -> Self {
        Self {
            next_offset: 0,
            row_clock: time::MIN,
            newest: time::MIN,
            next_row: 0,
            folded_to: time::MIN,
            base: None,
            tail: EventBuf::default(),
            entries: Vec::new(),
            ids: IdSet::default(),
            fresh: Vec::new(),
            fresh_bytes: 0,
            dead: Vec::new(),
            dirty_from: None,
            in_flight: None,
        }
    }
}

impl Unit {
    /// Bytes in memory, roughly.
    pub fn bytes(&self) -> usize {
        let entry = self
            .entries
            .first()
            .map_or(0, |e| size_of::<Entry>() + (e.words.len() + e.sketches.len()) * 8 + 16);
        let entries = self.entries.len() * entry;
        let fresh = self.fresh_bytes + self.fresh.len() * 48;
        let base = self.base.as_ref().map_or(0, |b| 128 + b.words.len() * 8 + b.ends.len() * 96);
        size_of::<Self>() + self.tail.capacity_bytes() + entries + fresh + base + self.ids.bytes()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        let id_rows = |c: &&Chunk| matches!(c.data, ChunkData::Row(_));
        let rows = self.entries.iter().filter(|e| !e.is_tile()).count();
        1 + rows + self.ids.chunks().iter().filter(id_rows).count()
    }

    /// Number of events, those in tiles included.
    pub fn events(&self, layout: &Layout) -> u64 {
        self.tail.len(layout) as u64 + self.entries.iter().map(|e| e.events).sum::<u64>()
    }

    /// The newest events, which stand in HEAD.
    pub fn tail(&self) -> &EventBuf {
        &self.tail
    }

    /// The directory of older events.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Accumulators of events that have left.
    pub fn base(&self) -> Option<&Base> {
        self.base.as_deref()
    }

    /// Number of ids that stand in HEAD, and of rows of ids.
    pub fn id_counts(&self) -> (usize, usize) {
        let mut counts = (0, 0);
        for chunk in self.ids.chunks() {
            match &chunk.data {
                ChunkData::Here(ids) => counts.0 += ids.len(),
                ChunkData::Row(_) => counts.1 += 1,
            }
        }
        counts
    }

    /// Rows that have to be written and deleted with HEAD.
    pub fn unwritten(&self) -> (&[(u64, Arc<[u8]>)], &[u64]) {
        let (fresh, dead) = self.in_flight.unwrap_or_default();
        (&self.fresh[fresh..], &self.dead[dead..])
    }

    /// Whether memory holds what the store does not have yet.
    pub fn is_pinned(&self) -> bool {
        self.dirty_from.is_some() || self.in_flight.is_some()
    }

    /// Notes that a copy of HEAD and its unwritten rows is on its way to the store. What changes from
    /// now on is not in it (PROTOCOL 13).
    pub fn begin_flight(&mut self) {
        self.in_flight = Some((self.fresh.len(), self.dead.len()));
        self.dirty_from = None;
    }

    /// Notes that the store has what was on its way (PROTOCOL 17).
    pub fn end_flight(&mut self) {
        let Some((fresh, dead)) = self.in_flight.take() else { return };
        self.fresh_bytes -= self.fresh.drain(..fresh).map(|(_, bytes)| bytes.len()).sum::<usize>();
        self.fresh.shrink_to_fit();
        self.dead.drain(..dead);
        self.dead.shrink_to_fit();
    }

    /// Notes that HEAD and its unwritten rows are in the store.
    pub fn mark_written(&mut self) {
        self.begin_flight();
        self.end_flight();
    }

    pub(super) fn fresh_row(&self, id: u64) -> Option<&[u8]> {
        let index = self.fresh.binary_search_by_key(&id, |(row, _)| *row).ok()?;
        Some(&self.fresh[index].1)
    }

    pub(super) fn add_row(&mut self, bytes: Vec<u8>) -> u64 {
        let id = self.next_row;
        self.next_row += 1;
        self.adopt_row(id, bytes);
        id
    }

    /// Takes a row whose id was drawn from `next_row` last.
    pub(super) fn adopt_row(&mut self, id: u64, bytes: Vec<u8>) {
        self.fresh_bytes += bytes.len();
        self.fresh.push((id, bytes.into()));
    }

    pub(super) fn drop_row(&mut self, id: u64) {
        let in_flight = self.in_flight.map_or(0, |(fresh, _)| fresh);
        match self.fresh.binary_search_by_key(&id, |(row, _)| *row) {
            Ok(index) if index >= in_flight => {
                let (_, bytes) = self.fresh.remove(index);
                self.fresh_bytes -= bytes.len();
            }
            // In the store, or about to be.
            _ => self.dead.push(id),
        }
    }

    /// The stored form of HEAD.
    pub fn encode_head(&self, layout: &Layout) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.tail.bytes() + self.entries.len() * 128);
        let is_folded = self.folded_to > time::MIN;
        out.extend([VERSION, u8::from(self.base.is_some()) | u8::from(is_folded) << 1]);
        out.extend(self.next_offset.to_le_bytes());
        out.extend(self.row_clock.to_le_bytes());
        out.extend(self.newest.to_le_bytes());
        out.extend(self.next_row.to_le_bytes());
        if is_folded {
            out.extend(self.folded_to.to_le_bytes());
        }
        if let Some(base) = &self.base {
            encode_base(base, &mut out);
        }
        encode_entries(&self.entries, &mut out);
        out.extend((self.ids.chunks().len() as u32).to_le_bytes());
        for chunk in self.ids.chunks() {
            out.extend(chunk.partition.to_le_bytes());
            for (time, hash) in [chunk.lo, chunk.hi] {
                out.extend(time.to_le_bytes());
                out.extend(hash.to_le_bytes());
            }
            match &chunk.data {
                ChunkData::Here(ids) => {
                    out.push(0);
                    encode_ids(ids, &mut out);
                }
                ChunkData::Row(row) => {
                    out.push(1);
                    out.extend(row.to_le_bytes());
                }
            }
        }
        self.tail.encode(layout, &mut out);
        out
    }

    /// Reads the stored form of HEAD.
    ///
    /// # Errors
    /// Bytes that are not a HEAD row of this version.
    pub fn decode_head(layout: &Layout, bytes: &[u8]) -> Result<Self> {
        match bytes.first() {
            Some(&VERSION) => {}
            Some(older @ ..VERSION) => {
                let message = format!("a HEAD row of version {older}, written by an older Thalweg");
                return Err(Error::corrupted(message).with_hint(
                    "start with an empty data_dir, or under another `app`: state is built from the log",
                ));
            }
            Some(other) => {
                let message = format!("a HEAD row of version {other}, written by a newer Thalweg");
                return Err(Error::corrupted(message).with_hint("run that version"));
            }
            None => return Err(Error::corrupted("an empty HEAD row")),
        }
        Self::decode(layout, &mut Reader(&bytes[1..]))
            .ok_or_else(|| Error::corrupted("a HEAD row is cut short"))
    }

    fn decode(layout: &Layout, reader: &mut Reader<'_>) -> Option<Self> {
        let flags = reader.u8()?;
        let mut unit = Self {
            next_offset: reader.u64()?,
            row_clock: reader.i64()?,
            newest: reader.i64()?,
            next_row: reader.u64()?,
            ..Self::default()
        };
        if flags & 2 == 2 {
            unit.folded_to = reader.i64()?;
        }
        if flags & 1 == 1 {
            unit.base = Some(Box::new(decode_base(layout, reader)?));
        }
        unit.entries = decode_entries(layout, reader)?;
        let chunks = reader.u32()?;
        let mut chunk = || {
            let partition = reader.u32()?;
            let (lo, hi) = ((reader.i64()?, reader.u128()?), (reader.i64()?, reader.u128()?));
            let data = match reader.u8()? {
                0 => ChunkData::Here(decode_ids(reader)?),
                _ => ChunkData::Row(reader.u64()?),
            };
            Some(Chunk { partition, lo, hi, data })
        };
        unit.ids = (0..chunks).map(|_| chunk()).collect::<Option<_>>()?;
        unit.tail = EventBuf::decode(layout, &mut reader.0)?;
        Some(unit)
    }
}

pub(super) fn encode_entries(entries: &[Entry], out: &mut Vec<u8>) {
    out.extend((entries.len() as u32).to_le_bytes());
    for entry in entries {
        out.extend(entry.row.to_le_bytes());
        out.push(entry.height);
        for order in [entry.lo, entry.hi] {
            out.extend(order.time.to_le_bytes());
            out.extend(order.source.to_le_bytes());
        }
        out.extend(entry.events.to_le_bytes());
        for word in &entry.words {
            out.extend(word.to_le_bytes());
        }
        out.extend((entry.sketches.len() as u16).to_le_bytes());
        for row in &entry.sketches {
            out.extend(row.to_le_bytes());
        }
    }
}

pub(super) fn decode_entries(layout: &Layout, reader: &mut Reader<'_>) -> Option<Vec<Entry>> {
    let count = reader.u32()?;
    let mut entries = Vec::with_capacity(count.min(1024) as usize);
    for _ in 0..count {
        let (row, height) = (reader.u64()?, reader.u8()?);
        let lo = Order { time: reader.i64()?, source: reader.u64()? };
        let hi = Order { time: reader.i64()?, source: reader.u64()? };
        let events = reader.u64()?;
        let words: Option<Box<[u64]>> = (0..layout.partial_words).map(|_| reader.u64()).collect();
        let sketches: Option<Box<[u64]>> = (0..reader.u16()?).map(|_| reader.u64()).collect();
        entries.push(Entry { row, height, lo, hi, events, words: words?, sketches: sketches? });
    }
    Some(entries)
}

fn encode_base(base: &Base, out: &mut Vec<u8>) {
    out.extend(base.count.to_le_bytes());
    out.extend(base.oldest.to_le_bytes());
    out.extend(base.newest.to_le_bytes());
    for word in &base.words {
        out.extend(word.to_le_bytes());
    }
    for ends in &base.ends {
        for end in [&ends.first, &ends.last] {
            match end {
                None => out.push(0),
                Some((order, value)) => {
                    out.push(1);
                    out.extend(order.time.to_le_bytes());
                    out.extend(order.source.to_le_bytes());
                    encode_value(value, out);
                }
            }
        }
    }
}

fn decode_base(layout: &Layout, reader: &mut Reader<'_>) -> Option<Base> {
    let (count, oldest, newest) = (reader.u64()?, reader.i64()?, reader.i64()?);
    let words: Option<Vec<u64>> = (0..layout.partial_words).map(|_| reader.u64()).collect();
    let mut ends = Vec::with_capacity(layout.series.len());
    for _ in 0..layout.series.len() {
        let mut end = || -> Option<Option<(Order, Value)>> {
            if reader.u8()? == 0 {
                return Some(None);
            }
            let order = Order { time: reader.i64()?, source: reader.u64()? };
            Some(Some((order, decode_value(reader)?)))
        };
        ends.push(Ends { first: end()?, last: end()? });
    }
    Some(Base { count, oldest, newest, words: words?, ends })
}

fn encode_value(value: &Value, out: &mut Vec<u8>) {
    let (kind, word) = match value {
        Value::Bool(b) => (b'b', u64::from(*b)),
        Value::Int(n) => (b'i', *n as u64),
        Value::Float(x) => (b'f', x.to_bits()),
        Value::Timestamp(t) => (b't', *t as u64),
        Value::String(s) => {
            out.push(b's');
            put_bytes(out, s.as_bytes());
            return;
        }
        Value::Null | Value::List(_) | Value::Map(_) => (b'n', 0),
    };
    out.push(kind);
    out.extend(word.to_le_bytes());
}

fn decode_value(reader: &mut Reader<'_>) -> Option<Value> {
    Some(match reader.u8()? {
        b's' => Value::from(reader.text()?),
        b'b' => Value::Bool(reader.u64()? != 0),
        b'i' => Value::Int(reader.i64()?),
        b'f' => Value::Float(f64::from_bits(reader.u64()?)),
        b't' => Value::Timestamp(reader.i64()?),
        _ => {
            reader.u64()?;
            Value::Null
        }
    })
}
