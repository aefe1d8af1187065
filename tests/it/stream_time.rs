//! Read times that the stream decides (SEMANTICS §1).

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use crate::harness::{Engine, Place};

const DEFINITIONS: &str = "
entities:
  user: { key: user_id, type: string }
  page: { key: page_id, type: string }
sources:
  clicks:
    key: user_id
    event_time: { path: at, format: unix_ms }
    fields:
      user_id: { type: string }
      page_id: { type: string }
feature_groups:
  by_user:
    { entity: user, source: clicks, now: stream, history: 1m, features: { n: { aggregate: count, window: 1h } } }
  by_page:
    { entity: page, source: clicks, now: stream, history: 1m, features: { n: { aggregate: count, window: 1h } } }
";

const EVENTS: u64 = 100;

/// Clicks of users on one page, all in this hour after the first.
fn clicks(hour: u64) -> String {
    let at = |i: u64| 1_700_000_000_000 + hour * 3_600_000 + i;
    let click = |i| json!({ "user_id": format!("u{}", i % 10), "page_id": "p", "at": at(i) }).to_string();
    (0..EVENTS).map(click).collect::<Vec<_>>().join("\n")
}

/// Read time, value and status of what waits for positions that are appended only when it has begun.
fn read_beside_an_append(engine: &Engine, feature: &str, key: &Json, hour: u64) -> (Json, Json) {
    let all = engine.append("clicks", &clicks(hour));
    let ahead = |(partition, next): (&String, &Json)| {
        // Of each partition as many come again.
        let before = next.as_u64().expect("an offset") / (hour + 1) * (hour + 2);
        (partition.clone(), Json::from(before))
    };
    let wanted: serde_json::Map<String, Json> =
        all["clicks"].as_object().expect("partitions").iter().map(ahead).collect();
    let body = json!({
        "features": [feature], "entities": key, "min_positions": { "clicks": wanted }, "wait": "30s",
    });
    let body = body.to_string();
    std::thread::scope(|scope| {
        let read = scope.spawn(|| engine.post("/v1/features/online", "application/json", body.as_bytes()));
        // One that has not begun by then decides later what it must decide late; what is right stays right.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(200) {
            std::thread::yield_now();
        }
        engine.append("clicks", &clicks(hour + 1));
        let (status, answer) = read.join().expect("no panic");
        assert_eq!(status, 200, "{answer}");
        let cell = &answer["results"][1];
        (answer["metadata"]["as_of"].clone(), json!([cell["values"][0], cell["statuses"][0]]))
    })
}

#[test]
fn it_is_decided_once_the_demanded_positions_are_there() {
    let place = Place::new(DEFINITIONS, "log: { embedded: { partitions: 3 } }");
    let engine = place.start();
    let direct = read_beside_an_append(&engine, "by_user:n", &json!({ "user_id": ["u1"] }), 0);
    let (as_of, cell) = direct;
    assert_eq!(as_of, json!({ "by_user": "2023-11-14T23:13:20.099Z" }), "{cell}");
    assert_eq!(cell, json!([10, "PRESENT"]));
    let behind = read_beside_an_append(&engine, "by_page:n", &json!({ "page_id": ["p"] }), 2);
    let (as_of, cell) = behind;
    assert_eq!(as_of, json!({ "by_page": "2023-11-15T01:13:20.099Z" }), "{cell}");
    assert_eq!(cell, json!([100, "PRESENT"]));
    engine.stop();
}
