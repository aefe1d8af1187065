//! Commit of a task (PROTOCOL 12 to 18), in the log's two steps: what goes into the transaction,
//! and what follows once it is known to be durable.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::barrier::{Barrier, STORE_KEY};
use super::runner::Runner;
use super::{Status, StoreMeta, Task, TaskInput};
use crate::codec::repartition::Marker;
use crate::error::{Error, ErrorKind, Result};
use crate::fault::crash_point;
use crate::log::{Append, Start, TaskCommit};
use crate::model::{Change, Millis, Offset};
use crate::state::{Batch, head_key, row_key};

/// Bytes of units that memory pressure makes due in one commit.
const PRESSURE_BYTES: usize = 8 << 20;
/// Bytes of units that one commit copies at most, however many are due, and the share of the cache that
/// they may be: until the store has them they are there two or three times.
const COPY_BYTES: RangeInclusive<usize> = 1 << 20..=32 << 20;
const COPY_SHARE: usize = 16;
/// Share of the cache that may be dirty.
const DIRTY_SHARE: usize = 4;
/// Units that are marked under one lock.
const MARK_CHUNK: usize = 1024;

/// A commit whose outcome is awaited.
pub struct PendingCommit {
    /// What the store takes over, if it is its turn: a commit without due units is often not
    /// worth a write.
    hand_over: Option<Arc<Vec<Change>>>,
    due: Vec<u32>,
    barrier: Barrier,
}

impl Runner {
    /// Whether units or outputs have to be written before there may be more of them. Never during a takeover, which
    /// must not write.
    pub fn is_under_pressure(&self) -> bool {
        if self.task.status() != Status::Running {
            return false;
        }
        let state = self.task.state.read();
        let units = state.cache.len().max(1);
        let dirty = state.cache.bytes() / units * self.dirty.len();
        let outputs: usize = self.outputs.values().map(Append::bytes).sum();
        dirty + outputs > self.options.cache_bytes / DIRTY_SHARE
    }

    /// Whether a commit would change anything. `everything`: all dirty units are due.
    fn has_work(&self, now: Instant, everything: bool) -> bool {
        let has_due = self.dirty.front().is_some_and(|d| everything || now - d.since >= self.due_after());
        let is_stored = !everything || self.stored == self.committed;
        // One commit may not have been enough, and nothing is read until there is room.
        let is_pressed = !self.dirty.is_empty() && self.is_under_pressure();
        self.position != self.committed || has_due || !is_stored || is_pressed
    }

    /// How long a unit may be dirty, so that a kill replays at most one interval (PROTOCOL 18): half of it,
    /// and the flush of the store follows within the other. Rows that are in a changelog wait for no flush,
    /// only for the next commit, and for it to take as long again.
    fn due_after(&self) -> Duration {
        if !self.options.has_changelog {
            return self.half_interval();
        }
        let interval = self.options.checkpoint_interval;
        let before_commit = interval.saturating_sub(self.options.commit_interval * 2);
        before_commit.min(interval * 9 / 10).max(self.half_interval())
    }

    fn half_interval(&self) -> Duration {
        self.options.checkpoint_interval / 2
    }

    /// Steps 13 and 15: captures due units, outputs, markers and the barrier record. `None` when
    /// there is nothing to commit. The outcome of an earlier one must be known (PROTOCOL 12); what is
    /// applied until that of this one is known belongs to the next.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn prepare_commit(&mut self, everything: bool) -> Result<Option<(TaskCommit, PendingCommit)>> {
        // What it had captured when it was interrupted is in no commit: a later barrier would pass it.
        if self.interrupted.is_some() {
            return Ok(None);
        }
        let now = Instant::now();
        let sweep = self.sweep()?;
        if self.task.status() != Status::Running
            || (!self.has_work(now, everything) && sweep.changes.is_empty())
        {
            return Ok(None);
        }
        let mut rows = sweep;
        let due = self.capture(&mut rows, now, everything);
        let barrier = self.next_barrier();
        let record = barrier.encode();
        self.emit_latest()?;
        let mut appends: Vec<Append> = self.outputs.drain().map(|(_, append)| append).collect();
        self.add_markers(&mut appends);
        let is_turn =
            everything || self.options.has_changelog || now - self.stored_at >= self.half_interval();
        let hand_over = (is_turn || !rows.changes.is_empty()).then(|| {
            rows.put(STORE_KEY.to_vec(), record.clone());
            Arc::new(rows.changes)
        });
        let commit = TaskCommit {
            task: self.task.name.clone(),
            topic: self.task.topic.clone(),
            partition: self.task.partition,
            next_offset: barrier.committed,
            txn_id: barrier.txn_id(),
            barrier: record,
            rows: hand_over.clone().filter(|_| self.options.has_changelog),
            appends,
            must_sync: hand_over.is_some(),
        };
        Ok(Some((commit, PendingCommit { hand_over, due, barrier })))
    }

    /// Copies units that are due, oldest first.
    fn capture(&mut self, rows: &mut Batch, now: Instant, everything: bool) -> Vec<u32> {
        let due_after = self.due_after();
        let copy_max = (self.options.cache_bytes / COPY_SHARE).clamp(*COPY_BYTES.start(), *COPY_BYTES.end());
        let mut pressure = if self.is_under_pressure() { PRESSURE_BYTES } else { 0 };
        let state = self.task.state.read();
        let mut due = Vec::new();
        while let Some(dirty) = self.dirty.front() {
            if rows.bytes() > copy_max {
                break;
            }
            let is_due = everything || now - dirty.since >= due_after;
            if !is_due && pressure == 0 {
                break;
            }
            let slot = state.cache.slot(dirty.slot);
            let group = self.task.groups.iter().position(|g| slot.key[1..5] == g.id.to_be_bytes());
            if let Some(group) = group {
                let to = &self.task.groups[group];
                let head = slot.unit.encode_head(&to.group.layout);
                let mut size = head.len();
                rows.put(head_key(&slot.key), head);
                let (fresh, dead) = slot.unit.unwritten();
                for (id, bytes) in fresh {
                    size += bytes.len();
                    rows.put(row_key(&slot.key, *id), bytes.to_vec());
                }
                for id in dead {
                    rows.delete(row_key(&slot.key, *id));
                }
                let sealed = &mut self.groups[group].sealed;
                *sealed = (*sealed + fresh.len() as u64).saturating_sub(dead.len() as u64);
                pressure = pressure.saturating_sub(size + slot.key.len());
            }
            due.push(dirty.slot);
            self.dirty.pop_front();
        }
        drop(state);
        for chunk in due.chunks(MARK_CHUNK) {
            let mut state = self.task.state.write();
            for slot in chunk {
                state.cache.unit_mut(*slot).begin_flight();
            }
        }
        due
    }

    /// B and C of the commit: B is the first offset whose change stays unwritten, rounded down to
    /// a place whose stream times are known (a lower B only redoes more).
    fn next_barrier(&mut self) -> Barrier {
        let committed = self.position;
        // Units are queued in the order in which they were first changed.
        let redo_from = self.dirty.front().map_or(committed, |d| d.from);
        let at_end = self.sources.iter().map(|s| s.stream_time).collect::<Vec<_>>();
        while self.marks.len() > 1 && self.marks[1].offset <= redo_from {
            self.marks.pop_front();
        }
        let (redo_from, stream_times) = match self.marks.front() {
            Some(mark) if redo_from < committed && mark.offset <= redo_from => {
                (mark.offset, mark.stream_times.clone())
            }
            _ => (committed, at_end),
        };
        if redo_from == committed {
            self.marks.clear();
        }
        let names: Vec<&str> = match &self.task.input {
            TaskInput::Topic { sources } => sources.iter().map(|s| s.name.as_str()).collect(),
            TaskInput::Repartition => Vec::new(),
        };
        let named = |i: usize| names[i].to_owned();
        let groups: BTreeMap<String, super::GroupCounts> = self
            .task
            .groups
            .iter()
            .zip(&self.groups)
            .map(|(to, counts)| (to.group.name.clone(), *counts))
            .collect();
        Barrier {
            incarnation: self.task.incarnation,
            sequence: self.sequence + 1,
            committed,
            redo_from,
            stream_times_at_redo: stream_times.into_iter().enumerate().map(|(i, t)| (named(i), t)).collect(),
            sources: self.sources.iter().enumerate().map(|(i, s)| (named(i), *s)).collect(),
            groups,
            vector: self.vector.clone(),
            begun_at: self.begun_at,
            last: self.last_record,
            topic_id: self.topic_id.clone(),
            ..Barrier::initial(self.fingerprints.clone())
        }
    }

    /// A marker for every partition of every repartition topic that the task feeds (PROTOCOL 41).
    fn add_markers(&self, appends: &mut Vec<Append>) {
        let TaskInput::Topic { sources } = &self.task.input else {
            return;
        };
        if self.position == self.committed {
            return;
        }
        for to in self.task.groups.iter().filter(|g| !g.is_local) {
            let source = sources.iter().position(|s| s.index == to.group.source.index);
            let progress = source.map(|i| self.sources[i]).unwrap_or_default();
            let marker = Marker {
                partition: self.task.partition,
                next_offset: self.position,
                stream_time: progress.stream_time.unwrap_or(Millis::MIN),
                covered_from: progress.coverage.start(),
            };
            let topic = to.group.repartition_topic(&self.options.app);
            let count = self.log.partitions(&topic).unwrap_or(0);
            let (mut append, value) = (Append::to(&topic), marker.encode());
            for partition in 0..count {
                append.push(partition, None, Some(&value), &[]);
            }
            appends.push(append);
        }
    }

    /// Step 17: the transaction is durable. Hands rows to the store, then lets units go. `record_at`
    /// is the offset of the barrier record in the changelog, if there is one and it is known.
    ///
    /// # Errors
    /// The store cannot be written; the task has to be taken over anew.
    pub fn complete_commit(&mut self, pending: PendingCommit, record_at: Option<Offset>) -> Result<()> {
        let PendingCommit { hand_over, due, barrier } = pending;
        let is_handed_over = hand_over.is_some();
        if let Some(rows) = hand_over {
            let mut rows = Arc::unwrap_or_clone(rows);
            if let Some(offset) = record_at {
                rows.push(StoreMeta::consistent_at(offset + 1, self.options.clock.now()).row());
            }
            crash_point("before_store");
            self.task.store.write(&rows)?;
            crash_point("stored");
            self.stored = barrier.committed;
            self.stored_at = Instant::now();
        }
        for chunk in due.chunks(MARK_CHUNK) {
            let mut state = self.task.state.write();
            for slot in chunk {
                state.cache.unit_mut(*slot).end_flight();
                state.cache.measure(*slot);
            }
        }
        self.removed.clear();
        // A sweep has changed the number of units without an event.
        self.task.state.write().groups.copy_from_slice(&self.groups);
        self.committed = barrier.committed;
        self.sequence = barrier.sequence;
        self.last_txn_id = Some(barrier.txn_id());
        let task = &self.task;
        task.committed.store(barrier.committed, Ordering::Relaxed);
        if is_handed_over {
            task.barrier.store(barrier.redo_from, Ordering::Relaxed);
            let at = task.started.elapsed().as_millis() as u64;
            task.checkpoint_at.store(at, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The shared side.
    pub fn task(&self) -> &Arc<Task> {
        &self.task
    }

    /// What it wants to read.
    pub fn start(&self) -> Start {
        Start {
            topic: self.task.topic.clone(),
            partition: self.task.partition,
            from: self.position,
            committed: self.last_txn_id.clone().map(|txn| (self.committed, txn)),
        }
    }

    /// The task cannot go on.
    pub fn fail(&self, why: &str) {
        self.task.fail(why);
    }

    /// The task cannot go on as it is; if what is wrong may pass, another takeover may.
    pub fn interrupt(&mut self, error: Error) {
        if error.kind == ErrorKind::Unavailable {
            self.interrupted = Some(error.to_string());
        } else {
            self.fail(&error.to_string());
        }
    }

    /// Why it cannot go on as it is.
    pub fn interrupted(&self) -> Option<String> {
        self.interrupted.clone()
    }
}
