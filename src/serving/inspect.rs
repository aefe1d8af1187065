//! What operators look at: partitions, units decoded with their types, records.

use serde::Deserialize;
use std::sync::Arc;

use serde_json::{Value as Json, json};

use super::view::View;
use crate::error::{Error, Result};
use crate::model::key::{KeyPart, decode_parts, record_key};
use crate::model::{ScalarType, Value, partition_of, time};
use crate::operator::{EventBuf, Layout};
use crate::state::{StoredRows, Unit, UnitView, head_key, is_head, split_key, unit_prefix};
use crate::task::{Task, TaskGroup};

/// Which keys to list.
#[derive(Debug, Deserialize)]
pub struct KeysQuery {
    /// What the first part begins with.
    #[serde(default)]
    pub prefix: String,
    /// How many at most.
    #[serde(default = "default_limit")]
    pub limit: usize,
}

fn default_limit() -> usize {
    100
}

/// Partitions with their offsets.
pub fn partitions(view: &View) -> Json {
    view.health().1["partitions"].clone()
}

/// Topic of dead letters, and where each of its partitions ends.
pub fn dead_letters(view: &View) -> Json {
    let topic = format!("{}-dead-letters", view.app);
    let partitions = view.log.partitions(&topic).unwrap_or(0);
    let places: Vec<(&str, u32)> = (0..partitions).map(|p| (topic.as_str(), p)).collect();
    let ends = view.log.ends(&places);
    json!({ "topic": topic, "ends": ends })
}

/// What is served, for tools that decode rows by themselves.
pub(super) fn definitions(view: &View) -> Json {
    view.topology
        .groups
        .iter()
        .map(|g| {
            json!({
                "group": g.name,
                "version": g.version,
                "entity": view.topology.entities[g.entity].name,
                "features": g.features.iter().map(|f| f.name.clone()).collect::<Vec<_>>(),
            })
        })
        .collect()
}

/// Tasks that have units of `group`, those of `partition` if one is given, with its slot there.
fn owners(view: &View, group: &str, partition: Option<u32>) -> Result<Vec<(Arc<Task>, usize)>> {
    let plan = view.group(group)?;
    let owned = view.owned();
    Ok(owned
        .owners(plan.index)
        .filter(|t| partition.is_none_or(|p| t.partition == p))
        .filter_map(|t| Some((Arc::clone(t), t.group_slot(plan.index)?)))
        .collect())
}

/// Keys of a group, from the store and the cache.
///
/// # Errors
/// An unknown group, or a store that cannot be read.
pub fn keys(view: &View, group: &str, query: &KeysQuery) -> Result<Json> {
    let mut found: Vec<Json> = Vec::new();
    for (task, slot) in owners(view, group, None)? {
        let to = &task.groups[slot];
        let prefix = unit_prefix(to.id, &[]);
        let mut keys: Vec<Vec<u8>> = Vec::new();
        task.store.scan(&prefix, &mut |key, _| {
            let is_own = key.starts_with(&prefix);
            if is_own && is_head(key) {
                keys.push(key[..key.len() - 1].to_vec());
            }
            is_own && keys.len() < query.limit * 4
        })?;
        keys.extend(
            task.state.read().cache.iter().map(|s| s.key.to_vec()).filter(|k| k.starts_with(&prefix)),
        );
        keys.sort();
        keys.dedup();
        for key in keys {
            let parts = split_key(&key).and_then(|(_, e)| decode_parts(e, &to.group.key_types));
            let Some(parts) = parts else { continue };
            if parts.first().is_some_and(|p| p.plain_text().starts_with(&query.prefix)) {
                found.push(parts.iter().map(Value::to_json).collect());
            }
            if found.len() >= query.limit {
                return Ok(Json::from(found));
            }
        }
    }
    Ok(Json::from(found))
}

/// One unit, decoded.
///
/// # Errors
/// An unknown group or entity, or a store that cannot be read.
pub fn key(view: &View, group: &str, parts: &[String]) -> Result<Json> {
    let plan = view.group(group)?;
    if parts.len() != plan.key_types.len() {
        let message = format!("`{group}` has {} key parts, not {}", plan.key_types.len(), parts.len());
        return Err(Error::invalid(message));
    }
    let mut typed = Vec::new();
    for (text, scalar) in parts.iter().zip(&plan.key_types) {
        typed.push(match scalar {
            ScalarType::Int64 => {
                KeyPart::Int(text.parse().map_err(|_| Error::invalid(format!("`{text}` is no int64")))?)
            }
            _ => KeyPart::String(text),
        });
    }
    let (mut routing, mut entity) = (Vec::new(), Vec::new());
    record_key(&typed, &mut routing);
    typed.iter().for_each(|p| p.encode(&mut entity));
    let partition = partition_of(&routing, view.group_partitions(plan.index));
    let Some((task, slot)) = owners(view, group, Some(partition))?.into_iter().next() else {
        return Err(Error::unavailable("no task holds that partition"));
    };
    let to = &task.groups[slot];
    let prefix = unit_prefix(to.id, &entity);
    let state = task.state.read();
    let layout = &to.group.layout;
    let (is_cached, unit) = match state.cache.get(&prefix) {
        Some(unit) => (true, unit.clone()),
        None => match task.store.get(&head_key(&prefix))? {
            Some(row) => (false, Unit::decode_head(layout, &row)?),
            None => return Err(Error::not_found(format!("no unit of {parts:?} in `{group}`"))),
        },
    };
    drop(state);
    describe(&task, to, &prefix, &unit, is_cached)
}

fn describe(task: &Task, to: &TaskGroup, prefix: &[u8], unit: &Unit, is_cached: bool) -> Result<Json> {
    let layout = &to.group.layout;
    let rows = StoredRows { store: &*task.store, prefix };
    let view = UnitView { unit, layout, rows: &rows };
    let mut entries = Vec::new();
    for entry in unit.entries() {
        let mut shown = json!({
            "row": (!entry.is_tile()).then_some(entry.row),
            "height": entry.height,
            "from": time::format_rfc3339(entry.lo.time),
            "to": time::format_rfc3339(entry.hi.time),
            "events": entry.events,
            "partials": partials(layout, &entry.words),
            "sketches": entry.sketches.len(),
        });
        if entry.height == 0 && !entry.is_tile() {
            let page = view.page(entry.row)?;
            shown["first_event"] = events(layout, &page).first().cloned().unwrap_or(Json::Null);
            shown["bytes"] = Json::from(page.bytes());
        }
        entries.push(shown);
    }
    let (ids, id_rows) = unit.id_counts();
    let head = unit.encode_head(layout).len();
    Ok(json!({
        "task": task.name,
        "next_offset": unit.next_offset,
        "row_clock": time::format_rfc3339(unit.row_clock),
        "newest_event_time": time::format_rfc3339(unit.newest),
        "cached": is_cached,
        "dirty_from": unit.dirty_from,
        "head_bytes": head,
        "memory_bytes": unit.bytes(),
        "events": unit.events(layout),
        "event_ids": ids,
        "event_id_rows": id_rows,
        "accumulated": unit.base().map(|b| json!({
            "events": b.count,
            "from": time::format_rfc3339(b.oldest),
            "to": time::format_rfc3339(b.newest),
            "partials": partials(layout, &b.words),
        })),
        "tail": events(layout, unit.tail()),
        "rows": entries,
    }))
}

fn events(layout: &Layout, buf: &EventBuf) -> Vec<Json> {
    (0..buf.len(layout))
        .map(|i| {
            let event = buf.get(layout, i);
            let order = event.order();
            let columns: Vec<Json> = (0..layout.columns.len())
                .map(|c| if event.has_value(c) { event.value(c).to_json() } else { Json::Null })
                .collect();
            let flags: Vec<bool> = (0..layout.flags).map(|f| event.has_flag(f)).collect();
            json!({
                "event_time": time::format_rfc3339(event.time()),
                "partition": order.partition(),
                "offset": order.offset(),
                "columns": columns,
                "flags": flags,
            })
        })
        .collect()
}

fn partials(layout: &Layout, words: &[u64]) -> Json {
    layout
        .series
        .iter()
        .map(|s| json!({ "column": s.column, "flag": s.flag, "count": words[s.count_at] }))
        .collect()
}

/// Records of a topic.
///
/// # Errors
/// An unknown topic, or a log that cannot be read.
pub fn log(view: &View, topic: &str, partition: u32, from: u64, count: usize) -> Result<Json> {
    let partitions =
        view.log.partitions(topic).ok_or_else(|| Error::not_found(format!("no topic `{topic}`")))?;
    if partition >= partitions {
        return Err(Error::invalid(format!("topic `{topic}` has {partitions} partitions")));
    }
    let mut at = from.max(view.log.start_offset(topic, partition));
    let mut records = Vec::new();
    while records.len() < count {
        let batches = view.log.read(topic, partition, at, 1 << 20)?;
        if batches.is_empty() {
            break;
        }
        for batch in &batches {
            for record in batch.records().filter(|r| r.offset >= at) {
                if records.len() < count {
                    let owned = record.to_record();
                    let headers: Vec<Json> =
                        owned.headers.iter().map(|(n, v)| json!([n, String::from_utf8_lossy(v)])).collect();
                    let text = |b: Option<&[u8]>| b.map(|b| String::from_utf8_lossy(b).into_owned());
                    records.push(json!({
                        "offset": record.offset,
                        "timestamp": time::format_rfc3339(record.time),
                        "key": text(record.key),
                        "value": text(record.value),
                        "headers": headers,
                    }));
                }
            }
            at = batch.next_offset();
        }
    }
    Ok(Json::from(records))
}
