//! Reads of a task's units, all at one point of its input (PROTOCOL 43).

use super::{Task, TaskGroup, TaskState};
use crate::error::Result;
use crate::model::{Millis, Positions};
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

impl Task {
    /// Answers `reads` at one point of the input, and says at which.
    ///
    /// # Errors
    /// Rows that cannot be read.
    pub fn read(&self, reads: &[UnitRead<'_>]) -> Result<(Vec<UnitAnswer>, Positions)> {
        let state = self.state.read();
        let answers: Result<Vec<UnitAnswer>> =
            reads.iter().map(|read| self.read_unit(&state, read)).collect();
        Ok((answers?, self.positions(&state)))
    }

    fn read_unit(&self, state: &TaskState, read: &UnitRead<'_>) -> Result<UnitAnswer> {
        let to = &self.groups[read.slot];
        let oldest = self
            .group_stream_time(state, read.slot)
            .map(|t| t.saturating_sub(to.group.history));
        if oldest.is_some_and(|oldest| read.now < oldest) {
            return Ok(UnitAnswer { is_out_of_range: true, ..UnitAnswer::default() });
        }
        let prefix = unit_prefix(to.id, read.entity);
        if let Some(unit) = state.cache.get(&prefix) {
            return Ok(UnitAnswer { is_cached: true, ..self.answer(to, unit, &prefix, read)? });
        }
        match self.store.get(&head_key(&prefix))? {
            Some(row) => {
                let unit = Unit::decode_head(&to.group.layout, &row)?;
                self.answer(to, &unit, &prefix, read)
            }
            None => Ok(UnitAnswer::default()),
        }
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
