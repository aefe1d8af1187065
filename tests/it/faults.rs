//! Faults on a real Kafka: nodes killed at crash points and at random moments, stopped, frozen beyond
//! their session, robbed of their disk; brokers killed and paused; the group disturbed, transactions aborted.
//! Then everything that the engine said and wrote is compared with the records of the topic itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::message::Message;
use serde_json::{Value as Json, json};

use crate::broker::{Broker, send};
use crate::crash::{BATCH, DEFINITIONS, START_MS, random};
use crate::harness::{Engine, Place};
use crate::kafka::{copy, origin, records};

const PARTITIONS: u32 = 8;
const USERS: u64 = 40;
/// The session timeout of `Broker::log`.
const SESSION: Duration = Duration::from_secs(6);
/// One in so many transactions is aborted.
const ABORT_EVERY: &str = "7";
/// Steps at which a process may die (`src/fault.rs`).
const CRASH_POINTS: [&str; 14] = [
    "boundary",
    "outputs",
    "rows",
    "produced",
    "flushed",
    "offsets",
    "committed",
    "before_store",
    "stored",
    "wiping",
    "following",
    "followed",
    "consistent",
    "redo",
];

/// What was seen of a user: on which node, with what position of which partition.
struct Sample {
    user: u64,
    partition: u32,
    position: u64,
    count: i64,
    sum: i64,
    /// Whether any answer would do that is not too old.
    is_bounded: bool,
    asked_at: Instant,
}

struct Node {
    place: Place,
    engine: Mutex<Option<Engine>>,
    rest: Mutex<Option<String>>,
}

impl Node {
    fn new(broker: &Broker) -> Self {
        let more = format!(
            "checkpoint_interval: 300ms\ncommit_interval: 20ms\nworkers: 1\nstandby_replicas: 1\n{}",
            broker.log(PARTITIONS)
        );
        let mut place = Place::new(DEFINITIONS, &more);
        place.variables.push(("THALWEG_ABORT_EVERY", ABORT_EVERY.to_owned()));
        let node = Self { place, engine: Mutex::new(None), rest: Mutex::new(None) };
        node.start();
        node
    }

    fn start(&self) {
        let engine = self.place.start();
        *self.rest.lock() = Some(engine.rest.clone());
        *self.engine.lock() = Some(engine);
    }

    fn kill(&self) {
        *self.rest.lock() = None;
        if let Some(engine) = self.engine.lock().take() {
            engine.kill();
        }
    }

    fn stop(&self) {
        *self.rest.lock() = None;
        if let Some(engine) = self.engine.lock().take() {
            engine.stop();
        }
    }

    fn signal(&self, signal: &str) {
        crate::harness::signal(self.engine.lock().as_ref().expect("it runs").id(), signal);
    }

    /// Lets it die at `point`, or kills it when it does not get there.
    fn crash(&self, point: &str, pass: u64, work: impl FnOnce()) -> bool {
        self.kill();
        let mut child = self
            .place
            .command()
            .env("THALWEG_CRASH_AT", format!("{point}:{pass}"))
            .spawn()
            .expect("it starts");
        work();
        let deadline = Instant::now() + Duration::from_secs(4);
        let mut is_dead = false;
        while !is_dead && Instant::now() < deadline {
            is_dead = child.try_wait().expect("our child").is_some();
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
        is_dead
    }

    fn state(&self) -> std::path::PathBuf {
        self.place.folder.path().join("data/state")
    }
}

/// Asks one node for one user; nothing if it does not answer.
fn ask(rest: &str, user: u64, is_bounded: bool, timeout: Duration) -> Option<Sample> {
    let mut body = json!({
        "features": ["by_user:count_all", "by_user:sum_all"],
        "entities": { "user_id": [format!("u{user}")] },
    });
    if is_bounded {
        body["max_age"] = Json::from("30s");
    }
    let agent = ureq::Agent::config_builder().timeout_global(Some(timeout)).build().new_agent();
    let asked_at = Instant::now();
    let mut response = agent.post(format!("{rest}/v1/features/online")).send_json(&body).ok()?;
    let answer: Json = response.body_mut().read_json().ok()?;
    let (partition, offsets) = answer["positions"][0]["offsets"]["payments"].as_object()?.iter().next()?;
    Some(Sample {
        user,
        partition: partition.parse().ok()?,
        position: offsets.as_u64()?,
        count: answer["results"][1]["values"][0].as_i64()?,
        sum: answer["results"][2]["values"][0].as_i64()?,
        is_bounded,
        asked_at,
    })
}

/// What the records of a partition come to, by user: after each of its events, where it stands.
#[derive(Default)]
struct Truth {
    /// By user: (offset + 1, count, sum), in order.
    users: HashMap<u64, Vec<(u64, i64, i64)>>,
    /// By shop: partitions and offsets of its records.
    shops: BTreeMap<String, BTreeSet<(u32, u64)>>,
    malformed: Vec<(i32, i64)>,
    records: u64,
}

impl Truth {
    /// Read by a consumer that knows nothing of the engine.
    fn of(broker: &Broker) -> Self {
        let mut truth = Self::default();
        let mut ids: HashSet<(i32, String)> = HashSet::new();
        for message in broker.read("payments") {
            truth.records += 1;
            let event: Option<Json> = message.payload().and_then(|p| serde_json::from_slice(p).ok());
            let Some(event) = event else {
                truth.malformed.push((message.partition(), message.offset()));
                continue;
            };
            if !ids.insert((message.partition(), event["id"].as_str().expect("an id").to_owned())) {
                continue;
            }
            let amount = event["amount"].as_i64().expect("an amount");
            let user: u64 = event["user_id"].as_str().expect("a user")[1..].parse().expect("a number");
            let steps = truth.users.entry(user).or_default();
            let (count, sum) = steps.last().map_or((0, 0), |(_, c, s)| (*c, *s));
            steps.push((message.offset() as u64 + 1, count + 1, sum + amount));
            let shop = truth.shops.entry(event["shop"].as_str().expect("a shop").to_owned()).or_default();
            shop.insert((message.partition() as u32, message.offset() as u64));
        }
        truth
    }

    fn at(&self, user: u64, position: u64) -> (i64, i64) {
        let steps = self.users.get(&user).map_or(&[][..], Vec::as_slice);
        let known = steps.partition_point(|(next, ..)| *next <= position);
        known.checked_sub(1).map_or((0, 0), |i| (steps[i].1, steps[i].2))
    }
}

/// What was seen to be committed: when, of which partition, up to where.
type Committed = (Instant, u32, u64);

/// Answers that are not what the records below their position come to, and answers of owners that lie
/// behind what was committed a session timeout before they were asked for: up to then one that was
/// frozen may answer.
fn check_samples(samples: &mut [Sample], committed: &[Committed], truth: &Truth) -> (usize, usize) {
    let wrong = samples.iter().filter(|s| truth.at(s.user, s.position) != (s.count, s.sum));
    let wrong: Vec<&Sample> = wrong.collect();
    for s in wrong.iter().take(3) {
        eprintln!(
            "wrong: u{} at {}/{}: {} {} and not {:?}",
            s.user,
            s.partition,
            s.position,
            s.count,
            s.sum,
            truth.at(s.user, s.position)
        );
    }
    let wrong = wrong.len();
    samples.sort_by_key(|s| s.asked_at);
    let (mut known, mut next, mut stale) = (HashMap::<u32, u64>::new(), 0, 0);
    for sample in samples.iter() {
        while next < committed.len() && committed[next].0 + SESSION < sample.asked_at {
            let at = known.entry(committed[next].1).or_default();
            *at = (*at).max(committed[next].2);
            next += 1;
        }
        let is_behind = known.get(&sample.partition).is_some_and(|k| *k > sample.position);
        stale += usize::from(is_behind && !sample.is_bounded);
    }
    (wrong, stale)
}

/// Ends the watching also when something panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Which of 20 kinds a cycle is: each once in 20 cycles, in an order that the seed decides; or the one
/// that is asked for.
fn kind(cycle: u64, seed: u64) -> u64 {
    if let Some(only) = number("THALWEG_TEST_KIND") {
        return only;
    }
    let block = cycle / 20;
    let mut kinds: Vec<u64> = (0..20).collect();
    kinds.sort_by_key(|kind| random(random(random(seed).wrapping_add(block)).wrapping_add(*kind)));
    kinds[(cycle % 20) as usize]
}

struct Faults {
    broker: Broker,
    nodes: Vec<Node>,
    sent: AtomicU64,
    samples: Mutex<Vec<Sample>>,
    committed: Mutex<Vec<Committed>>,
    is_over: AtomicBool,
}

impl Faults {
    /// Sends one batch, whatever happens to the brokers meanwhile.
    fn send_one(&self) {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        send(&self.broker.producer(), "payments", &records(number, PARTITIONS));
    }

    /// Reads from a node until it is over.
    fn watch(&self, node: &Node, seed: u64) {
        let mut turn = seed;
        while !self.is_over.load(Ordering::Relaxed) {
            turn = random(turn.wrapping_add(1));
            let rest = node.rest.lock().clone();
            let sample =
                rest.and_then(|rest| ask(&rest, turn % USERS, turn & 64 == 0, Duration::from_secs(20)));
            if let Some(sample) = sample {
                self.samples.lock().push(sample);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Notes what is committed until it is over.
    fn watch_offsets(&self) {
        let offsets = self.broker.offsets("test");
        while !self.is_over.load(Ordering::Relaxed) {
            for (partition, next) in offsets.committed("payments", PARTITIONS) {
                self.committed.lock().push((Instant::now(), partition, next));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Questions that wait for a frozen node when it goes on: what it then says must not be what it
    /// knew before.
    fn ask_as_it_wakes(&self, node: &Node) {
        let rest = node.rest.lock().clone().expect("it runs");
        std::thread::scope(|scope| {
            for user in 0..USERS {
                let rest = &rest;
                scope.spawn(move || {
                    if let Some(sample) = ask(rest, user, false, Duration::from_secs(10)) {
                        self.samples.lock().push(sample);
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(100));
            node.signal("-CONT");
        });
    }

    fn cycle(&self, cycle: u64, seed: u64, figures: &mut BTreeMap<String, u64>) {
        let dice = random(random(random(seed).wrapping_add(cycle)));
        let node = &self.nodes[(dice >> 8) as usize % self.nodes.len()];
        let pause = Duration::from_micros((dice >> 16) % 200_000);
        let broker = (dice >> 56) as usize % 3;
        let mut count = |what: &str| *figures.entry(what.to_owned()).or_default() += 1;
        self.send_one();
        match kind(cycle, seed) {
            0 => {
                count("rebalance storm");
                self.broker.disturb("test", "payments", 5);
                return self.send_one();
            }
            1..=5 => {
                std::thread::sleep(pause);
                count("kill -9");
                node.kill();
            }
            6 => {
                std::thread::sleep(pause);
                count("SIGTERM");
                node.stop();
            }
            7..=14 => {
                let point = CRASH_POINTS[(dice >> 40) as usize % CRASH_POINTS.len()];
                // Some points lie on the way of a takeover that needs the changelog.
                node.kill();
                if matches!(point, "following" | "followed" | "consistent" | "wiping") {
                    let _ = std::fs::remove_dir_all(node.state());
                }
                let is_dead = node.crash(point, 1 + (dice >> 48) % 6, || self.send_one());
                count(&format!("{point}{}", if is_dead { "" } else { ": not met, killed" }));
            }
            15 => {
                count("disk deleted");
                node.kill();
                std::fs::remove_dir_all(node.state()).expect("it is there");
            }
            16 => {
                count("older disk put back");
                let older = node.place.folder.path().join("older");
                node.kill();
                if older.exists() { copy(&older, &node.state()) } else { copy(&node.state(), &older) }
            }
            17 => {
                count("broker killed");
                self.broker.kill(broker);
                std::thread::sleep(pause);
                self.broker.launch(broker);
                return self.send_one();
            }
            18 => {
                count("broker paused");
                self.broker.signal(broker, "-STOP");
                std::thread::sleep(pause * 10);
                self.broker.signal(broker, "-CONT");
                return self.send_one();
            }
            _ => {
                count("node frozen beyond its session and its transaction");
                node.signal("-STOP");
                std::thread::sleep(Duration::from_secs(8));
                self.send_one();
                // transaction.timeout.ms is 10 s.
                std::thread::sleep(Duration::from_secs(4));
                self.ask_as_it_wakes(node);
                return self.send_one();
            }
        }
        self.send_one();
        node.start();
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn faults_lose_double_and_regress_nothing() {
    let cycles = number("THALWEG_TEST_FAULTS").unwrap_or(20);
    let seed = number("THALWEG_TEST_SEED").unwrap_or(1);
    // Three, so that transactions outlive the one that is killed.
    let broker = Broker::start_many(3);
    broker.create("payments", PARTITIONS);
    let nodes = (0..2).map(|_| Node::new(&broker)).collect();
    let faults = Faults {
        broker,
        nodes,
        sent: AtomicU64::new(0),
        samples: Mutex::new(Vec::new()),
        committed: Mutex::new(Vec::new()),
        is_over: AtomicBool::new(false),
    };
    let begun = Instant::now();
    let mut figures = BTreeMap::new();
    std::thread::scope(|scope| {
        scope.spawn(|| faults.watch_offsets());
        for node in &faults.nodes {
            scope.spawn(|| faults.watch(node, seed));
        }
        let _over = Over(&faults.is_over);
        for cycle in 0..cycles {
            faults.cycle(cycle, seed, &mut figures);
        }
    });
    let truth = Truth::of(&faults.broker);
    assert_eq!(truth.records, faults.sent.load(Ordering::Relaxed) * BATCH);
    let mut samples = std::mem::take(&mut *faults.samples.lock());
    let (wrong, stale) = check_samples(&mut samples, &faults.committed.lock(), &truth);
    println!("{} lookups: {wrong} wrong, {stale} stale", samples.len());
    let totals = faults.settled(&truth);
    let shown: Vec<String> = figures.iter().map(|(what, n)| format!("  {n:4}  {what}")).collect();
    let by_others = samples.iter().filter(|s| s.is_bounded).count();
    println!(
        "seed {seed}: {cycles} faults in {:.0?}, {} records, {} dead letters, {} lookups, {by_others} of them of standbys too: {wrong} wrong, {stale} stale\n{}",
        begun.elapsed(),
        truth.records,
        truth.malformed.len(),
        samples.len(),
        shown.join("\n")
    );
    assert_eq!((wrong, stale), (0, 0));
    assert_eq!(totals, truth.records);
    assert!(samples.len() > 100);
}

impl Faults {
    /// Waits until all is applied, compares every value and dead letter with the records, and
    /// returns the number of records that all nodes together have counted.
    fn settled(&self, truth: &Truth) -> u64 {
        let deadline = Instant::now() + Duration::from_secs(60);
        let read = || -> u64 {
            let stats = |n: &Node| n.engine.lock().as_ref().expect("it runs").get("/v1/stats").1;
            self.nodes.iter().map(|n| stats(n)["sources"]["payments"]["read"].as_u64().unwrap_or(0)).sum()
        };
        while read() != truth.records && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        for user in truth.users.keys() {
            let wanted = truth.at(*user, u64::MAX);
            let answer =
                self.everywhere("by_user", json!({ "user_id": [format!("u{user}")] }), wanted, deadline);
            assert_eq!(answer, Some(wanted), "u{user}: {}", self.health());
        }
        for (shop, records) in &truth.shops {
            let wanted = records.len() as i64;
            let answer = self.everywhere("by_shop", json!({ "shop": [shop] }), (wanted, 0), deadline);
            let found = answer.map(|a| a.0);
            assert_eq!(found, Some(wanted), "{shop}: {} {}", self.routed(shop, records), self.health());
        }
        let mut origins: Vec<(i32, i64)> = self.broker.read("test-dead-letters").iter().map(origin).collect();
        origins.sort_unstable();
        assert_eq!(origins, truth.malformed, "dead letters");
        read()
    }

    /// How the records of a shop stand in the repartition topic.
    fn routed(&self, shop: &str, records: &BTreeSet<(u32, u64)>) -> String {
        let (mut found, mut last) = (BTreeMap::<(u32, u64), Vec<i64>>::new(), BTreeMap::new());
        for message in self.broker.read("test-by_shop-v1-repartition") {
            last.insert(message.partition(), message.offset());
            let (Some(key), Some(value)) = (message.key(), message.payload()) else { continue };
            // Version, kind, source partition, offset.
            if key.ends_with(shop.as_bytes()) && value[1] == b'e' {
                let partition = u32::from_le_bytes(value[2..6].try_into().expect("four bytes"));
                let offset = u64::from_le_bytes(value[6..14].try_into().expect("eight bytes"));
                found.entry((partition, offset)).or_default().push(message.offset());
            }
        }
        let missing: Vec<_> = records.iter().filter(|r| !found.contains_key(r)).collect();
        let twice: Vec<_> = found.iter().filter(|(_, at)| at.len() > 1).collect();
        let stats = |n: &Node| n.engine.lock().as_ref().map(|e| e.get("/v1/stats").1["groups"].to_string());
        let stats: Vec<String> = self.nodes.iter().filter_map(stats).collect();
        // What lies behind an open transaction cannot be read: the last record is then far from the end.
        let ends: Vec<(i64, i64)> =
            last.iter().map(|(p, at)| (*at, self.broker.end("test-by_shop-v1-repartition", *p))).collect();
        format!(
            "{} routed, missing {missing:?}, twice {twice:?}, last of {ends:?}, counts {stats:?}",
            found.len()
        )
    }

    /// What all nodes say of themselves.
    fn health(&self) -> String {
        let of = |n: &Node| n.engine.lock().as_ref().map(|e| format!("{:#}\n", e.get("/v1/health").1));
        self.nodes.iter().filter_map(of).collect()
    }

    /// Count and sum of an entity on the node that has it, once they are `wanted` or time is up.
    fn everywhere(
        &self,
        group: &str,
        entity: Json,
        wanted: (i64, i64),
        deadline: Instant,
    ) -> Option<(i64, i64)> {
        let sum = if group == "by_user" { "sum_all" } else { "count_all" };
        let as_of = jiff::Timestamp::from_millisecond(START_MS + 400 * 86_400_000).expect("in range");
        let body = json!({
            "features": [format!("{group}:count_all"), format!("{group}:{sum}")],
            "entities": entity,
            "as_of": as_of.to_string(),
            "full_feature_names": true,
        });
        let mut found = None;
        loop {
            for node in &self.nodes {
                let Some(rest) = node.rest.lock().clone() else { continue };
                let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
                let Ok(mut response) = agent.post(format!("{rest}/v1/features/online")).send_json(&body)
                else {
                    continue;
                };
                let Ok(answer) = response.body_mut().read_json::<Json>() else { continue };
                let value = |i: usize| answer["results"][i]["values"][0].as_i64();
                if let (Some(count), Some(sum)) = (value(1), value(2)) {
                    found = Some((count, if group == "by_user" { sum } else { wanted.1 }));
                }
            }
            if found == Some(wanted) || Instant::now() > deadline {
                return found;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
