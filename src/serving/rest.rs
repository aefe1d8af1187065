//! The REST routes (SEMANTICS §8).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::body::{BodyRoom, Held};
use super::cluster::Endpoint;
use super::exposition;
use super::inspect;
use super::rest_lookup;
use super::view::View;
use crate::error::{Error, ErrorKind, Result};

/// The view, once there is one: listeners are bound before the engine is ready.
pub type Access = Arc<OnceLock<Arc<View>>>;

/// Which listener a router is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Lookups and appends.
    Public,
    /// Inspection and all that changes something beside appends.
    Operate,
}

#[derive(Clone)]
struct Shared {
    access: Access,
    body_max: usize,
    in_flight_max: usize,
    in_flight: Arc<AtomicUsize>,
    bodies: Arc<BodyRoom>,
}

/// The routes of a listener. `bodies_max`: bytes that all bodies under way may take.
pub fn router(
    access: Access,
    door: Door,
    body_max: usize,
    in_flight_max: usize,
    bodies_max: usize,
) -> Router {
    let bodies = Arc::new(BodyRoom::new(bodies_max.max(body_max)));
    let shared = Shared { access, body_max, in_flight_max, in_flight: Arc::default(), bodies };
    let mut routes = Router::new()
        .route("/v1/health", get(health))
        .route("/v1/metrics", get(metrics))
        .route("/v1/stats", get(stats))
        .route("/v1/routing", get(routing))
        .route("/startupz", get(startupz))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz));
    routes = match door {
        Door::Public => {
            routes.route("/v1/events/{topic}", post(append)).route("/v1/features/online", post(online))
        }
        Door::Operate => routes
            .route("/v1/inspect/partitions", get(inspect_partitions))
            .route("/v1/inspect/verify/{entities}/{seed}", get(inspect_verify))
            .route("/v1/inspect/definitions", get(inspect_definitions))
            .route("/v1/inspect/dead-letters", get(inspect_dead_letters))
            .route("/v1/inspect/keys/{group}", get(inspect_keys))
            .route("/v1/inspect/key/{group}", post(inspect_key))
            .route("/v1/inspect/log/{topic}/{partition}/{from}/{count}", get(inspect_log)),
    };
    routes
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state(shared.clone(), bounded))
        .with_state(shared)
}

/// HTTP status and code of an error.
fn status_of(kind: ErrorKind) -> (StatusCode, &'static str) {
    match kind {
        ErrorKind::Invalid => (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT"),
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, "NOT_FOUND"),
        ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "TOO_LARGE"),
        ErrorKind::Exhausted => (StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED"),
        ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        ErrorKind::NotYetApplied => (StatusCode::SERVICE_UNAVAILABLE, "NOT_YET_APPLIED"),
        ErrorKind::Corrupted | ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"),
    }
}

pub(super) fn failure(status: StatusCode, code: &str, message: &str, hint: &str) -> Response {
    let body = json!({ "error": { "code": code, "message": message, "hint": hint } });
    (status, axum::Json(body)).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, code) = status_of(self.kind);
        failure(status, code, &self.message, &self.hint)
    }
}

/// Bounds the number of requests at once, and counts all of them.
async fn bounded(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let route =
        request.extensions().get::<axum::extract::MatchedPath>().map_or("none", |p| p.as_str()).to_owned();
    // Who asks how the engine is must be told, however busy it is.
    let is_counted = !PROBES.contains(&&*route);
    let under_way = if is_counted { shared.in_flight.fetch_add(1, Ordering::Relaxed) } else { 0 };
    let guard = is_counted.then(|| InFlight(Arc::clone(&shared.in_flight)));
    let in_headers: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let response = if under_way >= shared.in_flight_max {
        let message = format!("{under_way} requests are under way");
        Error::new(ErrorKind::Exhausted, message).with_hint("try again after a pause").into_response()
    } else if in_headers > HEADERS_MAX {
        let message = format!("{in_headers} bytes of headers; at most {HEADERS_MAX} are taken");
        failure(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "TOO_LARGE",
            &message,
            "send fewer or shorter ones",
        )
    } else {
        in_form(next.run(request).await).await
    };
    drop(guard);
    if let Some(view) = shared.access.get() {
        view.metrics.request(&route, response.status().as_str());
    }
    response
}

/// Routes that are answered however many requests are under way.
const PROBES: [&str; 5] = ["/livez", "/readyz", "/startupz", "/v1/health", "/v1/metrics"];

/// Most bytes of a request's headers, on every listener.
pub(super) const HEADERS_MAX: usize = 16 << 10;

/// Most bytes of what the framework says when it refuses something.
const SENTENCE_MAX: usize = 4096;

/// What the framework refuses by itself, in the form of all other refusals.
async fn in_form(response: Response) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
    if !response.status().is_client_error() || kind.is_none_or(|kind| !kind.starts_with(b"text/plain")) {
        return response;
    }
    let status = response.status();
    let text = to_bytes(response.into_body(), SENTENCE_MAX).await.unwrap_or_default();
    failure(status, "INVALID_ARGUMENT", &String::from_utf8_lossy(&text), "")
}

/// A request that is counted as long as it lives, also when its caller goes away.
pub(super) struct InFlight(pub(super) Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    fn view(&self) -> Result<Arc<View>> {
        let starting = || Error::unavailable("the engine is starting").with_hint("try again in a moment");
        self.access.get().cloned().ok_or_else(starting)
    }

    async fn body(&self, headers: &HeaderMap, body: Body) -> Result<Held, Response> {
        self.bodies.read(headers, body, self.body_max).await
    }
}

async fn no_route(uri: Uri) -> Response {
    let message = format!("no route {}", uri.path());
    Error::not_found(message).with_hint("lookups are POST /v1/features/online").into_response()
}

async fn no_method(method: Method, uri: Uri) -> Response {
    let message = format!("{} does not take {method}", uri.path());
    failure(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", &message, "")
}

/// Runs work that may wait for the disk or for positions.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::internal(format!("a request has panicked: {e}"))))
}

async fn append(
    State(shared): State<Shared>,
    Path(topic): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let view = shared.view()?;
    let is_lines = is_ndjson(&headers);
    let body = match shared.body(&headers, body).await {
        Ok(body) => body,
        Err(refusal) => return Ok(refusal),
    };
    let Some(is_lines) = is_lines else {
        return Ok(failure(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UNSUPPORTED_MEDIA_TYPE",
            "the content type is neither application/json nor application/x-ndjson",
            "send a JSON array as application/json, or one event per line as application/x-ndjson",
        ));
    };
    let (appended, positions) = blocking(move || {
        let payloads = if is_lines { lines(&body.bytes) } else { elements(&body.bytes)? };
        let appended = payloads.len();
        Ok((appended, view.append(&topic, &payloads)?))
    })
    .await?;
    let positions = rest_lookup::positions_json(&positions);
    Ok(axum::Json(json!({ "appended": appended, "positions": positions })).into_response())
}

/// Whether the body is NDJSON rather than a JSON array; `None`: neither.
fn is_ndjson(headers: &HeaderMap) -> Option<bool> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Some(false) };
    let essence = value.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/x-ndjson" => Some(true),
        "application/json" => Some(false),
        _ => None,
    }
}

/// Lines that are not blank.
fn lines(body: &[u8]) -> Vec<&[u8]> {
    let mut from = 0;
    let ends = memchr::memchr_iter(b'\n', body).chain([body.len()]);
    ends.map(move |end| {
        let line = &body[from..end];
        from = end + 1;
        line
    })
    .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
    .filter(|line| !line.trim_ascii().is_empty())
    .collect()
}

/// Elements of a JSON array, as they were written.
fn elements(body: &[u8]) -> Result<Vec<&[u8]>> {
    let items: Vec<&RawValue> = serde_json::from_slice(body)
        .map_err(|e| Error::invalid(format!("the body is no JSON array: {e}")))?;
    Ok(items.into_iter().map(|item| item.get().as_bytes()).collect())
}

async fn online(State(shared): State<Shared>, headers: HeaderMap, body: Body) -> Result<Response> {
    let started = Instant::now();
    let view = shared.view()?;
    view.check_ready()?;
    let body = match shared.body(&headers, body).await {
        Ok(body) => body,
        Err(refusal) => return Ok(refusal),
    };
    let request = rest_lookup::parse(&body.bytes)?;
    let is_long = view.is_long(&request);
    let answer = {
        let view = Arc::clone(&view);
        let work = move || Ok(rest_lookup::render(&view.lookup(&request)?));
        // A plain lookup takes microseconds: another thread would cost more than it.
        if is_long { blocking(work).await? } else { work()? }
    };
    view.metrics.read_latency(started.elapsed());
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

async fn health(State(shared): State<Shared>) -> Result<Response> {
    let view = shared.view()?;
    // How far the log goes the brokers are asked, and they may take their time.
    let (is_well, body) = blocking(move || Ok(view.health())).await?;
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, axum::Json(body)).into_response())
}

#[derive(Deserialize)]
struct StatsQuery {
    #[serde(default)]
    cluster: bool,
}

async fn stats(State(shared): State<Shared>, Query(query): Query<StatsQuery>) -> Result<Response> {
    let view = shared.view()?;
    let stats = move || if query.cluster { view.cluster_stats() } else { Ok(view.stats()) };
    let stats = blocking(stats).await?;
    Ok(axum::Json(stats).into_response())
}

#[derive(Deserialize)]
struct RoutingQuery {
    group: Option<String>,
}

/// `GET /v1/routing`: who answers which partition.
async fn routing(State(shared): State<Shared>, Query(query): Query<RoutingQuery>) -> Result<Response> {
    let endpoint = |e: &Endpoint| json!({ "node": e.node, "grpc": e.grpc, "rest": e.rest });
    let routes = shared.view()?.routing(query.group.as_deref())?;
    let routes = routes.iter().map(|(group, partition, route)| {
        json!({
            "group": group,
            "partition": partition,
            "owner": route.owner.as_ref().map(endpoint),
            "standbys": route.standbys.iter().map(endpoint).collect::<Vec<_>>(),
        })
    });
    Ok(axum::Json(json!({ "routes": routes.collect::<Vec<_>>() })).into_response())
}

async fn metrics(State(shared): State<Shared>) -> Result<Response> {
    let view = shared.view()?;
    let text = blocking(move || Ok(exposition::metrics(&view))).await?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

async fn startupz(State(shared): State<Shared>) -> Result<Response> {
    shared.view()?.check_ready()?;
    Ok((StatusCode::OK, "started\n").into_response())
}

/// Alive is who makes progress, and who is still starting.
async fn livez(State(shared): State<Shared>) -> Result<&'static str> {
    if let Ok(view) = shared.view() {
        view.check_alive()?;
    }
    Ok("alive\n")
}

async fn readyz(State(shared): State<Shared>) -> Result<Response> {
    let view = shared.view()?;
    view.check_ready()?;
    if view.is_well(&view.owned()) {
        return Ok((StatusCode::OK, "ready\n").into_response());
    }
    Err(Error::unavailable("a partition has failed, is opened anew, or nobody has any")
        .with_hint("GET /v1/health says which and why"))
}

async fn inspect_partitions(State(shared): State<Shared>) -> Result<Response> {
    let view = shared.view()?;
    Ok(axum::Json(blocking(move || Ok(inspect::partitions(&view))).await?).into_response())
}

async fn inspect_definitions(State(shared): State<Shared>) -> Result<Response> {
    Ok(axum::Json(inspect::definitions(&*shared.view()?)).into_response())
}

async fn inspect_verify(
    State(shared): State<Shared>,
    Path((entities, seed)): Path<(usize, u64)>,
) -> Result<Response> {
    let view = shared.view()?;
    // It may take minutes; who goes away ends it.
    let is_wanted = Arc::new(());
    let waiting = Arc::downgrade(&is_wanted);
    let report =
        blocking(move || super::verify::verify(&view, entities, seed, &|| waiting.strong_count() > 0))
            .await?;
    drop(is_wanted);
    Ok(axum::Json(report).into_response())
}

async fn inspect_dead_letters(State(shared): State<Shared>) -> Result<Response> {
    Ok(axum::Json(inspect::dead_letters(&*shared.view()?)).into_response())
}

async fn inspect_keys(
    State(shared): State<Shared>,
    Path(group): Path<String>,
    Query(query): Query<inspect::KeysQuery>,
) -> Result<Response> {
    let view = shared.view()?;
    Ok(axum::Json(blocking(move || inspect::keys(&view, &group, &query)).await?).into_response())
}

async fn inspect_key(
    State(shared): State<Shared>,
    Path(group): Path<String>,
    axum::Json(parts): axum::Json<Vec<String>>,
) -> Result<Response> {
    let view = shared.view()?;
    Ok(axum::Json(blocking(move || inspect::key(&view, &group, &parts)).await?).into_response())
}

async fn inspect_log(
    State(shared): State<Shared>,
    Path((topic, partition, from, count)): Path<(String, u32, u64, usize)>,
) -> Result<Response> {
    let view = shared.view()?;
    let records = blocking(move || inspect::log(&view, &topic, partition, from, count)).await?;
    Ok(axum::Json(records).into_response())
}
