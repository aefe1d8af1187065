//! Prometheus metrics. Counts that belong to the log are read from the tasks at scrape time; only
//! what belongs to the process is kept here.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Labels = Vec<(String, String)>;

/// Metrics of the process.
pub struct Metrics {
    registry: Registry,
    recovery: Registry,
    read_latency: Histogram,
    write_latency: Histogram,
    processing_latency: Histogram,
    requests: Family<Labels, Counter>,
    restored: Family<Labels, Counter>,
    commit_latency: Histogram,
    commits: Family<Labels, Counter>,
    rebalances: Family<Labels, Counter>,
    misplaced: Family<Labels, Counter>,
    hits: AtomicU64,
    misses: AtomicU64,
    hit_ratio: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("feature_pipeline");
        // 10 µs to 5 s.
        let latency = || Histogram::new(exponential_buckets(10e-6, 2.0, 20));
        let metrics = (latency(), latency(), latency());
        let requests = Family::<Labels, Counter>::default();
        let restored = Family::<Labels, Counter>::default();
        let mut recovery = Registry::with_prefix("thalweg");
        recovery.register("restore_records", "Records of changelogs read in takeovers", restored.clone());
        let (commit_latency, commits, rebalances) = (latency(), Family::default(), Family::default());
        recovery.register("commit_latency_seconds", "Time of a commit's transaction", commit_latency.clone());
        recovery.register("commits", "Commits by outcome", commits.clone());
        recovery.register("rebalances", "Changes of ownership by kind", rebalances.clone());
        let misplaced = Family::<Labels, Counter>::default();
        let help = "Records found in another partition than their key's, of those that were checked";
        recovery.register("misplaced_records", help, misplaced.clone());
        let hit_ratio = Gauge::<f64, AtomicU64>::default();
        registry.register("feature_read_latency_seconds", "Time to answer a lookup", metrics.0.clone());
        registry.register(
            "feature_write_latency_seconds",
            "Time until an append is durable",
            metrics.1.clone(),
        );
        registry.register(
            "processing_latency_seconds",
            "Time to judge and apply a batch of the log",
            metrics.2.clone(),
        );
        registry.register("api_requests", "Requests by route and status", requests.clone());
        registry.register(
            "feature_cache_hit_ratio",
            "Share of entity reads that found their unit in memory",
            hit_ratio.clone(),
        );
        Self {
            registry,
            recovery,
            read_latency: metrics.0,
            write_latency: metrics.1,
            processing_latency: metrics.2,
            requests,
            restored,
            commit_latency,
            commits,
            rebalances,
            misplaced,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            hit_ratio,
        }
    }
}

impl Metrics {
    /// Notes how long a lookup took.
    pub fn read_latency(&self, took: Duration) {
        self.read_latency.observe(took.as_secs_f64());
    }

    /// Notes how long an append took.
    pub fn write_latency(&self, took: Duration) {
        self.write_latency.observe(took.as_secs_f64());
    }

    /// Notes how long a batch of the log took.
    pub fn processing_latency(&self, took: Duration) {
        self.processing_latency.observe(took.as_secs_f64());
    }

    /// Counts a request.
    pub fn request(&self, route: &str, status: &str) {
        let labels = vec![("route".to_owned(), route.to_owned()), ("status".to_owned(), status.to_owned())];
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts records of a changelog that a takeover has read.
    pub fn restored(&self, topic: &str, partition: u32, records: u64) {
        let labels =
            vec![("topic".to_owned(), topic.to_owned()), ("partition".to_owned(), partition.to_string())];
        self.restored.get_or_create(&labels).inc_by(records);
    }

    /// Notes a commit, its outcome and how long it took.
    pub fn commit(&self, outcome: &str, took: Duration) {
        self.commit_latency.observe(took.as_secs_f64());
        self.commits.get_or_create(&vec![("outcome".to_owned(), outcome.to_owned())]).inc();
    }

    /// Counts a change of ownership.
    pub fn rebalance(&self, kind: &str) {
        self.rebalances.get_or_create(&vec![("kind".to_owned(), kind.to_owned())]).inc();
    }

    /// Counts a record whose key belongs to another partition.
    pub fn misplaced(&self, topic: &str) {
        self.misplaced.get_or_create(&vec![("topic".to_owned(), topic.to_owned())]).inc();
    }

    /// Counts a read of an entity.
    pub fn cache_read(&self, is_hit: bool) {
        let counter = if is_hit { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The process's metrics as OpenMetrics text, without the end mark.
    pub fn encode(&self) -> String {
        let (hits, misses) = (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed));
        if hits + misses > 0 {
            self.hit_ratio.set(hits as f64 / (hits + misses) as f64);
        }
        let mut all = String::new();
        for registry in [&self.registry, &self.recovery] {
            let mut text = String::new();
            // Writing to a string cannot fail.
            let _ = encode_registry(&mut text, registry);
            all.push_str(&text);
        }
        all
    }
}
