//! How long a lookup takes of an entity that has ten thousand events, and of one that has millions.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use thalweg::app::Engine;
use thalweg::config::DefinitionFiles;
use thalweg::model::Value;
use thalweg::serving::LookupRequest;
use thalweg::topology::Topology;

use super::settle;
use super::workload::{AGGREGATES, Keys, START_MS, WINDOWS, definitions, fill_log, settings};

/// Reads of which the median is shown.
const READS: usize = 50;

/// Values that are made of the events themselves.
const OF_VALUES: &str = "      p95_30d: { aggregate: percentile, q: 0.95, of: amount, window: 30d }
      merchants_30d: { aggregate: distinct, of: merchant, window: 30d }
      top_merchants_30d: { aggregate: top_k, k: 10, of: merchant, window: 30d }
      recent_merchants_30d: { aggregate: distinct_values, limit: 100, of: merchant, window: 30d }
";

/// Prints a row for each number of events.
pub fn hot_entities(folder: &Path, events_max: u64) {
    println!(
        "\n| {:<58} | 24 sums µs | p95 µs | distinct µs | top_k µs | last µs |",
        "lookups of one hot entity"
    );
    println!("|{:-<60}|------------|--------|-------------|----------|---------|", "");
    for events in [10_000, 100_000, 1_000_000, 10_000_000].into_iter().filter(|n| *n <= events_max) {
        let folder = folder.join(format!("hot-{events}"));
        std::fs::create_dir_all(folder.join("data")).expect("writable");
        fill_log(&folder.join("data/log"), events, Keys::Uniform(1));
        let text = definitions(&WINDOWS).replace(
            "amount: { type: float64 } }",
            "amount: { type: float64 }, merchant: { type: string } }",
        );
        let plan = Topology::of_files(DefinitionFiles::of_text(&(text + OF_VALUES))).expect("no mistakes");
        let engine = Engine::start(&settings(&folder, "1GiB", "10s", 1), plan).expect("it starts");
        engine.wait_ready().expect("it becomes ready");
        settle(&engine);
        let now = START_MS + events as i64 * 5;
        let sums: Vec<String> =
            WINDOWS.iter().flat_map(|w| AGGREGATES.map(|a| format!("g:{a}_{w}"))).collect();
        let mut cells = vec![median(&engine, &sums, now)];
        for name in ["p95_30d", "merchants_30d", "top_merchants_30d", "recent_merchants_30d"] {
            cells.push(median(&engine, &[format!("g:{name}")], now));
        }
        let name = format!("{events} events");
        println!(
            "| {name:<58} | {:>10.0} | {:>6.0} | {:>11.0} | {:>8.0} | {:>7.0} |",
            cells[0], cells[1], cells[2], cells[3], cells[4]
        );
        engine.stop();
    }
}

/// Microseconds of a lookup inside the engine.
fn median(engine: &Engine, features: &[String], now: i64) -> f64 {
    let request = LookupRequest {
        features: features.to_vec(),
        entities: BTreeMap::from([("user_id".to_owned(), vec![Value::from("u0")])]),
        as_of: vec![now],
        ..LookupRequest::default()
    };
    let mut took: Vec<f64> = (0..READS)
        .map(|_| {
            let begun = Instant::now();
            engine.view.lookup(&request).expect("an answer");
            begun.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    took.sort_by(f64::total_cmp);
    took[READS / 2]
}
