//! Messages of gRPC as requests and answers, in both directions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use prost_types::{Duration as ProtoDuration, Timestamp};

use super::compute::{Cell, Status};
use super::generated::v1 as proto;
use super::lookup::{LookupRequest, LookupResponse, PartitionAnswer};
use crate::error::{Error, Result};
use crate::model::{Millis, Positions, Value, time};

/// The request that a message makes.
///
/// # Errors
/// Times or waits out of range.
pub(super) fn lookup_request(message: proto::GetFeaturesRequest) -> Result<LookupRequest> {
    let lists = |lists: HashMap<String, proto::ValueList>| -> BTreeMap<String, Vec<Value>> {
        lists
            .into_iter()
            .map(|(name, list)| (name, list.values.into_iter().map(value_of).collect()))
            .collect()
    };
    let as_of = message
        .as_of
        .iter()
        .map(|t| {
            if !(0..1_000_000_000).contains(&t.nanos) {
                return Err(Error::invalid(format!("`as_of` has {} nanos", t.nanos)));
            }
            let millis = i128::from(t.seconds) * 1000 + i128::from(t.nanos.div_euclid(1_000_000));
            time::in_range(millis).ok_or_else(|| Error::invalid("`as_of` is outside the years 1 to 9999"))
        })
        .collect::<Result<Vec<Millis>>>()?;
    let min_positions = message
        .min_positions
        .into_iter()
        .map(|(topic, by)| (topic, by.next_offset.into_iter().collect()))
        .collect();
    Ok(LookupRequest {
        features: message.features,
        entities: lists(message.entities),
        request: lists(message.request),
        as_of,
        min_positions,
        wait: message.wait.map(wait).transpose()?,
        max_age: message.max_age.map(max_age).transpose()?,
        full_feature_names: message.full_feature_names,
        ..LookupRequest::default()
    })
}

fn wait(duration: ProtoDuration) -> Result<Duration> {
    Duration::try_from(duration).map_err(|_| Error::invalid("`wait` is negative; expected 0 to 30 s"))
}

fn max_age(duration: ProtoDuration) -> Result<Duration> {
    Duration::try_from(duration).map_err(|_| Error::invalid("`max_age` is negative"))
}

fn value_of(value: proto::Value) -> Value {
    use proto::value::Kind;
    match value.kind {
        None => Value::Null,
        Some(Kind::ListValue(list)) => Value::List(list.values.into_iter().map(value_of).collect()),
        Some(Kind::MapValue(map)) => {
            let mut entries: Vec<(Arc<str>, Value)> =
                map.entries.into_iter().map(|(k, v)| (Arc::from(k), value_of(v))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Map(entries.into())
        }
        Some(Kind::StringValue(s)) => Value::String(s.into()),
        Some(Kind::Int64Value(n)) => Value::Int(n),
        Some(Kind::Float64Value(x)) if x.is_finite() => Value::Float(x + 0.0),
        Some(Kind::Float64Value(_)) => Value::Null,
        Some(Kind::BoolValue(b)) => Value::Bool(b),
        Some(Kind::TimestampValue(t)) => {
            Value::Timestamp(t.seconds.saturating_mul(1000).saturating_add(i64::from(t.nanos / 1_000_000)))
        }
    }
}

fn timestamp(t: Millis) -> Timestamp {
    let nanos = (t.rem_euclid(1000) * 1_000_000) as i32;
    Timestamp { seconds: t.div_euclid(1000), nanos }
}

fn value_message(value: &Value) -> proto::Value {
    use proto::value::Kind;
    let kind = match value {
        Value::Null => None,
        Value::Bool(b) => Some(Kind::BoolValue(*b)),
        Value::Int(n) => Some(Kind::Int64Value(*n)),
        Value::Float(x) => Some(Kind::Float64Value(*x)),
        Value::Timestamp(t) => Some(Kind::TimestampValue(timestamp(*t))),
        Value::String(s) => Some(Kind::StringValue(s.to_string())),
        Value::List(items) => {
            Some(Kind::ListValue(proto::ValueList { values: items.iter().map(value_message).collect() }))
        }
        Value::Map(entries) => Some(Kind::MapValue(proto::ValueMap {
            entries: entries.iter().map(|(k, v)| (k.to_string(), value_message(v))).collect(),
        })),
    };
    proto::Value { kind }
}

fn status_message(status: Status) -> proto::Status {
    match status {
        Status::Present => proto::Status::Present,
        Status::NullValue => proto::Status::NullValue,
        Status::NotFound => proto::Status::NotFound,
        Status::OutsideMaxAge => proto::Status::OutsideMaxAge,
        Status::Defaulted => proto::Status::Defaulted,
        Status::Warming => proto::Status::Warming,
        Status::Approximate => proto::Status::Approximate,
        Status::OutOfRange => proto::Status::OutOfRange,
        Status::Degraded => proto::Status::Degraded,
    }
}

fn column_message(cells: &[Cell]) -> proto::FeatureColumn {
    proto::FeatureColumn {
        values: cells.iter().map(|c| value_message(&c.value)).collect(),
        statuses: cells.iter().map(|c| status_message(c.status) as i32).collect(),
        event_timestamps: cells.iter().map(|c| timestamp(c.timestamp)).collect(),
    }
}

/// Positions as messages, by topic.
pub(super) fn positions_map(positions: &Positions) -> HashMap<String, proto::Positions> {
    positions
        .iter()
        .map(|(topic, by)| {
            let next_offset = by.iter().map(|(p, next)| (*p, *next)).collect();
            (topic.clone(), proto::Positions { next_offset })
        })
        .collect()
}

/// An answer as a message.
pub(super) fn response_message(response: LookupResponse) -> proto::GetFeaturesResponse {
    proto::GetFeaturesResponse {
        feature_names: response.names,
        results: response.columns.iter().map(|c| column_message(c)).collect(),
        positions: response
            .positions
            .into_iter()
            .map(|at| proto::PartitionPosition {
                group: at.group,
                partition: at.partition,
                offsets: positions_map(&at.offsets),
                node: at.node.unwrap_or_default(),
                is_standby: at.is_standby,
            })
            .collect(),
        as_of: response.as_of.into_iter().map(|(group, now)| (group, timestamp(now))).collect(),
    }
}

/// A request as a message.
pub(super) fn request_message(request: &LookupRequest) -> proto::GetFeaturesRequest {
    let lists = |lists: &BTreeMap<String, Vec<Value>>| -> HashMap<String, proto::ValueList> {
        let list =
            |values: &Vec<Value>| proto::ValueList { values: values.iter().map(value_message).collect() };
        lists.iter().map(|(name, values)| (name.clone(), list(values))).collect()
    };
    // Both were checked to be at most what a duration holds.
    let duration = |d: Duration| ProtoDuration::try_from(d).unwrap_or_default();
    proto::GetFeaturesRequest {
        features: request.features.clone(),
        entities: lists(&request.entities),
        request: lists(&request.request),
        as_of: request.as_of.iter().map(|t| timestamp(*t)).collect(),
        min_positions: positions_map(&request.min_positions),
        wait: request.wait.map(duration),
        full_feature_names: request.full_feature_names,
        max_age: request.max_age.map(duration),
    }
}

/// The answer that a message makes to `request`, which asked for no on-demand features.
///
/// # Errors
/// It does not fit the request.
pub(super) fn response_of(
    message: proto::GetFeaturesResponse,
    request: &LookupRequest,
) -> Result<LookupResponse> {
    let rows = request.entities.values().next().map_or(0, Vec::len);
    let columns: Vec<Vec<Cell>> = message.results.into_iter().map(column_of).collect();
    if columns.len() != message.feature_names.len() || columns.iter().any(|c| c.len() != rows) {
        return Err(Error::internal("a node has answered with another shape than it was asked for"));
    }
    let positions = message.positions.into_iter().map(|at| PartitionAnswer {
        group: at.group,
        partition: at.partition,
        offsets: at.offsets.into_iter().map(|(t, by)| (t, by.next_offset.into_iter().collect())).collect(),
        node: Some(at.node).filter(|n| !n.is_empty()),
        is_standby: at.is_standby,
    });
    Ok(LookupResponse {
        names: message.feature_names,
        columns,
        positions: positions.collect(),
        as_of: message.as_of.iter().map(|(group, now)| (group.clone(), millis(now))).collect(),
    })
}

fn millis(time: &Timestamp) -> Millis {
    time.seconds * 1000 + i64::from(time.nanos / 1_000_000)
}

fn column_of(column: proto::FeatureColumn) -> Vec<Cell> {
    let stamps = column.event_timestamps.iter().map(millis);
    let statuses = column.statuses.iter().map(|s| status_of(proto::Status::try_from(*s).unwrap_or_default()));
    let values = column.values.into_iter().map(value_of);
    values
        .zip(statuses)
        .zip(stamps)
        .map(|((value, status), timestamp)| Cell { value, status, timestamp })
        .collect()
}

fn status_of(status: proto::Status) -> Status {
    match status {
        proto::Status::Present => Status::Present,
        proto::Status::NullValue => Status::NullValue,
        proto::Status::NotFound => Status::NotFound,
        proto::Status::OutsideMaxAge => Status::OutsideMaxAge,
        proto::Status::Defaulted => Status::Defaulted,
        proto::Status::Warming => Status::Warming,
        proto::Status::Approximate => Status::Approximate,
        proto::Status::OutOfRange => Status::OutOfRange,
        proto::Status::Degraded | proto::Status::Unspecified => Status::Degraded,
    }
}
