//! Events that cannot be used: each ends in exactly one way, with the right reason.

use serde_json::{Value as Json, json};

use crate::harness::{Place, get};

const DEFINITIONS: &str = "
entities: { user: { key: user_id, type: string } }
sources:
  payments:
    key: user_id
    event_time: { path: at, format: rfc3339 }
    grace: 1h
    late: dead_letter
    max_event_bytes: 2KiB
    fields:
      user_id: { type: string, nullable: true }
      amount: { type: float64 }
      count: { type: int64, nullable: true }
      note: { type: string, nullable: true, max_bytes: 10 }
    validate: ['amount >= 0.0']
feature_groups:
  by_user:
    entity: user
    source: payments
    where: 'amount != 13.0'
    history: 10000d
    features: { n: { aggregate: count, window: lifetime } }
";

fn good(at: &str, rest: &str) -> Vec<u8> {
    format!("{{\"at\":\"{at}\",\"user_id\":\"u\",\"amount\":1.5{rest}}}").into_bytes()
}

#[test]
fn every_event_ends_in_one_way_with_its_reason() {
    let place = Place::new(DEFINITIONS, "log: { embedded: { partitions: 1 } }");
    let engine = place.start();
    let noon = "2026-01-01T12:00:00Z";
    let deep = format!(",\"x\":{}1{}", "[".repeat(64), "]".repeat(64));
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (good(noon, ""), "applied"),
        (good("2026-01-01T11:00:00Z", ""), "applied"),
        (good("2026-01-01T10:59:59.999Z", ""), "late"),
        (good("2999-01-01T00:00:00Z", ""), "ahead"),
        (good("-2026-01-01T00:00:00Z", ""), "wrong_type"),
        (good("2026-01-01T12:00:00", ""), "wrong_type"),
        (good(noon, ",\"unknown\":{\"deep\":[1,2]}"), "applied"),
        (good(noon, ",\"amount\":-1"), "rule"),
        (good(noon, ",\"amount\":13"), "filtered"),
        (good(noon, ",\"user_id\":null"), "no_entity"),
        (good(noon, ",\"amount\":null"), "missing_field"),
        (good(noon, ",\"amount\":\"1\""), "wrong_type"),
        (good(noon, ",\"amount\":1e999"), "wrong_type"),
        (good(noon, ",\"amount\":NaN"), "malformed"),
        (good(noon, ",\"count\":1.5"), "wrong_type"),
        (good(noon, ",\"count\":5.0"), "applied"),
        (good(noon, ",\"note\":\"12345678901\""), "wrong_type"),
        (good(noon, ",\"note\":\"\\ud800\""), "malformed"),
        (good(noon, &deep), "malformed"),
        (good(noon, &format!(",\"pad\":\"{}\"", "x".repeat(3000))), "too_large"),
        (b"{\"amount\":1.5}".to_vec(), "missing_field"),
        (b"[1]".to_vec(), "malformed"),
        (b"{".to_vec(), "malformed"),
        (b"\xff\xfe\x00garbage".to_vec(), "malformed"),
        (vec![0_u8, 159, 146, 150], "malformed"),
        (good(noon, "} {"), "malformed"),
    ];
    let mut body = Vec::new();
    for (event, _) in &cases {
        body.extend(event);
        body.push(b'\n');
    }
    let (status, answer) = engine.post("/v1/events/payments", "application/x-ndjson", &body);
    assert_eq!((status, &answer["appended"]), (200, &json!(cases.len())));
    let stats = engine.settled_stats();
    let source = &stats["sources"]["payments"];
    let group = &stats["groups"]["by_user"];
    let expected = |outcome: &str| cases.iter().filter(|(_, o)| *o == outcome).count() as u64;
    for reason in ["too_large", "malformed", "missing_field", "wrong_type", "ahead", "rule"] {
        assert_eq!(source["dead_lettered"][reason], expected(reason), "{reason}: {stats}");
    }
    assert_eq!(source["late"], expected("late"));
    for outcome in ["no_entity", "filtered", "applied"] {
        assert_eq!(group[outcome], expected(outcome), "{outcome}: {stats}");
    }
    let n = |json: &Json| json.as_u64().expect("a count");
    let dead: u64 = source["dead_lettered"].as_object().expect("reasons").values().map(n).sum();
    assert_eq!(
        n(&source["read"]),
        n(&source["ignored"]) + dead + n(&source["late"]) + n(&source["accepted"])
    );
    let groups: u64 = ["no_entity", "filtered", "duplicate", "applied"].iter().map(|o| n(&group[*o])).sum();
    assert_eq!(n(&source["accepted"]), groups);

    // The dead letters hold the originals and say why.
    let (_, letters) = get(&format!("{}/v1/inspect/log/test-dead-letters/0/0/1000", engine.operate));
    let letters = letters.as_array().expect("records");
    assert_eq!(letters.len() as u64, dead + expected("late"));
    for letter in letters {
        let header = |name: &str| {
            let headers = letter["headers"].as_array().expect("headers");
            headers.iter().find(|h| h[0] == name).map(|h| h[1].as_str().expect("text").to_owned())
        };
        let offset: usize = header("__connect.errors.offset").expect("offset").parse().expect("a number");
        let (event, outcome) = &cases[offset];
        assert_eq!(header("thalweg.reason").as_deref(), Some(*outcome));
        assert_eq!(letter["value"], String::from_utf8_lossy(event).as_ref());
        assert_eq!(header("__connect.errors.topic").as_deref(), Some("payments"));
        assert_eq!(header("thalweg.source").as_deref(), Some("payments"));
        assert!(!header("thalweg.detail").expect("detail").is_empty());
    }
    engine.stop();
}

#[test]
fn a_flood_of_garbage_stalls_nothing() {
    let place = Place::new(DEFINITIONS, "");
    let engine = place.start();
    let mut state = 1_u64;
    let mut body = Vec::new();
    for _ in 0..2000 {
        for _ in 0..(state >> 33) % 200 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let byte = (state >> 40) as u8;
            body.push(if byte == b'\n' { b'x' } else { byte });
        }
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        body.extend(b"!\n");
    }
    let (status, answer) = engine.post("/v1/events/payments", "application/x-ndjson", &body);
    assert_eq!((status, &answer["appended"]), (200, &json!(2000)));
    let huge = [b"{\"x\":\"".to_vec(), vec![b'y'; 10 << 20], b"\"}".to_vec()].concat();
    assert_eq!(engine.post("/v1/events/payments", "application/x-ndjson", &huge).0, 200);
    let positions =
        engine.append("payments", std::str::from_utf8(&good("2026-01-01T12:00:00Z", "")).expect("text"));
    let values = engine.values(&["by_user:n"], json!({"user_id": ["u"]}), "2026-01-01T12:00:00Z", &positions);
    assert_eq!(values["n"], json!([1, "PRESENT"]));
    let stats = engine.settled_stats();
    assert_eq!(stats["sources"]["payments"]["dead_lettered"]["malformed"], 2000, "{stats}");
    assert_eq!(stats["sources"]["payments"]["dead_lettered"]["too_large"], 1);
    engine.stop();
}
