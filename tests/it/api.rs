//! Routes, statuses and limits (SEMANTICS §8).

use serde_json::{Value as Json, json};

use crate::harness::{Place, get, inspect, run};

pub const DEFINITIONS: &str = "
entities:
  user: { key: user_id, type: string }
  shop: { key: [shop_id, city], type: [int64, string] }
request: { limit: { type: float64 } }
sources:
  payments:
    key: user_id
    event_time: { path: at, format: unix_ms }
    event_id: id
    fields:
      user_id: { type: string }
      shop_id: { type: int64, nullable: true }
      city: { type: string, nullable: true }
      amount: { type: float64 }
feature_groups:
  by_user:
    entity: user
    source: payments
    history: 1d
    features:
      payments_1h: { aggregate: count, window: 1h }
      spend_1h: { aggregate: sum, of: amount, window: 1h }
      last_amount: { aggregate: last, of: amount, window: lifetime, default: -1.0 }
      top: { aggregate: top_k, k: 2, of: amount, window: 1h }
    on_demand:
      is_over: { expr: 'by_user.spend_1h > request.limit', type: bool }
      per_shop: { expr: 'spend_1h / by_shop.payments_1h', type: float64, default: 0.0 }
  by_shop:
    entity: shop
    source: payments
    history: 1d
    features: { payments_1h: { aggregate: count, window: 1h } }
";

const NOON: &str = "2026-01-01T12:00:00Z";
pub const NOON_MS: i64 = 1_767_268_800_000;

pub fn event(id: u32, user: &str, shop: i64, minutes_before_noon: i64, amount: f64) -> String {
    let at = NOON_MS - minutes_before_noon * 60_000;
    json!({"id": format!("e{id}"), "at": at, "user_id": user, "shop_id": shop, "city": "X", "amount": amount})
        .to_string()
}

#[test]
fn answers_what_was_appended_directly_and_behind_a_repartition_topic() {
    let place = Place::new(DEFINITIONS, "");
    let engine = place.start();
    let lines: Vec<String> = vec![
        event(1, "ann", 7, 61, 1.0),
        event(2, "ann", 7, 60, 2.0),
        event(3, "ann", 7, 59, 4.0),
        event(4, "bob", 7, 5, 8.0),
        event(4, "bob", 7, 5, 8.0),
        event(5, "ann", 8, -5, 16.0),
    ];
    let positions = engine.append("payments", &lines.join("\n"));
    let features = ["by_user:payments_1h", "by_user:spend_1h", "by_user:last_amount"];
    let values = engine.values(&features, json!({"user_id": ["ann"]}), NOON, &positions);
    // An event exactly one hour old has left the window; one in the future is not yet in it.
    assert_eq!(values["payments_1h"], json!([1, "PRESENT"]));
    assert_eq!(values["spend_1h"], json!([4.0, "PRESENT"]));
    assert_eq!(values["last_amount"], json!([4.0, "PRESENT"]));
    let shop = json!({"shop_id": [7.0], "city": ["X"]});
    let values = engine.values(&["by_shop:payments_1h"], shop, NOON, &positions);
    assert_eq!(values["shop_id"], json!([7, "PRESENT"]), "an integer, however it was written");
    assert_eq!(values["payments_1h"], json!([2, "PRESENT"]), "the repeated id counts once");
    let stats = engine.settled_stats();
    assert_eq!(stats["sources"]["payments"]["accepted"], 6);
    assert_eq!(stats["groups"]["by_user"]["duplicate"], 1);
    assert_eq!(stats["groups"]["by_shop"]["duplicate"], 1);
    engine.stop();
}

fn online(body: Json) -> Vec<u8> {
    body.to_string().into_bytes()
}

#[test]
fn refuses_wrong_requests_with_a_status_and_a_sentence() {
    let place =
        Place::new(DEFINITIONS, "limits: { append_body: 64KiB, request_entities: 3, request_features: 4 }");
    let engine = place.start();
    let ann = json!({"user_id": ["ann"]});
    let feature = json!(["by_user:spend_1h"]);
    for (body, status, code, word) in [
        (json!({"features": feature, "entities": {}}), 400, "INVALID_ARGUMENT", "user_id"),
        (json!({"features": feature, "entities": {"user": ["a"]}}), 400, "INVALID_ARGUMENT", "user"),
        (json!({"features": ["by_user:spend"], "entities": ann}), 404, "NOT_FOUND", "spend_1h"),
        (json!({"features": ["byuser:spend_1h"], "entities": ann}), 404, "NOT_FOUND", "by_user"),
        (json!({"features": ["spend_1h"], "entities": ann}), 400, "INVALID_ARGUMENT", "group:feature"),
        (json!({"features": feature, "entities": {"user_id": [1]}}), 400, "INVALID_ARGUMENT", "user_id"),
        (json!({"features": feature, "entities": {"user_id": [null]}}), 400, "INVALID_ARGUMENT", "user_id"),
        (json!({"features": feature, "entities": ann, "x": 1}), 400, "INVALID_ARGUMENT", "x"),
        (json!({"features": feature, "entities": ann, "as_of": "noon"}), 400, "INVALID_ARGUMENT", "as_of"),
        (
            json!({"features": feature, "entities": ann, "as_of": [NOON, NOON]}),
            400,
            "INVALID_ARGUMENT",
            "as_of",
        ),
        (json!({"features": feature, "entities": ann, "wait": "31s"}), 400, "INVALID_ARGUMENT", "wait"),
        (json!({"features": feature, "entities": ann, "wait": "-1s"}), 400, "INVALID_ARGUMENT", "wait"),
        (
            json!({"features": feature, "entities": ann, "min_positions": {"nope": {"0": 1}}}),
            400,
            "INVALID_ARGUMENT",
            "nope",
        ),
        (
            json!({"features": feature, "entities": ann, "min_positions": {"payments": {"0": 99, "1": 99, "2": 99, "3": 99}}, "wait": "10ms"}),
            503,
            "NOT_YET_APPLIED",
            "positions",
        ),
        (json!({"features": ["by_user:is_over"], "entities": ann}), 400, "INVALID_ARGUMENT", "limit"),
        (
            json!({"features": ["by_user:is_over"], "entities": ann, "request": {"limit": ["x"]}}),
            400,
            "INVALID_ARGUMENT",
            "limit",
        ),
        (
            json!({"features": feature, "entities": ann, "request": {"limit": ["x"]}}),
            400,
            "INVALID_ARGUMENT",
            "limit",
        ),
        (json!({"features": ["by_user:per_shop"], "entities": ann}), 400, "INVALID_ARGUMENT", "shop_id"),
        (
            json!({"features": ["by_user:payments_1h", "by_shop:payments_1h"], "entities": {"user_id": ["a"], "shop_id": [1], "city": ["X"]}}),
            400,
            "INVALID_ARGUMENT",
            "payments_1h",
        ),
        (
            json!({"features": feature, "entities": {"user_id": ["a", "b", "c", "d"]}}),
            413,
            "TOO_LARGE",
            "entities",
        ),
        (json!({"features": vec!["by_user:spend_1h"; 5], "entities": ann}), 413, "TOO_LARGE", "features"),
        (json!([]), 400, "INVALID_ARGUMENT", "object"),
    ] {
        let (found, answer) = engine.post("/v1/features/online", "application/json", &online(body.clone()));
        assert_eq!(found, status, "{body} → {answer}");
        assert_eq!(answer["error"]["code"], code, "{body}");
        assert!(answer["error"].to_string().contains(word), "{body} → {answer}");
    }
    for (path, kind, body, status) in [
        ("/v1/events/payments", "application/json", "{}", 400),
        ("/v1/events/payments", "application/json", "[", 400),
        ("/v1/events/payment", "application/json", "[]", 404),
        ("/v1/events/payments", "text/csv", "a,b", 415),
        ("/v1/features/online", "application/json", "{", 400),
        ("/v1/nowhere", "application/json", "{}", 404),
        ("/v1/stats", "application/json", "{}", 405),
    ] {
        let (found, answer) = engine.post(path, kind, body.as_bytes());
        assert_eq!(found, status, "{path} {body} → {answer}");
        assert!(answer["error"]["message"].is_string(), "{answer}");
    }
    let large = format!("[\"{}\"]", "x".repeat(64 << 10));
    assert_eq!(engine.post("/v1/events/payments", "application/json", large.as_bytes()).0, 413);
    let heavy = ureq::get(format!("{}/v1/stats", engine.rest)).header("x-more", "x".repeat(17 << 10));
    let refused = heavy.config().http_status_as_error(false).build().call().expect("an answer");
    assert_eq!(refused.status(), 431);
    assert_eq!(engine.get("/v1/inspect/partitions").0, 404, "inspection is for operators only");
    assert_eq!(get(&format!("{}/v1/inspect/partitions", engine.operate)).0, 200);
    engine.stop();
}

#[test]
fn stores_elements_as_they_were_written_and_answers_positions() {
    let place = Place::new(DEFINITIONS, "log: { embedded: { partitions: 1 } }");
    let engine = place.start();
    let body = r#"[ {"at" : 1,  "x":1.50}, 5, "text" ]"#;
    let (status, answer) = engine.post("/v1/events/payments", "application/json", body.as_bytes());
    assert_eq!((status, &answer), (200, &json!({"appended": 3, "positions": {"payments": {"0": 3}}})));
    let (_, empty) = engine.post("/v1/events/payments", "application/json", b"[]");
    assert_eq!(empty, json!({"appended": 0, "positions": {}}));
    let (_, log) = get(&format!("{}/v1/inspect/log/payments/0/0/10", engine.operate));
    let values: Vec<&Json> = log.as_array().expect("records").iter().map(|r| &r["value"]).collect();
    assert_eq!(values, [r#"{"at" : 1,  "x":1.50}"#, "5", "\"text\""]);
    engine.stop();
}

#[test]
fn a_second_process_on_the_same_folder_is_refused_by_name_of_the_first() {
    let place = Place::new(DEFINITIONS, "");
    let engine = place.start();
    let error = place.refusal();
    assert!(error.contains("is held by process"), "{error}");
    engine.stop();
}

#[test]
fn ingest_and_get_find_the_running_engine_and_end_with_the_right_codes() {
    let place = Place::new(DEFINITIONS, "");
    let config = place.config();
    let config = config.to_str().expect("UTF-8");
    let (code, _, _) = run(
        &["ingest", "--config", config, "--topic", "payments", "-", "--server", "http://127.0.0.1:9"],
        Some("{}\n"),
    );
    assert_eq!(code, 3, "nothing listens there");
    let engine = place.start();
    let lines = format!("{}\n\nnot json\n", event(1, "ann", 7, 1, 2.5));
    let (code, out, error) = run(&["ingest", "--config", config, "--topic", "payments", "-"], Some(&lines));
    assert_eq!(code, 0, "{error}");
    let result: Json = serde_json::from_str(out.trim()).expect("one JSON line");
    assert_eq!(result["appended"], 2);
    let csv = place.folder.path().join("more.csv");
    let late = NOON_MS - 30_000;
    std::fs::write(&csv, format!("at,user_id,amount,city\n{late},ann,1.5,\n{late},ann,oops,Y\n"))
        .expect("writable");
    let (code, _, error) =
        run(&["ingest", "--config", config, "--topic", "payments", csv.to_str().expect("UTF-8")], None);
    assert_eq!(code, 0, "{error}");
    let stats = engine.settled_stats();
    assert_eq!(stats["sources"]["payments"]["accepted"], 2, "{stats}");
    assert_eq!(stats["sources"]["payments"]["dead_lettered"]["malformed"], 1);
    assert_eq!(stats["sources"]["payments"]["dead_lettered"]["wrong_type"], 1);
    std::fs::write(&csv, "at,user_id,at\n1,ann,2\n").expect("writable");
    let twice =
        run(&["ingest", "--config", config, "--topic", "payments", csv.to_str().expect("UTF-8")], None);
    assert!(twice.0 == 1 && twice.2.contains("`at` stands twice"), "{twice:?}");
    let (code, out, error) = run(
        &[
            "get",
            "--config",
            config,
            "by_user:payments_1h,is_over",
            "--entity",
            "user_id=ann",
            "--request",
            "limit=3",
            "--as-of",
            NOON,
            "--json",
        ],
        None,
    );
    assert_eq!(code, 0, "{error}");
    let answer: Json = serde_json::from_str(&out).expect("JSON");
    assert_eq!(answer["results"][1]["values"], json!([2]));
    assert_eq!(answer["results"][2]["values"], json!([true]));
    let (code, _, _) = run(&["get", "--config", config, "by_user:nothing", "--entity", "user_id=ann"], None);
    assert_eq!(code, 1);
    assert_eq!(run(&["get"], None).0, 2);
    engine.stop();
}

#[test]
fn an_engine_and_a_stopped_folder_can_be_looked_into() {
    let place = Place::new(DEFINITIONS, "");
    let config = place.config();
    let engine = place.start();
    engine.append(
        "payments",
        &[event(1, "ann", 7, 1, 2.5), "older".to_owned(), "latest".to_owned()].join("\n"),
    );
    engine.settled_stats();
    let lock = place.folder.path().join("data/LOCK");
    let held = std::fs::read(&lock).expect("it is held");
    let looks = || {
        for (arguments, word) in [
            (&["partitions"][..], "payments/0"),
            (&["keys", "by_user"], "ann"),
            (&["keys", "by_user", "--prefix", "b"], ""),
            (&["key", "by_user", "ann"], "2.5"),
            (&["log", "payments", "--partition", "0", "--n", "5"], ""),
            (&["dead-letters"], "older"),
            (&["dead-letters", "--n", "1"], "latest"),
            (&["verify", "--entities", "20"], "0 differences"),
            (&["wait"], ""),
        ] {
            let all = [&["--config", config.to_str().expect("UTF-8")], arguments].concat();
            let (code, out, said) = inspect(&all);
            assert_eq!(code, 0, "{arguments:?}: {out} {said}");
            assert!(out.contains(word), "{arguments:?}: {out}");
        }
    };
    looks();
    engine.stop();
    looks();
    assert_eq!(std::fs::read(&lock).expect("it is there"), held, "looking writes nothing");
}

#[test]
fn metrics_carry_their_promised_names() {
    let place = Place::new(DEFINITIONS, "");
    let engine = place.start();
    engine.append("payments", &event(1, "ann", 7, 1, 2.5));
    engine.settled_stats();
    let text = engine.metrics();
    for name in [
        "feature_pipeline_feature_read_latency_seconds",
        "feature_pipeline_feature_write_latency_seconds",
        "feature_pipeline_feature_cache_hit_ratio",
        "feature_pipeline_feature_validation_errors_total",
        "feature_pipeline_api_requests_total",
        "feature_pipeline_events_processed_total{source=\"payments\",status=\"accepted\"} 1",
        "feature_pipeline_processing_latency_seconds",
        "feature_pipeline_lag_records",
        "feature_pipeline_checkpoint_age_seconds",
        "feature_pipeline_barrier_distance_records",
        "feature_pipeline_late_events_total",
        "feature_pipeline_dead_letters_total",
        "feature_pipeline_state_rows",
        "feature_pipeline_state_bytes",
        "feature_pipeline_expression_null_total",
        "feature_pipeline_overflow_total",
    ] {
        assert!(text.contains(name), "{name} is missing in\n{text}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        let bare = name.split('{').next().expect("a name");
        assert!(bare.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
        assert!(value.parse::<f64>().is_ok() && name.contains('{') == name.ends_with('}'), "{line}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert_eq!(text.matches("# EOF").count(), 1);
    engine.stop();
}

#[test]
fn grpc_answers_as_rest_does() {
    use thalweg::serving::generated::v1 as proto;
    use tonic_types::StatusExt as _;
    let place = Place::new(DEFINITIONS, "");
    let engine = place.start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let endpoint = format!("http://{}", engine.grpc);
        let mut client = proto::feature_service_client::FeatureServiceClient::connect(endpoint.clone())
            .await
            .expect("it listens");
        let events = vec![event(1, "ann", 7, 3, 2.5).into_bytes(), event(2, "bob", 7, 2, 4.0).into_bytes()];
        let appended = client
            .append(proto::AppendRequest { topic: "payments".to_owned(), events })
            .await
            .expect("appended")
            .into_inner();
        assert_eq!(appended.appended, 2);
        let text = |s: &str| proto::Value { kind: Some(proto::value::Kind::StringValue(s.to_owned())) };
        let users = proto::ValueList { values: vec![text("ann"), text("bob"), text("eve")] };
        let noon = prost_types::Timestamp { seconds: NOON_MS / 1000, nanos: 0 };
        let request = proto::GetFeaturesRequest {
            features: vec!["by_user:spend_1h".to_owned(), "by_user:last_amount".to_owned()],
            entities: [("user_id".to_owned(), users)].into(),
            as_of: vec![noon],
            min_positions: appended.positions,
            wait: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
            ..proto::GetFeaturesRequest::default()
        };
        let answer = client.get_features(request.clone()).await.expect("an answer").into_inner();
        assert_eq!(answer.feature_names, ["user_id", "spend_1h", "last_amount"]);
        let float = |x: f64| proto::Value { kind: Some(proto::value::Kind::Float64Value(x)) };
        assert_eq!(answer.results[1].values, [float(2.5), float(4.0), float(0.0)]);
        let (present, missing) = (proto::Status::Present as i32, proto::Status::NotFound as i32);
        assert_eq!(answer.results[1].statuses, [present, present, missing]);
        assert_eq!(answer.results[2].values[2], float(-1.0));
        assert!(!answer.positions.is_empty());
        // Many at once over one connection.
        let mut many = tokio::task::JoinSet::new();
        for _ in 0..64 {
            let (mut client, request) = (client.clone(), request.clone());
            many.spawn(async move { client.get_features(request).await.expect("an answer").into_inner() });
        }
        while let Some(one) = many.join_next().await {
            assert_eq!(one.expect("no panic").results, answer.results);
        }
        let batch = proto::GetFeaturesBatchRequest { request: Some(request.clone()), chunk_size: 2 };
        let mut stream = client.get_features_batch(batch).await.expect("a stream").into_inner();
        let mut rows = Vec::new();
        while let Some(part) = stream.message().await.expect("a part") {
            rows.push(part.results[1].values.len());
        }
        assert_eq!(rows, [2, 1]);
        let uneven = proto::GetFeaturesRequest { as_of: vec![noon, noon], ..request.clone() };
        let batch = proto::GetFeaturesBatchRequest { request: Some(uneven), chunk_size: 1 };
        let refused = client.get_features_batch(batch).await.expect_err("two times for three rows");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        for events in [vec![vec![b'x'; 17 << 20]], vec![vec![b'x'; 40 << 20]]] {
            let append = proto::AppendRequest { topic: "payments".to_owned(), events };
            let refused = client.append(append).await.expect_err("over append_body");
            assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
            let reason = refused.get_details_error_info().expect("details").reason;
            assert_eq!(reason, "TOO_LARGE");
        }
        let wrong = proto::GetFeaturesRequest { features: vec!["by_user:nope".to_owned()], ..request };
        let refused = client.get_features(wrong).await.expect_err("no such feature");
        assert_eq!(refused.code(), tonic::Code::NotFound);
        let stats =
            client.get_stats(proto::GetStatsRequest::default()).await.expect("an answer").into_inner();
        let stats: Json = serde_json::from_str(&stats.json).expect("JSON");
        assert_eq!(stats["sources"]["payments"]["read"], 2, "{stats}");
        let channel = tonic::transport::Endpoint::from_shared(endpoint)
            .expect("an address")
            .connect()
            .await
            .expect("it listens");
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
        for service in ["", "thalweg.v1.FeatureService"] {
            let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
            let answer = health.check(request).await.expect("an answer").into_inner();
            assert_eq!(answer.status, 1, "serving");
        }
        assert!(services_by_reflection(&engine.grpc).await.iter().all(|n| *n > 0));
    });
    engine.stop();
}

/// How many services the newer and the older reflection service name.
async fn services_by_reflection(address: &str) -> [usize; 2] {
    use tonic_reflection::pb::{v1, v1alpha};
    let endpoint =
        || tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let channel = endpoint().connect().await.expect("it listens");
    let ask = tokio_stream::once(v1::ServerReflectionRequest {
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
        ..Default::default()
    });
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let mut answers = client.server_reflection_info(ask).await.expect("an answer").into_inner();
    let newer = match answers.message().await.expect("a message").and_then(|m| m.message_response) {
        Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) => {
            list.service.len()
        }
        _ => 0,
    };
    let ask = tokio_stream::once(v1alpha::ServerReflectionRequest {
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
        ..Default::default()
    });
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(ask).await.expect("an answer").into_inner();
    let older = match answers.message().await.expect("a message").and_then(|m| m.message_response) {
        Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list)) => {
            list.service.len()
        }
        _ => 0,
    };
    [newer, older]
}

/// Sends raw bytes, and returns what comes back until the other side closes or falls silent.
fn raw(address: &str, request: &[u8]) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address.trim_start_matches("http://")).expect("connected");
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("set");
    stream.write_all(request).expect("sent");
    let mut answer = Vec::new();
    // An answer to a request that is not at its end closes the connection, or leaves it open.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn bodies_that_do_not_end_or_are_ill_formed_keep_nobody_from_being_answered() {
    use std::io::Write as _;
    let place = Place::new(DEFINITIONS, "limits: { in_flight: 4, append_body: 1MiB }");
    let engine = place.start();
    let head = "POST /v1/events/payments HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n";
    let address = engine.rest.trim_start_matches("http://").to_owned();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(&address).expect("connected");
            stream.write_all(format!("{head}content-length: 1000\r\n\r\n{{").as_bytes()).expect("sent");
            stream
        })
        .collect();
    crate::harness::until(|| match engine.post("/v1/features/online", "application/json", b"{}").0 {
        429 => Ok(()),
        status => Err(format!("four are under way, and another is answered {status}")),
    });
    for probe in ["/livez", "/readyz", "/v1/health", "/v1/metrics"] {
        assert_eq!(
            raw(&address, format!("GET {probe} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
                .split(' ')
                .nth(1),
            Some("200"),
            "{probe}"
        );
    }
    drop(waiting);
    crate::harness::until(|| match engine.post("/v1/features/online", "application/json", b"{}").0 {
        400 => Ok(()),
        status => Err(format!("nobody is under way any more, and one is answered {status}")),
    });
    let chunked = raw(&address, format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n").as_bytes());
    assert!(chunked.contains(" 400 "), "{chunked}");
    let packed = format!("{head}content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{{}}");
    assert!(raw(&address, packed.as_bytes()).contains(" 415 "));
    // Who sends far too much hears why.
    let (status, answer) = engine.post("/v1/events/payments", "application/x-ndjson", &vec![b'x'; 20 << 20]);
    assert_eq!((status, &answer["error"]["code"]), (413, &json!("TOO_LARGE")));
    engine.stop();
}
