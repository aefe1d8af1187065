//! The gRPC service (`proto/thalweg/v1/feature_service.proto`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::middleware::map_response;
use axum::response::Response as HttpResponse;
use prost_types::{Duration as ProtoDuration, Timestamp};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status as Grpc};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::compute::{Cell, Status};
use super::generated::v1 as proto;
use super::generated::v1::feature_service_server::{FeatureService, FeatureServiceServer};
use super::lookup::{LookupRequest, LookupResponse};
use super::rest::{Access, InFlight};
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Millis, Positions, Value, time};

/// Bytes that a message may have beside its events.
const FRAMING: usize = 1 << 20;
/// Entities per response of a batch, when the caller leaves it to the server.
const CHUNK: usize = 1000;

/// The service over `access` beside `others`, taking events of at most `body_max` bytes and
/// `in_flight_max` requests at once.
pub fn grpc_routes(others: Routes, access: Access, body_max: usize, in_flight_max: usize) -> Routes {
    let service = Service { access, body_max, in_flight: Arc::default(), in_flight_max };
    // Events are counted without their framing, as in a body of REST.
    let service = FeatureServiceServer::new(service).max_decoding_message_size(body_max * 2 + FRAMING);
    others.add_service(service).into_axum_router().layer(map_response(explain_refusal)).into()
}

/// Replaces the refusal of messages that are not even decoded by ours.
async fn explain_refusal(response: HttpResponse) -> HttpResponse {
    let is_too_large = response
        .headers()
        .get("grpc-status")
        .is_some_and(|code| code.as_bytes() == (Code::OutOfRange as i32).to_string().as_bytes());
    if !is_too_large {
        return response;
    }
    let error = Error::new(ErrorKind::TooLarge, "the message is too large");
    refused(&error.with_hint("send it in parts")).into_http()
}

/// The service.
pub struct Service {
    access: Access,
    body_max: usize,
    in_flight: Arc<AtomicUsize>,
    in_flight_max: usize,
}

fn refused(error: &Error) -> Grpc {
    let (code, reason) = match error.kind {
        ErrorKind::Invalid => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        ErrorKind::NotFound => (Code::NotFound, "NOT_FOUND"),
        ErrorKind::TooLarge => (Code::ResourceExhausted, "TOO_LARGE"),
        ErrorKind::Exhausted => (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
        ErrorKind::Unavailable => (Code::Unavailable, "UNAVAILABLE"),
        ErrorKind::NotYetApplied => (Code::Unavailable, "NOT_YET_APPLIED"),
        ErrorKind::Corrupted | ErrorKind::Internal => (Code::Internal, "INTERNAL"),
    };
    let metadata: HashMap<String, String> = if error.hint.is_empty() {
        HashMap::new()
    } else {
        HashMap::from([("hint".to_owned(), error.hint.clone())])
    };
    let details = ErrorDetails::with_error_info(reason, "thalweg", metadata);
    Grpc::with_error_details(code, error.message.clone(), details)
}

impl Service {
    /// The view, and a mark that the request is under way.
    fn enter(&self) -> Result<(Arc<View>, InFlight), Grpc> {
        let under_way = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let mark = InFlight(Arc::clone(&self.in_flight));
        if under_way >= self.in_flight_max {
            let message = format!("{under_way} requests are under way");
            return Err(refused(&Error::new(ErrorKind::Exhausted, message)));
        }
        let view = self.access.get().cloned();
        let view = view.ok_or_else(|| refused(&Error::unavailable("the engine is starting")))?;
        Ok((view, mark))
    }
}

async fn answer(view: Arc<View>, request: LookupRequest) -> Result<LookupResponse, Grpc> {
    if !request.is_long() {
        return view.lookup(&request).map_err(|e| refused(&e));
    }
    tokio::task::spawn_blocking(move || view.lookup(&request))
        .await
        .map_err(|e| refused(&Error::internal(format!("a request has panicked: {e}"))))?
        .map_err(|e| refused(&e))
}

#[tonic::async_trait]
impl FeatureService for Service {
    async fn get_features(
        &self,
        request: Request<proto::GetFeaturesRequest>,
    ) -> Result<Response<proto::GetFeaturesResponse>, Grpc> {
        let started = Instant::now();
        let (view, _mark) = self.enter()?;
        let request = lookup_request(request.into_inner()).map_err(|e| refused(&e))?;
        let response = answer(Arc::clone(&view), request).await?;
        view.metrics.read_latency(started.elapsed());
        view.metrics.request("GetFeatures", "OK");
        Ok(Response::new(response_message(response)))
    }

    type GetFeaturesBatchStream =
        tokio_stream::wrappers::ReceiverStream<Result<proto::GetFeaturesResponse, Grpc>>;

    async fn get_features_batch(
        &self,
        request: Request<proto::GetFeaturesBatchRequest>,
    ) -> Result<Response<Self::GetFeaturesBatchStream>, Grpc> {
        let (view, mark) = self.enter()?;
        let message = request.into_inner();
        let inner = message.request.unwrap_or_default();
        let mut request = lookup_request(inner).map_err(|e| refused(&e))?;
        request.is_batch = true;
        view.check_lookup(&request).map_err(|e| refused(&e))?;
        let chunk = if message.chunk_size == 0 { CHUNK } else { message.chunk_size as usize };
        // One `now` for all chunks; it is reported as if the request had not given it.
        let chosen = chosen_nows(&view, &request).map_err(|e| refused(&e))?;
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            let _mark = mark;
            let rows = request.entities.values().next().map_or(0, Vec::len);
            let mut from = 0;
            while from < rows || (rows == 0 && from == 0) {
                let to = (from + chunk).min(rows);
                let part = part_of(&request, from, to);
                let response = answer_at(Arc::clone(&view), part, &chosen).await;
                let is_over = response.is_err();
                if sender.send(response.map(response_message)).await.is_err() || is_over {
                    return;
                }
                from = to.max(from + 1);
            }
        });
        Ok(Response::new(tokio_stream::wrappers::ReceiverStream::new(receiver)))
    }

    async fn append(
        &self,
        request: Request<proto::AppendRequest>,
    ) -> Result<Response<proto::AppendResponse>, Grpc> {
        let (view, _mark) = self.enter()?;
        let proto::AppendRequest { topic, events } = request.into_inner();
        let appended = events.len() as u64;
        if events.iter().map(Vec::len).sum::<usize>() > self.body_max {
            let message = format!("the events are over {} bytes", self.body_max);
            return Err(refused(&Error::new(ErrorKind::TooLarge, message).with_hint("send them in parts")));
        }
        let positions = tokio::task::spawn_blocking(move || {
            let payloads: Vec<&[u8]> = events.iter().map(Vec::as_slice).collect();
            view.append(&topic, &payloads)
        })
        .await
        .map_err(|e| refused(&Error::internal(format!("a request has panicked: {e}"))))?
        .map_err(|e| refused(&e))?;
        Ok(Response::new(proto::AppendResponse { appended, positions: positions_map(&positions) }))
    }
}

/// Read times by group, when the request leaves them to the server.
type Chosen = BTreeMap<String, Millis>;

fn chosen_nows(view: &View, request: &LookupRequest) -> Result<Chosen> {
    if !request.as_of.is_empty() {
        return Ok(Chosen::new());
    }
    let none = part_of(request, 0, 0);
    Ok(view.lookup(&none)?.as_of)
}

async fn answer_at(
    view: Arc<View>,
    mut request: LookupRequest,
    chosen: &Chosen,
) -> Result<LookupResponse, Grpc> {
    request.group_nows = chosen.clone();
    answer(view, request).await
}

fn part_of(request: &LookupRequest, from: usize, to: usize) -> LookupRequest {
    let cut = |lists: &BTreeMap<String, Vec<Value>>| {
        lists
            .iter()
            .map(|(name, values)| {
                let to = to.min(values.len());
                (name.clone(), values[from.min(to)..to].to_vec())
            })
            .collect()
    };
    let as_of = if request.as_of.len() > 1 {
        let to = to.min(request.as_of.len());
        request.as_of[from.min(to)..to].to_vec()
    } else {
        request.as_of.clone()
    };
    LookupRequest {
        entities: cut(&request.entities),
        request: cut(&request.request),
        as_of,
        ..request.clone()
    }
}

fn lookup_request(message: proto::GetFeaturesRequest) -> Result<LookupRequest> {
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
        full_feature_names: message.full_feature_names,
        ..LookupRequest::default()
    })
}

fn wait(duration: ProtoDuration) -> Result<Duration> {
    Duration::try_from(duration).map_err(|_| Error::invalid("`wait` is negative; expected 0 to 30 s"))
}

fn value_of(value: proto::Value) -> Value {
    use proto::value::Kind;
    match value.kind {
        None | Some(Kind::ListValue(_) | Kind::MapValue(_)) => Value::Null,
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

fn positions_map(positions: &Positions) -> HashMap<String, proto::Positions> {
    positions
        .iter()
        .map(|(topic, by)| {
            let next_offset = by.iter().map(|(p, next)| (*p, *next)).collect();
            (topic.clone(), proto::Positions { next_offset })
        })
        .collect()
}

fn response_message(response: LookupResponse) -> proto::GetFeaturesResponse {
    proto::GetFeaturesResponse {
        feature_names: response.names,
        results: response.columns.iter().map(|c| column_message(c)).collect(),
        positions: response
            .positions
            .into_iter()
            .map(|(group, partition, offsets)| proto::PartitionPosition {
                group,
                partition,
                offsets: positions_map(&offsets),
            })
            .collect(),
        as_of: response.as_of.into_iter().map(|(group, now)| (group, timestamp(now))).collect(),
    }
}
