//! A unit as a timeline: HEAD from memory, sealed rows from wherever they are.

use super::StateStore;
use super::rows::row_key;
use super::unit::{Entry, Unit, decode_entries};
use crate::codec::bytes::Reader;
use crate::error::{Error, Result};
use crate::model::Millis;
use crate::operator::partial::Base;
use crate::operator::{EventBuf, Layout, Piece, Step, Timeline};

/// Where sealed rows of one unit are read.
pub trait RowSource {
    /// Bytes of row `id`.
    ///
    /// # Errors
    /// It cannot be read, or is missing although something refers to it.
    fn row(&self, id: u64) -> Result<Vec<u8>>;
}

/// Sealed rows of the unit at `prefix` in a store.
pub struct StoredRows<'a> {
    /// The store.
    pub store: &'a dyn StateStore,
    /// Prefix of the unit's rows.
    pub prefix: &'a [u8],
}

impl RowSource for StoredRows<'_> {
    fn row(&self, id: u64) -> Result<Vec<u8>> {
        let row = self.store.get(&row_key(self.prefix, id))?;
        row.ok_or_else(|| Error::corrupted(format!("row {id} of a unit is missing")))
    }
}

/// Reads a page.
///
/// # Errors
/// Bytes that are no page.
pub fn decode_page(layout: &Layout, mut bytes: &[u8]) -> Result<EventBuf> {
    EventBuf::decode(layout, &mut bytes).ok_or_else(|| Error::corrupted("a page is cut short"))
}

/// Reads a node.
///
/// # Errors
/// Bytes that are no node.
pub fn decode_node(layout: &Layout, bytes: &[u8]) -> Result<Vec<Entry>> {
    let entries = decode_entries(layout, &mut Reader(bytes)).filter(|entries| !entries.is_empty());
    entries.ok_or_else(|| Error::corrupted("a node is cut short"))
}

/// A unit with its rows.
pub struct UnitView<'a> {
    /// The unit.
    pub unit: &'a Unit,
    /// Layout of its events.
    pub layout: &'a Layout,
    /// Rows that are in the store.
    pub rows: &'a dyn RowSource,
}

impl UnitView<'_> {
    pub(super) fn with_row<T>(&self, id: u64, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        match self.unit.fresh_row(id) {
            Some(bytes) => read(bytes),
            None => read(&self.rows.row(id)?),
        }
    }

    /// The events of a page.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn page(&self, id: u64) -> Result<EventBuf> {
        self.with_row(id, |bytes| decode_page(self.layout, bytes))
    }

    /// The entries of a node.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn node(&self, id: u64) -> Result<Vec<Entry>> {
        self.with_row(id, |bytes| decode_node(self.layout, bytes))
    }

    /// Greatest event time at or before `now`, of raw, folded and accumulated events.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub fn newest_at(&self, now: Millis) -> Result<Option<Millis>> {
        if self.unit.newest <= now {
            return Ok((self.unit.next_offset > 0).then_some(self.unit.newest));
        }
        let base = self.unit.base().map(|b| b.newest).filter(|t| *t <= now);
        let raw = match self.newest_of(&self.unit.tail, now) {
            Some(time) => Some(time),
            None => self.newest_below(&self.unit.entries, now)?,
        };
        Ok(raw.max(base))
    }

    fn newest_of(&self, events: &EventBuf, now: Millis) -> Option<Millis> {
        let (_, to) = events.range(self.layout, Millis::MIN, now);
        (to > 0).then(|| events.get(self.layout, to - 1).time())
    }

    fn newest_below(&self, entries: &[Entry], now: Millis) -> Result<Option<Millis>> {
        let count = entries.partition_point(|e| e.lo.time <= now);
        let Some(entry) = entries[..count].last() else { return Ok(None) };
        if entry.hi.time <= now {
            return Ok(Some(entry.hi.time));
        }
        if entry.height > 0 {
            return self.newest_below(&self.node(entry.row)?, now);
        }
        // Nothing asks for what is inside a tile.
        Ok(if entry.is_tile() { Some(entry.lo.time) } else { self.newest_of(&self.page(entry.row)?, now) })
    }

    fn visit_entries(
        &self,
        entries: &[Entry],
        span: (Millis, Millis),
        is_reverse: bool,
        visitor: &mut dyn FnMut(Piece<'_>) -> Step,
    ) -> Result<bool> {
        let (lo, hi) = span;
        let count = entries.len();
        for step in 0..count {
            let entry = &entries[if is_reverse { count - 1 - step } else { step }];
            if entry.hi.time < lo || entry.lo.time > hi {
                continue;
            }
            if lo <= entry.lo.time && entry.hi.time <= hi {
                let mut step = visitor(Piece::Summary(&entry.words));
                if let Step::Sketch(index) = step {
                    step = match self.sketch(entry, index)? {
                        Some(sketch) => visitor(Piece::Sketch(&sketch)),
                        None => Step::Descend,
                    };
                }
                match step {
                    Step::Next => continue,
                    Step::Stop => return Ok(false),
                    Step::Descend | Step::Sketch(_) => {}
                }
            }
            // What is asked for the events themselves, or cuts a tile, does not reach back to tiles.
            if entry.is_tile() {
                continue;
            }
            let goes_on = if entry.height == 0 {
                self.visit_events(&self.page(entry.row)?, span, visitor)
            } else {
                self.visit_entries(&self.node(entry.row)?, span, is_reverse, visitor)?
            };
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn visit_events(
        &self,
        events: &EventBuf,
        (lo, hi): (Millis, Millis),
        visitor: &mut dyn FnMut(Piece<'_>) -> Step,
    ) -> bool {
        let (from, to) = events.range(self.layout, lo, hi);
        from == to || visitor(Piece::Events(events, from, to)) != Step::Stop
    }
}

impl Timeline for UnitView<'_> {
    fn visit(
        &self,
        lo: Millis,
        hi: Millis,
        is_reverse: bool,
        visitor: &mut dyn FnMut(Piece<'_>) -> Step,
    ) -> Result<()> {
        if is_reverse && !self.visit_events(&self.unit.tail, (lo, hi), visitor) {
            return Ok(());
        }
        let goes_on = self.visit_entries(&self.unit.entries, (lo, hi), is_reverse, visitor)?;
        if !is_reverse && goes_on {
            self.visit_events(&self.unit.tail, (lo, hi), visitor);
        }
        Ok(())
    }

    fn base(&self) -> Option<&Base> {
        self.unit.base.as_deref()
    }
}
