//! The examples that the README shows.

use serde_json::{Value as Json, json};

use crate::harness::{Place, root, run};

fn example(name: &str) -> String {
    std::fs::read_to_string(root().join(format!("config/examples/{name}/features.yaml")))
        .expect("it is there")
}

#[test]
fn flights_answer_from_the_committed_slice() {
    let place = Place::new(&example("flights"), "");
    let engine = place.start();
    let slice = root().join("config/examples/flights/departures.csv");
    assert!(slice.metadata().expect("it is there").len() <= 1_000_000);
    let config = place.config();
    let (code, out, error) = run(
        &[
            "ingest",
            "--config",
            config.to_str().expect("UTF-8"),
            "--topic",
            "departures",
            slice.to_str().expect("UTF-8"),
        ],
        None,
    );
    assert_eq!(code, 0, "{error}");
    let appended: Json = serde_json::from_str(&out).expect("JSON");
    let rows = std::fs::read_to_string(&slice).expect("readable").lines().count() as u64 - 1;
    assert_eq!(appended["appended"], rows);
    let stats = engine.settled_stats();
    let source = &stats["sources"]["departures"];
    assert_eq!(source["read"], rows);
    assert!(source["late"].as_u64().expect("a count") > 0, "lateness is real");

    // One value by hand: JFK's departures that were scheduled in the 24 hours to noon of 15 January.
    let text = std::fs::read_to_string(&slice).expect("readable");
    let counted = text
        .lines()
        .skip(1)
        .map(|l| l.split(',').collect::<Vec<_>>())
        .filter(|c| c[1] == "JFK" && c[0] > "2013-01-14T12:00:00" && c[0] <= "2013-01-15T12:00:00")
        .count();
    let values = engine.values(
        &["origin_traffic:departures_24h"],
        json!({"origin": ["JFK"]}),
        "2013-01-15T12:00:00-05:00",
        &appended["positions"],
    );
    let found = values["departures_24h"][0].as_u64().expect("a count") as usize;
    // Late departures are not in the state; everything else is.
    let late = source["late"].as_u64().expect("a count") as usize;
    assert!(found <= counted && found + late >= counted, "{found} of {counted}");
    engine.stop();
}

#[test]
fn fraud_knows_its_seventeen_features() {
    let place = Place::new(&example("fraud"), "");
    let engine = place.start();
    let (code, events, _) =
        run(&["generate", "fraud", "--events", "20000", "--seed", "7", "--users", "50"], None);
    assert_eq!(code, 0);
    let (_, again, _) =
        run(&["generate", "fraud", "--events", "20000", "--seed", "7", "--users", "50"], None);
    assert_eq!(events, again, "one seed, one stream");
    let positions = engine.append("transaction-events", &events);
    let names = [
        "transaction_count_24h",
        "avg_transaction_amount_7d",
        "std_transaction_amount_7d",
        "transaction_velocity_1h",
        "unique_merchants_30d",
        "user_lifetime_value",
        "account_age_days",
        "kyc_verified",
        "typical_active_hours",
        "transaction_amount",
        "amount_zscore",
        "transaction_currency",
        "merchant_category",
        "is_online",
        "is_new_merchant",
        "merchant_category_frequency",
        "is_high_risk_time",
    ];
    let features: Vec<String> = names.iter().map(|n| format!("user_transactions:{n}")).collect();
    let body = json!({
        "features": features,
        "entities": {"user_id": ["u1"]},
        "request": {
            "amount": [500.0], "currency": ["EUR"], "merchant": ["never seen"],
            "merchant_category": ["travel"], "channel": ["online"], "timestamp": ["2026-01-01T03:00:00Z"],
        },
        "as_of": "2026-01-01T00:02:00Z",
        "min_positions": positions,
        "wait": "10s",
    });
    let (status, answer) =
        engine.post("/v1/features/online", "application/json", body.to_string().as_bytes());
    assert_eq!(status, 200, "{answer}");
    let value = |name: &str| {
        let at =
            answer["metadata"]["feature_names"].as_array().expect("names").iter().position(|n| n == name);
        answer["results"][at.expect("it was asked for")]["values"][0].clone()
    };
    assert_eq!(value("is_new_merchant"), true);
    assert_eq!(value("is_online"), true);
    assert_eq!(value("is_high_risk_time"), true);
    assert_eq!(value("transaction_amount"), 500.0);
    let mean = value("avg_transaction_amount_7d").as_f64().expect("a mean");
    let deviation = value("std_transaction_amount_7d").as_f64().expect("a deviation");
    let score = value("amount_zscore").as_f64().expect("a score");
    assert!((score - (500.0 - mean) / deviation).abs() < 1e-9);
    assert!(value("transaction_count_24h").as_u64().expect("a count") > 1000);
    for name in names {
        assert!(!value(name).is_null(), "{name} is null");
    }
    engine.stop();
}

#[test]
fn the_definition_in_the_readme_is_a_good_one() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("it is there");
    let (_, from) = readme.split_once("## How to define a feature").expect("a section");
    let (_, from) = from.split_once("```yaml\n").expect("a definition");
    let (text, _) = from.split_once("```").expect("its end");
    let place = Place::new(text, "");
    let path = place.folder.path().join("features.yaml");
    let (code, out, said) = run(&["check", path.to_str().expect("UTF-8")], None);
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(said.contains("user_transactions: events of"), "what it costs: {said}");
}
