//! What leaves: idle entities, old events, cut logs. And what is refused: other definitions.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::{Place, get, signal, until};

const DEFINITIONS: &str = "
entities: { user: { key: user_id, type: string } }
sources:
  clicks:
    key: user_id
    event_time: { path: at, format: unix_ms }
    fields: { user_id: { type: string }, n: { type: int64 } }
feature_groups:
  by_user:
    entity: user
    source: clicks
    features:
      n_1h: { aggregate: sum, of: n, window: 1h }
";

const START_MS: i64 = 1_767_268_800_000;
const DAY_MS: i64 = 86_400_000;

fn clicks(users: std::ops::Range<u32>, at: i64) -> String {
    users.map(|u| format!("{{\"at\":{at},\"user_id\":\"u{u}\",\"n\":1}}\n")).collect()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    until(|| is_so().then_some(()).ok_or_else(|| what.to_owned()));
}

#[test]
fn idle_entities_leave_the_state_as_event_time_advances() {
    let place = Place::new(
        DEFINITIONS,
        "checkpoint_interval: 200ms\ncommit_interval: 20ms\nlog: { embedded: { partitions: 2 } }",
    );
    let engine = place.start();
    engine.append("clicks", &clicks(0..500, START_MS));
    assert_eq!(engine.settled_stats()["groups"]["by_user"]["entities"], 500);
    // A day later only those that come again are of any use.
    let positions = engine.append("clicks", &clicks(0..50, START_MS + DAY_MS));
    eventually("450 idle entities are still there", || {
        engine.get("/v1/stats").1["groups"]["by_user"]["entities"] == 50
    });
    let values =
        engine.values(&["by_user:n_1h"], json!({"user_id": ["u7"]}), "2026-01-02T12:30:00Z", &positions);
    assert_eq!(values["n_1h"], json!([1, "PRESENT"]));
    engine.stop();
    let engine = place.start();
    let (_, keys) = get(&format!("{}/v1/inspect/keys/by_user?limit=1000", engine.operate));
    assert_eq!(keys.as_array().expect("keys").len(), 50);
    engine.stop();
}

/// Behind a repartition topic as well, and a partition that has sent nothing but dead letters holds
/// nobody's entities.
#[test]
fn idle_entities_leave_although_another_partition_has_accepted_nothing() {
    let definitions = DEFINITIONS
        .replace(
            "{ user: { key: user_id, type: string } }",
            "{ user: { key: user_id, type: string }, n: { key: n, type: int64 } }",
        )
        .replace("by_user:\n    entity: user", "by_n:\n    entity: n")
        .replace("n_1h: { aggregate: sum, of: n,", "n_1h: { aggregate: count,");
    let place = Place::new(
        &definitions,
        "checkpoint_interval: 200ms\ncommit_interval: 20ms\nlog: { embedded: { partitions: 2 } }",
    );
    let engine = place.start();
    // Of one user, and so of one partition.
    let lines = |range: std::ops::Range<u32>, at: i64| -> String {
        range.map(|n| format!("{{\"at\":{at},\"user_id\":\"u0\",\"n\":{n}}}\n")).collect()
    };
    engine.append("clicks", &lines(0..300, START_MS));
    let bad: String = (0..20).map(|u| format!("{{\"at\":\"bad\",\"user_id\":\"v{u}\",\"n\":1}}\n")).collect();
    engine.append("clicks", &bad);
    let stats = engine.settled_stats();
    assert_eq!(stats["groups"]["by_n"]["entities"], 300);
    assert_eq!(stats["sources"]["clicks"]["dead_lettered"]["wrong_type"], 20);
    engine.append("clicks", &lines(0..5, START_MS + DAY_MS));
    eventually("295 idle entities are still there", || {
        engine.get("/v1/stats").1["groups"]["by_n"]["entities"] == 5
    });
    engine.stop();
}

#[test]
fn old_events_leave_the_rows_of_a_busy_entity() {
    let place = Place::new(DEFINITIONS, "checkpoint_interval: 200ms\nlog: { embedded: { partitions: 1 } }");
    let engine = place.start();
    // Ten days, an event each minute: the window and the history hold two hours of it.
    let minutes = 10 * 24 * 60;
    let lines: String = (0..minutes)
        .map(|m| format!("{{\"at\":{},\"user_id\":\"u\",\"n\":1}}\n", START_MS + m * 60_000))
        .collect();
    engine.append("clicks", &lines);
    engine.settled_stats();
    let agent = ureq::Agent::new_with_defaults();
    let url = format!("{}/v1/inspect/key/by_user", engine.operate);
    let mut response = agent.post(&url).send_json(json!(["u"])).expect("an answer");
    let unit: serde_json::Value = response.body_mut().read_json().expect("JSON");
    let events = unit["events"].as_u64().expect("a count");
    assert!((120..400).contains(&events), "{events} events are kept");
    // One HEAD and pages of 64 events: what was counted is what is there.
    let rows =
        |engine: &crate::harness::Engine| engine.get("/v1/stats").1["groups"]["by_user"]["rows"].as_u64();
    eventually("rows are those that were handed over", || {
        rows(&engine).is_some_and(|n| (2..10).contains(&n))
    });
    engine.kill();
    let engine = place.start();
    engine.settled_stats();
    eventually("rows are counted once", || rows(&engine).is_some_and(|n| (2..10).contains(&n)));
    engine.stop();
}

#[test]
fn retention_cuts_the_log_but_nothing_that_a_restart_needs() {
    let more = "checkpoint_interval: 200ms\ncommit_interval: 20ms\nlog: { embedded: { partitions: 1, retention: { bytes: 256KiB } } }";
    let place = Place::new(DEFINITIONS, more);
    let engine = place.start();
    for hour in 0..100 {
        engine.append("clicks", &clicks(0..200, START_MS + hour * 60_000));
    }
    engine.settled_stats();
    let first = |engine: &crate::harness::Engine| {
        let (_, log) = get(&format!("{}/v1/inspect/log/clicks/0/0/1", engine.operate));
        log[0]["offset"].as_u64().expect("an offset")
    };
    eventually("the log is not cut", || first(&engine) > 0);
    // What nobody could read does not fill the disk either.
    engine.append("clicks", &format!("no event {}\n", "x".repeat(100)).repeat(8000));
    eventually("dead letters are kept for ever", || {
        let (_, log) = get(&format!("{}/v1/inspect/log/test-dead-letters/0/0/1", engine.operate));
        log[0]["offset"].as_u64().is_some_and(|first| first > 0)
    });
    let before = engine.settled_stats();
    engine.kill();
    let engine = place.start();
    assert!(first(&engine) > 0);
    let after = engine.settled_stats();
    for part in ["sources", "groups"] {
        for (name, counts) in before[part].as_object().expect("counts") {
            for key in ["read", "accepted", "applied"] {
                assert_eq!(after[part][name][key], counts[key], "{part} {name} {key}");
            }
        }
    }
    let values =
        engine.values(&["by_user:n_1h"], json!({"user_id": ["u7"]}), "2026-01-01T13:39:00Z", &json!({}));
    assert_eq!(values["n_1h"], json!([60, "PRESENT"]));
    engine.stop();
}

/// A full disk, or files that cannot be opened for a while: tasks end, and go on by themselves.
#[cfg(target_os = "linux")]
#[test]
fn too_many_open_files_are_survived() {
    let place = Place::new(DEFINITIONS, "checkpoint_interval: 200ms\nlog: { embedded: { partitions: 1 } }");
    let engine = place.start();
    // One connection for all requests: no other could be opened.
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .into();
    let append = |users: std::ops::Range<u32>| {
        let url = format!("{}/v1/events/clicks", engine.rest);
        let sent = agent.post(&url).header("content-type", "application/x-ndjson");
        let mut sent = sent.send(clicks(users, START_MS)).expect("an answer");
        // Else the connection is not free for the next.
        sent.body_mut().read_to_string().expect("text");
        sent.status().as_u16()
    };
    let is_running = || {
        let mut health = agent.get(format!("{}/v1/health", engine.rest)).call().expect("an answer");
        health.body_mut().read_to_string().expect("text").contains("\"state\":\"running\"")
    };
    assert_eq!(append(0..100), 200);
    let process = format!("/proc/{}", engine.id());
    let open = std::fs::read_dir(format!("{process}/fd")).expect("readable").count();
    let limit = |soft: &str| {
        let mut command = std::process::Command::new("prlimit");
        let set = command.args(["--pid", &engine.id().to_string(), &format!("--nofile={soft}:")]).status();
        assert!(set.expect("prlimit is there").success());
    };
    let limits = std::fs::read_to_string(format!("{process}/limits")).expect("readable");
    let before = limits.lines().find(|l| l.starts_with("Max open files")).expect("a line");
    let before = before.split_whitespace().nth(3).expect("a number").to_owned();
    limit(&open.saturating_sub(2).to_string());
    let mut user = 100;
    eventually("a task that cannot write goes on", || {
        append(user..user + 10);
        user += 10;
        !is_running()
    });
    let mut health = agent.get(format!("{}/v1/health", engine.rest)).call().expect("an answer");
    assert_eq!(health.status(), 503, "{:?}", health.body_mut().read_to_string());
    limit(&before);
    eventually("the task has not come back", || append(0..1) == 200 && is_running());
    let stats = engine.settled_stats();
    assert_eq!(stats["groups"]["by_user"]["applied"], stats["sources"]["clicks"]["accepted"]);
    assert!(stats["groups"]["by_user"]["entities"].as_u64() > Some(100));
    engine.stop();
}

/// The line that says so cannot be written yet: the engine is between being ready and waiting.
#[test]
fn a_signal_is_heard_at_any_moment() {
    let place = Place::new(DEFINITIONS, "");
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    // All that a pipe holds, as Linux and macOS make it.
    writer.write_all(&[b' '; 1 << 16]).expect("it fits");
    let mut child = place.command().stdout(writer).spawn().expect("it starts");
    eventually("it is not ready", || place.folder.path().join("data/endpoints.json").exists());
    signal(child.id(), "-TERM");
    // Time for the signal to be lost in.
    std::thread::sleep(Duration::from_millis(300));
    let mut said = Vec::new();
    let drained = std::thread::spawn(move || reader.read_to_end(&mut said).map(|_| said));
    let asked = Instant::now();
    while child.try_wait().expect("it is our child").is_none() && asked.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    // If it has not ended by itself, that is what its status says.
    let _ = child.kill();
    assert!(child.wait().expect("it has ended").success(), "the signal was lost");
    assert!(drained.join().expect("no panic").expect("readable").ends_with(b"}\n"));
}

#[test]
fn another_definition_of_stored_state_is_refused_with_the_remedy() {
    let place = Place::new(DEFINITIONS, "");
    let engine = place.start();
    engine.append("clicks", &clicks(0..5, START_MS));
    engine.settled_stats();
    engine.stop();
    let features = place.folder.path().join("features.yaml");
    let changed = DEFINITIONS.replace("window: 1h", "window: 2h");
    std::fs::write(&features, changed).expect("writable");
    let error = place.refusal();
    assert!(error.contains("by_user-v1") && error.contains("new data_dir"), "{error}");
    // What changes no stored row is no other definition.
    let renamed = DEFINITIONS.replace("n_1h:", "clicks_1h:");
    std::fs::write(&features, renamed).expect("writable");
    place.start().stop();
}
