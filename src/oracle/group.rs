//! This file is the group stage: it keeps all events of every entity and answers lookups from
//! them.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Definitions;
use crate::config::definitions::GroupDef;
use crate::model::Value;

use super::aggregate::fold;
use super::check::{Shape, Typed, compile_condition};
use super::evaluate::is_true;
use super::feature::Feature;
use super::key::{EntityKey, KeyPart, is_short, key_of, partition_of};
use super::source::{Event, Source};
use super::window::{Windowed, collect, could_have_missed, reach};
use super::{IDENTICAL, OracleCell};

/// A group with all that it has seen.
pub(super) struct Group {
    /// Its name.
    pub(super) name: String,
    /// Index of its source.
    pub(super) source: usize,
    /// Its features.
    pub(super) features: Vec<Feature>,
    /// Events by entity, each entity's sorted.
    pub(super) entities: BTreeMap<EntityKey, Vec<Event>>,
    /// How often events ended in which way.
    pub(super) counts: BTreeMap<&'static str, u64>,
    /// The variables that are the entity key.
    key_slots: Vec<usize>,
    /// Whether the entity key is the record key.
    is_direct: bool,
    history: i64,
    /// How far back the group's features reach; none when there is no end.
    reach: Option<i64>,
    filter: Option<Typed>,
    /// Entity, partition, event time and id of events that have been applied.
    ids: BTreeSet<(EntityKey, u32, i64, KeyPart)>,
}

impl Group {
    /// Compiles a group as it was written.
    pub(super) fn new(
        definition: &GroupDef,
        definitions: &Definitions,
        sources: &[Source],
    ) -> Result<Self, String> {
        let group = &definition.name;
        let index = sources
            .iter()
            .position(|source| source.name == definition.source.value)
            .ok_or_else(|| format!("group `{group}` has no source"))?;
        let source = &sources[index];
        let entity = definitions
            .entities
            .iter()
            .find(|entity| entity.name == definition.entity.value)
            .ok_or_else(|| format!("group `{group}` has no entity"))?;
        let mut key_fields = Vec::new();
        let mut key_slots = Vec::new();
        for (join_key, scalar) in &entity.keys {
            let renamed = definition.keys.iter().find(|(known, _)| known.value == *join_key);
            let field = renamed.map_or(join_key, |(_, field)| &field.value);
            let wanted = (field.clone(), Shape::of_scalar(*scalar));
            let slot = source.scope.iter().position(|variable| *variable == wanted);
            let missing = || format!("group `{group}` has no field `{field}` of its key's type");
            key_slots.push(slot.ok_or_else(missing)?);
            key_fields.push(field.clone());
        }
        let filter = definition
            .filter
            .as_ref()
            .map(|filter| compile_condition(&filter.text, &source.scope))
            .transpose()?;
        let features: Result<Vec<Feature>, String> =
            definition.features.iter().map(|feature| Feature::new(feature, &source.scope)).collect();
        let features = features?;
        let longest = features
            .iter()
            .map(reach)
            .try_fold(0, |longest: i64, reach| -> Option<i64> { Some(longest.max(reach?)) });
        let names = ["no_entity", "filtered", "duplicate", "applied"];
        Ok(Self {
            name: definition.name.clone(),
            source: index,
            features,
            entities: BTreeMap::new(),
            counts: names.into_iter().map(|name| (name, 0)).collect(),
            key_slots,
            is_direct: source.key.as_ref() == Some(&key_fields),
            history: definition.history,
            reach: longest,
            filter,
            ids: BTreeSet::new(),
        })
    }

    /// Takes an accepted event of the group's source.
    pub(super) fn apply(&mut self, event: &Event) {
        let outcome = self.outcome(event);
        *self.counts.entry(outcome).or_insert(0) += 1;
    }

    /// The way in which an event ends, after it has been kept where it is applied.
    fn outcome(&mut self, event: &Event) -> &'static str {
        let parts = self.key_slots.iter().map(|slot| &event.values[*slot]);
        let Some(key) = key_of(parts).filter(|key| is_short(key)) else {
            return "no_entity";
        };
        if self.filter.as_ref().is_some_and(|filter| !is_true(filter, &event.values)) {
            return "filtered";
        }
        if let Some(id) = &event.id {
            let is_new = self.ids.insert((key.clone(), event.partition, event.time, id.clone()));
            if !is_new {
                return "duplicate";
            }
        }
        // The order of events also has the topic between time and partition, but a group draws
        // on one source and so on one topic.
        let position = |event: &Event| (event.time, event.partition, event.offset);
        let events = self.entities.entry(key).or_default();
        let at = events.partition_point(|known| position(known) < position(event));
        events.insert(at, event.clone());
        "applied"
    }

    /// Stream time of the group's partition that holds an entity.
    fn stream_time(&self, key: &[KeyPart], source: &Source, partitions: u32) -> Option<i64> {
        if self.is_direct {
            return source.stream_times.get(&partition_of(key, partitions)).copied();
        }
        source.stream_times.values().max().copied()
    }

    /// Event time from which on everything is known of an entity; none: everything is.
    fn covered_from(&self, key: &[KeyPart], source: &Source, partitions: u32) -> Option<i64> {
        let home = self.is_direct.then(|| partition_of(key, partitions));
        let cut = source.cut.iter().filter(|partition| home.is_none_or(|home| home == **partition));
        cut.filter_map(|partition| source.first_accepted.get(partition).copied()).max()
    }

    /// The value of a feature for an entity at `now`: the first case that fits, in the order of
    /// the table of SEMANTICS §5.
    pub(super) fn lookup(
        &self,
        feature: &Feature,
        key: &[Value],
        now: i64,
        source: &Source,
        partitions: u32,
    ) -> OracleCell {
        let key = key_of(key.iter()).unwrap_or_default();
        let default = || feature.default.clone().unwrap_or(Value::Null);
        let stream_time = self.stream_time(&key, source, partitions);
        if stream_time.is_some_and(|time| now < time.saturating_sub(self.history)) {
            return constant(Value::Null, "OUT_OF_RANGE", 0);
        }
        let events = self.entities.get(&key).map(Vec::as_slice).unwrap_or_default();
        let past = events.partition_point(|event| event.time <= now);
        let newest = events[..past].last().map(|event| event.time);
        let is_known = |time: &i64| self.reach.is_none_or(|reach| *time >= now.saturating_sub(reach));
        let Some(newest) = newest.filter(is_known) else {
            let empty = fold(feature, &Windowed::default(), now).0;
            return constant(feature.default.clone().unwrap_or(empty), "NOT_FOUND", 0);
        };
        if feature.definition.ttl.is_some_and(|ttl| now - newest > ttl) {
            return constant(default(), "OUTSIDE_MAX_AGE", newest);
        }
        let windowed = collect(feature, events, now);
        let (value, scale) = fold(feature, &windowed, now);
        let covered_from = self.covered_from(&key, source, partitions);
        let is_warming = covered_from.is_some_and(|start| could_have_missed(feature, events, now, start - 1));
        let events = windowed.times.len() as u64;
        let scale = if feature.is_computed_float() { scale } else { IDENTICAL };
        let (value, status) = match (value, &feature.default) {
            (value, _) if is_warming => (value, "WARMING"),
            (Value::Null, Some(default)) => (default.clone(), "DEFAULTED"),
            (Value::Null, None) => (Value::Null, "NULL_VALUE"),
            (value, _) => (value, "PRESENT"),
        };
        OracleCell { value, status, timestamp: newest, scale, events }
    }
}

/// A cell whose value was not computed from the window.
fn constant(value: Value, status: &'static str, timestamp: i64) -> OracleCell {
    OracleCell { value, status, timestamp, scale: IDENTICAL, events: 0 }
}
