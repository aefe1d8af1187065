//! Bringing a local store to the end of its changelog (PROTOCOL 23 to 25, 31, 32), for takeovers and
//! for standbys.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Parts, Place};
use crate::error::Result;
use crate::fault::crash_point;
use crate::log::{BARRIER_KEY, Following, KafkaLog};
use crate::model::Change;
use crate::state::StateStore;
use crate::task::{StoreMeta, Task};

/// Half of `delete.retention.ms` of changelogs: a store that stood still for longer may lack
/// deletions (PROTOCOL 24).
const STORE_AGE_MAX: i64 = 12 * 3_600_000;
/// Bytes of records that go into a store at once: of the memory for units, which a task that is
/// restored does not use yet, so that many tasks may do so at a time.
const CHUNK_SHARE: usize = 64;
const CHUNK_MIN: usize = 4 << 20;
const CHUNK_MAX: usize = 64 << 20;
/// Rows that are worth a file of their own.
const INGEST_MIN: usize = 10_000;
/// Rows that are removed at once.
const WIPE_CHUNK: usize = 20_000;

/// The store of one task, and where it is followed from.
pub(super) struct Recovery {
    pub parts: Arc<Parts>,
    pub log: Arc<KafkaLog>,
    pub place: Place,
}

impl Recovery {
    /// Makes the store of `task` a consistent copy of the changelog as it is now. Returns the position.
    pub fn follow_changelog(&self, task: &Task) -> Result<u64> {
        match self.usable_position(&*task.store)? {
            Some(position) => self.follow(task, position),
            None => self.rebuild(task),
        }
    }

    /// The same, from the changelog alone.
    pub fn rebuild(&self, task: &Task) -> Result<u64> {
        wipe(&*task.store)?;
        task.store.write(&[StoreMeta::belonging_to(&self.parts.settings.app)])?;
        self.follow(task, 0)
    }

    /// The newest barrier record that the store has.
    pub fn barrier(&self, store: &dyn StateStore) -> Result<Option<Vec<u8>>> {
        store.get(BARRIER_KEY)
    }

    /// From where the store can follow the changelog; `None`: it cannot (PROTOCOL 24, 32).
    fn usable_position(&self, store: &dyn StateStore) -> Result<Option<u64>> {
        let Some(meta) = StoreMeta::read(store)? else {
            return Ok(None);
        };
        if !StoreMeta::is_of(store, &self.parts.settings.app)? {
            tracing::warn!(
                "{}/{}: the store is of another `app`: it is rebuilt from the changelog",
                self.place.topic,
                self.place.partition
            );
            return Ok(None);
        }
        let (start, end) = self.log.changelog_ends(&self.place.topic, self.place.partition)?;
        let age = self.parts.clock.now() - meta.time;
        let is_usable = (start..=end).contains(&meta.position) && age < STORE_AGE_MAX;
        if !is_usable {
            tracing::warn!(
                "{}/{}: the store stands at {} of {start} to {end}, {} min ago: it is rebuilt from the changelog",
                self.place.topic,
                self.place.partition,
                meta.position,
                age / 60_000
            );
        }
        Ok(is_usable.then_some(meta.position))
    }

    fn follow(&self, task: &Task, position: u64) -> Result<u64> {
        let store = &*task.store;
        let (topic, partition) = (self.place.topic.as_str(), self.place.partition);
        let now = self.parts.clock.now();
        let chunk_bytes = (self.parts.memory.units / CHUNK_SHARE).clamp(CHUNK_MIN, CHUNK_MAX);
        let mut adopt = |mut rows: Vec<Change>, next: u64| {
            let is_much = rows.len() >= INGEST_MIN;
            rows.push(StoreMeta::restoring_at(next, now).row());
            if is_much { store.ingest(&rows) } else { store.write(&rows) }?;
            crash_point("following");
            Ok(())
        };
        let metrics = &self.parts.metrics;
        let mut last = 0;
        let mut progress = |records: u64, at: u64, goal: u64| {
            metrics.restored(topic, partition, records - last);
            last = records;
            task.changelog.0.store(at, Ordering::Relaxed);
            task.changelog.1.store(goal, Ordering::Relaxed);
            tracing::info!(topic, partition, records, at, goal, "following the changelog");
        };
        let mut following = Following { chunk_bytes, adopt: &mut adopt, progress: &mut progress };
        let (next, records) = self.log.follow(topic, partition, position, &mut following)?;
        crash_point("followed");
        StoreMeta::consistent_at(next, now).write(store)?;
        crash_point("consistent");
        if records > 0 {
            store.flush()?;
        }
        Ok(next)
    }
}

/// Empties the store. What says that it can be followed from somewhere goes first.
fn wipe(store: &dyn StateStore) -> Result<()> {
    store.write(&[StoreMeta::removal()])?;
    crash_point("wiping");
    loop {
        let mut changes: Vec<Change> = Vec::new();
        store.scan(&[], &mut |key, _| {
            changes.push((key.to_vec(), None));
            changes.len() < WIPE_CHUNK
        })?;
        if changes.is_empty() {
            return Ok(());
        }
        store.write(&changes)?;
    }
}
