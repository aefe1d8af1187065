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
    positions: Positions,
}

/// What a unit says.
#[derive(Clone, Debug, Default)]
pub struct UnitAnswer {
    /// Whether `now` lies before what can be read.
    pub is_out_of_range: bool,
    /// Event time of the newest event at or before `now`, while the entity is known.
    pub newest: Option<Millis>,
    /// One per feature; empty when the entity is not known.
    pub answers: Vec<Answer>,
    /// Whether the unit was in the cache.
    pub is_cached: bool,
}

/// Units that are read under one lock: the worker waits no longer than these take.
const SLICE: usize = 16;
/// Tries to read at one position without holding the worker up throughout.
const TRIES: usize = 3;

impl Task {
    /// Answers `reads` at one point of the input, and says at which (PROTOCOL 43): all units as
    /// they were at one `applied`, or again.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn read(&self, reads: &[UnitRead<'_>]) -> Result<(Vec<UnitAnswer>, Positions)> {
        if reads.len() > SLICE {
            for _ in 0..TRIES {
                if let Some(answer) = self.read_in_slices(reads)? {
                    return Ok(answer);
                }
            }
        }
        let state = self.state.read();
        let point = self.point(&state);
        let mut answers = Vec::with_capacity(reads.len());
        for read in reads {
            let answer = self.read_unit(&state, &point, read)?;
            answers.push(answer.ok_or_else(|| Error::corrupted("a unit is ahead of its task"))?);
        }
        Ok((answers, point.positions))
    }

    /// The same, letting the worker go on after every few units. `None` when it has changed one of
    /// them before it was read.
    fn read_in_slices(&self, reads: &[UnitRead<'_>]) -> Result<Option<(Vec<UnitAnswer>, Positions)>> {
        let point = self.point(&self.state.read());
        let mut answers = Vec::with_capacity(reads.len());
        for slice in reads.chunks(SLICE) {
            let state = self.state.read();
            for read in slice {
                match self.read_unit(&state, &point, read)? {
                    Some(answer) => answers.push(answer),
                    None => return Ok(None),
                }
            }
        }
        Ok(Some((answers, point.positions)))
    }

    fn point(&self, state: &TaskState) -> Point {
        Point {
            applied: state.applied,
            stream_times: (0..self.groups.len()).map(|slot| self.group_stream_time(state, slot)).collect(),
            positions: self.positions(state),
        }
    }

    /// `None`: the unit holds what lies behind `point`.
    fn read_unit(&self, state: &TaskState, point: &Point, read: &UnitRead<'_>) -> Result<Option<UnitAnswer>> {
        let to = &self.groups[read.slot];
        let oldest = point.stream_times[read.slot].map(|t| t.saturating_sub(to.group.history));
        if oldest.is_some_and(|oldest| read.now < oldest) {
            return Ok(Some(UnitAnswer { is_out_of_range: true, ..UnitAnswer::default() }));
        }
        let prefix = unit_prefix(to.id, read.entity);
        if let Some(unit) = state.cache.get(&prefix) {
            if unit.next_offset > point.applied {
                return Ok(None);
            }
            return Ok(Some(UnitAnswer { is_cached: true, ..self.answer(to, unit, &prefix, read)? }));
        }
        let Some(row) = self.store.get(&head_key(&prefix))? else {
            return Ok(Some(UnitAnswer::default()));
        };
        let unit = Unit::decode_head(&to.group.layout, &row)?;
        if unit.next_offset > point.applied {
            return Ok(None);
        }
        self.answer(to, &unit, &prefix, read).map(Some)
    }

    fn answer(
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
        let features: Vec<&Feature> =
            read.features.iter().map(|f| &to.group.features[*f].plan).collect();
        let answers = evaluate(&to.group.layout, &view, &features, read.now)?;
        Ok(UnitAnswer { newest: Some(newest), answers, ..UnitAnswer::default() })
    }
}
