//! Two nodes: any of them answers any key, and when one is killed the other goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, Producer};
use serde_json::{Value as Json, json};
use thalweg::serving::generated::v1 as proto;

use crate::broker::{Broker, send};
use crate::crash::{BATCH, DEFINITIONS};
use crate::harness::{Engine, Place, signal, until};
use crate::kafka::records;

const PARTITIONS: u32 = 8;
const USERS: u64 = 40;

fn node(broker: &Broker) -> Place {
    let more = format!(
        "checkpoint_interval: 1s\ncommit_interval: 50ms\nstandby_replicas: 1\n{}",
        broker.log(PARTITIONS)
    );
    Place::new(DEFINITIONS, &more)
}

fn body(user: u64, max_age: Option<&str>) -> Json {
    let mut body = json!({
        "features": ["by_user:count_all", "by_user:sum_all", "by_user:last_5"],
        "entities": { "user_id": [format!("u{user}")] },
        "as_of": "2026-01-02T00:00:00Z",
    });
    if let Some(max_age) = max_age {
        body["max_age"] = Json::from(max_age);
    }
    body
}

fn ask(engine: &Engine, body: &Json) -> Option<Json> {
    let (status, answer) =
        engine.try_post("/v1/features/online", "application/json", body.to_string().as_bytes())?;
    (status == 200).then_some(answer)
}

fn routes(engine: &Engine) -> Vec<Json> {
    engine.get("/v1/routing").1["routes"].as_array().expect("routes").clone()
}

/// What `GetRouting` says.
fn grpc_routes(engine: &Engine) -> Vec<proto::PartitionRoute> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let address = format!("http://{}", engine.grpc);
    runtime.block_on(async {
        let client = proto::feature_service_client::FeatureServiceClient::connect(address).await;
        let request = proto::GetRoutingRequest::default();
        client.expect("it listens").get_routing(request).await.expect("an answer").into_inner().routes
    })
}

/// Waits until every partition has an owner, and a standby elsewhere.
fn await_standbys(engine: &Engine) {
    until(|| {
        let routes = routes(engine);
        let is_followed =
            |r: &Json| r["owner"].is_object() && r["standbys"].as_array().is_some_and(|s| s.len() == 1);
        if routes.iter().all(is_followed) { Ok(()) } else { Err(format!("{routes:?}")) }
    });
}

/// Waits until gRPC and REST name the same owners and standbys: between the two questions a partition
/// may move.
fn await_equal_routes(engine: &Engine) {
    let named = |role: &str, name: &Json| format!("{role} {}", name.as_str().expect("a name"));
    until(|| {
        let mut over_rest: Vec<(String, u64, Vec<String>)> = Vec::new();
        for route in routes(engine) {
            let nodes = std::iter::once(&route["owner"]).map(|o| (o, "owner"));
            let nodes =
                nodes.chain(route["standbys"].as_array().expect("standbys").iter().map(|s| (s, "standby")));
            let nodes = nodes.filter(|(node, _)| node.is_object());
            let nodes = nodes.map(|(node, role)| named(role, &node["node"]) + &named(" at", &node["grpc"]));
            let group = route["group"].as_str().expect("a group").to_owned();
            over_rest.push((group, route["partition"].as_u64().expect("a number"), nodes.collect()));
        }
        let mut over_grpc = Vec::new();
        for route in grpc_routes(engine) {
            let owner = route.owner.iter().map(|o| format!("owner {} at {}", o.node, o.grpc));
            let standbys = route.standbys.iter().map(|s| format!("standby {} at {}", s.node, s.grpc));
            over_grpc.push((route.group, u64::from(route.partition), owner.chain(standbys).collect()));
        }
        over_rest.sort_unstable();
        over_grpc.sort_unstable();
        let is_whole = over_rest.len() == 2 * PARTITIONS as usize && over_rest.iter().all(|r| r.2.len() == 2);
        if is_whole && over_rest == over_grpc { Ok(()) } else { Err(format!("{over_rest:?} {over_grpc:?}")) }
    });
}

/// Records that all nodes have read, if all partitions are anybody's.
fn read_by_all(engine: &Engine) -> Option<u64> {
    let (status, stats) = engine.get("/v1/stats?cluster=true");
    (status == 200).then(|| stats["sources"]["payments"]["read"].as_u64().expect("a count"))
}

/// Waits until all nodes together have read `count` records.
fn await_read(engine: &Engine, count: u64) {
    until(|| match read_by_all(engine) {
        Some(read) if read == count => Ok(()),
        other => Err(format!("{other:?} of {count}")),
    });
}

/// Waits until both nodes, owners and standbys alike, have applied everything there is.
fn await_quiet(nodes: [&Engine; 2]) {
    for node in nodes {
        until(|| {
            let health = node.get("/v1/health").1;
            let partitions = health["partitions"].as_array().expect("partitions");
            let is_quiet =
                |p: &Json| p["lag"] == 0 && (p["state"] == "standby" || p["applied"] == p["committed"]);
            let are_all = partitions.len() == 2 * PARTITIONS as usize && partitions.iter().all(is_quiet);
            if are_all { Ok(()) } else { Err(health.to_string()) }
        });
    }
}

#[test]
fn a_killed_node_is_answered_for_at_once_and_replaced_soon() {
    let broker = Broker::start();
    broker.create("payments", PARTITIONS);
    let (mut first, second) = (node(&broker), node(&broker));
    first.variables.push(("POD_NAME", "thalweg-0".to_owned()));
    let (first, second) = (first.start(), second.start());
    let producer = broker.producer();
    for number in 0..20 {
        send(&producer, "payments", &records(number, PARTITIONS));
    }
    await_standbys(&first);
    await_read(&first, 20 * BATCH);
    // Whoever is asked: the same answers, given by the owner.
    let mut wanted = Vec::new();
    let mut owners = BTreeMap::<String, u32>::new();
    for user in 0..USERS {
        let here = first.lookup(&body(user, None));
        let there = second.lookup(&body(user, None));
        assert_eq!(here["results"], there["results"]);
        assert_eq!(here["positions"], there["positions"]);
        assert_eq!(here["positions"][0]["role"], "owner");
        *owners.entry(here["positions"][0]["node"].as_str().expect("a name").to_owned()).or_default() += 1;
        wanted.push(here["results"].clone());
    }
    assert_eq!(owners.len(), 2, "both own something: {owners:?}");
    assert!(owners.contains_key("thalweg-0"), "a node bears the name of its pod: {owners:?}");
    await_equal_routes(&second);
    await_quiet([&first, &second]);
    // Killed: what the other follows is answered at once for those who allow it.
    first.kill();
    let killed_at = Instant::now();
    let mut longest = Duration::ZERO;
    let mut roles = BTreeMap::<String, u32>::new();
    for user in 0..USERS {
        let asked_at = Instant::now();
        let answer = loop {
            if let Some(answer) = ask(&second, &body(user, Some("30s"))) {
                break answer;
            }
            assert!(asked_at.elapsed() < Duration::from_secs(30), "u{user}");
        };
        longest = longest.max(asked_at.elapsed());
        assert_eq!(answer["results"], wanted[user as usize], "u{user}");
        *roles.entry(answer["positions"][0]["role"].as_str().expect("a role").to_owned()).or_default() += 1;
    }
    let answered = killed_at.elapsed();
    assert!(roles["standby"] > 0, "{roles:?}");
    // Those who want owners wait until the group has noticed.
    for user in 0..USERS {
        assert_eq!(second.lookup(&body(user, None))["results"], wanted[user as usize], "u{user}");
    }
    println!(
        "after the kill: all users answered in {answered:.0?}, longest wait {longest:.0?}, {roles:?}; owners of all after {:.1?}",
        killed_at.elapsed()
    );
    assert!(answered < Duration::from_secs(3), "{answered:?}");
    second.stop();
}

#[test]
fn max_age_bounds_what_a_standby_may_say() {
    let broker = Broker::start();
    broker.create("payments", PARTITIONS);
    let (mut first, mut second) = (node(&broker), node(&broker));
    for node in [&mut first, &mut second] {
        let timeout = "THALWEG_LOG__KAFKA__PROPERTIES__SESSION__TIMEOUT__MS";
        node.variables.push((timeout, "40000".to_owned()));
    }
    let (first, second) = (first.start(), second.start());
    let producer = broker.producer();
    send(&producer, "payments", &records(0, PARTITIONS));
    await_standbys(&first);
    await_quiet([&first, &second]);
    first.kill();
    // More, a minute of stream time later, that nobody can have committed yet.
    for number in 600..603 {
        send(&producer, "payments", &records(number, PARTITIONS));
    }
    let stands = |user: &u64| {
        let loose = ask(&second, &body(*user, Some("30d")));
        loose.is_some_and(|a| a["positions"][0]["role"] == "standby")
    };
    let standing: Vec<u64> = (0..USERS).filter(stands).collect();
    // Until the standbys have read them, and long before the session of the dead ends.
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline && standing.iter().any(|u| ask(&second, &body(*u, Some("1ms"))).is_some())
    {
    }
    let mut roles = BTreeMap::<String, u32>::new();
    for user in 0..USERS {
        let role = || {
            let loose = ask(&second, &body(user, Some("30d")))?;
            Some(loose["positions"][0]["role"].as_str().expect("a role").to_owned())
        };
        let (before, strict, role) = (role(), ask(&second, &body(user, Some("10s"))), role());
        let Some(role) = role.filter(|role| before.as_ref() == Some(role)) else {
            // Its standby was becoming the owner just then.
            continue;
        };
        assert_eq!(strict.is_some(), role == "owner", "u{user}: {role}, {strict:?}");
        *roles.entry(role).or_default() += 1;
    }
    assert!(roles.contains_key("standby"), "{roles:?}");
    second.stop();
}

/// Nobody waits for the session of a node that has said that it ends.
#[test]
fn a_node_that_is_stopped_hands_its_partitions_over() {
    let broker = Broker::start();
    broker.create("payments", PARTITIONS);
    let session = Duration::from_secs(40);
    let log = broker.log(PARTITIONS).replace("session.timeout.ms: 6000", "session.timeout.ms: 40000");
    let place = || Place::new(DEFINITIONS, &format!("commit_interval: 50ms\n{log}"));
    let (first, other) = (place(), place());
    let (first, second) = (first.start(), other.start());
    await_owners(&second, 2);
    send(&broker.producer(), "payments", &records(0, PARTITIONS));
    await_read(&second, BATCH);
    first.stop();
    let stopped_at = Instant::now();
    await_owners(&second, 1);
    let took = stopped_at.elapsed();
    println!("after the stop: owners of all after {took:.1?}");
    assert!(took < session / 4, "{took:?}");
    await_read(&second, BATCH);
    second.stop();
}

/// Whatever the group is about to give it.
#[test]
fn a_node_that_is_stopped_while_it_joins_is_not_waited_for() {
    let broker = Broker::start();
    broker.create("payments", PARTITIONS);
    let log = broker.log(PARTITIONS).replace("session.timeout.ms: 6000", "session.timeout.ms: 40000");
    let place = || Place::new(DEFINITIONS, &format!("commit_interval: 50ms\n{log}"));
    let kept = place();
    let first = kept.start();
    send(&broker.producer(), "payments", &records(0, PARTITIONS));
    for delay in [400, 700, 1000, 1300, 1600, 1900] {
        let other = place();
        let mut joining = other.command().spawn().expect("it starts");
        std::thread::sleep(Duration::from_millis(delay));
        signal(joining.id(), "-TERM");
        let status = joining.wait().expect("it is our child");
        let stopped_at = Instant::now();
        assert!(status.success(), "after {delay} ms: exit {status}");
        await_owners(&first, 1);
        let took = stopped_at.elapsed();
        println!("stopped after {delay} ms: owners of all after {took:.1?}");
        assert!(took < Duration::from_secs(10), "after {delay} ms: {took:?}");
    }
    await_read(&first, BATCH);
    first.stop();
}

/// As many partitions as each node has workers; a worker that gets none keeps its node from nothing.
/// `owners`: how many nodes get some, if that is not left to chance.
fn share_two_partitions(protocol: &str, owners: Option<usize>) {
    let broker = Broker::start();
    broker.create("payments", 2);
    let log = broker.log(2).replace("group.protocol: classic", &format!("group.protocol: {protocol}"));
    let place = || Place::new(DEFINITIONS, &format!("workers: 2\ncommit_interval: 50ms\n{log}"));
    let (first, other) = (place(), place());
    let first = first.start();
    send(&broker.producer(), "payments", &records(0, 2));
    let second = other.start();
    if let Some(owners) = owners {
        await_owners(&first, owners);
    }
    await_read(&first, BATCH);
    await_read(&second, BATCH);
    first.stop();
    // Of what nobody has nothing is summed up.
    until(|| match read_by_all(&second) {
        Some(read) => {
            assert_eq!(read, BATCH, "a sum of some partitions");
            Ok(())
        }
        None => Err("no sum".to_owned()),
    });
    second.stop();
}

#[test]
fn nodes_share_partitions_that_are_fewer_than_workers() {
    share_two_partitions("classic", Some(2));
}

#[test]
fn nodes_share_partitions_that_are_fewer_than_workers_by_the_consumer_protocol() {
    // Brokers go by ids of members, which are random.
    share_two_partitions("consumer", None);
}

#[test]
fn brokers_that_are_away_are_said_soon_and_waited_for_at_the_start() {
    let broker = Broker::start();
    let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    let engine = place.start();
    broker.signal(0, "-STOP");
    for path in ["/v1/health", "/readyz", "/v1/stats", "/v1/routing", "/livez"] {
        let asked = Instant::now();
        engine.get(path);
        assert!(asked.elapsed() < Duration::from_secs(5), "{path} took {:?}", asked.elapsed());
    }
    let asked = Instant::now();
    assert!(engine.metrics().contains("lag_records"));
    assert!(asked.elapsed() < Duration::from_secs(5), "metrics took {:?}", asked.elapsed());
    broker.signal(0, "-CONT");
    engine.stop();
    broker.kill(0);
    std::thread::scope(|scope| {
        let started = scope.spawn(|| place.start());
        // Longer than any answer of a broker is waited for.
        std::thread::sleep(Duration::from_secs(35));
        assert!(!started.is_finished(), "ready without brokers, or ended");
        broker.launch(0);
        started.join().expect("it is ready").stop();
    });
}

/// Clocks of nodes differ; a node that is heard is not dead for that.
#[test]
fn a_node_whose_clock_lags_is_alive_while_it_is_heard() {
    let broker = Broker::start();
    let place = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    let engine = place.start();
    let task = json!({
        "topic": "payments", "partition": 0, "role": "standby", "incarnation": 1, "stream_times": {},
    });
    let producer = broker.producer();
    let say = |node: &str| {
        let value = json!({ "node": node, "grpc": "x:1", "rest": "x:2", "tasks": [task] }).to_string();
        let an_hour_ago = wall_clock() - 3_600_000;
        let record = BaseRecord::to("test-owners").key(node).payload(&value).timestamp(an_hour_ago);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
        producer.flush(Duration::from_secs(30)).expect("sent");
    };
    let standbys = |engine: &Engine| -> Vec<String> {
        let route = routes(engine).into_iter().find(|r| r["partition"] == 0).expect("one of it");
        let names = route["standbys"].as_array().expect("nodes").iter();
        names.map(|n| n["node"].as_str().expect("a name").to_owned()).collect()
    };
    until(|| {
        say("behind");
        let found = standbys(&engine);
        if found == ["behind"] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    // Nor is one alive for ever that is heard no more.
    until(|| {
        let found = standbys(&engine);
        if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
    });
    engine.stop();
}

/// Milliseconds since the epoch.
fn wall_clock() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    now.as_millis() as i64
}

/// Waits until `count` nodes own something, and every partition is owned.
fn await_owners(engine: &Engine, count: usize) {
    until(|| {
        let routes = routes(engine);
        let owners: Vec<String> = routes.iter().map(|r| r["owner"]["node"].to_string()).collect();
        let distinct: BTreeSet<&String> = owners.iter().collect();
        let is_ready = engine.get("/v1/health").0 == 200;
        let are_all = is_ready && distinct.len() == count && !owners.contains(&"null".to_owned());
        if are_all { Ok(()) } else { Err(format!("{routes:?}")) }
    });
}

/// The next generation of the group protocol (KIP-848): members come, go and die.
#[test]
fn the_consumer_protocol_moves_partitions_and_loses_nothing() {
    let broker = Broker::start();
    broker.create("payments", PARTITIONS);
    let place = || {
        let log = broker.log(PARTITIONS).replace("group.protocol: classic", "group.protocol: consumer");
        Place::new(DEFINITIONS, &format!("checkpoint_interval: 1s\ncommit_interval: 50ms\n{log}"))
    };
    let (first, other) = (place(), place());
    let first = first.start();
    let producer = broker.producer();
    let mut number = 0;
    let mut send_some = || {
        for _ in 0..5 {
            send(&producer, "payments", &records(number, PARTITIONS));
            number += 1;
        }
        number
    };
    send_some();
    let second = other.start();
    send_some();
    await_owners(&first, 2);
    let metrics = first.metrics();
    assert!(metrics.contains("thalweg_rebalances_total{kind=\"taken\"}"), "{metrics}");
    send_some();
    second.stop();
    await_owners(&first, 1);
    send_some();
    let second = other.start();
    await_owners(&first, 2);
    send_some();
    second.kill();
    let sent = send_some();
    until(|| {
        let read = first.get("/v1/stats").1["sources"]["payments"]["read"].as_u64().expect("a count");
        if read == sent * BATCH { Ok(()) } else { Err(format!("{read} of {}", sent * BATCH)) }
    });
    // What was applied by whom makes no difference.
    let mut alone = Place::new(DEFINITIONS, &broker.log(PARTITIONS));
    alone.variables.push(("THALWEG_APP", "alone".to_owned()));
    let alone = alone.start();
    let answers = |engine: &Engine| -> Vec<Json> {
        engine.settled_stats();
        (0..USERS).map(|user| engine.lookup(&body(user, None))["results"].clone()).collect()
    };
    assert_eq!(answers(&first), answers(&alone));
    alone.stop();
    first.stop();
}
