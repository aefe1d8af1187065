//! JSON of lookups: request in, response out.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value as Json};

use super::compute::Cell;
use super::lookup::{LookupRequest, LookupResponse};
use crate::error::{Error, Result};
use crate::model::names::did_you_mean;
use crate::model::{Millis, Positions, Value, time};

const KEYS: [&str; 8] =
    ["features", "entities", "request", "as_of", "min_positions", "wait", "max_age", "full_feature_names"];

/// Reads the body of `POST /v1/features/online`.
///
/// # Errors
/// The first mistake, by name.
pub(super) fn parse(body: &[u8]) -> Result<LookupRequest> {
    let json: Json =
        serde_json::from_slice(body).map_err(|e| Error::invalid(format!("the body is no JSON: {e}")))?;
    let Json::Object(mut object) = json else {
        return Err(Error::invalid("the body is no JSON object"));
    };
    if let Some(key) = object.keys().find(|k| !KEYS.contains(&k.as_str())) {
        let hint = did_you_mean(key, KEYS);
        return Err(Error::invalid(format!("unknown key `{key}`")).with_hint(hint));
    }
    let wrong = |key: &str, expected: &str| Error::invalid(format!("`{key}` is not {expected}"));
    let mut request = LookupRequest::default();
    match object.remove("features") {
        Some(Json::Array(items)) => {
            for item in items {
                let Json::String(name) = item else {
                    return Err(wrong("features", "a list of `group:feature`"));
                };
                request.features.push(name);
            }
        }
        _ => return Err(wrong("features", "a list of `group:feature`")),
    }
    match object.remove("entities") {
        Some(Json::Object(lists)) => request.entities = columns("entities", lists)?,
        None => return Err(Error::invalid("the body has no `entities`")),
        Some(_) => return Err(wrong("entities", "an object of lists")),
    }
    match object.remove("request") {
        Some(Json::Object(lists)) => request.request = columns("request", lists)?,
        None | Some(Json::Null) => {}
        Some(_) => return Err(wrong("request", "an object of lists")),
    }
    request.as_of = match object.remove("as_of") {
        None | Some(Json::Null) => Vec::new(),
        Some(Json::Array(items)) if items.is_empty() => {
            return Err(wrong("as_of", "a time, or one for each row"));
        }
        Some(Json::Array(items)) => items.iter().map(as_of).collect::<Result<_>>()?,
        Some(one) => vec![as_of(&one)?],
    };
    if let Some(json) = object.remove("min_positions").filter(|j| !j.is_null()) {
        request.min_positions = positions(&json)
            .ok_or_else(|| wrong("min_positions", "an object of topics, partitions and offsets"))?;
    }
    if let Some(json) = object.remove("wait").filter(|j| !j.is_null()) {
        let wait = json.as_str().and_then(time::parse_duration);
        let wait = wait.ok_or_else(|| wrong("wait", "a duration like `1s`"))?;
        request.wait = Some(Duration::from_millis(wait.unsigned_abs()));
    }
    if let Some(json) = object.remove("max_age").filter(|j| !j.is_null()) {
        let max_age = json.as_str().and_then(time::parse_duration).filter(|d| *d >= 0);
        let max_age = max_age.ok_or_else(|| wrong("max_age", "a duration like `5s`"))?;
        request.max_age = Some(Duration::from_millis(max_age.unsigned_abs()));
    }
    request.full_feature_names = match object.remove("full_feature_names") {
        None | Some(Json::Null) => false,
        Some(Json::Bool(b)) => b,
        Some(_) => return Err(wrong("full_feature_names", "true or false")),
    };
    Ok(request)
}

fn as_of(json: &Json) -> Result<Millis> {
    json.as_str()
        .and_then(|text| time::parse_rfc3339(text, None))
        .ok_or_else(|| Error::invalid(format!("`as_of` {json} is no RFC 3339 time with an offset")))
}

fn columns(what: &str, lists: Map<String, Json>) -> Result<std::collections::BTreeMap<String, Vec<Value>>> {
    lists
        .into_iter()
        .map(|(name, list)| {
            let Json::Array(items) = list else {
                return Err(Error::invalid(format!("`{what}.{name}` is no list")));
            };
            let values = items
                .into_iter()
                .map(|item| match item {
                    Json::String(s) => Some(Value::String(s.into())),
                    Json::Bool(b) => Some(Value::Bool(b)),
                    Json::Number(n) => match n.as_i64() {
                        Some(i) => Some(Value::Int(i)),
                        None => n.as_f64().filter(|x| x.is_finite()).map(Value::Float),
                    },
                    Json::Null => Some(Value::Null),
                    Json::Array(_) | Json::Object(_) => None,
                })
                .collect::<Option<Vec<Value>>>()
                .ok_or_else(|| Error::invalid(format!("`{what}.{name}` holds a list or an object")))?;
            Ok((name, values))
        })
        .collect()
}

/// `{"<topic>":{"<partition>":next_offset}}`
fn positions(json: &Json) -> Option<Positions> {
    let mut positions = Positions::new();
    for (topic, by_partition) in json.as_object()? {
        let by = positions.entry(topic.clone()).or_default();
        for (partition, offset) in by_partition.as_object()? {
            by.insert(partition.parse().ok()?, offset.as_u64()?);
        }
    }
    Some(positions)
}

/// The body of an answer.
pub(super) fn render(response: &LookupResponse) -> String {
    let rows = response.columns.first().map_or(0, Vec::len);
    let mut out = String::with_capacity(512 + response.columns.len() * (48 + rows * 64));
    out.push_str("{\"metadata\":{\"feature_names\":");
    out.push_str(&Json::from(response.names.clone()).to_string());
    out.push_str(",\"as_of\":{");
    for (i, (group, now)) in response.as_of.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{}:\"{}\"", Json::from(group.as_str()), time::format_rfc3339(*now));
    }
    out.push_str("}},\"results\":[");
    for (i, column) in response.columns.iter().enumerate() {
        out.push_str(if i > 0 { "},{\"values\":" } else { "{\"values\":" });
        list(&mut out, column, |out, cell| value(out, &cell.value));
        out.push_str(",\"statuses\":");
        list(&mut out, column, |out, cell| quoted(out, |out| out.push_str(cell.status.name())));
        out.push_str(",\"event_timestamps\":");
        list(&mut out, column, |out, cell| quoted(out, |out| time::push_rfc3339(out, cell.timestamp)));
    }
    out.push_str(if response.columns.is_empty() { "],\"positions\":[" } else { "}],\"positions\":[" });
    for (i, at) in response.positions.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        let (group, partition) = (Json::from(at.group.as_str()), at.partition);
        let offsets = positions_json(&at.offsets);
        let _ = write!(out, "{comma}{{\"group\":{group},\"partition\":{partition},\"offsets\":{offsets}");
        if let Some(node) = &at.node {
            let role = if at.is_standby { "standby" } else { "owner" };
            let _ = write!(out, ",\"node\":{},\"role\":\"{role}\"", Json::from(node.as_str()));
        }
        out.push('}');
    }
    out.push_str("]}");
    out
}

/// Positions as JSON.
pub(super) fn positions_json(positions: &Positions) -> Json {
    positions
        .iter()
        .map(|(topic, by)| {
            let by: Map<String, Json> =
                by.iter().map(|(p, next)| (p.to_string(), Json::from(*next))).collect();
            (topic.clone(), Json::Object(by))
        })
        .collect::<Map<String, Json>>()
        .into()
}

fn list(out: &mut String, column: &[Cell], mut item: impl FnMut(&mut String, &Cell)) {
    out.push('[');
    for (i, cell) in column.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        item(out, cell);
    }
    out.push(']');
}

/// Puts what `push` appends between quotes; it must need no escapes.
fn quoted(out: &mut String, push: impl FnOnce(&mut String)) {
    out.push('"');
    push(out);
    out.push('"');
}

fn value(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Int(n) => {
            let _ = write!(out, "{n}");
        }
        Value::Float(x) => out.push_str(ryu::Buffer::new().format_finite(*x)),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        other => out.push_str(&other.to_json().to_string()),
    }
}
