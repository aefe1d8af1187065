//! Load clients over the wire: requests at fixed moments (open loop), latency counted from when a
//! request was due, so that a stall is seen by every request that had to wait for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use prost::Message as _;
use thalweg::app::Engine;
use thalweg::serving::generated::v1::feature_service_client::FeatureServiceClient;
use thalweg::serving::generated::v1::{
    GetFeaturesRequest, GetFeaturesResponse, Value, ValueList, value::Kind,
};
use thalweg::serving::{
    Access, ConnectionLimits, Door, LookupRequest, Threads, grpc_routes, router, serve_grpc, serve_rest,
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::http2::Caller;
use crate::workload::{AGGREGATES, Random, START_MS, WINDOWS};

/// Connections that share the load.
const CONNECTIONS: u64 = 4;
const KEYS: u64 = 1_000_000;
/// Name of the server's threads, by which their CPU time is told from the clients'.
const SERVING: &str = "serving";

/// Requests of one kind at one rate.
#[derive(Clone, Copy)]
pub struct Load {
    pub entities: usize,
    pub rate: u64,
    pub seconds: u64,
}

/// The engine's two listeners, served as `thalweg run` serves them.
pub struct Listeners {
    pub rest: SocketAddr,
    pub grpc: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Listeners {
    pub fn start(engine: &Engine) -> Self {
        let access: Access = Arc::new(OnceLock::new());
        assert!(access.set(Arc::clone(&engine.view)).is_ok());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.set_nonblocking(true).expect("non-blocking");
            listener
        };
        let (rest, grpc) = (listener(), listener());
        let addresses = (rest.local_addr().expect("bound"), grpc.local_addr().expect("bound"));
        let threads = Arc::new(Threads::start(2, SERVING, 64).expect("threads"));
        let routes = router(Arc::clone(&access), Door::Public, 16 << 20, 1024, 256 << 20);
        let health = tonic_health::server::health_reporter().1;
        let services = grpc_routes(tonic::service::Routes::new(health), access, 16 << 20, 1024);
        let shared = Arc::clone(&threads);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(rest).expect("a listener");
            serve_rest(listener, routes, &shared, &ConnectionLimits::of_process(), std::future::pending())
                .await;
        });
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(grpc).expect("a listener");
            serve_grpc(listener, services, &threads, &ConnectionLimits::of_process(), std::future::pending())
                .await;
        });
        Self { rest: addresses.0, grpc: addresses.1, _runtime: runtime }
    }
}

/// CPU time of the server's threads so far, in seconds.
pub fn serving_cpu() -> f64 {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let nanos = threads.filter_map(Result::ok).filter_map(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?;
        let times = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        times.split(' ').next()?.parse::<f64>().ok().filter(|_| name.trim_end() == SERVING)
    });
    nanos.sum::<f64>() / 1e9
}

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds")
}

/// Has Linux wake this thread when it is due, not up to 50 µs later as it does to save power: the
/// delay would count as the server's.
fn wake_in_time() {
    let thread = std::fs::read_link("/proc/thread-self").unwrap_or_default();
    let Some(id) = thread.file_name() else { return };
    let slack = std::path::Path::new("/proc").join(id).join("timerslack_ns");
    // Where it cannot be set, latencies are that much longer, and so are those of the empty calls.
    let _ = std::fs::write(slack, "1");
}

/// Runs `client` on every connection at its share of the rate.
fn open_loop<C>(
    load: Load,
    connect: impl Fn(u64) -> C + Sync,
    call: impl Fn(&mut C, &[String]) + Sync,
) -> Histogram<u64> {
    let mut total = histogram();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CONNECTIONS)
            .map(|index| {
                let (connect, call) = (&connect, &call);
                scope.spawn(move || {
                    wake_in_time();
                    let mut client = connect(index);
                    let mut random = Random(index + 1);
                    let mut found = histogram();
                    let begun = Instant::now();
                    let mut n = index;
                    while n < load.rate * load.seconds {
                        let due = begun + Duration::from_nanos(n * 1_000_000_000 / load.rate);
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        let users: Vec<String> =
                            (0..load.entities).map(|_| format!("u{}", random.next() % KEYS)).collect();
                        call(&mut client, &users);
                        found.saturating_record(due.elapsed().as_nanos() as u64);
                        n += CONNECTIONS;
                    }
                    found
                })
            })
            .collect();
        for worker in workers {
            total.add(worker.join().expect("no panic")).expect("one shape");
        }
    });
    total
}

fn features() -> Vec<String> {
    WINDOWS.iter().flat_map(|w| AGGREGATES.iter().map(move |a| format!("g:{a}_{w}"))).collect()
}

/// Latency over REST: HTTP/1.1, connections kept.
pub fn rest(address: SocketAddr, load: Load) -> Histogram<u64> {
    let features = serde_json::json!(features()).to_string();
    let as_of = "2026-01-01T01:00:00Z";
    open_loop(
        load,
        |_| connection(address),
        |client, users| {
            let body = format!(
                "{{\"features\":{features},\"entities\":{{\"user_id\":[\"{}\"]}},\"as_of\":\"{as_of}\"}}",
                users.join("\",\"")
            );
            let request = format!(
                "POST /v1/features/online HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            exchange(client, &request);
        },
    )
}

/// Latency of a route that does nothing: what the machine, its network and the client cost.
pub fn nothing(address: SocketAddr, load: Load) -> Histogram<u64> {
    open_loop(
        load,
        |_| connection(address),
        |client, _| exchange(client, "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"),
    )
}

fn connection(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("no delay");
    BufReader::new(stream)
}

/// Sends a request and reads its answer, which must be a 200.
fn exchange(client: &mut BufReader<TcpStream>, request: &str) {
    client.get_mut().write_all(request.as_bytes()).expect("sent");
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        client.read_line(&mut line).expect("a header");
        assert!(!line.starts_with("HTTP/1.1 ") || line.starts_with("HTTP/1.1 200"), "{line}");
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut answer = vec![0; length];
    client.read_exact(&mut answer).expect("a body");
}

/// A gRPC client on a thread of its own.
fn dial(address: SocketAddr) -> (tokio::runtime::Runtime, Channel) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = runtime.block_on(endpoint.connect()).expect("a connection");
    (runtime, channel)
}

fn lookup(features: &[String], users: &[String]) -> GetFeaturesRequest {
    let values = users.iter().map(|u| Value { kind: Some(Kind::StringValue(u.clone())) }).collect();
    GetFeaturesRequest {
        features: features.to_vec(),
        entities: [("user_id".to_owned(), ValueList { values })].into(),
        as_of: vec![prost_types::Timestamp { seconds: START_MS / 1000 + 3600, nanos: 0 }],
        ..GetFeaturesRequest::default()
    }
}

/// Latency over gRPC.
pub fn grpc(address: SocketAddr, load: Load) -> Histogram<u64> {
    let features = features();
    open_loop(
        load,
        |_| Caller::connect(address, "/thalweg.v1.FeatureService/GetFeatures"),
        |client, users| {
            let answer = client.call(&lookup(&features, users).encode_to_vec());
            let answer = GetFeaturesResponse::decode(&answer[..]).expect("an answer");
            assert_eq!(answer.results.len(), features.len() + 1);
        },
    )
}

/// Latency of gRPC's own health check: what this client and the server's framework cost.
pub fn nothing_grpc(address: SocketAddr, load: Load) -> Histogram<u64> {
    open_loop(
        load,
        |_| Caller::connect(address, "/grpc.health.v1.Health/Check"),
        |client, _| {
            let answer = client.call(&HealthCheckRequest::default().encode_to_vec());
            HealthCheckResponse::decode(&answer[..]).expect("an answer");
        },
    )
}

/// Microseconds of a lookup of one entity in this process.
pub fn in_process(engine: &Engine) -> f64 {
    let (features, mut random, calls) = (features(), Random(1), 100_000);
    let begun = Instant::now();
    for _ in 0..calls {
        let user = format!("u{}", random.next() % KEYS);
        let request = LookupRequest {
            features: features.clone(),
            entities: [("user_id".to_owned(), vec![user.as_str().into()])].into(),
            as_of: vec![START_MS + 3_600_000],
            ..LookupRequest::default()
        };
        engine.view.lookup(&request).expect("an answer");
    }
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
}

/// Lookups of one entity over one gRPC connection, `streams` at a time, as fast as they are answered:
/// how many were answered.
pub fn closed_loop(address: SocketAddr, streams: u64, seconds: u64) -> u64 {
    let (runtime, channel) = dial(address);
    let features = features();
    let until = Instant::now() + Duration::from_secs(seconds);
    runtime.block_on(async {
        let mut callers = tokio::task::JoinSet::new();
        for stream in 0..streams {
            let (mut client, features) = (FeatureServiceClient::new(channel.clone()), features.clone());
            callers.spawn(async move {
                let (mut random, mut answered) = (Random(stream + 1), 0);
                while Instant::now() < until {
                    let user = format!("u{}", random.next() % KEYS);
                    client.get_features(lookup(&features, &[user])).await.expect("an answer");
                    answered += 1;
                }
                answered
            });
        }
        callers.join_all().await.into_iter().sum()
    })
}
