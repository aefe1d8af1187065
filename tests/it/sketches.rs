//! An entity with more events than are read one by one.

use std::collections::{HashMap, HashSet};

use serde_json::json;

use crate::crash::{START_MS, random, text_of};
use crate::harness::Place;

const DEFINITIONS: &str = "
entities: { shop: { key: shop, type: string } }
sources:
  payments:
    key: shop
    event_time: { path: at, format: unix_ms }
    grace: 1h
    fields: { shop: { type: string }, user: { type: string }, city: { type: string }, amount: { type: float64 } }
feature_groups:
  by_shop:
    entity: shop
    source: payments
    features:
      users: { aggregate: distinct, of: user, window: 30d }
      users_few: { aggregate: distinct, of: user, window: 1h }
      users_exact: { aggregate: distinct, of: user, window: 30d, exact_limit: 1000000 }
      cities: { aggregate: value_counts, of: city, window: lifetime }
      p95: { aggregate: percentile, q: 0.95, of: amount, window: 30d }
    on_demand:
      users_per_city: { expr: 'double(users) / 7.0', type: float64 }
";
const EVENTS: u64 = 150_000;

#[test]
fn many_events_are_answered_approximately_and_alike_after_a_crash() {
    let place = Place::new(DEFINITIONS, "checkpoint_interval: 500ms\nlog: { embedded: { partitions: 1 } }");
    let engine = place.start();
    let mut positions = json!({});
    let (mut users, mut recent) = (HashSet::new(), HashSet::new());
    let (mut cities, mut amounts) = (HashMap::<String, u64>::new(), Vec::new());
    for chunk in 0..EVENTS / 10_000 {
        let mut lines = String::new();
        for i in chunk * 10_000..(chunk + 1) * 10_000 {
            let r = random(i);
            let (user, city, amount) =
                (r % 30_000, r / 30_000 % 7, (r / 1_000_000 % 1_000_000) as f64 / 1000.0);
            let event = json!({
                "shop": "big", "at": START_MS + i as i64 * 100, "user": format!("u{user}"),
                "city": format!("c{city}"), "amount": amount,
            });
            lines.push_str(&format!("{event}\n"));
            users.insert(user);
            *cities.entry(format!("c{city}")).or_default() += 1;
            amounts.push(amount);
            if i >= EVENTS - 36_000 {
                recent.insert(user);
            }
        }
        positions = engine.append("payments", &lines);
    }
    let now = text_of(START_MS + (EVENTS as i64 - 1) * 100);
    let names = ["users", "users_few", "users_exact", "cities", "p95", "users_per_city"];
    let features = names.map(|name| format!("by_shop:{name}"));
    let features: Vec<&str> = features.iter().map(String::as_str).collect();
    let values = engine.values(&features, json!({ "shop": ["big"] }), &now, &positions);

    let (found, wanted) = (values["users"][0].as_f64().expect("a number"), users.len() as f64);
    assert!((found - wanted).abs() <= 0.03 * wanted, "{found} users, {wanted} wanted");
    assert_eq!(values["users"][1], "APPROXIMATE");
    assert_eq!(values["users_per_city"], json!([found / 7.0, "APPROXIMATE"]));
    assert_eq!(values["users_few"], json!([recent.len(), "PRESENT"]));
    assert_eq!(values["users_exact"], json!([users.len(), "PRESENT"]));
    assert_eq!(values["cities"], json!([cities, "PRESENT"]));
    amounts.sort_by(f64::total_cmp);
    let p95 = values["p95"][0].as_f64().expect("a number");
    let rank = amounts.partition_point(|x| *x < p95) as f64 / EVENTS as f64;
    assert!((rank - 0.95).abs() <= 0.01, "{p95} has rank {rank}");
    assert_eq!(values["p95"][1], "APPROXIMATE");

    engine.kill();
    let engine = place.start();
    let again = engine.values(&features, json!({ "shop": ["big"] }), &now, &positions);
    assert_eq!(again, values);
    engine.stop();
}
