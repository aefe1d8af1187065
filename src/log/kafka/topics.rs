//! Topics: made as they have to be, and refused when they are otherwise.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::client::RECORD_BYTES;
use super::failed;
use crate::error::{Error, Result};
use crate::model::Offset;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Settings without which records would be lost; the others only cost.
const KEPT: [&str; 2] = ["cleanup.policy", "retention.ms"];
/// Settings of changelogs that may be greater: a store as old as one day takes its deletions from there.
const AT_LEAST: [&str; 1] = ["delete.retention.ms"];

/// Room for the largest records.
const RECORDS: (&str, &str) = ("max.message.bytes", RECORD_BYTES);

/// What a topic is for, which decides about its settings (PROTOCOL §12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicKind {
    /// Records of sources, dead letters, outputs.
    Events,
    /// Rows by key, compacted.
    Changelog,
    /// Records between the stages, cut by the engine alone.
    Repartition,
    /// What nodes say about themselves, compacted.
    Owners,
}

impl TopicKind {
    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Events => &[RECORDS],
            Self::Changelog => &[
                ("cleanup.policy", "compact"),
                ("delete.retention.ms", "86400000"),
                ("min.cleanable.dirty.ratio", "0.3"),
                ("segment.bytes", "134217728"),
                RECORDS,
            ],
            Self::Owners => &[
                ("cleanup.policy", "compact"),
                ("min.cleanable.dirty.ratio", "0.1"),
                ("segment.ms", "600000"),
                ("delete.retention.ms", "60000"),
            ],
            Self::Repartition => &[("cleanup.policy", "delete"), ("retention.ms", "-1"), RECORDS],
        }
    }
}

/// Makes topics and cuts them.
pub(super) struct Topics {
    admin: AdminClient<DefaultClientContext>,
}

impl Topics {
    pub fn new(config: &rdkafka::ClientConfig) -> Result<Self> {
        Ok(Self { admin: config.create().map_err(failed("reach Kafka"))? })
    }

    /// Creates a topic; one that exists is left as it is. `partitions` -1: the broker's default.
    pub fn create(&self, name: &str, partitions: i32, kind: TopicKind) -> Result<()> {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
        for (key, value) in kind.settings() {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
        let results = wait_for(self.admin.create_topics([&topic], &options))?;
        for result in results.map_err(failed("create a topic"))? {
            match result {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(Error::internal(format!("create topic `{name}`: {code}"))
                        .with_hint("create it by hand, or give the engine the right to"));
                }
            }
        }
        Ok(())
    }

    /// Refuses a topic whose settings would lose what it is for. Brokers that do not tell settings
    /// are believed.
    pub fn check(&self, name: &str, kind: TopicKind) -> Result<()> {
        let is_least = |key: &str| kind == TopicKind::Changelog && AT_LEAST.contains(&key);
        let wanted = kind.settings().iter().filter(|(key, _)| KEPT.contains(key) || is_least(key));
        let wanted: Vec<(&str, &str)> = wanted.copied().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let described = wait_for(self.admin.describe_configs([&ResourceSpecifier::Topic(name)], &options))?;
        let described = match described.map(|mut all| all.pop()) {
            Ok(Some(Ok(described))) => described,
            other => {
                tracing::warn!("settings of topic `{name}` cannot be checked: {other:?}");
                return Ok(());
            }
        };
        for (key, value) in wanted {
            let found = described.get(key).and_then(|entry| entry.value.as_deref());
            let number = |text: &str| text.parse::<i64>().ok();
            let is_enough = |found: &str| is_least(key) && number(found) >= number(value);
            if found.is_some_and(|found| found != value && !is_enough(found)) {
                let message =
                    format!("topic `{name}` has {key}={}, and {value} is needed", found.unwrap_or_default());
                let hint = format!("kafka-configs --alter --topic {name} --add-config {key}={value}");
                return Err(Error::invalid(message).with_hint(hint));
            }
        }
        Ok(())
    }

    /// Lets records below `offset` go.
    pub fn purge(&self, topic: &str, partition: u32, offset: Offset) -> Result<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition as i32, KafkaOffset::Offset(offset as i64))
            .map_err(failed("purge a topic"))?;
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        wait_for(self.admin.delete_records(&list, &options))?.map(drop).map_err(failed("purge a topic"))
    }
}

/// The answer of the admin client, whose own thread does the work. The runtime is not kept: what is
/// dropped in a server's task must hold none.
fn wait_for<F: Future>(answer: F) -> Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?.block_on(answer))
}
