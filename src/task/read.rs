//! Reads of a task's units, all at one point of its input (PROTOCOL 43).

use super::{Task, TaskGroup, TaskState};
use crate::error::{Error, Result};
use crate::model::{Millis, Offset, Positions};
use crate::operator::{Answer, Feature, evaluate};
use crate::state::{StoredRows, Unit, UnitView, head_key, unit_prefix};

/// A read of one entity.
#[derive(Clone, Debug)]
pub struct UnitRead<'a> {
    /// Index of the group among those of the task.
    pub slot: usize,
    /// Key of the entity in state form.
    pub entity: &'a [u8],
    /// Features of the group.
    pub features: &'a [usize],
    /// Read time.
    pub now: Millis,
}

/// A point of the input, as readers see it.
struct Point {
    applied: Offset,
    /// By group of the task.
    stream_times: Vec<Option<Millis>>,
    covered_from: Vec<Option<Millis>>,
    positions: Positions,
}

impl Point {
    /// Says of every answer what is known at this point.
    fn label(&self, mut answers: Vec<UnitAnswer>, reads: &[UnitRead<'_>]) -> Vec<UnitAnswer> {
        for (answer, read) in answers.iter_mut().zip(reads) {
            answer.covered_from = self.covered_from[read.slot];
        }
        answers
    }
}

/// What a unit says.
#[derive(Clone, Debug, Default)]
pub struct UnitAnswer {
    /// Whether `now` lies before what can be read.
    pub is_out_of_range: bool,
    /// Event time of the newest event at or before `now`, while the entity is known.
    pub newest: Option<Millis>,
    /// Event time from which on all events are known; none: all are.
    pub covered_from: Option<Millis>,
    /// One per feature; empty when the entity is not known.
    pub answers: Vec<Answer>,
    /// Whether the unit was in the cache.
    pub is_cached: bool,
}

/// Units that are read under one lock: the worker waits no longer than these take.
const SLICE: usize = 16;
/// Tries to read at one position without holding the worker up throughout.
const TRIES: usize = 3;
/// Events of which every one must be looked at that are too many to hold the worker up.
const HEAVY: u64 = 10_000;

/// A unit that is to be evaluated, or has been.
enum Found {
    Done(UnitAnswer),
    /// A copy of HEAD and references to rows, to be evaluated while the worker goes on.
    Copied(Box<Unit>, Vec<u8>),
}

impl Task {
    /// Answers `reads` at one point of the input, and says at which (PROTOCOL 43): all units as
    /// they were at one `applied`, or again.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn read(&self, reads: &[UnitRead<'_>]) -> Result<(Vec<UnitAnswer>, Positions)> {
        for _ in 0..TRIES {
            if let Some(answer) = self.try_read(reads)? {
                return Ok(answer);
            }
        }
        let state = self.state.read();
        let point = self.point(&state);
        let mut answers = Vec::with_capacity(reads.len());
        for read in reads {
            let found = self.find(&state, &point, read, u64::MAX)?;
            let Some(Found::Done(answer)) = found else {
                return Err(Error::corrupted("a unit is ahead of its task"));
            };
            answers.push(answer);
        }
        Ok((point.label(answers, reads), point.positions))
    }

    /// The same, letting the worker go on after every few units. `None` when it has changed one of
    /// them meanwhile.
    fn try_read(&self, reads: &[UnitRead<'_>]) -> Result<Option<(Vec<UnitAnswer>, Positions)>> {
        let mut state = self.state.read();
        let point = self.point(&state);
        let mut found = Vec::with_capacity(reads.len());
        for (i, read) in reads.iter().enumerate() {
            if i > 0 && i % SLICE == 0 {
                drop(state);
                state = self.state.read();
            }
            match self.find(&state, &point, read, HEAVY)? {
                Some(one) => found.push(one),
                None => return Ok(None),
            }
        }
        drop(state);
        let mut answers = Vec::with_capacity(reads.len());
        for (one, read) in found.into_iter().zip(reads) {
            answers.push(match one {
                Found::Done(answer) => answer,
                Found::Copied(unit, prefix) => {
                    // A commit may have deleted a row that the copy refers to: read again.
                    let Ok(answer) = self.answer(&self.groups[read.slot], &unit, &prefix, read) else {
                        return Ok(None);
                    };
                    answer
                }
            });
        }
        Ok(Some((point.label(answers, reads), point.positions)))
    }

    fn point(&self, state: &TaskState) -> Point {
        Point {
            applied: state.applied,
            stream_times: (0..self.groups.len()).map(|slot| self.group_stream_time(state, slot)).collect(),
            covered_from: (0..self.groups.len()).map(|slot| self.covered_from(state, slot)).collect(),
            positions: self.positions(state),
        }
    }

    /// Answers for a unit, or copies it if its answer needs more than `heavy` events. `None`: it
    /// holds what lies behind `point`.
    fn find(
        &self,
        state: &TaskState,
        point: &Point,
        read: &UnitRead<'_>,
        heavy: u64,
    ) -> Result<Option<Found>> {
        let to = &self.groups[read.slot];
        let oldest = point.stream_times[read.slot].map(|t| t.saturating_sub(to.group.history));
        if oldest.is_some_and(|oldest| read.now < oldest) {
            return Ok(Some(Found::Done(UnitAnswer { is_out_of_range: true, ..UnitAnswer::default() })));
        }
        let prefix = unit_prefix(to.id, read.entity);
        let stored;
        let (unit, is_cached) = match state.cache.get(&prefix) {
            Some(unit) => (unit, true),
            None => {
                let Some(row) = self.store.get(&head_key(&prefix))? else {
                    return Ok(Some(Found::Done(UnitAnswer::default())));
                };
                stored = Unit::decode_head(&to.group.layout, &row)?;
                (&stored, false)
            }
        };
        if unit.next_offset > point.applied {
            return Ok(None);
        }
        let needs_all = |f: &usize| to.group.features[*f].plan.aggregate.needs_all_values();
        if unit.events(&to.group.layout) > heavy && read.features.iter().any(needs_all) {
            return Ok(Some(Found::Copied(Box::new(unit.clone()), prefix)));
        }
        let answer = self.answer(to, unit, &prefix, read)?;
        Ok(Some(Found::Done(UnitAnswer { is_cached, ..answer })))
    }

    pub(super) fn answer(
        &self,
        to: &TaskGroup,
        unit: &Unit,
        prefix: &[u8],
        read: &UnitRead<'_>,
    ) -> Result<UnitAnswer> {
        let rows = StoredRows { store: &*self.store, prefix };
        let view = UnitView { unit, layout: &to.group.layout, rows: &rows };
        let newest = view.newest_at(read.now)?;
        let is_known = |t: &Millis| to.group.reach.is_none_or(|r| *t >= read.now.saturating_sub(r));
        let Some(newest) = newest.filter(is_known) else {
            return Ok(UnitAnswer::default());
        };
        let features: Vec<&Feature> = read.features.iter().map(|f| &to.group.features[*f].plan).collect();
        let answers = evaluate(&to.group.layout, &view, &features, read.now)?;
        Ok(UnitAnswer { newest: Some(newest), answers, ..UnitAnswer::default() })
    }
}
