//! The oracle: all of SEMANTICS once more, by brute force, to check the engine against. It keeps
//! every accepted event and folds the window anew for every lookup. It shares nothing with the
//! engine but the parsed definitions and the type of values.

mod aggregate;
mod check;
mod check_call;
mod equality;
mod evaluate;
#[cfg(test)]
mod expression_tests;
mod feature;
mod functions;
mod group;
mod json;
mod key;
mod lexer;
mod number;
mod parser;
mod pattern;
mod ranking;
mod source;
mod sum;
#[cfg(test)]
mod tests;
mod time;
mod values;
mod window;

use std::collections::BTreeMap;

use crate::config::Definitions;
use crate::model::{Type, Value};

pub use equality::{IDENTICAL, is_equal};

use check::Shape;
use group::Group;
use source::Source;

/// A record of the log, as the oracle reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OracleRecord {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: u64,
    /// Its log timestamp, in milliseconds since the epoch.
    pub timestamp: i64,
    /// Its key bytes, which decide about nothing here.
    pub key: Option<Vec<u8>>,
    /// Its payload; none is a tombstone.
    pub value: Option<Vec<u8>>,
}

/// What a lookup of one feature for one entity gives.
#[derive(Clone, Debug, PartialEq)]
pub struct OracleCell {
    /// The value.
    pub value: Value,
    /// The status, by its name in SEMANTICS §5. The oracle is always exact: it never says `DEGRADED`
    /// or `APPROXIMATE`.
    pub status: &'static str,
    /// Event time of the entity's newest event while it is known, else the epoch.
    pub timestamp: i64,
    /// The scale for [`is_equal`], or [`IDENTICAL`].
    pub scale: f64,
    /// Number of the feature's events in the window; above the feature's `exact_limit` the engine
    /// may answer by a sketch.
    pub events: u64,
}

/// An engine without any engineering.
pub struct Oracle {
    sources: Vec<Source>,
    groups: Vec<Group>,
    partitions: u32,
    /// Next offset by topic and partition, because a record counts once.
    next_offsets: BTreeMap<(String, u32), u64>,
}

impl Oracle {
    /// An oracle for these definitions, whose topics all have `partitions` partitions.
    ///
    /// # Errors
    /// What is wrong with the definitions, if the oracle cannot work with them.
    pub fn new(definitions: &Definitions, partitions: u32) -> Result<Self, String> {
        if partitions == 0 {
            return Err("a topic has at least one partition".to_owned());
        }
        let sources: Result<Vec<Source>, String> = definitions.sources.iter().map(Source::new).collect();
        let sources = sources?;
        let groups: Result<Vec<Group>, String> =
            definitions.groups.iter().map(|group| Group::new(group, definitions, &sources)).collect();
        Ok(Self { groups: groups?, sources, partitions, next_offsets: BTreeMap::new() })
    }

    /// Says that the first records of a partition are gone, and will not be pushed.
    pub fn cut(&mut self, topic: &str, partition: u32) {
        for source in self.sources.iter_mut().filter(|source| source.topic == topic) {
            source.cut.insert(partition);
        }
    }

    /// Takes a record. Those of one partition come in the order of their offsets; one that has
    /// come before is passed over.
    pub fn push(&mut self, record: &OracleRecord) {
        let partition = (record.topic.clone(), record.partition);
        let next_offset = self.next_offsets.entry(partition).or_insert(0);
        if record.offset < *next_offset {
            return;
        }
        *next_offset = record.offset + 1;
        let payload = record.value.as_deref().and_then(json::parse_object);
        for (index, source) in self.sources.iter_mut().enumerate() {
            if source.topic != record.topic {
                continue;
            }
            let Some(event) = source.take(record, payload.as_ref()) else {
                continue;
            };
            for group in self.groups.iter_mut().filter(|group| group.source == index) {
                group.apply(&event);
            }
        }
    }

    /// Counts of a source: `read`, `ignored`, `accepted` and `late`, and the reasons of dead
    /// letters as far as there are any. Empty for an unknown source.
    pub fn source_counts(&self, source: &str) -> BTreeMap<String, u64> {
        let found = self.sources.iter().find(|known| known.name == source);
        found.map(|source| by_name(&source.counts)).unwrap_or_default()
    }

    /// Counts of a group: `no_entity`, `filtered`, `duplicate` and `applied`. Empty for an
    /// unknown group.
    pub fn group_counts(&self, group: &str) -> BTreeMap<String, u64> {
        self.group(group).map(|group| by_name(&group.counts)).unwrap_or_default()
    }

    /// The keys of all entities of a group, in ascending order.
    pub fn entities(&self, group: &str) -> Vec<Vec<Value>> {
        let found = self.group(group);
        found.map(|group| group.entities.keys().map(|key| key::values_of(key)).collect()).unwrap_or_default()
    }

    /// The greatest stream time of all partitions of the source that a group draws on.
    pub fn stream_time(&self, group: &str) -> Option<i64> {
        let group = self.group(group)?;
        self.sources[group.source].stream_times.values().max().copied()
    }

    /// The value of an ordinary feature for an entity at `now`.
    ///
    /// # Panics
    /// When there is no such group, or no such ordinary feature in it.
    pub fn lookup(&self, group: &str, feature: &str, key: &[Value], now: i64) -> OracleCell {
        let group = self.group(group).expect("lookups name a group of the definitions");
        let feature = group
            .features
            .iter()
            .find(|known| known.definition.name == feature)
            .expect("lookups name an ordinary feature of the group");
        group.lookup(feature, key, now, &self.sources[group.source], self.partitions)
    }

    fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|known| known.name == name)
    }
}

fn by_name(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// Evaluates an expression over named variables, each of the type of its value. A variable that
/// is null has the type of the literal `null`; [`evaluate_typed`] knows better.
///
/// # Errors
/// What is wrong with the expression.
pub fn evaluate_text(expression: &str, variables: &[(String, Value)]) -> Result<Value, String> {
    let scope = variables.iter().map(|(name, value)| (name.clone(), Shape::of_value(value)));
    let values: Vec<Value> = variables.iter().map(|(_, value)| value.clone()).collect();
    evaluate_in(expression, scope.collect(), &values)
}

/// Evaluates an expression over named variables of declared types, which matter where a variable
/// is null: an int64 beside a null float64 becomes a float64 all the same.
///
/// # Errors
/// What is wrong with the expression.
pub fn evaluate_typed(expression: &str, variables: &[(String, Type, Value)]) -> Result<Value, String> {
    let scope = variables.iter().map(|(name, kind, _)| (name.clone(), Shape::of_type(*kind)));
    let values: Vec<Value> = variables.iter().map(|(_, _, value)| value.clone()).collect();
    evaluate_in(expression, scope.collect(), &values)
}

fn evaluate_in(expression: &str, scope: Vec<(String, Shape)>, values: &[Value]) -> Result<Value, String> {
    let typed = check::compile(expression, &scope)?;
    Ok(evaluate::evaluate(&typed, values))
}
