//! Recomputes features of entities from the log with the naive oracle, and compares. For an
//! engine that nothing is being appended to: later events would count as differences.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::lookup::LookupRequest;
use super::view::View;
use crate::error::{Error, Result};
use crate::model::{Millis, Value, time};
use crate::oracle::{Oracle, OracleRecord, is_equal};

/// Differences that are listed in full.
const SHOWN_MAX: usize = 20;

/// Steele, Lea, Flood: *Fast splittable pseudorandom number generators* (2014).
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

/// The oracle goes down a level for each `||` of an expression.
const STACK: usize = 64 << 20;

/// Compares all features of `entities` random entities at random readable times, as long as somebody
/// wants to know.
///
/// # Errors
/// There is no entity. A log that was cut or cannot be read, definitions that the oracle cannot work
/// with. Nobody wants to know.
pub fn verify(
    view: &View,
    entities: usize,
    seed: u64,
    is_wanted: &(dyn Fn() -> bool + Sync),
) -> Result<Json> {
    std::thread::scope(|scope| {
        let deep = std::thread::Builder::new().name("verify".to_owned()).stack_size(STACK);
        let verifying = deep.spawn_scoped(scope, || compare_all(view, entities, seed, is_wanted))?;
        verifying.join().unwrap_or_else(|_| Err(Error::internal("the comparison has panicked")))
    })
}

fn compare_all(view: &View, entities: usize, seed: u64, is_wanted: &dyn Fn() -> bool) -> Result<Json> {
    let check_wanted =
        || if is_wanted() { Ok(()) } else { Err(Error::unavailable("nobody waits for the answer")) };
    let topics = view.topology.topics();
    let partitions = topics.iter().filter_map(|t| view.log.partitions(t)).max().unwrap_or(1);
    let mut oracle = Oracle::new(&view.topology.definitions, partitions).map_err(Error::invalid)?;
    for topic in topics {
        for partition in 0..view.log.partitions(topic).unwrap_or(0) {
            feed(view, topic, partition, &mut oracle, &check_wanted)?;
        }
    }
    let mut random = SplitMix(seed);
    let known = |index: usize| (index, oracle.entities(&view.topology.groups[index].name));
    let mut known: Vec<(usize, Vec<Vec<Value>>)> = (0..view.topology.groups.len()).map(known).collect();
    known.retain(|(_, keys)| !keys.is_empty());
    if known.is_empty() {
        return Err(Error::not_found("no group has an entity: there is nothing to compare"));
    }
    let (mut values, mut differences, mut shown) = (0_u64, 0_u64, Vec::new());
    for _ in 0..entities {
        check_wanted()?;
        let (index, keys) = &known[random.below(known.len())];
        let (index, key) = (*index, &keys[random.below(keys.len())]);
        let group = &view.topology.groups[index];
        let Some(now) = oracle.stream_time(&group.name) else { continue };
        let now = now - random.below(group.history.max(1) as usize) as Millis;
        for difference in compare(view, &oracle, index, key, now, &mut values)? {
            differences += 1;
            if shown.len() < SHOWN_MAX {
                shown.push(difference);
            }
        }
    }
    Ok(json!({ "values": values, "differences": differences, "shown": shown }))
}

fn feed(
    view: &View,
    topic: &str,
    partition: u32,
    oracle: &mut Oracle,
    check_wanted: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let mut at = view.log.start_offset(topic, partition);
    if at > 0 {
        let message = format!("{topic}/{partition} starts at offset {at}: what was cut cannot be recomputed");
        return Err(Error::invalid(message));
    }
    loop {
        check_wanted()?;
        let batches = view.log.read(topic, partition, at, 1 << 20)?;
        let Some(last) = batches.last() else { return Ok(()) };
        at = last.next_offset();
        for record in batches.iter().flat_map(|b| b.records()) {
            oracle.push(&OracleRecord {
                topic: topic.to_owned(),
                partition,
                offset: record.offset,
                timestamp: record.time,
                key: record.key.map(<[u8]>::to_vec),
                value: record.value.map(<[u8]>::to_vec),
            });
        }
    }
}

fn compare(
    view: &View,
    oracle: &Oracle,
    index: usize,
    key: &[Value],
    now: Millis,
    values: &mut u64,
) -> Result<Vec<Json>> {
    let group = &view.topology.groups[index];
    let names = &view.topology.entities[group.entity].keys;
    let entities: BTreeMap<String, Vec<Value>> =
        names.iter().zip(key).map(|((n, _), v)| (n.clone(), vec![v.clone()])).collect();
    let mut differences = Vec::new();
    // A request may hold only so many features.
    for chunk in group.features.chunks(view.limits.request_features) {
        let request = LookupRequest {
            features: chunk.iter().map(|f| format!("{}:{}", group.name, f.name)).collect(),
            entities: entities.clone(),
            as_of: vec![now],
            full_feature_names: true,
            ..LookupRequest::default()
        };
        let answer = view.lookup(&request)?;
        for (feature, column) in chunk.iter().zip(&answer.columns[names.len()..]) {
            let found = &column[0];
            let wanted = oracle.lookup(&group.name, &feature.name, key, now);
            *values += 1;
            let may_be_sketch =
                found.status.name() == "APPROXIMATE" && wanted.events > feature.plan.exact_limit;
            let is_same = may_be_sketch
                || (is_equal(&wanted.value, &found.value, wanted.scale)
                    && wanted.status == found.status.name()
                    && wanted.timestamp == found.timestamp);
            if !is_same {
                differences.push(json!({
                    "feature": format!("{}:{}", group.name, feature.name),
                    "entity": key.iter().map(Value::to_json).collect::<Vec<_>>(),
                    "as_of": time::format_rfc3339(now),
                    "engine": [found.value.to_json(), found.status.name(), time::format_rfc3339(found.timestamp)],
                    "oracle": [wanted.value.to_json(), wanted.status, time::format_rfc3339(wanted.timestamp)],
                }));
            }
        }
    }
    Ok(differences)
}
