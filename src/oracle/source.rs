//! This file is the source stage: it judges the records of one source, partition by partition.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::definitions::{EventTimeDef, FieldOrigin, SourceDef, TimeFormat};
use crate::model::{ScalarType, Value};

use super::OracleRecord;
use super::check::{Shape, Typed, compile_as, compile_condition};
use super::evaluate::{evaluate, is_false};
use super::json::Json;
use super::key::{KeyPart, TEXT_MAX};
use super::number::{is_json_number, to_int64};
use super::time::{read_time, zone};

/// Longest string of a field that states none and is not part of the record key, in bytes.
const STRING_MAX: u64 = 4096;

/// An accepted event.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// Event time.
    pub(super) time: i64,
    /// Partition of its record.
    pub(super) partition: u32,
    /// Offset of its record.
    pub(super) offset: u64,
    /// Event id, if it has one.
    pub(super) id: Option<KeyPart>,
    /// Values of the source's variables.
    pub(super) values: Arc<[Value]>,
}

/// A field that is read from the payload.
struct Field {
    /// Its index among the variables.
    slot: usize,
    path: Vec<String>,
    scalar: ScalarType,
    is_nullable: bool,
    coerce: bool,
    max_bytes: u64,
    format: TimeFormat,
}

/// A source with all that it has seen.
pub(super) struct Source {
    /// Its name.
    pub(super) name: String,
    /// Its topic.
    pub(super) topic: String,
    /// The fields that are the record key.
    pub(super) key: Option<Vec<String>>,
    /// The variables of its expressions: `event_time`, then the fields in file order.
    pub(super) scope: Vec<(String, Shape)>,
    /// Stream time by partition.
    pub(super) stream_times: BTreeMap<u32, i64>,
    /// Partitions whose first records are gone.
    pub(super) cut: BTreeSet<u32>,
    /// Event time of the first accepted record by partition.
    pub(super) first_accepted: BTreeMap<u32, i64>,
    /// How often records ended in which way.
    pub(super) counts: BTreeMap<&'static str, u64>,
    event_time: EventTimeDef,
    grace: i64,
    max_ahead: i64,
    max_event_bytes: u64,
    ignores_tombstones: bool,
    event_id: Option<Vec<String>>,
    fields: Vec<Field>,
    computed: Vec<(usize, Typed)>,
    rules: Vec<Typed>,
}

impl Source {
    /// Compiles a source as it was written.
    pub(super) fn new(definition: &SourceDef) -> Result<Self, String> {
        let key: Option<Vec<String>> =
            definition.key.as_ref().map(|names| names.iter().map(|name| name.value.clone()).collect());
        let mut scope = vec![("event_time".to_owned(), Shape::Timestamp)];
        let mut fields = Vec::new();
        let mut computed = Vec::new();
        for field in &definition.fields {
            let slot = scope.len();
            let shape = Shape::of_scalar(field.scalar);
            match &field.origin {
                FieldOrigin::Path { path, is_nullable, coerce, max_bytes, format } => {
                    let is_key = key.as_ref().is_some_and(|key| key.contains(&field.name));
                    let longest = if is_key { TEXT_MAX as u64 } else { STRING_MAX };
                    fields.push(Field {
                        slot,
                        path: path.clone(),
                        scalar: field.scalar,
                        is_nullable: *is_nullable,
                        coerce: *coerce,
                        max_bytes: max_bytes.unwrap_or(longest),
                        format: known_format(format)?,
                    });
                }
                // A computed field may use those above it only.
                FieldOrigin::Expr(expression) => {
                    computed.push((slot, compile_as(&expression.text, &scope, &shape)?));
                }
            }
            scope.push((field.name.clone(), shape));
        }
        let rules: Result<Vec<Typed>, String> =
            definition.validate.iter().map(|rule| compile_condition(&rule.text, &scope)).collect();
        if let EventTimeDef::Path { format, .. } = &definition.event_time {
            known_format(format)?;
        }
        Ok(Self {
            name: definition.name.clone(),
            topic: definition.topic.clone(),
            key,
            rules: rules?,
            scope,
            stream_times: BTreeMap::new(),
            cut: BTreeSet::new(),
            first_accepted: BTreeMap::new(),
            counts: BTreeMap::from([("read", 0), ("ignored", 0), ("accepted", 0), ("late", 0)]),
            event_time: definition.event_time.clone(),
            grace: definition.grace,
            max_ahead: definition.max_ahead,
            max_event_bytes: definition.max_event_bytes,
            ignores_tombstones: definition.ignores_tombstones,
            event_id: definition.event_id.clone(),
            fields,
            computed,
        })
    }

    /// Takes the next record of a partition, whose payload is given where it is an object.
    pub(super) fn take(&mut self, record: &OracleRecord, payload: Option<&Json>) -> Option<Event> {
        let judged = self.judge(record, payload);
        let outcome = judged.as_ref().err().copied().unwrap_or("accepted");
        for name in ["read", outcome] {
            *self.counts.entry(name).or_insert(0) += 1;
        }
        let event = judged.ok()?;
        // A clock that runs ahead moves nobody's windows.
        let advance = event.time.min(record.timestamp);
        let stream_time = self.stream_times.entry(record.partition).or_insert(advance);
        *stream_time = advance.max(*stream_time);
        self.first_accepted.entry(record.partition).or_insert(event.time);
        Some(event)
    }

    /// The event of a record, or the way in which the record ends: the first check that fails,
    /// in the order of SEMANTICS §2.
    fn judge(&self, record: &OracleRecord, payload: Option<&Json>) -> Result<Event, &'static str> {
        let Some(bytes) = &record.value else {
            return Err(if self.ignores_tombstones { "ignored" } else { "malformed" });
        };
        if bytes.len() as u64 > self.max_event_bytes {
            return Err("too_large");
        }
        let (time, id, mut values) = self.read(record, payload.ok_or("malformed")?)?;
        if time > record.timestamp.saturating_add(self.max_ahead) {
            return Err("ahead");
        }
        for (slot, expression) in &self.computed {
            values[*slot] = evaluate(expression, &values);
        }
        if self.rules.iter().any(|rule| is_false(rule, &values)) {
            return Err("rule");
        }
        let stream_time = self.stream_times.get(&record.partition);
        if stream_time.is_some_and(|stream_time| time < stream_time.saturating_sub(self.grace)) {
            return Err("late");
        }
        let (partition, offset) = (record.partition, record.offset);
        Ok(Event { time, partition, offset, id, values: values.into() })
    }

    /// Event time, event id and the values of the fields that are read from the payload.
    fn read(
        &self,
        record: &OracleRecord,
        payload: &Json,
    ) -> Result<(i64, Option<KeyPart>, Vec<Value>), &'static str> {
        let found: Vec<Option<&Json>> = self.fields.iter().map(|field| payload.at(&field.path)).collect();
        let id = self.event_id.as_ref().and_then(|path| payload.at(path));
        let texts = self
            .fields
            .iter()
            .zip(&found)
            .filter(|(field, _)| field.scalar == ScalarType::String)
            .filter_map(|(_, json)| *json);
        if texts.chain(id).any(Json::has_lone_surrogate) {
            return Err("malformed");
        }
        let written_time = match &self.event_time {
            EventTimeDef::Record => None,
            EventTimeDef::Path { path, format } => Some((payload.at(path).ok_or("missing_field")?, format)),
        };
        let mut pairs = self.fields.iter().zip(&found);
        if pairs.any(|(field, json)| json.is_none() && !field.is_nullable) {
            return Err("missing_field");
        }
        let time = match written_time {
            None => record.timestamp,
            Some((json, format)) => read_time(json, format).ok_or("wrong_type")?,
        };
        let id = match id {
            None => None,
            Some(json) => Some(read_id(json).ok_or("wrong_type")?),
        };
        let mut values = vec![Value::Null; self.scope.len()];
        values[0] = Value::Timestamp(time);
        for (field, json) in self.fields.iter().zip(&found) {
            if let Some(json) = json {
                values[field.slot] = convert(json, field).ok_or("wrong_type")?;
            }
        }
        Ok((time, id, values))
    }
}

/// The format, when its zone exists.
fn known_format(format: &TimeFormat) -> Result<TimeFormat, String> {
    if let TimeFormat::Rfc3339 { zone: Some(name) } = format {
        zone(name)?;
    }
    Ok(format.clone())
}

fn read_id(json: &Json) -> Option<KeyPart> {
    match json {
        Json::Text { text, .. } if text.len() <= TEXT_MAX => Some(KeyPart::Text(text.clone())),
        Json::Number(text) => to_int64(text).map(KeyPart::Int),
        _ => None,
    }
}

/// The value of a field; none when it has another type or does not fit.
fn convert(json: &Json, field: &Field) -> Option<Value> {
    let is_written_time =
        field.scalar == ScalarType::Timestamp && matches!(field.format, TimeFormat::Rfc3339 { .. });
    let is_text_field = field.scalar == ScalarType::String || is_written_time;
    let coerced = match json {
        Json::Text { text, .. } if field.coerce && !is_text_field => coerced(text.trim(), field.scalar)?,
        other => other.clone(),
    };
    match (field.scalar, &coerced) {
        (ScalarType::String, Json::Text { text, .. }) => fitting(text, field),
        (ScalarType::String, Json::Number(text)) if field.coerce => fitting(text, field),
        (ScalarType::Bool, Json::Bool(flag)) => Some(Value::Bool(*flag)),
        (ScalarType::Timestamp, json) => read_time(json, &field.format).map(Value::Timestamp),
        (ScalarType::Int64, Json::Number(text)) => to_int64(text).map(Value::Int),
        (ScalarType::Float64, Json::Number(text)) => {
            let number: f64 = text.parse().ok()?;
            // Adding zero turns −0.0 into 0.0.
            number.is_finite().then_some(Value::Float(number + 0.0))
        }
        _ => None,
    }
}

fn coerced(text: &str, scalar: ScalarType) -> Option<Json> {
    match (scalar, text) {
        (ScalarType::Bool, "true") => Some(Json::Bool(true)),
        (ScalarType::Bool, "false") => Some(Json::Bool(false)),
        (ScalarType::Bool, _) => None,
        (_, text) => is_json_number(text).then(|| Json::Number(text.to_owned())),
    }
}

fn fitting(text: &str, field: &Field) -> Option<Value> {
    (text.len() as u64 <= field.max_bytes).then(|| Value::from(text))
}
