//! `cargo bench`: what an event and a lookup cost on this machine, as a table with ratios to the
//! floor. `cargo bench -- --events 5000000` for longer runs, `--only ingest`, `--only lookups`,
//! `--only hot` or `--only expressions` for a part.
//!
//! CPU is user + system time of the whole process per event; wall time says little on a machine
//! that does other things too.

mod clients;
mod hot;
mod http2;
mod workload;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clients::{Listeners, Load};
use hdrhistogram::Histogram;
use thalweg::app::Engine;
use thalweg::clock::SystemClock;
use thalweg::codec::SourceDecoder;
use thalweg::expr::{Expr, Scope, Val};
use thalweg::log::{EmbeddedLog, FsyncPolicy, Log, LogOptions};
use thalweg::model::{ScalarType, Type};
use workload::{Keys, PARTITIONS, Random, TOPIC, WINDOWS, fill_log, settings, topology};

// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Events per second beside which lookups are measured.
const LOAD_RATE: u64 = 50_000;

const ZIPF: Keys = Keys::Zipf(1_000_000);
const UNIFORM: Keys = Keys::Uniform(10_000_000);

/// User + system time of this process, in seconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = after.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
    fields.iter().sum::<f64>() / 100.0
}

fn row(what: &str, micros: f64, floor: f64, more: &str) {
    let rate = 1000.0 / micros;
    println!("| {what:<58} | {micros:>7.2} | {rate:>7.0} | {:>5.1}× | {more:<40} |", micros / floor);
}

/// Reads the log, decodes the projected fields, updates one random cell in RAM.
fn floor(folder: &Path, events: u64) -> f64 {
    let options = LogOptions { fsync: FsyncPolicy::Never, recent_bytes: 0, buffer_bytes: 64 << 20 };
    let log = EmbeddedLog::open(&folder.join("log"), options, Arc::new(SystemClock)).expect("a log");
    let topology = topology(&["1h"]);
    let decoder = SourceDecoder::new(&topology.sources[0]);
    let mut cells: HashMap<String, (u64, f64)> = HashMap::new();
    let before = cpu();
    for partition in 0..PARTITIONS {
        let mut at = 0;
        loop {
            let batches = log.read(TOPIC, partition, at, 1 << 20).expect("readable");
            let Some(last) = batches.last() else { break };
            at = last.next_offset();
            for record in batches.iter().flat_map(|b| b.records()) {
                let mut raws = Vec::new();
                let event =
                    decoder.decode(record.value, record.time, &mut raws, Vec::new()).expect("an event");
                if let (Val::Str(user), Val::Float(amount)) = (&event.variables[1], &event.variables[2]) {
                    if let Some(cell) = cells.get_mut(user.as_ref()) {
                        *cell = (cell.0 + 1, cell.1 + amount);
                    } else {
                        cells.insert(user.to_string(), (1, *amount));
                    }
                }
            }
        }
    }
    assert_eq!(cells.values().map(|c| c.0).sum::<u64>(), events);
    (cpu() - before) * 1e6 / events as f64
}

fn settle(engine: &Engine) {
    let view = &engine.view;
    let is_behind = || {
        view.owned().tasks.iter().any(|task| {
            task.state.read().applied < view.log.end_offset(&task.topic, task.partition)
                || task.committed.load(Ordering::Relaxed) < task.state.read().applied
        })
    };
    while is_behind() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn disk_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|e| if e.path().is_dir() { disk_bytes(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) })
        .sum()
}

/// CPU per event of catching up with a filled log; what is left behind.
fn ingest(
    folder: &Path,
    windows: &[&str],
    memory: &str,
    checkpoint: &str,
    workers: usize,
    events: u64,
) -> (f64, String) {
    let _ = std::fs::remove_dir_all(folder.join("data"));
    std::fs::create_dir_all(folder.join("data")).expect("writable");
    copy(&folder.join("log"), &folder.join("data/log"));
    let settings = settings(folder, memory, checkpoint, workers);
    let before = cpu();
    let engine = Engine::start(&settings, topology(windows)).expect("it starts");
    settle(&engine);
    let micros = (cpu() - before) * 1e6 / events as f64;
    let (counts, _, _) = engine.view.group_counts(0);
    engine.stop();
    let bytes = disk_bytes(&folder.join("data/state")) / counts.entities.max(1);
    let started = Instant::now();
    let engine = Engine::start(&settings, topology(windows)).expect("it starts");
    engine.wait_ready().expect("it becomes ready");
    let restart = started.elapsed();
    engine.stop();
    let more = format!("{} k entities, {bytes} B each, restart {restart:.0?}", counts.entities / 1000);
    (micros, more)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("writable");
    for entry in std::fs::read_dir(from).expect("readable").filter_map(Result::ok) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

/// Appends at [`LOAD_RATE`] while `work` runs.
fn while_loaded<T>(engine: &Engine, is_loaded: bool, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if is_loaded {
            scope.spawn(|| append_steadily(engine, &stop));
        }
        let done = work();
        stop.store(true, Ordering::Relaxed);
        done
    })
}

fn append_steadily(engine: &Engine, stop: &AtomicBool) {
    let (mut random, mut sent) = (Random(9), 0_u64);
    let begun = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let due = begun + Duration::from_micros(sent * 1_000_000 / LOAD_RATE);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let events: Vec<String> = (0..500)
            .map(|_| {
                sent += 1;
                let user = format!("u{}", random.next() % 1_000_000);
                workload::event(&user, 2_000_000 + sent, &mut random)
            })
            .collect();
        let payloads: Vec<&[u8]> = events.iter().map(String::as_bytes).collect();
        engine.view.append(TOPIC, &payloads).expect("appended");
    }
}

fn lookups(engine: &Engine) {
    let listeners = Listeners::start(engine);
    // Client and server share the machine: on two cores 10,000 calls a second fill it.
    for (wire, entities, rate) in [
        ("REST, nothing", 1, 2_000),
        ("REST", 1, 2_000),
        ("gRPC, nothing", 1, 2_000),
        ("gRPC", 1, 2_000),
        ("REST, nothing", 1, 10_000),
        ("REST", 1, 10_000),
        ("gRPC, nothing", 1, 10_000),
        ("gRPC", 1, 10_000),
        ("gRPC", 100, 200),
        ("REST", 100, 200),
    ] {
        for is_loaded in [false, true] {
            let load = Load { entities, rate, seconds: 5 };
            let before = clients::serving_cpu();
            let found = while_loaded(engine, is_loaded, || match wire {
                "gRPC" => clients::grpc(listeners.grpc, load),
                "gRPC, nothing" => clients::nothing_grpc(listeners.grpc, load),
                "REST, nothing" => clients::nothing(listeners.rest, load),
                _ => clients::rest(listeners.rest, load),
            });
            let state = if is_loaded { "while ingesting" } else { "idle" };
            let cpu = (clients::serving_cpu() - before) / found.len() as f64;
            show_latency(&format!("{wire}, {entities} entities, {rate}/s, {state}"), &found, cpu);
        }
    }
    println!("{:.1} µs in the process, without a wire", clients::in_process(engine));
    for streams in [1, 64] {
        let before = clients::serving_cpu();
        let (begun, seconds) = (Instant::now(), 5);
        let answered = clients::closed_loop(listeners.grpc, streams, seconds) as f64;
        let (cpu, took) = (clients::serving_cpu() - before, begun.elapsed().as_secs_f64());
        println!(
            "gRPC, one connection, {streams} at a time: {:.0}/s with the client beside it; {:.0}/s per core of the server",
            answered / took,
            answered / cpu
        );
    }
}

/// `cpu`: seconds of the server's threads per call.
fn show_latency(what: &str, histogram: &Histogram<u64>, cpu: f64) {
    let at = |q: f64| histogram.value_at_quantile(q) as f64 / 1000.0;
    let cpu = cpu * 1e6;
    println!("| {what:<58} | {:>8.1} | {:>8.1} | {:>8.1} | {cpu:>8.1} |", at(0.5), at(0.99), at(0.999));
}

fn expressions() {
    let fields = [
        ("amount".to_owned(), Type::Scalar(ScalarType::Float64)),
        ("currency".to_owned(), Type::Scalar(ScalarType::String)),
        ("kind".to_owned(), Type::Scalar(ScalarType::String)),
    ];
    let text = "amount > 10.0 && currency == 'EUR' && kind != 'REFUND'";
    let expr = Expr::compile(text, &Scope::of_fields(&fields)).expect("it compiles");
    let variables = [Val::Float(12.5), Val::Str("EUR".into()), Val::Str("PURCHASE".into())];
    let rounds = 5_000_000_u32;
    let started = Instant::now();
    let mut held = 0_u32;
    for _ in 0..rounds {
        held += u32::from(expr.eval(std::hint::black_box(&variables)).is_true());
    }
    assert_eq!(held, rounds);
    let nanos = started.elapsed().as_nanos() as f64 / f64::from(rounds);
    println!("\nA filter with three variables: {nanos:.0} ns (limit: 100 ns)");
}

fn catching_up(zipf: &Path, uniform: &Path, events: u64) {
    let (zipf_name, uniform_name) = (ZIPF.name(), UNIFORM.name());
    println!("| {:<58} | µs CPU  | k ev/s  |       | {:<40} |", "catching up with the log, per event", "");
    println!("|{:-<60}|---------|---------|-------|{:-<42}|", "", "");
    let base = floor(zipf, events);
    row("floor: read, decode, one random update in RAM", base, base, "");
    for (what, windows) in [
        ("6 aggregates × {10m, 1h, 24h, 30d}", &WINDOWS[..]),
        ("6 aggregates × {1h}", &["1h"][..]),
        ("6 aggregates × {10s, 1m, 24m, 12h}", &["10s", "1m", "24m", "12h"][..]),
    ] {
        let (micros, more) = ingest(zipf, windows, "2GiB", "10s", 1, events);
        row(&format!("{zipf_name}, {what}"), micros, base, &more);
    }
    let (micros, more) = ingest(uniform, &WINDOWS, "4GiB", "60s", 1, events);
    row(&format!("{uniform_name}, 6 aggregates × 4 windows"), micros, base, &more);
}

fn latencies(zipf: &Path, events: u64) {
    let what = format!("lookups of 24 values, open loop (load: {} k ev/s)", LOAD_RATE / 1000);
    println!("\n| {what:<58} |   p50 µs |   p99 µs | p99.9 µs |   µs CPU |");
    println!("|{:-<60}|----------|----------|----------|----------|", "");
    ingest(zipf, &WINDOWS, "2GiB", "10s", 1, events);
    let engine = Engine::start(&settings(zipf, "2GiB", "10s", 1), topology(&WINDOWS)).expect("it starts");
    engine.wait_ready().expect("it becomes ready");
    lookups(&engine);
    engine.stop();
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let events: u64 = given("--events").and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let is_wanted = |part: &str| given("--only").is_none_or(|only| only == part);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (zipf, uniform) = (folder.path().join("zipf"), folder.path().join("uniform"));
    eprintln!("making {events} events of each kind …");
    for (path, keys) in [(&zipf, ZIPF), (&uniform, UNIFORM)] {
        std::fs::create_dir_all(path).expect("writable");
        if is_wanted("ingest") || is_wanted("lookups") {
            fill_log(&path.join("log"), events, keys);
        }
    }
    if is_wanted("ingest") {
        catching_up(&zipf, &uniform, events);
    }
    if is_wanted("lookups") {
        latencies(&zipf, events);
    }
    if is_wanted("hot") {
        hot::hot_entities(folder.path(), events);
    }
    if is_wanted("expressions") {
        expressions();
    }
}
