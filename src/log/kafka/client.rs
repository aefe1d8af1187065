//! Settings of librdkafka's clients. What the protocol leans on (PROTOCOL §12) is not the user's
//! to change.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::error::{Error, Result};

/// Defaults of what a member tells its group.
const SESSION_TIMEOUT_MS: u64 = 10_000;
const HEARTBEAT_MS: u64 = 1000;
/// What clocks and schedulers may be off.
const LEASE_MARGIN_MS: u64 = 250;

/// Properties that the protocol leans on.
const RESERVED: [&str; 12] = [
    "bootstrap.servers",
    "group.id",
    "group.instance.id",
    "transactional.id",
    "enable.idempotence",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "isolation.level",
    "auto.offset.reset",
    "partition.assignment.strategy",
    "acks",
];

/// Properties of members of the group alone.
const OF_MEMBERS: [&str; 3] = ["group.protocol", "session.timeout.ms", "heartbeat.interval.ms"];

/// How Kafka is reached, and as whom.
#[derive(Clone)]
pub struct KafkaOptions {
    /// `host:port` of some brokers.
    pub brokers: Vec<String>,
    /// Properties of librdkafka.
    pub properties: Vec<(String, String)>,
    /// Consumer group, and prefix of internal topics.
    pub app: String,
    /// Name of this node: stable across its restarts, unlike that of any other.
    pub node: String,
    /// Partitions of topics that are created; none: the broker's default.
    pub partitions: Option<u32>,
}

impl std::fmt::Debug for KafkaOptions {
    /// Properties may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kafka at {} as {} of {}", self.brokers.join(","), self.node, self.app)
    }
}

impl KafkaOptions {
    /// Refuses properties that the protocol leans on, and values that would be passed over.
    ///
    /// # Errors
    /// There is one.
    pub fn check(&self) -> Result<()> {
        if let Some((name, _)) = self.properties.iter().find(|(name, _)| RESERVED.contains(&name.as_str())) {
            let message = format!("`log.kafka.properties` sets `{name}`, which exactly-once needs as it is");
            return Err(Error::invalid(message).with_hint("leave it out"));
        }
        let is_number = |value: &str| value.parse::<u64>().is_ok();
        let checks: [(&str, &dyn Fn(&str) -> bool, &str); 3] = [
            ("group.protocol", &|value| ["classic", "consumer"].contains(&value), "classic or consumer"),
            ("session.timeout.ms", &is_number, "milliseconds"),
            ("heartbeat.interval.ms", &is_number, "milliseconds"),
        ];
        for (name, is_known, expected) in checks {
            if let Some(value) = self.given(name).filter(|value| !is_known(value)) {
                let message =
                    format!("`log.kafka.properties` sets `{name}` to `{value}`; expected {expected}");
                return Err(Error::invalid(message));
            }
        }
        Ok(())
    }

    fn base(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers.join(","));
        config.set("client.id", format!("thalweg-{}", self.node));
        // Clients of every kind get all properties: those that are not theirs are not worth a line.
        config.set_log_level(RDKafkaLogLevel::Error);
        for (name, value) in self.properties.iter().filter(|(name, _)| !OF_MEMBERS.contains(&name.as_str())) {
            config.set(name, value);
        }
        config
    }

    /// Whether the group gives and takes single partitions (KIP-848).
    pub fn has_consumer_protocol(&self) -> bool {
        self.given("group.protocol") == Some("consumer")
    }

    /// A client that reads metadata and offsets as they are.
    pub(super) fn probe(&self) -> ClientConfig {
        let mut config = self.base();
        config.set("group.id", format!("{}-probe", self.app));
        config.set("enable.auto.commit", "false");
        config.set("isolation.level", "read_uncommitted");
        config
    }

    /// A client that reads committed records of partitions that it is told to.
    pub(super) fn reader(&self) -> ClientConfig {
        let mut config = self.base();
        // Its own group is never joined; offsets are asked of the application's.
        config.set("group.id", &self.app);
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("isolation.level", "read_committed");
        config.set("auto.offset.reset", "error");
        config.set("enable.partition.eof", "true");
        fetch_fast(&mut config, &self.properties);
        config
    }

    /// The same for the inputs of a worker: brokers gather what comes before they answer, which saves
    /// both sides most of their work at rates of thousands of records a second. An idle worker asks each
    /// broker 120 times a second.
    pub(super) fn input(&self) -> ClientConfig {
        let mut config = self.reader();
        for (name, value) in [("fetch.min.bytes", "65536"), ("fetch.wait.max.ms", "8")] {
            unless_given(&mut config, &self.properties, name, value);
        }
        config
    }

    fn given(&self, name: &str) -> Option<&str> {
        self.properties.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// A whole number among the properties.
    fn property(&self, name: &str, default: u64) -> u64 {
        self.given(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    /// How long a worker may answer after it was last known to be in its group: until the group may
    /// have given its partitions away.
    pub fn lease(&self) -> Duration {
        let session = self.property("session.timeout.ms", SESSION_TIMEOUT_MS);
        let heartbeat = self.property("heartbeat.interval.ms", HEARTBEAT_MS);
        Duration::from_millis(session.saturating_sub(heartbeat + LEASE_MARGIN_MS).max(session / 2))
    }

    /// Worker `index` as a member of the group. It fetches nothing.
    pub(super) fn member(&self, index: usize) -> ClientConfig {
        let mut config = self.base();
        config.set("group.id", &self.app);
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        config.set("isolation.level", "read_committed");
        config.set("auto.offset.reset", "error");
        if self.has_consumer_protocol() {
            config.set("group.protocol", "consumer");
            // Requests that were not answered are told at this level.
            config.set_log_level(RDKafkaLogLevel::Notice);
            // Partitions of the same number go to the same member. Timeouts are the brokers' to set, and
            // a static member that was killed would be refused until its session has ended.
            config.set("group.remote.assignor", "range");
        } else {
            // Members are given partitions in the order of these: the first of every node before the second
            // of any.
            config.set("group.instance.id", format!("{index:03}-{}", self.node));
            config.set("partition.assignment.strategy", "range");
            let (session, heartbeat) = (SESSION_TIMEOUT_MS.to_string(), HEARTBEAT_MS.to_string());
            config.set("session.timeout.ms", self.given("session.timeout.ms").unwrap_or(&session));
            config.set("heartbeat.interval.ms", self.given("heartbeat.interval.ms").unwrap_or(&heartbeat));
        }
        config
    }

    /// The transactional id of worker `index`: stable, so that a restart ends what its predecessor
    /// left open.
    pub(super) fn producer(&self, index: usize) -> String {
        format!("{}-{}-{index}", self.app, self.node)
    }

    /// Whether `producer` is the transactional id of a worker of this node.
    pub(super) fn is_own(&self, producer: &str) -> bool {
        let index = producer.strip_prefix(&format!("{}-{}-", self.app, self.node));
        index.is_some_and(|index| index.parse::<usize>().is_ok())
    }

    /// The producer of this transactional id.
    pub(super) fn transactional(&self, producer: &str) -> ClientConfig {
        let mut config = self.base();
        config.set("transactional.id", producer);
        unless_given(&mut config, &self.properties, "transaction.timeout.ms", "10000");
        unless_given(&mut config, &self.properties, "linger.ms", "2");
        unless_given(&mut config, &self.properties, "compression.type", "lz4");
        unless_given(&mut config, &self.properties, "queue.buffering.max.messages", "1000000");
        unless_given(&mut config, &self.properties, "batch.size", "1000000");
        unless_given(&mut config, &self.properties, "message.max.bytes", RECORD_BYTES);
        config
    }

    /// The producer of appends.
    pub(super) fn appender(&self) -> ClientConfig {
        let mut config = self.base();
        config.set("enable.idempotence", "true");
        config.set("acks", "all");
        unless_given(&mut config, &self.properties, "linger.ms", "1");
        unless_given(&mut config, &self.properties, "compression.type", "lz4");
        unless_given(&mut config, &self.properties, "queue.buffering.max.messages", "1000000");
        unless_given(&mut config, &self.properties, "message.max.bytes", RECORD_BYTES);
        config
    }
}

/// Largest record that is written: what the largest body holds, with headers. Clients and brokers stop
/// at 1 MB by themselves, and a record of that size that goes aside with its headers is over it.
pub(super) const RECORD_BYTES: &str = "20971520";

fn unless_given(config: &mut ClientConfig, given: &[(String, String)], name: &str, value: &str) {
    if !given.iter().any(|(n, _)| n == name) {
        config.set(name, value);
    }
}

/// librdkafka waits a second when its queue was full once, and starts small.
fn fetch_fast(config: &mut ClientConfig, given: &[(String, String)]) {
    for (name, value) in [
        ("fetch.queue.backoff.ms", "10"),
        ("queued.min.messages", "200000"),
        ("queued.max.messages.kbytes", "65536"),
        ("fetch.message.max.bytes", "2097152"),
        ("fetch.wait.max.ms", "50"),
    ] {
        unless_given(config, given, name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_would_be_passed_over_are_refused() {
        let check = |name: &str, value: &str| {
            let options = KafkaOptions {
                brokers: vec!["h:9092".to_owned()],
                properties: vec![(name.to_owned(), value.to_owned())],
                app: "a".to_owned(),
                node: "n".to_owned(),
                partitions: None,
            };
            options.check().map_err(|error| error.message)
        };
        for (name, value, expected) in [
            ("group.protocol", "nonsense", "expected classic or consumer"),
            ("session.timeout.ms", "6s", "expected milliseconds"),
            ("heartbeat.interval.ms", "-1", "expected milliseconds"),
            ("acks", "1", "exactly-once needs as it is"),
        ] {
            let refused = check(name, value).expect_err("it is refused");
            assert!(refused.contains(expected), "{refused}");
        }
        for (name, value) in
            [("group.protocol", "consumer"), ("session.timeout.ms", "6000"), ("linger.ms", "5")]
        {
            check(name, value).expect("it is taken");
        }
    }
}
