//! `thalweg run`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use thalweg::app::{Engine, endpoints_file, load_definitions};
use thalweg::config::settings::Settings;
use thalweg::fault::VARIABLES;
use thalweg::serving::{
    Access, ConnectionLimits, Door, Threads, grpc_routes, router, serve_grpc, serve_rest,
};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{Failure, Outcome, load_settings};

/// Names under which health is asked for: the whole, and the service.
const SERVICES: [&str; 2] = ["", "thalweg.v1.FeatureService"];

/// Threads that answer.
const SERVING: usize = 2;
/// Connections that are still open this long after a stop are cut.
const DRAIN: Duration = Duration::from_secs(2);
/// Longest from the signal to the end: brokers that are away are not waited for.
const STOP_MAX: Duration = Duration::from_secs(9);
/// Longest from a signal to the end of a start that is under way.
const START_MAX: Duration = Duration::from_secs(3);

/// Arguments of `run`.
#[derive(Args)]
pub struct RunArguments {
    /// Configuration file
    #[arg(long, default_value = "thalweg.yaml")]
    config: PathBuf,
    /// Where everything is kept
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Address of the REST listener
    #[arg(long)]
    listen_rest: Option<String>,
    /// Address of the gRPC listener
    #[arg(long)]
    listen_grpc: Option<String>,
    /// Address of the operate listener
    #[arg(long)]
    listen_operate: Option<String>,
}

fn engine(error: impl std::fmt::Display) -> Failure {
    Failure::Engine(format!("error: {error}"))
}

/// Runs the engine until SIGTERM or SIGINT.
pub fn run(arguments: &RunArguments) -> Outcome {
    thalweg::telemetry::init_logging();
    let mut overlay = Vec::new();
    for (key, value) in [
        ("listen.rest", &arguments.listen_rest),
        ("listen.grpc", &arguments.listen_grpc),
        ("listen.operate", &arguments.listen_operate),
    ] {
        overlay.extend(value.clone().map(|v| (key, v)));
    }
    let mut settings = load_settings(&arguments.config, &overlay)?;
    if let Ok(environment) = std::env::var("ENV") {
        tracing::info!(environment, "starting");
    }
    for name in settings.ignored.iter().filter(|name| !VARIABLES.contains(&name.as_str())) {
        tracing::warn!("{name} is ignored: it names no key");
    }
    if let Some(data_dir) = &arguments.data_dir {
        // Relative to where the command was typed, unlike paths in the file.
        settings.data_dir.clone_from(data_dir);
    }
    let topology =
        load_definitions(&settings.definitions).map_err(|lines| Failure::Input(lines.join("\n")))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("main")
        .enable_all()
        .build()
        .map_err(engine)?;
    let outcome = runtime.block_on(serve(&settings, topology));
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

/// SIGTERM and SIGINT, heard from one place from the start: one that comes while nobody waits is kept.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Ends the process at the next signal.
fn end_at_next(mut signals: Signals) {
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("a second signal: ends at once, what is not committed is redone by the next start");
        std::process::exit(130);
    });
}

async fn serve(settings: &Settings, topology: thalweg::topology::Topology) -> Outcome {
    let mut signals = Signals::new().map_err(engine)?;
    let access: Access = Arc::new(OnceLock::new());
    let (stop, stopped) = watch::channel(false);
    let (health, health_service) = tonic_health::server::health_reporter();
    let rest = bind(&settings.listen_rest).await?;
    let operate = bind(&settings.listen_operate).await?;
    let grpc = bind(&settings.listen_grpc).await?;
    let address = |listener: &TcpListener| listener.local_addr().map_err(engine);
    let (rest_at, operate_at, grpc_at) = (address(&rest)?, address(&operate)?, address(&grpc)?);
    // A read that waits for positions takes a thread beside them, and must not keep appends from theirs.
    let threads = Threads::start(SERVING, "serving", settings.in_flight * 2 + 64).map_err(engine)?;
    let listeners = Listeners { access: &access, settings, stopped: &stopped, threads: Arc::new(threads) };
    let mut servers =
        vec![listeners.spawn_rest(rest, Door::Public), listeners.spawn_rest(operate, Door::Operate)];
    for name in SERVICES {
        health.set_service_status(name, tonic_health::ServingStatus::NotServing).await;
    }
    servers.push(listeners.spawn_grpc(grpc, tonic::service::Routes::new(health_service))?);
    let engine_settings = Settings {
        // Ports may have been left to the system.
        listen_rest: rest_at.to_string(),
        listen_grpc: grpc_at.to_string(),
        listen_operate: operate_at.to_string(),
        ..settings.clone()
    };
    let mut starting = tokio::task::spawn_blocking(move || {
        let engine = Engine::start(&engine_settings, topology)?;
        Ok::<_, thalweg::error::Error>(engine)
    });
    let running = tokio::select! {
        started = &mut starting => started.map_err(engine)?.map_err(engine)?,
        () = signals.next() => {
            let deadline = tokio::time::Instant::now() + STOP_MAX;
            end_at_next(signals);
            // Nothing was answered yet, and what is half opened is as after a crash. A group that was joined
            // is left all the same, unless its brokers are away.
            return match tokio::time::timeout(START_MAX, starting).await {
                Ok(Ok(Ok(engine))) => commit_until(deadline, Arc::new(engine)).await,
                _ => Ok(()),
            };
        }
    };
    let running = Arc::new(running);
    // Set before it is ready, so that probes can tell what it waits for.
    let _ = access.set(Arc::clone(&running.view));
    let waiting = Arc::clone(&running);
    let mut ready = tokio::task::spawn_blocking(move || waiting.wait_ready());
    let is_stopped = tokio::select! {
        ready = &mut ready => { ready.map_err(engine)?.map_err(engine)?; false }
        () = signals.next() => {
            running.give_up_waiting();
            ready.await.map_err(engine)?.map_err(engine)?;
            true
        }
    };
    if !is_stopped {
        announce_ready(&health, settings, [rest_at, grpc_at, operate_at]).await;
        signals.next().await;
    }
    tracing::info!("stopping");
    let deadline = tokio::time::Instant::now() + STOP_MAX;
    end_at_next(signals);
    let _ = stop.send(true);
    let drained = tokio::time::Instant::now() + DRAIN;
    for server in servers {
        let _ = tokio::time::timeout_at(drained, server).await;
    }
    let _ = std::fs::remove_file(endpoints_file(&settings.data_dir));
    commit_until(deadline, running).await
}

/// Lets the engine commit and hand over what it has, and ends the process if that takes too long.
async fn commit_until(deadline: tokio::time::Instant, running: Arc<Engine>) -> Outcome {
    let stopping = tokio::task::spawn_blocking(move || {
        // Requests that outlived the drain hold no reference to the engine, only to its view.
        if let Some(engine) = Arc::into_inner(running) {
            engine.stop();
        }
    });
    match tokio::time::timeout_at(deadline, stopping).await {
        Ok(stopped) => stopped.map_err(engine),
        Err(_) => {
            tracing::warn!("ends before all is committed: the next start redoes what is not");
            std::process::exit(0);
        }
    }
}

/// What all listeners need.
struct Listeners<'a> {
    access: &'a Access,
    settings: &'a Settings,
    stopped: &'a watch::Receiver<bool>,
    threads: Arc<Threads>,
}

impl Listeners<'_> {
    fn spawn_grpc(
        &self,
        listener: TcpListener,
        others: tonic::service::Routes,
    ) -> Result<tokio::task::JoinHandle<()>, Failure> {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(thalweg::serving::generated::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        // Clients in Python, and grpcurl before 1.8.8, know only the older name.
        let others = others
            .add_service(reflection().build_v1().map_err(engine)?)
            .add_service(reflection().build_v1alpha().map_err(engine)?);
        let (body_max, in_flight) = (self.settings.append_body, self.settings.in_flight);
        let routes = grpc_routes(others, Arc::clone(self.access), body_max, in_flight);
        let (stopping, threads) = (self.stopped.clone(), Arc::clone(&self.threads));
        Ok(tokio::spawn(async move {
            serve_grpc(listener, routes, &threads, &ConnectionLimits::of_process(), until(stopping)).await;
        }))
    }

    fn spawn_rest(&self, listener: TcpListener, door: Door) -> tokio::task::JoinHandle<()> {
        let Settings { append_body, in_flight, memory, .. } = self.settings;
        let routes = router(Arc::clone(self.access), door, *append_body, *in_flight, *memory as usize / 8);
        let (stopping, threads) = (self.stopped.clone(), Arc::clone(&self.threads));
        tokio::spawn(async move {
            serve_rest(listener, routes, &threads, &ConnectionLimits::of_process(), until(stopping)).await;
        })
    }
}

async fn announce_ready(
    health: &tonic_health::server::HealthReporter,
    settings: &Settings,
    [rest, grpc, operate]: [SocketAddr; 3],
) {
    for name in SERVICES {
        health.set_service_status(name, tonic_health::ServingStatus::Serving).await;
    }
    announce(settings, rest, grpc, operate);
}

async fn bind(address: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|e| {
        Failure::Engine(format!("error: cannot listen on {address}: {e} (choose another port, or 0 for any)"))
    })
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // A closed channel means that the process is ending anyway.
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn announce(settings: &Settings, rest: SocketAddr, grpc: SocketAddr, operate: SocketAddr) {
    let line = serde_json::json!({
        "ready": true,
        "rest": format!("http://{rest}"),
        "grpc": grpc.to_string(),
        "operate": format!("http://{operate}"),
    });
    let path = endpoints_file(&settings.data_dir);
    if let Err(error) = std::fs::write(&path, line.to_string()) {
        tracing::warn!("{}: {error}", path.display());
    }
    println!("{line}");
}
