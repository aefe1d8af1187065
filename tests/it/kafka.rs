//! The engine on a real Kafka: killed at random moments, with its disk, without it, and with an
//! older copy of it.

use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::message::Message;
use rdkafka::producer::Producer;
use serde_json::{Value as Json, json};
use thalweg::config::DefinitionFiles;
use thalweg::log::BARRIER_KEY;
use thalweg::model::{Value, partition_of};
use thalweg::oracle::{Oracle, OracleRecord, is_equal};
use thalweg::state::{RocksStore, SharedMemory, StateStore as _};

use crate::broker::{Broker, send};
use crate::crash::{BATCH, DEFINITIONS, START_MS, batch, counts, kill_by_id, random, readings, text_of};
use crate::harness::{Engine, Place, signal, until};

const PARTITIONS: u32 = 3;

/// The records of a batch as the engine's own append would place them.
pub fn records(number: u64, partitions: u32) -> Vec<(u32, Option<String>, String)> {
    batch(number)
        .lines()
        .map(|line| {
            let key = serde_json::from_str::<Json>(line)
                .ok()
                .and_then(|e| e["user_id"].as_str().map(str::to_owned));
            let bytes = key.as_deref().unwrap_or(line);
            (partition_of(bytes.as_bytes(), partitions), key.clone(), line.to_owned())
        })
        .collect()
}

pub fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    let done = std::process::Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(done.success());
}

/// What an undisturbed engine on the embedded log makes of the same batches.
fn undisturbed(batches: u64) -> (Json, Vec<Json>) {
    let more = format!("log: {{ embedded: {{ partitions: {PARTITIONS}, fsync: never }} }}");
    let calm = Place::new(DEFINITIONS, &more);
    let engine = calm.start();
    for number in 0..batches {
        engine.append("payments", &batch(number));
    }
    let wanted = (counts(engine.settled_stats()), readings(&engine, batches));
    engine.stop();
    wanted
}

#[test]
fn kills_lose_and_double_nothing_on_kafka() {
    let cycles: u64 = std::env::var("THALWEG_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let batches = cycles * 6;
    let (wanted_counts, wanted) = undisturbed(batches);
    let broker = Broker::start();
    let quick = format!("checkpoint_interval: 300ms\ncommit_interval: 20ms\n{}", broker.log(PARTITIONS));
    let place = Place::new(DEFINITIONS, &quick);
    let state = place.folder.path().join("data/state");
    let older = place.folder.path().join("older");
    let mut engine = place.start();
    let producer = broker.producer();
    for cycle in 0..cycles {
        for number in cycle * 6..(cycle + 1) * 6 {
            send(&producer, "payments", &records(number, PARTITIONS));
            if number % 6 == random(cycle) % 6 {
                std::thread::sleep(Duration::from_micros(random(cycle + 77) % 400_000));
                kill_by_id(&engine);
                engine.kill();
                match cycle % 4 {
                    1 => copy(&state, &older),
                    2 => std::fs::remove_dir_all(&state).expect("it is there"),
                    3 if older.exists() => copy(&older, &state),
                    _ => {}
                }
                engine = place.start();
            }
        }
    }
    assert_eq!(counts(engine.settled_stats()), wanted_counts);
    for (found, wanted) in readings(&engine, batches).iter().zip(&wanted) {
        assert_eq!(found, wanted);
    }
    engine.stop();
    // Every dead letter exactly once, for readers of what is committed.
    let letters = broker.read("test-dead-letters");
    let malformed = wanted_counts["sources"]["payments"]["dead_lettered"]["malformed"].as_u64();
    assert_eq!(Some(letters.len() as u64), malformed);
    let mut origins: Vec<(i32, i64)> = letters.iter().map(origin).collect();
    origins.sort_unstable();
    origins.dedup();
    assert_eq!(Some(origins.len() as u64), malformed);
    // Once more without any disk.
    std::fs::remove_dir_all(&state).expect("it is there");
    let engine = place.start();
    assert_eq!(readings(&engine, batches), wanted);
    assert_eq!(counts(engine.settled_stats()), wanted_counts);
    engine.stop();
}

/// Partition and offset that a dead letter names.
pub fn origin(letter: &rdkafka::message::OwnedMessage) -> (i32, i64) {
    use rdkafka::message::Headers;
    let headers = letter.headers().expect("headers");
    let number = |name: &str| -> i64 {
        let header = headers.iter().find(|h| h.key == name).expect("a header");
        std::str::from_utf8(header.value.expect("a value")).expect("text").parse().expect("a number")
    };
    (number("__connect.errors.partition") as i32, number("__connect.errors.offset"))
}

#[test]
fn the_log_is_a_matter_of_configuration() {
    let broker = Broker::start();
    let definitions =
        std::fs::read_to_string(crate::harness::root().join("config/examples/flights/features.yaml"));
    let definitions = definitions.expect("the example is there");
    let table = crate::harness::root().join("config/examples/flights/departures.csv");
    let mut answers = Vec::new();
    for log in ["log: { embedded: { partitions: 4 } }".to_owned(), broker.log(4)] {
        let place = Place::new(&definitions, &log);
        let engine = place.start();
        let config = place.config();
        let arguments = [
            "ingest",
            "--config",
            config.to_str().expect("UTF-8"),
            "--topic",
            "departures",
            table.to_str().expect("UTF-8"),
        ];
        let (code, out, _) = crate::harness::run(&arguments, None);
        assert_eq!(code, 0, "{out}");
        let stats = counts(engine.settled_stats());
        let mut seen = vec![stats];
        for origin in ["JFK", "LGA", "EWR"] {
            let body = json!({
                "features": ["origin_traffic:departures_24h", "origin_traffic:delay_mean_1h", "origin_traffic:busiest_carriers_24h"],
                "entities": { "origin": [origin] },
                "as_of": "2013-01-17T12:00:00Z",
            });
            let (status, answer) =
                engine.post("/v1/features/online", "application/json", body.to_string().as_bytes());
            assert_eq!(status, 200, "{answer}");
            seen.push(answer["results"].clone());
        }
        engine.stop();
        answers.push(seen);
    }
    assert_eq!(answers[0], answers[1]);
}

#[test]
fn topics_that_would_lose_state_and_keys_in_wrong_places_are_named() {
    let broker = Broker::start();
    // Placed at random rather than by key: seen, counted, named.
    broker.create("payments", PARTITIONS);
    let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    let engine = place.start();
    let producer = broker.producer();
    let misplaced: Vec<(u32, Option<String>, String)> = records(0, PARTITIONS)
        .into_iter()
        .map(|(p, key, value)| ((p + 1) % PARTITIONS, key, value))
        .collect();
    send(&producer, "payments", &misplaced);
    engine.settled_stats();
    let metrics = engine.metrics();
    let count =
        metrics.lines().find(|l| l.starts_with("thalweg_misplaced_records_total{")).expect("it is counted");
    assert!(!count.ends_with(" 0"), "{count}");
    assert_eq!(metrics.matches("# EOF").count(), 1);
    engine.stop();
    // A changelog that is not compacted, has other partitions than its input, or forgets deletions early.
    for (app, settings, wrong) in [
        ("a", "cleanup.policy=delete", "cleanup.policy"),
        ("b", "cleanup.policy=compact", "partitions"),
        ("c", "cleanup.policy=compact,delete.retention.ms=3600000", "delete.retention.ms=86400000"),
    ] {
        let partitions = if app == "b" { PARTITIONS + 1 } else { PARTITIONS };
        broker.create_with(&format!("{app}-payments-changelog"), partitions, settings);
        let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
        let config = std::fs::read_to_string(place.config())
            .expect("readable")
            .replace("app: test", &format!("app: {app}"));
        std::fs::write(place.config(), config).expect("writable");
        let log = place.refusal();
        assert!(log.contains(wrong) && log.contains("-payments-changelog"), "{log}");
    }
}

/// Keys go to other partitions then than those that have their state.
#[test]
fn partitions_that_are_added_end_what_reads_the_topic() {
    let broker = Broker::start();
    let quick = format!("checkpoint_interval: 300ms\n{}", broker.log(PARTITIONS));
    let place = Place::new(DEFINITIONS, &quick);
    let engine = place.start();
    send(&broker.producer(), "payments", &records(0, PARTITIONS));
    engine.settled_stats();
    broker.widen("payments", PARTITIONS + 1);
    await_failure(&engine, "payments", "topic `payments` had 3 partitions and has 4");
    let body = json!({ "features": ["by_user:count_all"], "entities": { "user_id": ["u1"] } });
    let answer = engine.lookup(&body);
    assert_eq!(answer["results"][1]["statuses"], json!(["DEGRADED"]), "{answer}");
    engine.stop();
    let log = place.refusal();
    assert!(log.contains("partitions"), "{log}");
}

/// What is read on is of another log, and once it is committed nothing of the records tells so.
#[test]
fn a_topic_that_is_made_anew_beside_a_running_engine_ends_what_reads_it() {
    let broker = Broker::start();
    let quick = format!("checkpoint_interval: 300ms\n{}", broker.log(PARTITIONS));
    let place = Place::new(DEFINITIONS, &quick);
    let engine = place.start();
    send(&broker.producer(), "payments", &records(0, PARTITIONS));
    engine.settled_stats();
    broker.delete("payments");
    broker.create("payments", PARTITIONS);
    let producer = broker.producer();
    for number in 1..4 {
        send(&producer, "payments", &records(number, PARTITIONS));
    }
    await_failure(&engine, "payments", "topic `payments` was deleted and made anew");
    engine.stop();
    let log = place.refusal();
    assert!(log.contains("topic `payments` was deleted and made anew"), "{log}");
}

/// Waits until all tasks of `topic` have failed, for this reason.
fn await_failure(engine: &Engine, topic: &str, reason: &str) {
    until(|| {
        let (status, health) = engine.get("/v1/health");
        let partitions = health["partitions"].as_array().expect("partitions");
        let of_topic = partitions.iter().filter(|p| p["topic"] == topic);
        let is_said = |p: &Json| {
            p["state"] == "failed" && p["failure"].as_str().is_some_and(|why| why.contains(reason))
        };
        let is_so = status == 503 && of_topic.clone().count() > 0 && of_topic.clone().all(is_said);
        if is_so { Ok(()) } else { Err(format!("{status} {health}")) }
    });
}

#[test]
fn a_topic_that_was_made_anew_is_refused() {
    let broker = Broker::start();
    let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    let engine = place.start();
    let producer = broker.producer();
    send(&producer, "payments", &records(0, PARTITIONS));
    engine.settled_stats();
    engine.stop();
    broker.delete("payments");
    broker.create("payments", PARTITIONS);
    // As many records and more, so that no offset is missing.
    let producer = broker.producer();
    for number in 1..4 {
        send(&producer, "payments", &records(number, PARTITIONS));
    }
    let log = place.refusal();
    assert!(log.contains("topic `payments` was deleted and made anew"), "{log}");
}

/// Has every store under `state` say that one more was committed, and forget all units.
fn put_ahead(state: &Path) {
    change_stores(state, |barrier| {
        barrier["sequence"] = json!(barrier["sequence"].as_u64().expect("a number") + 1);
    });
}

/// Has every store under `state` forget all units, and changes what it says of its last commit.
fn change_stores(state: &Path, change: impl Fn(&mut Json)) {
    let memory = SharedMemory::new(8 << 20, 1 << 20);
    for folder in std::fs::read_dir(state).expect("it is there") {
        let store = RocksStore::open(&folder.expect("readable").path(), &memory).expect("nobody holds it");
        let mut changes = Vec::new();
        store
            .scan(b"u", &mut |key, _| {
                changes.push((key.to_vec(), None));
                true
            })
            .expect("readable");
        let barrier = store.get(BARRIER_KEY).expect("readable").expect("a barrier record");
        let mut barrier: Json = serde_json::from_slice(&barrier).expect("JSON");
        change(&mut barrier);
        changes.push((BARRIER_KEY.to_vec(), Some(barrier.to_string().into_bytes())));
        store.write(&changes).and_then(|()| store.flush()).expect("writable");
    }
}

#[test]
fn a_store_that_contradicts_the_offsets_is_rebuilt_from_the_changelog() {
    let broker = Broker::start();
    let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    let engine = place.start();
    send(&broker.producer(), "payments", &records(0, PARTITIONS));
    engine.settled_stats();
    engine.stop();
    put_ahead(&place.folder.path().join("data/state"));
    let engine = place.start();
    assert_eq!(readings(&engine, 1), undisturbed(1).1);
    engine.stop();
}

#[test]
fn a_store_that_is_broken_or_of_another_app_is_rebuilt_from_the_changelog() {
    let broker = Broker::start();
    let before = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    let engine = before.start();
    send(&broker.producer(), "payments", &records(0, PARTITIONS));
    engine.settled_stats();
    engine.stop();
    let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    let config = std::fs::read_to_string(place.config()).expect("readable");
    std::fs::write(place.config(), config.replace("app: test", "app: other")).expect("writable");
    let engine = place.start();
    send(&broker.producer(), "payments", &records(1, PARTITIONS));
    engine.settled_stats();
    engine.stop();
    let state = place.folder.path().join("data/state");
    // Rows of the other application, which its own changelog would not bring back.
    let other = before.folder.path().join("data/state");
    change_stores(&other, |_| ());
    std::fs::remove_dir_all(&state).expect("it is there");
    copy(&other, &state);
    let engine = place.start();
    assert_eq!(readings(&engine, 2), undisturbed(2).1);
    engine.stop();
    for folder in std::fs::read_dir(&state).expect("it is there") {
        for file in std::fs::read_dir(folder.expect("readable").path()).expect("a folder") {
            let file = file.expect("readable").path();
            if file.file_name().is_some_and(|n| n.to_string_lossy().starts_with("MANIFEST")) {
                std::fs::write(file, b"torn").expect("writable");
            }
        }
    }
    let engine = place.start();
    assert_eq!(readings(&engine, 2), undisturbed(2).1);
    engine.stop();
}

/// A record that is just not too large goes aside with all its headers.
#[test]
fn the_largest_records_that_kafka_takes_go_aside_whole() {
    let broker = Broker::start();
    let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    broker.create_with("payments", PARTITIONS, "max.message.bytes=4000000");
    let engine = place.start();
    for bytes in [999_000, 3_000_000] {
        broker.send_large("payments", bytes);
    }
    send(&broker.producer(), "payments", &records(0, PARTITIONS));
    engine.settled_stats();
    let sizes: Vec<usize> =
        broker.read("test-dead-letters").iter().map(|m| m.payload().map_or(0, <[u8]>::len)).collect();
    assert!(sizes.contains(&999_000) && sizes.contains(&3_000_000), "{sizes:?}");
    engine.stop();
}

#[test]
fn a_record_that_a_topic_does_not_take_ends_its_own_task_alone() {
    let broker = Broker::start();
    broker.create_with("payments", PARTITIONS, "max.message.bytes=4000000");
    broker.create_with("test-dead-letters", PARTITIONS, "max.message.bytes=100000");
    // All in one commit.
    broker.send_large("payments", 500_000);
    send(&broker.producer(), "payments", &records(0, PARTITIONS));
    let together = format!("workers: 1\ncommit_interval: 2s\n{}", broker.log(PARTITIONS));
    let place = Place::new(DEFINITIONS, &together);
    let engine = place.start();
    let is_settled = |p: &&Json| p["lag"] == 0 && p["applied"] == p["committed"];
    until(|| {
        let (_, health) = engine.get("/v1/health");
        let partitions = health["partitions"].as_array().expect("partitions");
        let (failed, others): (Vec<&Json>, Vec<&Json>) =
            partitions.iter().partition(|p| p["state"] == "failed");
        if failed.len() == 1 && others.len() as u32 == 2 * PARTITIONS - 1 && others.iter().all(is_settled) {
            let why = failed[0]["failure"].as_str().unwrap_or_default();
            assert!(why.contains("test-dead-letters") && why.contains("max.message.bytes"), "{why}");
            Ok(())
        } else {
            Err(health.to_string())
        }
    });
    engine.stop();
}

/// Every value and status of groups of `DEFINITIONS` at times around `now` is the oracle's.
fn compare(engine: &Engine, oracle: &Oracle, now: i64) {
    let groups =
        [("by_user", "user_id", ["count_all", "distinct_1h"]), ("by_shop", "shop", ["sum_1h", "max_1d"])];
    for (group, join_key, features) in groups {
        for key in oracle.entities(group) {
            for now in [now, now - 900_000, now - 3_600_000] {
                let body = json!({
                    "features": features.map(|f| format!("{group}:{f}")),
                    "entities": { join_key: [key[0].to_json()] }, "as_of": text_of(now),
                });
                let body = body.to_string();
                let (status, answer) =
                    engine.post("/v1/features/online", "application/json", body.as_bytes());
                assert_eq!(status, 200, "{answer}");
                for (i, feature) in features.into_iter().enumerate() {
                    let wanted = oracle.lookup(group, feature, &key, now);
                    let found = &answer["results"][i + 1];
                    let value = found["values"][0].as_i64().map_or(Value::Null, Value::Int);
                    assert!(
                        is_equal(&wanted.value, &value, wanted.scale)
                            && found["statuses"][0] == wanted.status,
                        "{feature} of {key:?} at {now}: {found}, and by the oracle {wanted:?}"
                    );
                }
            }
        }
    }
}

/// Most topics are older than their retention: what was there before is not known, and is said so.
#[test]
fn windows_that_reach_behind_the_start_of_a_topic_are_warming() {
    let (broker, batches) = (Broker::start(), 60);
    broker.create("payments", PARTITIONS);
    let producer = broker.producer();
    let cut: [i64; 3] = [900, 0, 300];
    let mut oracle =
        Oracle::new(&DefinitionFiles::of_text(DEFINITIONS).definitions, PARTITIONS).expect("one");
    let mut next = [0; PARTITIONS as usize];
    for number in 0..batches {
        let records = records(number, PARTITIONS);
        send(&producer, "payments", &records);
        for (partition, _, value) in records {
            let offset = next[partition as usize];
            next[partition as usize] += 1;
            if offset >= cut[partition as usize] {
                oracle.push(&OracleRecord {
                    topic: "payments".to_owned(),
                    partition,
                    offset: offset as u64,
                    timestamp: i64::MAX,
                    key: None,
                    value: Some(value.into_bytes()),
                });
            }
        }
    }
    broker.cut("payments", &cut);
    for partition in [0, 2] {
        oracle.cut("payments", partition);
    }
    let quick = format!("checkpoint_interval: 300ms\n{}", broker.log(PARTITIONS));
    let place = Place::new(DEFINITIONS, &quick);
    let now = START_MS + (batches * BATCH) as i64 * 500;
    for is_disk_kept in [true, true, false] {
        let engine = place.start();
        engine.settled_stats();
        compare(&engine, &oracle, now);
        engine.kill();
        if !is_disk_kept {
            std::fs::remove_dir_all(place.folder.path().join("data/state")).expect("it is there");
        }
    }
    let engine = place.start();
    compare(&engine, &oracle, now);
    let (_, health) = engine.get("/v1/health");
    let known = |task: &str| {
        let tasks = health["partitions"].as_array().expect("partitions");
        tasks.iter().find(|t| t["task"] == task).expect("it is here")["covered_from"].is_null()
    };
    assert_eq!(["payments/0", "payments/1", "payments/2"].map(known), [false, true, false], "{health}");
    engine.stop();
}

/// A worker that cannot keep up with the retention of its source must not look as if it were idle.
#[test]
fn records_that_are_removed_before_they_are_read_are_named() {
    let broker = Broker::start();
    // One batch of a partition at a time.
    let few = "heartbeat.interval.ms: 500, max.partition.fetch.bytes: 1000";
    let log = broker.log(PARTITIONS).replace("heartbeat.interval.ms: 500", few);
    let place = Place::new(DEFINITIONS, &log);
    let engine = place.start();
    let producer = broker.producer();
    send(&producer, "payments", &records(0, PARTITIONS));
    engine.settled_stats();
    signal(engine.id(), "-STOP");
    for number in 1..8 {
        send(&producer, "payments", &records(number, PARTITIONS));
    }
    let all: Vec<_> = (0..8).flat_map(|number| records(number, PARTITIONS)).collect();
    let ends = [0, 1, 2].map(|p| all.iter().filter(|r| r.0 == p).count() as i64);
    broker.cut("payments", &ends);
    signal(engine.id(), "-CONT");
    until(|| {
        let (_, health) = engine.get("/v1/health");
        let tasks = health["partitions"].as_array().cloned().unwrap_or_default();
        let why = tasks.iter().filter_map(|t| t["failure"].as_str()).next();
        let is_named = why.is_some_and(|why| why.contains("is to be read next"));
        if is_named { Ok(()) } else { Err(format!("{health}")) }
    });
    engine.kill();
}

/// A producer upstream may keep a transaction open for minutes. Who starts meanwhile does not wait.
#[test]
fn a_restart_does_not_wait_for_an_open_transaction_upstream() {
    let broker = Broker::start();
    let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    let engine = place.start();
    send(&broker.producer(), "payments", &records(0, PARTITIONS));
    let before = engine.settled_stats();
    engine.stop();
    let upstream = broker.transactional("upstream");
    upstream.begin_transaction().expect("begun");
    let more = records(1, PARTITIONS);
    send(&upstream, "payments", &more);
    let begun = Instant::now();
    let engine = place.start();
    assert!(begun.elapsed() < Duration::from_secs(20), "ready after {:?}", begun.elapsed());
    upstream.commit_transaction(Duration::from_secs(30)).expect("committed");
    let read = |stats: &Json| stats["sources"]["payments"]["read"].as_u64().expect("a count");
    until(|| {
        let (_, stats) = engine.get("/v1/stats");
        let is_read = read(&stats) == read(&before) + more.len() as u64;
        if is_read { Ok(()) } else { Err(format!("{stats}")) }
    });
    engine.stop();
}

#[test]
fn a_stop_does_not_wait_for_brokers_that_are_away() {
    let (wanted_counts, wanted) = undisturbed(4);
    let broker = Broker::start();
    let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    let engine = place.start();
    let producer = broker.producer();
    (0..2).for_each(|number| send(&producer, "payments", &records(number, PARTITIONS)));
    engine.settled_stats();
    (2..4).for_each(|number| send(&producer, "payments", &records(number, PARTITIONS)));
    broker.signal(0, "-STOP");
    // Checks that it takes less than 10 s.
    engine.stop();
    broker.signal(0, "-CONT");
    let engine = place.start();
    assert_eq!(counts(engine.settled_stats()), wanted_counts);
    assert_eq!(readings(&engine, 4), wanted);
    // A second signal ends it at once, with all that it still has to do.
    send(&producer, "payments", &records(4, PARTITIONS));
    broker.signal(0, "-STOP");
    let asked = Instant::now();
    assert_eq!(engine.stop_impatiently(), Some(130));
    assert!(asked.elapsed() < Duration::from_secs(2), "took {:?} to stop", asked.elapsed());
    broker.signal(0, "-CONT");
    let engine = place.start();
    assert_eq!(counts(engine.settled_stats()), undisturbed(5).0);
    engine.stop();
}
