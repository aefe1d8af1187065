//! The gRPC service (`proto/thalweg/v1/feature_service.proto`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::middleware::{Next, from_fn};
use axum::response::Response as HttpResponse;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status as Grpc};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::cluster::Endpoint;
use super::generated::v1 as proto;
use super::generated::v1::feature_service_server::{FeatureService, FeatureServiceServer};
use super::grpc_messages::{lookup_request, positions_map, response_message};
use super::lookup::{LookupRequest, LookupResponse};
use super::peers::HOP;
use super::rest::{Access, InFlight};
use super::view::View;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Millis, Value};

/// Bytes that a message may have beside its events.
const FRAMING: usize = 1 << 20;
/// Entities per response of a batch, when the caller leaves it to the server.
const CHUNK: usize = 1000;
/// How long a request may take, its body included, whatever its caller allows.
const REQUEST_MAX: Duration = Duration::from_secs(120);
/// How long a stream may wait for its reader.
const UNREAD_MAX: Duration = Duration::from_secs(30);

/// The service over `access` beside `others`, taking events of at most `body_max` bytes and
/// `in_flight_max` requests at once.
pub fn grpc_routes(others: Routes, access: Access, body_max: usize, in_flight_max: usize) -> Router {
    let service = Service { access, body_max, in_flight: Arc::default(), in_flight_max };
    // Events are counted without their framing, as in a body of REST.
    let service = FeatureServiceServer::new(service).max_decoding_message_size(body_max * 2 + FRAMING);
    others.add_service(service).into_axum_router().layer(from_fn(within_limits))
}

/// Gives up what takes too long, and says why messages are refused that are not even decoded.
async fn within_limits(request: HttpRequest, next: Next) -> HttpResponse {
    let given = request.headers().get("grpc-timeout").and_then(|given| patience(given.to_str().ok()?));
    let limit = given.map_or(REQUEST_MAX, |given| given.min(REQUEST_MAX));
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => explain_refusal(response),
        Err(_) => Grpc::deadline_exceeded(format!("no answer within {limit:?}")).into_http(),
    }
}

/// What a header `grpc-timeout` allows: up to eight digits and a unit.
fn patience(given: &str) -> Option<Duration> {
    let (number, unit) = given.split_at_checked(given.len().checked_sub(1)?)?;
    let number = number.parse::<u64>().ok().filter(|_| number.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn explain_refusal(response: HttpResponse) -> HttpResponse {
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
    if !view.is_long(&request) {
        return view.lookup(&request).map_err(|e| refused(&e));
    }
    blocking(move || view.lookup(&request)).await?.map_err(|e| refused(&e))
}

#[tonic::async_trait]
impl FeatureService for Service {
    async fn get_features(
        &self,
        request: Request<proto::GetFeaturesRequest>,
    ) -> Result<Response<proto::GetFeaturesResponse>, Grpc> {
        let started = Instant::now();
        let (view, _mark) = self.enter()?;
        let is_passed_on = request.metadata().contains_key(HOP);
        let request = lookup_request(request.into_inner()).map_err(|e| refused(&e))?;
        let request = LookupRequest { is_passed_on, ..request };
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
        let chosen = chosen_nows(&view, &request).await?;
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
                let sent = sender.send_timeout(response.map(response_message), UNREAD_MAX).await;
                // Who does not read keeps others from being answered.
                if sent.is_err() || is_over {
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
        let positions = blocking(move || {
            let payloads: Vec<&[u8]> = events.iter().map(Vec::as_slice).collect();
            view.append(&topic, &payloads)
        });
        let positions = positions.await?.map_err(|e| refused(&e))?;
        Ok(Response::new(proto::AppendResponse { appended, positions: positions_map(&positions) }))
    }

    async fn get_routing(
        &self,
        request: Request<proto::GetRoutingRequest>,
    ) -> Result<Response<proto::GetRoutingResponse>, Grpc> {
        let (view, _mark) = self.enter()?;
        let group = request.into_inner().group;
        let routes = view.routing(Some(group.as_str()).filter(|g| !g.is_empty())).map_err(|e| refused(&e))?;
        let endpoint = |e: &Endpoint| proto::Endpoint {
            node: e.node.clone(),
            grpc: e.grpc.clone(),
            rest: e.rest.clone(),
        };
        let routes = routes.iter().map(|(group, partition, route)| proto::PartitionRoute {
            group: group.clone(),
            partition: *partition,
            owner: route.owner.as_ref().map(endpoint),
            standbys: route.standbys.iter().map(endpoint).collect(),
        });
        Ok(Response::new(proto::GetRoutingResponse { routes: routes.collect() }))
    }

    async fn get_stats(
        &self,
        request: Request<proto::GetStatsRequest>,
    ) -> Result<Response<proto::GetStatsResponse>, Grpc> {
        let (view, _mark) = self.enter()?;
        let is_all = request.into_inner().cluster;
        let stats = blocking(move || if is_all { view.cluster_stats() } else { Ok(view.stats()) });
        let json = stats.await?.map_err(|e| refused(&e))?.to_string();
        Ok(Response::new(proto::GetStatsResponse { json }))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Grpc> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| refused(&Error::internal(format!("a request has panicked: {e}"))))
}

/// Read times by group, when the request leaves them to the server.
type Chosen = BTreeMap<String, Millis>;

async fn chosen_nows(view: &Arc<View>, request: &LookupRequest) -> Result<Chosen, Grpc> {
    if !request.as_of.is_empty() {
        return Ok(Chosen::new());
    }
    let none = part_of(request, 0, 0);
    Ok(answer(Arc::clone(view), none).await?.as_of)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patience_of_callers_is_read() {
        assert_eq!(patience("250m"), Some(Duration::from_millis(250)));
        assert_eq!(patience("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(patience("2H"), Some(Duration::from_secs(7200)));
        for ill_formed in ["", "m", "5", "-5m", "123456789m", "5 m", "5\u{e9}"] {
            assert_eq!(patience(ill_formed), None, "{ill_formed}");
        }
    }
}
