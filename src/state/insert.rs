//! How a unit takes an event: insertion, sealing, splitting, folding, trimming.
//!
//! All of it depends on the unit and the event alone (PROTOCOL 8). The directory in HEAD is a
//! forest, oldest first: pages are folded into nodes when there are many, and a node at the
//! horizon is unfolded, so that whole pages leave.

use super::sketches::is_sketch_due;
use super::unit::{Entry, Unit, UnitRules, encode_entries};
use super::view::{RowSource, UnitView};
use crate::error::Result;
use crate::model::{Millis, Offset};
use crate::operator::{EventBuf, Layout, partial};

/// Most events and bytes of the tail.
const TAIL_EVENTS: usize = 96;
const TAIL_BYTES: usize = 8 << 10;
/// Events that a full tail seals.
const SEAL_EVENTS: usize = 64;
/// Most events and bytes of a page.
const PAGE_EVENTS: usize = 128;
const PAGE_BYTES: usize = 16 << 10;
/// Most entries of a node, and of a run of one height in HEAD.
const FAN_OUT: usize = 32;
/// Bytes that such a run aims to stay below, when partials are wide.
const RUN_BYTES: usize = 12 << 10;
/// Entries that one event may trim.
const TRIM_STEPS: usize = 4;
/// Expired events at the front of the tail that are worth moving the rest.
const TAIL_TRIM: usize = 16;

/// An accepted event with what the unit needs to know of its record.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The event, alone in its buffer.
    pub event: &'a EventBuf,
    /// Offset in the input of the task.
    pub offset: Offset,
    /// Smaller of event time and log timestamp.
    pub advance: Millis,
    /// Stream time of the source partition just before the event.
    pub stream_time: Millis,
    /// Hash of event id and time.
    pub id: Option<u128>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It had been applied before: a replay.
    Skipped,
    /// The unit holds an event with its id.
    Duplicate,
    /// It is in the unit now.
    Applied,
}

fn summary(layout: &Layout, events: &EventBuf) -> Box<[u64]> {
    let mut words = vec![0; layout.partial_words];
    for index in 0..events.len(layout) {
        partial::add(layout, &mut words, events.get(layout, index));
    }
    words.into()
}

fn fold(layout: &Layout, children: &[Entry]) -> Box<[u64]> {
    let mut words = vec![0; layout.partial_words];
    children.iter().for_each(|child| partial::merge(layout, &mut words, &child.words));
    words.into()
}

fn run_max(layout: &Layout) -> usize {
    (RUN_BYTES / (64 + (layout.partial_words + layout.sketched.len()) * 8)).clamp(8, FAN_OUT)
}

impl Entry {
    /// Of neighbouring events, which stand in `row`.
    pub(super) fn over_events(layout: &Layout, row: u64, events: &EventBuf) -> Self {
        Self {
            row,
            height: 0,
            lo: events.first_order(layout).unwrap_or_default(),
            hi: events.last_order(layout).unwrap_or_default(),
            events: events.len(layout) as u64,
            words: summary(layout, events),
            sketches: Box::default(),
        }
    }
}

impl Unit {
    /// Applies an arrival by PROTOCOL 7 to 10.
    ///
    /// # Errors
    /// A row that cannot be read; the unit is then unusable.
    pub fn apply(
        &mut self,
        layout: &Layout,
        rules: &UnitRules,
        arrival: Arrival<'_>,
        rows: &dyn RowSource,
    ) -> Result<Outcome> {
        if arrival.offset < self.next_offset {
            return Ok(Outcome::Skipped);
        }
        let event = arrival.event.get(layout, 0);
        let order = event.order();
        let partition = order.partition();
        if let Some(hash) = arrival.id {
            let id = (order.time, hash);
            if self.ids_contain(partition, id, rows)? {
                return Ok(Outcome::Duplicate);
            }
            self.insert_id(partition, id, rows)?;
        }
        self.next_offset = arrival.offset + 1;
        self.dirty_from.get_or_insert(arrival.offset);
        self.row_clock = self.row_clock.max(arrival.advance);
        self.newest = self.newest.max(order.time);
        let limit = arrival.stream_time.saturating_sub(rules.grace);
        for row in self.ids.expire(partition, limit) {
            self.drop_row(row);
        }
        if self.is_expired(rules, order.time) {
            self.fold_into_base(layout, rules, arrival.event, 1);
        } else {
            self.insert(layout, rules, arrival.event, rows)?;
        }
        self.seal(layout, rows)?;
        self.trim(layout, rules, rows)?;
        self.fold_old(layout, rules, rows)?;
        Ok(Outcome::Applied)
    }

    fn ids_contain(&self, partition: u32, id: (Millis, u128), rows: &dyn RowSource) -> Result<bool> {
        self.ids.contains(partition, id, &ViewRows { unit: self, rows })
    }

    fn insert_id(&mut self, partition: u32, id: (Millis, u128), rows: &dyn RowSource) -> Result<()> {
        let mut ids = std::mem::take(&mut self.ids);
        let mut next_row = self.next_row;
        let changes = ids.insert(partition, id, &ViewRows { unit: self, rows }, &mut next_row);
        self.ids = ids;
        let changes = changes?;
        self.next_row = next_row;
        for row in changes.dead {
            self.drop_row(row);
        }
        for (row, bytes) in changes.fresh {
            self.adopt_row(row, bytes);
        }
        Ok(())
    }

    fn is_expired(&self, rules: &UnitRules, time: Millis) -> bool {
        rules.horizon.is_some_and(|h| time.saturating_add(h) <= self.row_clock)
    }

    fn fold_into_base(&mut self, layout: &Layout, rules: &UnitRules, events: &EventBuf, count: usize) {
        if !rules.has_base {
            return;
        }
        let base = self.base.get_or_insert_default();
        for index in 0..count {
            base.add(layout, events.get(layout, index));
        }
    }

    fn insert(
        &mut self,
        layout: &Layout,
        rules: &UnitRules,
        event: &EventBuf,
        rows: &dyn RowSource,
    ) -> Result<()> {
        let order = event.get(layout, 0).order();
        if self.entries.last().is_none_or(|last| order > last.hi) {
            self.tail.insert(layout, event);
            return Ok(());
        }
        let index = rules.place(&self.entries, order);
        let entry = self.entries[index].clone();
        let changed = self.insert_below(layout, rules, entry, event, rows)?;
        self.entries.splice(index..=index, changed);
        self.fold_runs(layout, rows)
    }

    /// Inserts into the row of `entry`; returns what stands for it now: one entry, or two.
    fn insert_below(
        &mut self,
        layout: &Layout,
        rules: &UnitRules,
        entry: Entry,
        event: &EventBuf,
        rows: &dyn RowSource,
    ) -> Result<Vec<Entry>> {
        if entry.is_tile() {
            return Ok(self.insert_at_tile(layout, rules, entry, event));
        }
        let view = UnitView { unit: self, layout, rows };
        if entry.height == 0 {
            let mut page = view.page(entry.row)?;
            self.drop_row(entry.row);
            page.insert(layout, event);
            let len = page.len(layout);
            if len > 1 && (len > PAGE_EVENTS || page.bytes() > PAGE_BYTES) {
                if let Some(tiles) = self.tiles_instead(layout, rules, &page) {
                    return Ok(tiles);
                }
                let (low, high) = (page.slice(layout, 0, len / 2), page.slice(layout, len / 2, len));
                return Ok(vec![self.add_page(layout, &low), self.add_page(layout, &high)]);
            }
            return Ok(vec![self.add_page(layout, &page)]);
        }
        let mut children = view.node(entry.row)?;
        let index = rules.place(&children, event.get(layout, 0).order());
        let child = children[index].clone();
        let changed = self.insert_below(layout, rules, child, event, rows)?;
        children.splice(index..=index, changed);
        self.drop_entry(&entry);
        if children.len() > FAN_OUT {
            let high = children.split_off(children.len() / 2);
            return Ok(vec![
                self.add_sketched_node(layout, children, rows)?,
                self.add_sketched_node(layout, high, rows)?,
            ]);
        }
        // A sketch of what has changed would have to be made anew at each event.
        if is_sketch_due(entry.height, entry.events + 1) {
            return Ok(vec![self.add_sketched_node(layout, children, rows)?]);
        }
        Ok(vec![self.add_node(layout, &children)])
    }

    pub(super) fn add_page(&mut self, layout: &Layout, events: &EventBuf) -> Entry {
        let mut bytes = Vec::with_capacity(events.bytes() + 8);
        events.encode(layout, &mut bytes);
        Entry::over_events(layout, self.add_row(bytes), events)
    }

    pub(super) fn add_node(&mut self, layout: &Layout, children: &[Entry]) -> Entry {
        let mut bytes = Vec::new();
        encode_entries(children, &mut bytes);
        Entry {
            row: self.add_row(bytes),
            height: children[0].height + 1,
            lo: children[0].lo,
            hi: children[children.len() - 1].hi,
            events: children.iter().map(|c| c.events).sum(),
            words: fold(layout, children),
            sketches: Box::default(),
        }
    }

    fn seal(&mut self, layout: &Layout, rows: &dyn RowSource) -> Result<()> {
        let len = self.tail.len(layout);
        let is_full = len > TAIL_EVENTS || (len > 1 && self.tail.bytes() > TAIL_BYTES);
        if !is_full {
            return Ok(());
        }
        let count = if len > TAIL_EVENTS { SEAL_EVENTS } else { len.div_ceil(2) };
        let page = self.tail.slice(layout, 0, count);
        self.tail.drop_first(layout, count);
        let entry = self.add_page(layout, &page);
        self.entries.push(entry);
        self.fold_runs(layout, rows)
    }

    /// Folds the older half of every run of one height that is too long. What is folded into tiles and
    /// what is yet to be stay apart.
    pub(super) fn fold_runs(&mut self, layout: &Layout, rows: &dyn RowSource) -> Result<()> {
        let most = run_max(layout);
        let folded_to = self.folded_to;
        let kind = |entry: &Entry| (entry.height, entry.hi.time < folded_to);
        loop {
            let mut start = 0;
            let mut long = None;
            for end in 1..=self.entries.len() {
                let ends =
                    end == self.entries.len() || kind(&self.entries[end]) != kind(&self.entries[start]);
                if ends {
                    if end - start > most {
                        long = Some(start);
                        break;
                    }
                    start = end;
                }
            }
            let Some(start) = long else { return Ok(()) };
            let children: Vec<Entry> = self.entries[start..start + most / 2].to_vec();
            let node = self.add_sketched_node(layout, children, rows)?;
            self.entries.splice(start..start + most / 2, [node]);
        }
    }

    /// Puts the entries of a node in its place.
    pub(super) fn unfold(&mut self, layout: &Layout, index: usize, rows: &dyn RowSource) -> Result<()> {
        let children = UnitView { unit: self, layout, rows }.node(self.entries[index].row)?;
        let gone: Vec<Entry> = self.entries.splice(index..=index, children).collect();
        gone.iter().for_each(|node| self.drop_entry(node));
        Ok(())
    }

    /// Lets go of what is behind the horizon, a few rows at a time.
    fn trim(&mut self, layout: &Layout, rules: &UnitRules, rows: &dyn RowSource) -> Result<()> {
        for _ in 0..TRIM_STEPS {
            let Some(first) = self.entries.first() else { break };
            if first.height > 0 && self.is_expired(rules, first.lo.time) {
                self.unfold(layout, 0, rows)?;
            } else if self.is_expired(rules, first.hi.time) {
                let first = self.entries.remove(0);
                if rules.has_base && first.is_tile() {
                    let base = self.base.get_or_insert_default();
                    base.merge(layout, &first.words, first.events, (first.lo.time, first.hi.time));
                } else if rules.has_base {
                    let page = UnitView { unit: self, layout, rows }.page(first.row)?;
                    self.fold_into_base(layout, rules, &page, page.len(layout));
                }
                self.drop_entry(&first);
            } else {
                return Ok(());
            }
        }
        if self.entries.is_empty()
            && let Some(horizon) = rules.horizon
        {
            let last = self.row_clock.saturating_sub(horizon);
            let (_, expired) = self.tail.range(layout, Millis::MIN, last);
            if expired >= TAIL_TRIM {
                let gone = self.tail.slice(layout, 0, expired);
                self.fold_into_base(layout, rules, &gone, expired);
                self.tail.drop_first(layout, expired);
            }
        }
        Ok(())
    }
}

/// Rows of a unit, those that are not in the store included.
struct ViewRows<'a> {
    unit: &'a Unit,
    rows: &'a dyn RowSource,
}

impl RowSource for ViewRows<'_> {
    fn row(&self, id: u64) -> Result<Vec<u8>> {
        match self.unit.fresh_row(id) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => self.rows.row(id),
        }
    }
}
