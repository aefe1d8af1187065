//! Every aggregate over every kind of window, on real departures, against the naive oracle.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;
use thalweg::app::Engine;
use thalweg::config::DefinitionFiles;
use thalweg::config::settings::Settings;
use thalweg::serving::verify::verify;
use thalweg::topology::Topology;

use crate::harness::{Place, root};

const WINDOWS: [&str; 15] = [
    "window: 1h",
    "window: 24h",
    "window: 7d",
    "window: 30d",
    "window: 3d, edge: exact",
    "window: 2h, edge: tile",
    "window: 1h, hop: 5m",
    "window: 7d, hop: 1d",
    "since: hour",
    "since: day, zone: America/New_York",
    "since: week, zone: Asia/Kolkata",
    "since: month",
    "session: 45m",
    "session: 6h, max: 3d",
    "window: lifetime",
];

const AGGREGATES: [&str; 30] = [
    "count",
    "count, of: dep_delay",
    "sum, of: dep_delay",
    "sum, of: flight",
    "mean, of: arr_delay",
    "mean, of: flight",
    "variance, of: dep_delay",
    "stddev, of: dep_delay",
    "variance_pop, of: distance",
    "stddev_pop, of: distance",
    "min, of: dep_delay",
    "max, of: event_time",
    "first, of: dest",
    "last, of: tailnum",
    "last_k, of: dest, k: 4",
    "distinct, of: dest",
    "distinct, of: dep_delay",
    "distinct_values, of: carrier, limit: 5",
    "top_k, of: carrier, k: 3",
    "top_k, of: dep_delay, k: 2",
    "value_counts, of: hour, limit: 10",
    "value_counts, of: cancelled",
    "histogram, of: dep_delay, bounds: [-5, 0, 15.5, 60]",
    "percentile, of: dep_delay, q: 0.9",
    "median, of: 'distance + 0.5'",
    "rate, per: 1m",
    "time_since_first, of: dep_delay",
    "time_since_last",
    "session_count, gap: 30m",
    "session_count, gap: 3h, of: dep_delay",
];

const FILTERS: [&str; 4] = [
    "",
    ", where: 'dep_delay > 15.0'",
    ", where: cancelled",
    ", where: \"carrier in ['UA', 'B6'] && hour >= 12\"",
];

fn is_legal(aggregate: &str, window: &str) -> bool {
    let is_lifetime = window.contains("lifetime");
    !(aggregate.starts_with("rate") && (is_lifetime || !window.starts_with("window"))
        || aggregate.starts_with("time_since") && window.contains("hop")
        || aggregate.starts_with("session_count") && (is_lifetime || window == "window: 30d"))
}

/// What needs no event by itself as soon as it is an hour old, besides those of a short history.
const TILED: &str = "  tiled:
    entity: origin
    source: departures
    history: HISTORY
    features:
      n: { aggregate: count, window: 30d }
      mean: { aggregate: mean, of: arr_delay, window: 30d }
      spread: { aggregate: stddev, of: arr_delay, window: 30d }
      worst: { aggregate: max, of: arr_delay, window: 30d }
      recent: { aggregate: last_k, k: 3, of: dest, window: 30m }
      all: { aggregate: sum, of: arr_delay, window: lifetime }
";

/// Definitions with a third of all combinations in each of four groups, and one of tiles.
fn definitions(history: &str) -> String {
    let example =
        std::fs::read_to_string(root().join("config/examples/flights/features.yaml")).expect("it is there");
    let head = example.split("feature_groups:").next().expect("a head");
    let mut text = format!("{head}feature_groups:\n");
    for (g, (group, entity, more)) in [
        ("by_origin", "origin", "now: stream"),
        ("by_carrier", "carrier", "now: wall"),
        ("by_plane", "plane", "where: 'distance > 200.0'"),
        ("by_route", "route", "ttl: 20d"),
    ]
    .into_iter()
    .enumerate()
    {
        let _ = writeln!(
            text,
            "  {group}:\n    entity: {entity}\n    source: departures\n    history: {history}\n    {more}\n    features:"
        );
        for (a, aggregate) in AGGREGATES.iter().enumerate() {
            for (w, window) in WINDOWS.iter().enumerate() {
                // Every group has its own third of the combinations; routes have no lifetime.
                let is_skipped =
                    (a * 7 + w * 3 + a / 3 + g) % 3 != 0 || (g == 3 && window.contains("lifetime"));
                if is_skipped || !is_legal(aggregate, window) {
                    continue;
                }
                let filter = FILTERS[(a + w + g) % 4];
                let more = match (*aggregate, w % 4) {
                    ("count", 1) => ", ttl: 2h",
                    ("mean, of: arr_delay", 0) => ", default: -1.0",
                    _ => "",
                };
                let _ =
                    writeln!(text, "      f{a}_{w}: {{ aggregate: {aggregate}, {window}{filter}{more} }}");
            }
        }
        let _ = writeln!(text, "      sd: {{ aggregate: session_duration, gap: 2h, max: 12h }}");
        if g != 3 {
            let _ = writeln!(text, "      d0: {{ aggregate: decayed_sum, of: dep_delay, half_life: 6h }}");
            let _ =
                writeln!(text, "      d1: {{ aggregate: decayed_count, half_life: 30m, where: cancelled }}");
        }
    }
    text + &TILED.replace("HISTORY", history)
}

/// Rows of the committed slice as JSON events; `by_origin` puts the airports one after the other.
fn events(by_origin: bool) -> Vec<String> {
    let slice = root().join("config/examples/flights/departures.csv");
    let mut reader = csv::Reader::from_path(slice).expect("readable");
    let names = reader.headers().expect("a header").clone();
    let numbers = ["flight", "dep_delay", "arr_delay", "air_time", "distance"];
    let mut rows: Vec<(String, String)> = reader
        .records()
        .map(|row| {
            let row = row.expect("a row");
            let event: serde_json::Map<String, serde_json::Value> = names
                .iter()
                .zip(&row)
                .map(|(name, cell)| {
                    let value = match cell {
                        "" => serde_json::Value::Null,
                        _ if numbers.contains(&name) => serde_json::from_str(cell).expect("a number"),
                        _ => cell.into(),
                    };
                    (name.to_owned(), value)
                })
                .collect();
            (row[1].to_owned(), serde_json::Value::Object(event).to_string())
        })
        .collect();
    if by_origin {
        rows.sort_by(|a, b| a.0.cmp(&b.0));
    }
    rows.into_iter().map(|(_, event)| event).collect()
}

/// Waits until every task contains all of the source that concerns it.
fn await_all(engine: &Engine, topic: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let log = &engine.view.log;
    let ends = (0..log.partitions(topic).expect("it is there")).map(|p| (p, log.end_offset(topic, p)));
    let held = [(topic.to_owned(), ends.collect())].into();
    for task in &engine.view.owned().tasks {
        let is_reached = task.wait_for(deadline, |state| task.contains(state, &held));
        assert!(is_reached, "{} is behind", task.name);
    }
}

fn differences(history: &str, by_origin: bool, seed: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("thalweg.yaml");
    std::fs::write(&config, "app: test\ndefinitions: [none.yaml]\nmemory: 256MiB\ncheckpoint_interval: 200ms\ncommit_interval: 20ms\n").expect("writable");
    let settings = Settings::load(&config, std::iter::empty(), &[]).expect("no mistakes");
    let text = definitions(history);
    let topology = || match Topology::of_files(DefinitionFiles::of_text(&text)) {
        Ok(topology) => topology,
        Err((mistakes, _)) => panic!("{mistakes:?}"),
    };
    let engine = Engine::start(&settings, topology()).expect("it starts");
    let events = events(by_origin);
    for chunk in events.chunks(500) {
        let payloads: Vec<&[u8]> = chunk.iter().map(String::as_bytes).collect();
        engine.view.append("departures", &payloads).expect("appended");
    }
    // A clean stop commits everything; what it left behind is then read again.
    engine.stop();
    let engine = Engine::start(&settings, topology()).expect("it starts again");
    engine.wait_ready().expect("it is ready");
    await_all(&engine, "departures");
    let report = verify(&engine.view, 400, seed, &|| true).expect("it can be recomputed");
    assert!(report["values"].as_u64().expect("a count") > 20_000, "{report}");
    assert_eq!(report["differences"], 0, "{report:#}");
    let unit = thalweg::serving::inspect::key(&engine.view, "tiled", &["JFK".to_owned()]).expect("a unit");
    let has_tiles = unit["rows"].as_array().expect("a list").iter().any(|row| row["row"].is_null());
    assert_eq!(has_tiles, history == "1h", "{unit:#}");
    engine.stop();
}

#[test]
fn all_aggregates_and_windows_equal_the_oracle_anywhere_in_a_long_history() {
    differences("20d", false, 1);
}

#[test]
fn partitions_ingested_one_after_the_other_change_nothing() {
    differences("1h", true, 2);
}

/// One partition pauses for longer than a unit keeps events, and many half-lives: what it then brings is
/// older than what is counted, and newer than the entity's first event.
#[test]
fn what_a_partition_brings_after_a_pause_decays_as_if_it_had_come_in_time() {
    let definitions = "
entities: { shop: { key: m, type: string } }
sources: { s: { key: k, event_time: { path: t, format: unix_ms }, fields: { k: { type: string }, m: { type: string } } } }
feature_groups: { g: { entity: shop, source: s, features: {
  c: { aggregate: decayed_count, half_life: 1m }, n: { aggregate: count, window: lifetime } } } }
";
    let place = Place::new(definitions, "log: { embedded: { partitions: 4 } }");
    let engine = place.start();
    let minutes = |minutes: i64| 1_600_000_000_000 + minutes * 60_000;
    let as_of = jiff::Timestamp::from_millisecond(minutes(24 * 60)).expect("in range").to_string();
    let mut counts = Vec::new();
    for (key, at) in [("b", 0), ("e", 24 * 60), ("b", 23 * 60 - 6), ("e", 24 * 60)] {
        let event = json!({ "k": key, "m": "x", "t": minutes(at) });
        let positions = engine.append("s", &event.to_string());
        let found = engine.values(&["g:c", "g:n"], json!({ "m": ["x"] }), &as_of, &positions);
        counts.push((found["c"][0].clone(), found["n"][0].clone()));
    }
    assert_eq!(counts[0].1, 1);
    assert_eq!(counts[1..], [(json!(1.0), json!(2)), (json!(1.0), json!(3)), (json!(2.0), json!(4))]);
    engine.stop();
}
