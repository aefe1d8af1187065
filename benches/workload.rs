//! What is measured: card events over zipf or uniform users, and their definitions.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use thalweg::clock::SystemClock;
use thalweg::config::DefinitionFiles;
use thalweg::config::settings::Settings;
use thalweg::log::{Append, EmbeddedLog, FsyncPolicy, Log, LogOptions};
use thalweg::model::partition_of;
use thalweg::topology::Topology;

pub const TOPIC: &str = "card-events";
pub const PARTITIONS: u32 = 4;
pub const WINDOWS: [&str; 4] = ["10m", "1h", "24h", "30d"];
pub const AGGREGATES: [&str; 6] = ["count", "sum", "mean", "min", "max", "stddev"];
/// Event time of the first event.
pub const START_MS: i64 = 1_767_225_600_000;

/// Six aggregates over each window.
pub fn definitions(windows: &[&str]) -> String {
    let mut text = String::from(
        "entities: { user: { key: user_id, type: string } }
sources:
  cards:
    topic: card-events
    key: user_id
    event_time: { path: t, format: unix_ms }
    fields: { user_id: { type: string }, amount: { type: float64 } }
feature_groups:
  g:
    entity: user
    source: cards
    features:
",
    );
    for window in windows {
        for aggregate in AGGREGATES {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "      {aggregate}_{window}: {{ aggregate: {aggregate}, of: amount, window: {window} }}"
            );
        }
    }
    text
}

pub fn topology(windows: &[&str]) -> Topology {
    Topology::of_files(DefinitionFiles::of_text(&definitions(windows))).expect("no mistakes")
}

pub fn settings(folder: &Path, memory: &str, checkpoint: &str, workers: usize) -> Settings {
    let path = folder.join("thalweg.yaml");
    let text = format!(
        "app: bench\ndefinitions: [none.yaml]\nmemory: {memory}\ncheckpoint_interval: {checkpoint}\nworkers: {workers}\n"
    );
    std::fs::write(&path, text).expect("writable");
    Settings::load(&path, std::iter::empty(), &[]).expect("no mistakes")
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Which users events are of.
#[derive(Clone, Copy)]
pub enum Keys {
    /// zipf(0.99) over this many.
    Zipf(u64),
    /// Uniform over this many.
    Uniform(u64),
}

impl Keys {
    pub fn name(self) -> String {
        match self {
            Self::Zipf(n) => format!("{} k zipf keys", n / 1000),
            Self::Uniform(n) => format!("{} k uniform keys", n / 1000),
        }
    }

    /// Cumulated weights, for zipf.
    fn weights(self) -> Vec<f64> {
        let Self::Zipf(n) = self else { return Vec::new() };
        let mut total = 0.0;
        (1..=n)
            .map(|rank| {
                total += (rank as f64).powf(-0.99);
                total
            })
            .collect()
    }

    fn draw(self, weights: &[f64], random: &mut Random) -> u64 {
        match self {
            Self::Uniform(n) => (random.unit() * n as f64) as u64,
            Self::Zipf(_) => {
                let x = random.unit() * weights[weights.len() - 1];
                weights.partition_point(|w| *w < x) as u64
            }
        }
    }
}

/// Writes `events` events of about 216 bytes to a log at `path`, 5 ms of event time apart.
pub fn fill_log(path: &Path, events: u64, keys: Keys) {
    let options = LogOptions { fsync: FsyncPolicy::Never, recent_bytes: 0, buffer_bytes: 64 << 20 };
    let log = EmbeddedLog::open(path, options, Arc::new(SystemClock)).expect("a log");
    log.create_topic(TOPIC, PARTITIONS).expect("a topic");
    let (mut random, weights) = (Random(1), keys.weights());
    let mut append = Append::to(TOPIC);
    for index in 0..events {
        let user = format!("u{}", keys.draw(&weights, &mut random));
        let event = event(&user, index, &mut random);
        append.push(
            partition_of(user.as_bytes(), PARTITIONS),
            Some(user.as_bytes()),
            Some(event.as_bytes()),
            &[],
        );
        if index % 10_000 == 9_999 || index + 1 == events {
            let full = std::mem::replace(&mut append, Append::to(TOPIC));
            log.append(full).expect("appended");
        }
    }
}

pub fn event(user: &str, index: u64, random: &mut Random) -> String {
    let t = START_MS + index as i64 * 5 - (random.next() % 2000) as i64;
    let amount = (random.next() % 10_000) as f64 / 100.0;
    format!(
        "{{\"event_id\":\"e{index}\",\"t\":{t},\"user_id\":\"{user}\",\"amount\":{amount},\"currency\":\"EUR\",\"merchant\":\"m{}\",\"note\":\"{}\"}}",
        index % 5000,
        "x".repeat(80)
    )
}
