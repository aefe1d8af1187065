//! Feature topics: what they hold is what a reader would have been told, once per event.

use std::collections::BTreeMap;

use rdkafka::message::Message;
use serde_json::{Value as Json, json};

use crate::broker::{Broker, send};
use crate::crash::{batch, kill_by_id, random};
use crate::harness::{Engine, Place, get};
use crate::kafka::records;

const PARTITIONS: u32 = 3;

fn definitions(emit: &str) -> String {
    crate::crash::DEFINITIONS
        .replace("    entity: user\n", &format!("    entity: user\n    emit: {emit}\n"))
        .replace("    entity: shop\n", &format!("    entity: shop\n    emit: {emit}\n"))
}

/// Records of a topic of the embedded log: key and value.
fn embedded(engine: &Engine, topic: &str) -> Vec<(String, String, Json)> {
    let mut all = Vec::new();
    for partition in 0..PARTITIONS {
        let (status, records) =
            get(&format!("{}/v1/inspect/log/{topic}/{partition}/0/100000", engine.operate));
        assert_eq!(status, 200, "{records}");
        for record in records.as_array().expect("a list") {
            let text = |key: &str| record[key].as_str().expect("text").to_owned();
            all.push((text("key"), text("timestamp"), serde_json::from_str(&text("value")).expect("JSON")));
        }
    }
    all
}

/// Every record is what a lookup at its time says now: for the newest record of each entity and time.
fn check(engine: &Engine, group: &str, key: &str, records: &[(String, String, Json)]) {
    let mut newest: BTreeMap<&str, &(String, String, Json)> = BTreeMap::new();
    for record in records {
        assert_eq!(record.2["as_of"], record.1.as_str(), "its time is its as_of");
        assert_eq!(record.2[key], record.0.as_str());
        newest.insert(&record.0, record);
    }
    for (entity, (_, as_of, value)) in newest {
        let features = value["features"].as_object().expect("features");
        let names: Vec<String> = features.keys().map(|f| format!("{group}:{f}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = engine.values(&names, json!({ key: [entity] }), as_of, &json!({}));
        for (name, wanted) in features {
            assert_eq!(found[name][0], *wanted, "{group}:{name} of {entity} at {as_of}");
        }
    }
}

/// The same of a topic on Kafka.
fn on_kafka(broker: &Broker, topic: &str) -> Vec<(String, String, Json)> {
    let record = |m: &rdkafka::message::OwnedMessage| {
        let key = String::from_utf8_lossy(m.key().expect("a key")).into_owned();
        let time = m.timestamp().to_millis().expect("a time");
        let time = jiff::Timestamp::from_millisecond(time).expect("in range").to_string();
        (key, time, serde_json::from_slice(m.payload().expect("a value")).expect("JSON"))
    };
    broker.read(topic).iter().map(record).collect()
}

#[test]
fn latest_features_are_those_of_a_lookup() {
    let more = format!("commit_interval: 20ms\nlog: {{ embedded: {{ partitions: {PARTITIONS} }} }}");
    let place = Place::new(&definitions("latest"), &more);
    let engine = place.start();
    for number in 0..10 {
        engine.append("payments", &batch(number));
    }
    check_latest(&engine, |topic| embedded(&engine, topic));
    engine.stop();

    let broker = Broker::start();
    let more = format!("commit_interval: 20ms\n{}", broker.log(PARTITIONS));
    let place = Place::new(&definitions("latest"), &more);
    let engine = place.start();
    let producer = broker.producer();
    for number in 0..10 {
        send(&producer, "payments", &records(number, PARTITIONS));
    }
    check_latest(&engine, |topic| on_kafka(&broker, topic));
    engine.stop();
}

/// The last record of every entity says what a lookup says.
fn check_latest(engine: &Engine, read: impl Fn(&str) -> Vec<(String, String, Json)>) {
    let stats = engine.settled_stats();
    for (group, key) in [("by_user", "user_id"), ("by_shop", "shop")] {
        let records = read(&format!("test-{group}-features"));
        check(engine, group, key, &records);
        let keys: std::collections::BTreeSet<&str> = records.iter().map(|r| r.0.as_str()).collect();
        assert_eq!(stats["groups"][group]["entities"], keys.len());
    }
}

/// An event that comes from a partition far behind the others is told as a reader would be: nothing is
/// known of its time any more.
#[test]
fn an_event_that_is_far_behind_its_entity_is_told_as_readers_are() {
    let definitions = "
entities: { item: { key: item, type: string } }
sources:
  events:
    key: user
    event_time: { path: at, format: unix_ms }
    fields: { user: { type: string }, item: { type: string }, x: { type: int64 } }
feature_groups:
  by_item:
    entity: item
    source: events
    emit: per_event
    features:
      total: { aggregate: sum, of: x, window: lifetime }
      hour: { aggregate: count, window: 1h }
";
    let place = Place::new(definitions, "commit_interval: 20ms\nlog: { embedded: { partitions: 3 } }");
    let engine = place.start();
    let (hour, start) = (3_600_000_i64, 1_767_268_800_000_i64);
    let event = |user: &str, hours: i64| {
        format!("{{\"user\":\"{user}\",\"at\":{},\"item\":\"i\",\"x\":1}}\n", start + hours * hour)
    };
    engine.append("events", &(0..300).map(|n| event("a", n * 6)).collect::<String>());
    engine.settled_stats();
    let before = embedded(&engine, "test-by_item-features").len();
    // Of all these users, some are in another partition.
    engine.append("events", &["b", "c", "d", "e", "f"].map(|user| event(user, -10)).concat());
    engine.settled_stats();
    let records = embedded(&engine, "test-by_item-features");
    let late: Vec<_> = records.iter().filter(|r| r.1.as_str() < "2026-01-01T12").collect();
    assert!(!late.is_empty() && records.len() > before);
    for (_, as_of, value) in late {
        let found =
            engine.values(&["by_item:total", "by_item:hour"], json!({"item": ["i"]}), as_of, &json!({}));
        assert_eq!(found["total"], json!([null, "OUT_OF_RANGE"]));
        assert_eq!(value["features"], json!({"total": null, "hour": null}), "{value}");
    }
    engine.stop();
}

#[test]
fn every_event_is_emitted_once_on_either_log() {
    let batches = 18;
    let quick = "checkpoint_interval: 300ms\ncommit_interval: 20ms";
    let calm = Place::new(
        &definitions("per_event"),
        &format!("{quick}\nlog: {{ embedded: {{ partitions: {PARTITIONS} }} }}"),
    );
    let engine = calm.start();
    for number in 0..batches {
        engine.append("payments", &batch(number));
    }
    let stats = engine.settled_stats();
    let wanted = embedded(&engine, "test-by_user-features");
    assert_eq!(stats["groups"]["by_user"]["applied"], wanted.len());
    let shops = embedded(&engine, "test-by_shop-features");
    assert_eq!(stats["groups"]["by_shop"]["applied"], shops.len());
    engine.stop();

    // On Kafka, killed again and again: the same records, in the same order by entity.
    let broker = Broker::start();
    let place = Place::new(&definitions("per_event"), &format!("{quick}\n{}", broker.log(PARTITIONS)));
    let mut engine = place.start();
    let producer = broker.producer();
    for number in 0..batches {
        send(&producer, "payments", &records(number, PARTITIONS));
        if number % 6 == 5 {
            std::thread::sleep(std::time::Duration::from_micros(random(number) % 300_000));
            kill_by_id(&engine);
            engine.kill();
            engine = place.start();
        }
    }
    assert_eq!(engine.settled_stats()["groups"]["by_user"]["applied"], wanted.len());
    engine.stop();
    let by_entity = |records: &[(String, String, Json)]| {
        let mut by: BTreeMap<String, Vec<Json>> = BTreeMap::new();
        for (key, _, value) in records {
            by.entry(key.clone()).or_default().push(value.clone());
        }
        by
    };
    let found = on_kafka(&broker, "test-by_user-features");
    for (_, time, value) in &found {
        assert_eq!(value["as_of"], time.as_str());
    }
    assert_eq!(by_entity(&found), by_entity(&wanted));
    assert_eq!(broker.read("test-by_shop-features").len(), shops.len());
}
