//! Feature topics (SEMANTICS §10): what a group's events make of its features, as records.

use serde_json::{Map, Value as Json, json};

use super::read::UnitRead;
use super::runner::Runner;
use super::{Task, TaskState, UnitAnswer, cell};
use crate::error::Result;
use crate::model::key::{decode_parts, record_key_of};
use crate::model::{Millis, Value, partition_of, time};
use crate::state::{Unit, split_key};
use crate::topology::EmitRule;

impl Task {
    /// Key and value of the record of a unit as of `now`.
    fn feature_record(
        &self,
        slot: usize,
        prefix: &[u8],
        unit: &Unit,
        (stream_time, covered_from): (Millis, Option<Millis>),
        now: Millis,
    ) -> Result<(Vec<u8>, Vec<u8>)> {
        let to = &self.groups[slot];
        let group = &to.group;
        let all: Vec<usize> = (0..group.features.len()).collect();
        let read = UnitRead { slot, entity: &[], features: &all, now };
        let answer = if now < stream_time.saturating_sub(group.history) {
            UnitAnswer { is_out_of_range: true, ..UnitAnswer::default() }
        } else {
            UnitAnswer { covered_from, ..self.answer(to, unit, prefix, &read)? }
        };
        let features: Map<String, Json> = group
            .features
            .iter()
            .enumerate()
            .map(|(i, f)| (f.name.clone(), cell(f, &answer, answer.answers.get(i), now).value.to_json()))
            .collect();
        let parts = split_key(prefix).and_then(|(_, entity)| decode_parts(entity, &group.key_types));
        let parts: Vec<Value> = parts.unwrap_or_default();
        let mut record: Map<String, Json> =
            group.key_names.iter().cloned().zip(parts.iter().map(Value::to_json)).collect();
        record.insert("as_of".to_owned(), Json::from(time::format_rfc3339(now)));
        record.insert("features".to_owned(), json!(features));
        Ok((record_key_of(&parts), Json::Object(record).to_string().into_bytes()))
    }
}

impl Runner {
    /// Notes that a new event at `now` has changed the unit in `cached`: its record as of then goes out
    /// with the next commit, or its newest state. `known`: stream time of its source with it, and from
    /// which event time on everything is known.
    pub(super) fn emit(
        &mut self,
        state: &TaskState,
        (slot, cached): (usize, u32),
        prefix: &[u8],
        now: Millis,
        known: (Millis, Option<Millis>),
    ) -> Result<()> {
        let task = self.task.clone();
        let group = &task.groups[slot].group;
        match group.emit {
            EmitRule::Never => Ok(()),
            EmitRule::Latest => {
                self.changed.insert((slot, cached));
                Ok(())
            }
            EmitRule::PerEvent => {
                let unit = &state.cache.slot(cached).unit;
                let (key, value) = task.feature_record(slot, prefix, unit, known, now)?;
                self.push_features(slot, now, &key, &value);
                Ok(())
            }
        }
    }

    /// Records of units that have changed since the last commit, as of now. They are in memory: what
    /// has changed since the last commit is dirty.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) fn emit_latest(&mut self) -> Result<()> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let task = self.task.clone();
        let changed = std::mem::take(&mut self.changed);
        let state = task.state.read();
        for (slot, cached) in changed {
            let Some(now) = task.group_stream_time(&state, slot) else { continue };
            let one = state.cache.slot(cached);
            let known = (now, task.covered_from(&state, slot));
            let (key, value) = task.feature_record(slot, &one.key, &one.unit, known, now)?;
            self.push_features(slot, now, &key, &value);
        }
        Ok(())
    }

    fn push_features(&mut self, slot: usize, now: Millis, key: &[u8], value: &[u8]) {
        let Some(topic) = self.task.groups[slot].group.feature_topic(&self.options.app) else { return };
        let partition = partition_of(key, self.log.partitions(&topic).unwrap_or(1));
        self.output(&topic).push_at(partition, now, key, value);
    }
}
