//! Bringing a local store to the end of its changelog (PROTOCOL 23 to 25, 31, 32), for takeovers and
//! for standbys.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Parts, Place, cores};
use crate::error::{Error, Result};
use crate::fault::crash_point;
use crate::log::{BARRIER_KEY, Following, KafkaLog, Log as _};
use crate::model::{Change, Millis, Offset};
use crate::state::StateStore;
use crate::task::{StoreMeta, Task};

/// Half of `delete.retention.ms` of changelogs: a store that stood still for longer may lack
/// deletions (PROTOCOL 24).
pub(super) const STORE_AGE_MAX: Millis = 12 * 3_600_000;
/// Bytes of records that go into a store at once: of the memory for units, which a task that is
/// restored does not use yet, so that many tasks may do so at a time.
const CHUNK_SHARE: usize = 64;
const CHUNK_MIN: usize = 4 << 20;
const CHUNK_MAX: usize = 64 << 20;
/// Rows that are worth a file of their own.
const INGEST_MIN: usize = 10_000;
/// Rows that are removed at once.
const WIPE_CHUNK: usize = 20_000;

/// Records that make a restore one of those that take turns.
const MANY: Offset = 100_000;
/// Between two looks whether one that waits for its turn is still wanted.
const TURN_PAUSE: Duration = Duration::from_millis(50);

/// The store of one task, and where it is followed from.
pub(super) struct Recovery {
    pub parts: Arc<Parts>,
    pub log: Arc<KafkaLog>,
    pub place: Place,
    /// Whether it has not been given up.
    pub is_wanted: Box<dyn Fn() -> bool + Send>,
    /// Whether the task is another's, and only followed.
    pub is_standby: bool,
}

/// Long restores, of which as many run at once as there are cores: each holds records in memory. Short
/// ones wait for nobody.
pub(super) struct Turns {
    free: Mutex<usize>,
    ended: Condvar,
}

/// A turn, until it is dropped.
struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.ended.notify_one();
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self { free: Mutex::new(cores().max(2)), ended: Condvar::new() }
    }
}

impl Turns {
    /// Waits for a turn; none: it is no longer wanted.
    fn wait(&self, is_wanted: impl Fn() -> bool) -> Option<Turn<'_>> {
        let mut free = self.free.lock();
        while *free == 0 {
            self.ended.wait_for(&mut free, TURN_PAUSE);
            if !is_wanted() {
                return None;
            }
        }
        *free -= 1;
        Some(Turn(self))
    }
}

impl Recovery {
    /// Makes the store of `task` a consistent copy of the changelog as it is now. Returns the position.
    pub fn follow_changelog(&self, task: &Task) -> Result<u64> {
        self.log.check_topic(&self.place.topic)?;
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
        let Place { topic, partition, .. } = &self.place;
        if !StoreMeta::is_of(store, &self.parts.settings.app)? {
            tracing::warn!(
                "{topic}/{partition}: the store is of another `app`: it is rebuilt from the changelog"
            );
            return Ok(None);
        }
        let (start, end) = self.log.changelog_ends(topic, *partition)?;
        let (position, age) = (meta.position, self.parts.clock.now() - meta.time);
        let is_usable = is_within(position, start, end, age);
        if !is_usable {
            tracing::warn!(
                "{topic}/{partition}: the store stands at {position} of {start} to {end}, {} min ago: it is rebuilt from the changelog",
                age / 60_000
            );
        }
        Ok(is_usable.then_some(position))
    }

    fn follow(&self, task: &Task, position: u64) -> Result<u64> {
        let store = &*task.store;
        let (topic, partition) = (self.place.topic.as_str(), self.place.partition);
        let given_up = || Error::unavailable(format!("the restore of {topic}/{partition} was given up"));
        let (_, end) = self.log.changelog_ends(topic, partition)?;
        let is_long = end.saturating_sub(position) > MANY;
        let _turn = if is_long {
            Some(self.parts.restores.wait(&self.is_wanted).ok_or_else(given_up)?)
        } else {
            None
        };
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
        let mut following = Following {
            ends_open: !self.is_standby,
            is_wanted: &*self.is_wanted,
            chunk_bytes,
            adopt: &mut adopt,
            progress: &mut progress,
        };
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

/// Whether all that a changelog from `start` to `end` has said since is there from `position` on, for a
/// store that stood there `age` ago.
fn is_within(position: Offset, start: Offset, end: Offset, age: Millis) -> bool {
    // Every record is followed by the mark of its transaction: one alone is that mark.
    let is_newest = (position..=position + 1).contains(&end);
    is_newest || ((start..=end).contains(&position) && age < STORE_AGE_MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_store_may_only_go_on_where_nothing_has_followed() {
        let hours = |h: Millis| h * 3_600_000;
        assert!(is_within(50, 10, 90, hours(11)));
        assert!(!is_within(50, 10, 90, hours(13)), "deletions may be gone");
        assert!(is_within(89, 10, 90, hours(13)), "nothing but the mark of its own commit follows");
        assert!(is_within(90, 10, 90, hours(13)));
        assert!(!is_within(88, 10, 90, hours(13)));
        assert!(!is_within(91, 10, 90, hours(1)), "of another changelog");
        assert!(!is_within(9, 10, 90, hours(1)), "what it lacks was cut");
    }
}
