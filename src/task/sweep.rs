//! Garbage collection of idle units (PROTOCOL 35), some rows at a time at commit boundaries.

use std::time::{Duration, Instant};

use super::runner::Runner;
use super::{Status, TaskInput};
use crate::error::Result;
use crate::model::Millis;
use crate::model::key::decode_parts;
use crate::state::{Batch, Unit, is_head, split_key};

/// Time that one sweep step may take to look.
const SWEEP_TIME: Duration = Duration::from_millis(2);
/// Distance of sweep steps while nothing is found; otherwise every commit has one.
const SWEEP_EVERY: Duration = Duration::from_millis(200);
/// The same while hardly anything can have become garbage: a thousandth of a worker for five tasks.
const SWEEP_IDLY_EVERY: Duration = Duration::from_secs(10);
/// A round through all units is worth it when this part of a horizon has gone by.
const ROUNDS_PER_HORIZON: Millis = 16;
/// Rows between two looks at the time.
const SWEEP_ROWS: usize = 64;

/// Where the sweep of a task stands.
pub(super) struct Sweep {
    /// First key of the next step; empty: a round begins.
    from: Vec<u8>,
    /// When the last step was that found nothing.
    pub(super) at: Instant,
    /// Whether this round goes on at once.
    is_brisk: bool,
    /// By group, what was garbage when the last brisk round began.
    limits: Vec<Option<Millis>>,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { from: Vec::new(), at: Instant::now(), is_brisk: false, limits: Vec::new() }
    }
}

impl Sweep {
    /// Chooses the pace. `slices`: by group, what has to go by for a round to be worth it.
    fn set_pace(&mut self, limits: &[Option<Millis>], slices: &[Millis]) {
        let is_worth_it = limits.iter().zip(slices).enumerate().any(|(slot, (limit, slice))| {
            let before = self.limits.get(slot).copied().flatten();
            limit.is_some_and(|l| before.is_none_or(|b| l.saturating_sub(b) >= *slice))
        });
        // A round that is under way ends first: else the last units might never be met.
        if is_worth_it && (self.from.is_empty() || !self.is_brisk) {
            self.limits = limits.to_vec();
            self.is_brisk = true;
            self.from.clear();
        }
    }

    fn is_due(&self) -> bool {
        self.at.elapsed() >= if self.is_brisk { SWEEP_EVERY } else { SWEEP_IDLY_EVERY }
    }

    fn end_step(&mut self, next: Vec<u8>, has_found: bool) {
        self.from = next;
        self.is_brisk &= !self.from.is_empty();
        if !has_found {
            self.at = Instant::now();
        }
    }
}

impl Runner {
    /// Deletions of units that nothing can read or judge by any more.
    pub(super) fn sweep(&mut self) -> Result<Batch> {
        let mut batch = Batch::default();
        if self.task.status() != Status::Running || self.sweep.at.elapsed() < SWEEP_EVERY {
            return Ok(batch);
        }
        let limits: Vec<Option<Millis>> = (0..self.task.groups.len()).map(|s| self.limit(s)).collect();
        if limits.iter().all(Option::is_none) {
            self.sweep.at = Instant::now();
            return Ok(batch);
        }
        let horizons = self.task.groups.iter().map(|to| to.rules.horizon.unwrap_or(Millis::MAX));
        self.sweep.set_pace(&limits, &horizons.map(|h| h / ROUNDS_PER_HORIZON).collect::<Vec<_>>());
        if !self.sweep.is_due() {
            return Ok(batch);
        }
        let mut found: Vec<(usize, Vec<u8>)> = Vec::new();
        let begun = Instant::now();
        let mut seen = 0;
        let mut next = Vec::new();
        let task = &self.task;
        task.store.scan(&self.sweep.from, &mut |key, value| {
            seen += 1;
            if seen % SWEEP_ROWS == 0 && begun.elapsed() > SWEEP_TIME {
                next = key.to_vec();
                return false;
            }
            if !is_head(key) {
                return true;
            }
            let prefix = &key[..key.len() - 1];
            let slot = split_key(prefix).and_then(|(id, entity)| {
                let slot = task.groups.iter().position(|g| g.id == id && g.is_local)?;
                // The id of a sealed row may end like the key of a HEAD.
                decode_parts(entity, &task.groups[slot].group.key_types).map(|_| slot)
            });
            if let Some(slot) = slot
                && let Some(limit) = limits[slot]
                && Unit::decode_head(&task.groups[slot].group.layout, value)
                    .is_ok_and(|unit| unit.newest < limit)
            {
                found.push((slot, prefix.to_vec()));
            }
            true
        })?;
        self.sweep.end_step(next, !found.is_empty());
        for (slot, prefix) in found {
            if self.forget(&prefix, limits[slot]) {
                self.groups[slot].entities = self.groups[slot].entities.saturating_sub(1);
                self.removed.insert(prefix.clone());
                let mut sealed = 0_u64;
                self.task.store.scan(&prefix, &mut |key, _| {
                    let is_own = key.starts_with(&prefix);
                    if is_own {
                        sealed += u64::from(!is_head(key));
                        batch.delete(key.to_vec());
                    }
                    is_own
                })?;
                let known = &mut self.groups[slot].sealed;
                *known = known.saturating_sub(sealed);
            }
        }
        Ok(batch)
    }

    /// Units whose newest event is before this are garbage; `None`: none can be.
    fn limit(&self, slot: usize) -> Option<Millis> {
        let to = &self.task.groups[slot];
        if to.group.reach.is_none() {
            return None;
        }
        let least = match &self.task.input {
            TaskInput::Topic { .. } => self.task.group_stream_time(&self.task.state.read(), slot),
            // A partition that has accepted nothing holds nobody back (SEMANTICS §4).
            TaskInput::Repartition => self.vector.values().filter_map(|c| c.stream_time).min(),
        };
        Some(least?.saturating_sub(to.rules.horizon?).saturating_sub(to.rules.grace))
    }

    /// Drops the unit from the cache; false when it is dirty or has newer events there.
    fn forget(&self, prefix: &[u8], limit: Option<Millis>) -> bool {
        let mut state = self.task.state.write();
        let Some(slot) = state.cache.find(prefix) else { return true };
        let unit = &state.cache.slot(slot).unit;
        if unit.is_pinned() || limit.is_none_or(|l| unit.newest >= l) {
            return false;
        }
        state.cache.remove(slot);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_ends_however_fast_event_time_goes_by() {
        let mut sweep = Sweep::default();
        for step in 0..20_u8 {
            // A slice of the horizon goes by in each step, and a round has five.
            sweep.set_pace(&[Some(Millis::from(step) * 100)], &[100]);
            let expected = if step % 5 == 0 { Vec::new() } else { vec![step % 5] };
            assert_eq!(sweep.from, expected);
            assert!(sweep.is_brisk);
            let next = if step % 5 == 4 { Vec::new() } else { vec![step % 5 + 1] };
            sweep.end_step(next, true);
        }
        // The last of those rounds, which nothing new has overtaken.
        sweep.set_pace(&[Some(2000)], &[100]);
        sweep.end_step(Vec::new(), false);
        sweep.set_pace(&[Some(2050)], &[100]);
        assert!(!sweep.is_brisk, "hardly anything has gone by since the last round began");
    }
}
