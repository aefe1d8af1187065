//! A real Kafka for one test, and a producer and a reader that know nothing of the engine.

use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::crash::random;
use crate::harness::root;

/// Brokers that end with the test.
pub struct Broker {
    folder: tempfile::TempDir,
    pub bootstrap: String,
}

impl Broker {
    /// Starts one.
    pub fn start() -> Self {
        Self::start_many(1)
    }

    /// Starts one or three.
    pub fn start_many(count: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let output = script(&["start", folder.path().to_str().expect("UTF-8"), &count.to_string()]);
        let bootstrap = output.lines().last().expect("an address").to_owned();
        Self { folder, bootstrap }
    }

    /// `log:` of a configuration, with short timeouts.
    pub fn log(&self, partitions: u32) -> String {
        // KIP-848, when asked for; brokers set its times then.
        let protocol = std::env::var("THALWEG_TEST_GROUP_PROTOCOL").unwrap_or_else(|_| "classic".to_owned());
        format!(
            "log: {{ kafka: {{ brokers: [\"{}\"], partitions: {partitions}, properties: {{ group.protocol: {protocol}, session.timeout.ms: 6000, heartbeat.interval.ms: 500 }} }} }}",
            self.bootstrap
        )
    }

    /// Makes a topic.
    pub fn create(&self, topic: &str, partitions: u32) {
        self.create_with(topic, partitions, "cleanup.policy=delete");
    }

    /// Makes a topic with settings, `name=value` with commas.
    pub fn create_with(&self, topic: &str, partitions: u32, settings: &str) {
        let admin = self.admin();
        let mut topic = NewTopic::new(topic, partitions as i32, TopicReplication::Fixed(-1));
        for setting in settings.split(',') {
            let (name, value) = setting.split_once('=').expect("name=value");
            topic = topic.set(name, value);
        }
        let made = wait_for(admin.create_topics([&topic], &AdminOptions::new())).expect("an answer");
        assert!(made[0].is_ok(), "{made:?}");
    }

    /// Gives a topic more partitions.
    pub fn widen(&self, topic: &str, partitions: u32) {
        let more = NewPartitions::new(topic, partitions as usize);
        let made =
            wait_for(self.admin().create_partitions([&more], &AdminOptions::new())).expect("an answer");
        assert!(made[0].is_ok(), "{made:?}");
    }

    /// Removes the first records of every partition, up to these offsets.
    pub fn cut(&self, topic: &str, offsets: &[i64]) {
        let admin = self.admin();
        let mut list = TopicPartitionList::new();
        for (partition, offset) in (0..).zip(offsets) {
            list.add_partition_offset(topic, partition, Offset::Offset(*offset)).expect("an offset");
        }
        let cut = wait_for(admin.delete_records(&list, &AdminOptions::new())).expect("an answer");
        for (element, offset) in cut.elements().iter().zip(offsets) {
            element.error().expect("it is cut");
            assert_eq!(element.offset(), Offset::Offset(*offset));
        }
    }

    /// Deletes a topic, and waits until it is gone.
    pub fn delete(&self, topic: &str) {
        let admin = self.admin();
        let gone = wait_for(admin.delete_topics(&[topic], &AdminOptions::new())).expect("an answer");
        assert!(gone[0].is_ok(), "{gone:?}");
        let deadline = Instant::now() + Duration::from_secs(30);
        let is_there = || {
            let metadata =
                admin.inner().fetch_metadata(Some(topic), Duration::from_secs(10)).expect("metadata");
            metadata.topics()[0].error().is_none()
        };
        while is_there() {
            assert!(Instant::now() < deadline, "{topic} is still there");
        }
    }

    fn id(&self, broker: usize) -> u32 {
        let path = self.folder.path().join(format!("broker-{broker}.pid"));
        std::fs::read_to_string(path).expect("it runs").trim().parse().expect("a number")
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config.create().expect("a client")
    }

    /// Sends a signal to a broker, which must be running.
    pub fn signal(&self, broker: usize, signal: &str) {
        let log = || std::fs::read_to_string(self.folder.path().join(format!("broker-{broker}.log")));
        let sent = Command::new("kill").args([signal, &self.id(broker).to_string()]).status();
        if !sent.expect("kill runs").success() {
            // What the folder says is gone with it.
            let log = log().unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(30).collect();
            panic!("broker {broker} has ended by itself; its log, last line first:\n{}", last.join("\n"));
        }
    }

    /// Ends a broker at once.
    pub fn kill(&self, broker: usize) {
        self.signal(broker, "-KILL");
    }

    /// Starts one again that was killed.
    pub fn launch(&self, broker: usize) {
        let folder = self.folder.path().to_str().expect("UTF-8");
        script(&["launch", folder, &broker.to_string()]);
    }

    pub fn producer(&self) -> ThreadedProducer<DefaultProducerContext> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("enable.idempotence", "true")
            .set("linger.ms", "1");
        config.create().expect("a producer")
    }

    /// Sends a record of so many bytes that are no event.
    pub fn send_large(&self, topic: &str, bytes: usize) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("message.max.bytes", "10000000");
        let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
        // Brokers measure what is left of it after compression.
        let value: Vec<u8> = (0..bytes as u64).map(|n| random(n) as u8).collect();
        producer.send(BaseRecord::<(), [u8]>::to(topic).payload(&value)).map_err(|(e, _)| e).expect("queued");
        producer.flush(Duration::from_secs(30)).expect("sent");
    }

    /// A producer that is ready for its first transaction.
    pub fn transactional(&self, name: &str) -> ThreadedProducer<DefaultProducerContext> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("transactional.id", name);
        let producer: ThreadedProducer<_> = config.create().expect("a producer");
        producer.init_transactions(Duration::from_secs(30)).expect("ready");
        producer
    }

    /// Makes a group rebalance `times` over: a member comes, and goes again.
    pub fn disturb(&self, group: &str, topic: &str, times: u32) {
        for _ in 0..times {
            let mut config = ClientConfig::new();
            config
                .set("bootstrap.servers", &self.bootstrap)
                .set("group.id", group)
                .set("enable.auto.commit", "false")
                .set("partition.assignment.strategy", "range");
            let member: BaseConsumer = config.create().expect("a consumer");
            member.subscribe(&[topic]).expect("it subscribes");
            let _ = member.poll(Duration::from_millis(300));
        }
    }

    /// What a group has committed.
    pub fn offsets(&self, group: &str) -> Offsets {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("group.id", group);
        Offsets(config.set("isolation.level", "read_committed").create().expect("a consumer"))
    }

    /// Offset behind everything in a partition, committed or not.
    pub fn end(&self, topic: &str, partition: i32) -> i64 {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("isolation.level", "read_uncommitted");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).expect("an answer").1
    }

    /// All committed records of a topic, by partition and offset.
    pub fn read(&self, topic: &str) -> Vec<OwnedMessage> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", "test-reader")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).expect("metadata");
        let count = metadata.topics()[0].partitions().len();
        let mut list = TopicPartitionList::new();
        for partition in 0..count {
            list.add_partition_offset(topic, partition as i32, Offset::Beginning).expect("a partition");
        }
        consumer.assign(&list).expect("assigned");
        let (mut found, mut ended) = (Vec::new(), 0);
        let deadline = Instant::now() + Duration::from_secs(30);
        while ended < count {
            assert!(Instant::now() < deadline, "{topic} cannot be read to its end");
            match consumer.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => found.push(message.detach()),
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
                // A broker that was just killed or paused; who reads finds another, or comes back.
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => panic!("{topic}: {error}"),
                None => {}
            }
        }
        found.sort_by_key(|m| (m.partition(), m.offset()));
        found
    }
}

fn is_passing(error: &rdkafka::error::KafkaError) -> bool {
    use rdkafka::types::RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure};
    error.rdkafka_error_code().is_some_and(|code| matches!(code, BrokerTransportFailure | AllBrokersDown))
}

/// Asks for committed offsets.
pub struct Offsets(BaseConsumer);

impl Offsets {
    /// Partitions with next offsets; none if the brokers do not answer.
    pub fn committed(&self, topic: &str, partitions: u32) -> Vec<(u32, u64)> {
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition(topic, partition as i32);
        }
        let Ok(found) = self.0.committed_offsets(list, Duration::from_secs(5)) else { return Vec::new() };
        let known = |e: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match e.offset() {
            Offset::Offset(next) => Some((e.partition() as u32, next as u64)),
            _ => None,
        };
        found.elements().iter().filter_map(known).collect()
    }
}

/// Sends payloads to partitions, and waits until they are acknowledged.
pub fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    records: &[(u32, Option<String>, String)],
) {
    for (partition, key, payload) in records {
        let mut record: BaseRecord<'_, str, str> =
            BaseRecord::to(topic).partition(*partition as i32).payload(payload);
        record.key = key.as_deref();
        producer.send(record).map_err(|(e, _)| e).expect("sent");
    }
    // As long as it takes brokers to come back and agree on leaders.
    producer.flush(Duration::from_secs(120)).expect("acknowledged");
}

fn wait_for<T>(answer: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(answer)
}

fn script(arguments: &[&str]) -> String {
    let output = Command::new(root().join("tools/kafka/broker")).args(arguments).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

impl Drop for Broker {
    fn drop(&mut self) {
        script(&["stop", self.folder.path().to_str().expect("UTF-8")]);
    }
}
