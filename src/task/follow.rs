//! A standby (PROTOCOL 33): a task that applies what its owner has committed, in memory, over a store
//! that follows the changelog.
//!
//! Rows of the changelog are adopted only once the overlay has applied at least what they hold. So a
//! unit in memory is never behind its row, and a unit that is only in the store lacks nothing below
//! the overlay's position.

use super::TaskInput;
use super::barrier::{Barrier, STORE_KEY};
use super::runner::{Dirty, Runner};
use super::store_meta::StoreMeta;
use crate::codec::repartition::{Routed, decode as decode_routed};
use crate::error::Result;
use crate::log::LogBatch;
use crate::model::{Change, Millis, Offset};
use crate::state::{Unit, is_head};

/// What became of rows that were to be adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// They are in the store.
    Done,
    /// The overlay has not applied what they hold: later.
    Early,
    /// The owner has removed what the overlay goes on from: the overlay must be made anew.
    Restart,
}

impl Runner {
    /// Everything below `committed` may be applied, and nothing behind. Without outputs: they are
    /// the owner's.
    pub fn follow_to(&mut self, committed: Offset) {
        self.committed = self.committed.max(committed);
        self.limit = self.committed;
    }

    /// Next offset that is committed, as far as it is known here.
    pub fn committed(&self) -> Offset {
        self.committed
    }

    /// Next offset to be applied.
    pub fn position(&self) -> Offset {
        self.position
    }

    /// Adopts rows of the changelog, read to its end at `next`, into the store.
    ///
    /// # Errors
    /// The store cannot be written, or the rows are not readable.
    pub fn adopt(&mut self, rows: &[Change], next: Offset) -> Result<Adoption> {
        let newest = rows.iter().rev().find(|(key, _)| key == STORE_KEY).and_then(|(_, v)| v.as_deref());
        let Some(barrier) = newest.map(Barrier::decode).transpose()? else { return Ok(Adoption::Early) };
        if self.position < barrier.committed {
            return Ok(Adoption::Early);
        }
        let task = self.task.clone();
        // Readers see rows and units change together.
        let mut state = task.state.write();
        let mut stale: Vec<u32> = Vec::new();
        for (key, row) in rows.iter().filter(|(key, _)| is_head(key)) {
            let Some(slot) = state.cache.find(&key[..key.len() - 1]) else { continue };
            let cached = &state.cache.slot(slot).unit;
            let to = task.groups.iter().find(|g| key[1..5] == g.id.to_be_bytes());
            let (Some(row), Some(to)) = (row, to) else {
                if cached.dirty_from.is_some() {
                    return Ok(Adoption::Restart);
                }
                stale.push(slot);
                continue;
            };
            // A unit that is ahead of its row has all that it needs: what it refers to is decided by
            // the events alone.
            let stored = Unit::decode_head(&to.group.layout, row)?;
            if cached.dirty_from.is_none() || stored.next_offset >= cached.next_offset {
                stale.push(slot);
            }
        }
        let mut rows = rows.to_vec();
        rows.push(StoreMeta::consistent_at(next, self.options.clock.now()).row());
        task.store.write(&rows)?;
        self.dirty.retain(|d| !stale.contains(&d.slot));
        for slot in stale {
            state.cache.remove(slot);
        }
        // What was last changed below B is in the store by now.
        let redo_from = barrier.redo_from;
        let mut kept = std::collections::VecDeque::with_capacity(self.dirty.len());
        for dirty in self.dirty.drain(..) {
            let unit = state.cache.unit_mut(dirty.slot);
            if unit.next_offset <= redo_from {
                unit.mark_written();
                state.cache.measure(dirty.slot);
            } else {
                kept.push_back(Dirty { from: dirty.from.max(redo_from), ..dirty });
            }
        }
        self.dirty = kept;
        while self.marks.len() > 1 && self.marks[1].offset <= redo_from {
            self.marks.pop_front();
        }
        Ok(Adoption::Done)
    }

    /// Stream time of what is applied, the greatest of all sources.
    pub fn stream_time(&self) -> Option<Millis> {
        match &self.task.input {
            TaskInput::Topic { .. } => self.sources.iter().filter_map(|s| s.stream_time).max(),
            TaskInput::Repartition => self.vector.values().filter_map(|c| c.stream_time).max(),
        }
    }

    /// Stream time that records of `batches` behind the position would bring.
    pub fn stream_time_ahead<'a>(&mut self, batches: impl Iterator<Item = &'a LogBatch>) -> Option<Millis> {
        let mut greatest = self.stream_time();
        let mut ahead = self.sources.clone();
        let from = self.position;
        for record in batches.flat_map(LogBatch::records).filter(|r| r.offset >= from) {
            match &self.task.input {
                TaskInput::Topic { .. } => {
                    for (stage, progress) in self.stages.iter_mut().zip(&mut ahead) {
                        stage.judge(record, progress);
                        greatest = greatest.max(progress.stream_time);
                    }
                }
                TaskInput::Repartition => {
                    let layout = &self.task.groups[0].group.layout;
                    let time = match record.value.and_then(|v| decode_routed(layout, v)) {
                        Some(Routed::Event(e)) => Some(e.stream_time.max(e.advance)),
                        Some(Routed::Marker(m)) => Some(m.stream_time).filter(|t| *t != Millis::MIN),
                        None => None,
                    };
                    greatest = greatest.max(time);
                }
            }
        }
        greatest
    }
}
