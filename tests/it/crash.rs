//! kill -9 at random moments: every acknowledged append is there once, and values are those of an
//! undisturbed run.

use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::harness::{Engine, Place, signal};

pub const DEFINITIONS: &str = "
entities:
  user: { key: user_id, type: string }
  shop: { key: shop, type: string }
sources:
  payments:
    key: user_id
    event_time: { path: at, format: unix_ms }
    event_id: id
    fields: { user_id: { type: string }, shop: { type: string }, amount: { type: int64 } }
feature_groups:
  by_user:
    entity: user
    source: payments
    history: 30d
    features:
      count_all: { aggregate: count, window: lifetime }
      sum_all: { aggregate: sum, of: amount, window: lifetime }
      distinct_1h: { aggregate: distinct, of: amount, window: 1h }
      last_5: { aggregate: last_k, k: 5, of: amount, window: 1d }
  by_shop:
    entity: shop
    source: payments
    history: 30d
    features:
      count_all: { aggregate: count, window: lifetime }
      sum_1h: { aggregate: sum, of: amount, window: 1h }
      max_1d: { aggregate: max, of: amount, window: 1d }
";

/// Short intervals, so that kills meet commits and checkpoints.
const QUICK: &str = "checkpoint_interval: 300ms\ncommit_interval: 20ms\nlog: { embedded: { partitions: 3 } }";

pub const START_MS: i64 = 1_767_268_800_000;
const USERS: u64 = 40;
const SHOPS: u64 = 7;
pub const BATCH: u64 = 200;

pub fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x1234_5678);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 27)
}

pub fn batch(number: u64) -> String {
    let mut lines = String::new();
    for i in number * BATCH..(number + 1) * BATCH {
        let r = random(i);
        // A few events come twice, a few are unreadable.
        let i = if r % 50 == 0 && i > 0 { i - 1 } else { i };
        let r = random(i);
        if r % 97 == 0 {
            lines.push_str("{\"broken\":\n");
            continue;
        }
        let at = START_MS + i as i64 * 500 - (r % 60_000) as i64;
        let event = json!({
            "id": format!("e{i}"), "at": at,
            "user_id": format!("u{}", r % USERS), "shop": format!("s{}", r / 64 % SHOPS),
            "amount": (r / 1024 % 1000) as i64,
        });
        lines.push_str(&event.to_string());
        lines.push('\n');
    }
    lines
}

/// Everything that can be read at the end, at a fixed time.
pub fn readings(engine: &Engine, batches: u64) -> Vec<Json> {
    let as_of = START_MS + (batches * BATCH) as i64 * 500;
    let as_of = text_of(as_of);
    let none = json!({});
    let mut all = Vec::new();
    for user in 0..USERS {
        let features = ["by_user:count_all", "by_user:sum_all", "by_user:distinct_1h", "by_user:last_5"];
        all.push(engine.values(&features, json!({"user_id": [format!("u{user}")]}), &as_of, &none));
    }
    for shop in 0..SHOPS {
        let features = ["by_shop:count_all", "by_shop:sum_1h", "by_shop:max_1d"];
        all.push(engine.values(&features, json!({"shop": [format!("s{shop}")]}), &as_of, &none));
    }
    all
}

pub fn text_of(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).expect("in range").to_string()
}

/// Counts that belong to the log: all but the physical ones.
pub fn counts(mut stats: Json) -> Json {
    for group in stats["groups"].as_object_mut().expect("groups").values_mut() {
        for physical in ["entities", "rows", "bytes"] {
            group.as_object_mut().expect("counts").remove(physical);
        }
    }
    stats
}

#[test]
fn kills_lose_and_double_nothing() {
    let cycles: u64 = std::env::var("THALWEG_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let batches = cycles * 6;
    let calm = Place::new(DEFINITIONS, QUICK);
    let engine = calm.start();
    for number in 0..batches {
        engine.append("payments", &batch(number));
    }
    let wanted_counts = counts(engine.settled_stats());
    let wanted = readings(&engine, batches);
    engine.stop();

    let place = Place::new(DEFINITIONS, QUICK);
    let mut engine = place.start();
    let mut acknowledged = 0;
    for cycle in 0..cycles {
        let until = (cycle + 1) * 6;
        // The kill comes from beside, at a moment that the appends do not choose.
        let wait = Duration::from_micros(random(cycle + 77) % 150_000);
        std::thread::scope(|scope| {
            let engine = &engine;
            let appends = scope.spawn(move || {
                let mut number = acknowledged;
                while number < until {
                    let lines = batch(number);
                    let kind = "application/x-ndjson";
                    match engine.try_post("/v1/events/payments", kind, lines.as_bytes()) {
                        Some((200, _)) => number += 1,
                        _ => break,
                    }
                }
                number
            });
            std::thread::sleep(wait);
            kill_by_id(engine);
            acknowledged = appends.join().expect("it does not panic");
        });
        engine.kill();
        engine = place.start();
        // An append whose answer was cut off may or may not be there; which it is shows in the
        // log, whose batches are whole.
        let appended: u64 = engine.settled_stats()["sources"]["payments"]["read"].as_u64().expect("a count");
        let whole = appended / BATCH;
        assert_eq!(appended % BATCH, 0, "cycle {cycle}: a batch is there in part");
        assert!(
            whole == acknowledged || whole == acknowledged + 1,
            "cycle {cycle}: {whole} of {acknowledged}"
        );
        acknowledged = whole;
    }
    for number in acknowledged..batches {
        engine.append("payments", &batch(number));
    }
    assert_eq!(counts(engine.settled_stats()), wanted_counts);
    let found = readings(&engine, batches);
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found, wanted);
    }
    engine.stop();
    // Once more from a clean stop: nothing is redone, nothing is lost.
    let engine = place.start();
    assert_eq!(readings(&engine, batches), wanted);
    assert_eq!(counts(engine.settled_stats()), wanted_counts);
    engine.stop();
}

pub fn kill_by_id(engine: &Engine) {
    signal(engine.id(), "-KILL");
}

#[test]
fn what_was_acknowledged_is_in_the_first_answers_after_a_kill() {
    let slow = "commit_interval: 1500ms\nlog: { embedded: { partitions: 3 } }";
    let calm = Place::new(DEFINITIONS, slow);
    let engine = calm.start();
    (0..6).for_each(|number| drop(engine.append("payments", &batch(number))));
    engine.settled_stats();
    let wanted = readings(&engine, 6);
    engine.stop();

    let place = Place::new(DEFINITIONS, slow);
    let engine = place.start();
    (0..6).for_each(|number| drop(engine.append("payments", &batch(number))));
    engine.kill();
    // Shops are behind a repartition topic, which follows a commit later.
    let engine = place.start();
    assert_eq!(readings(&engine, 6), wanted);
    engine.stop();
}
