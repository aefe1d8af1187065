//! What the group's offsets say was committed, and by whom (PROTOCOL 3, 16, 20, 23, 26).
//!
//! The metadata of a committed offset is the name of the commit, a space, and the transactional id of
//! the producer that made it.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::{KafkaLog, TIMEOUT, failed};
use crate::error::Result;
use crate::model::Offset;

/// How long a transaction of another may stay open before a takeover ends it. One that lives takes
/// some ten milliseconds; one whose node has died would stay for `transaction.timeout.ms`, and up to
/// ten seconds more until the broker looks.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// What offsets of a task's input say was committed.
pub struct Recovered {
    /// Next offset and the name of the commit; none: nothing was ever committed.
    pub committed: Option<(Offset, String)>,
    /// First offset of the input that is still there.
    pub start: Offset,
    /// Next offset of the input to be appended.
    pub end: Offset,
}

/// Offsets of one commit, as they are sent to the group.
pub(super) fn offsets_of<'a>(
    commits: impl Iterator<Item = (&'a str, u32, Offset, &'a str)>,
    producer: &str,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (topic, partition, next, txn) in commits {
        list.add_partition_offset(topic, partition as i32, KafkaOffset::Offset(next as i64))?;
        if let Some(mut element) = list.find_partition(topic, partition as i32) {
            element.set_metadata(format!("{txn} {producer}"));
        }
    }
    Ok(list)
}

/// A committed offset.
struct Committed {
    next: Offset,
    /// Name of the commit.
    txn: String,
    /// Who made it, as far as it says so.
    producer: Option<String>,
}

fn fetch(
    reader: &BaseConsumer<impl ConsumerContext + 'static>,
    inputs: &[(&str, u32)],
    timeout: Duration,
) -> Result<Vec<Option<Committed>>, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (topic, partition) in inputs {
        list.add_partition(topic, *partition as i32);
    }
    let found = reader.committed_offsets(list, timeout)?;
    let committed = |topic: &str, partition: u32| {
        let Some(element) = found.find_partition(topic, partition as i32) else { return Ok(None) };
        element.error()?;
        let KafkaOffset::Offset(next) = element.offset() else { return Ok(None) };
        let mut words = element.metadata().split(' ').map(str::to_owned);
        let txn = words.next().unwrap_or_default();
        Ok(Some(Committed { next: next as Offset, txn, producer: words.next() }))
    };
    inputs.iter().map(|(topic, partition)| committed(topic, *partition)).collect()
}

/// Next offsets and names of commits for some partitions, stable: behind every transaction that is
/// under way.
pub(super) fn committed(
    reader: &BaseConsumer<impl ConsumerContext + 'static>,
    inputs: &[(&str, u32)],
    timeout: Duration,
) -> Result<Vec<Option<(Offset, String)>>> {
    if inputs.is_empty() {
        return Ok(Vec::new());
    }
    let found = fetch(reader, inputs, timeout).map_err(failed("read committed offsets"))?;
    Ok(found.into_iter().map(|one| one.map(|c| (c.next, c.txn))).collect())
}

/// The same where "none" matters: it may be the answer of a coordinator that has just moved.
pub(super) fn surely_committed(
    reader: &BaseConsumer<impl ConsumerContext + 'static>,
    inputs: &[(&str, u32)],
    timeout: Duration,
) -> Result<Vec<Option<(Offset, String)>>> {
    let mut found = committed(reader, inputs, timeout)?;
    for _ in 0..3 {
        if found.iter().all(Option::is_some) {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
        found = committed(reader, inputs, timeout)?;
    }
    Ok(found)
}

impl KafkaLog {
    /// What is committed for the task on `partition` of `topic`.
    ///
    /// # Errors
    /// The brokers do not answer.
    pub fn recovered(&self, topic: &str, partition: u32) -> Result<Recovered> {
        let (reader, inputs) = (&self.stable_probe, [(topic, partition)]);
        let mut found = match committed(reader, &inputs, PATIENCE) {
            Ok(found) => found,
            Err(_) => {
                // They wait for a transaction, or the brokers are slow.
                self.fence_last(topic, partition)?;
                committed(reader, &inputs, TIMEOUT)?
            }
        };
        if found[0].is_none() {
            found = surely_committed(reader, &inputs, TIMEOUT)?;
        }
        let (start, end) = self.watermarks(topic, partition)?;
        Ok(Recovered { committed: found.remove(0), start, end })
    }

    /// Ends the transaction that the last committer of the task on `partition` of `topic` may have left
    /// open: a producer by its name makes the coordinator abort it. If it lives, and has another under
    /// way, that one is made again (PROTOCOL 20); what it has committed stays.
    pub(super) fn fence_last(&self, topic: &str, partition: u32) -> Result<()> {
        let mut config = self.options.reader();
        config.set("isolation.level", "read_uncommitted");
        let reader: BaseConsumer = config.create().map_err(failed("read committed offsets"))?;
        let mut found =
            fetch(&reader, &[(topic, partition)], TIMEOUT).map_err(failed("read committed offsets"))?;
        let Some(producer) = found.remove(0).and_then(|c| c.producer) else { return Ok(()) };
        if self.options.is_own(&producer) {
            // It ends its own when it starts.
            return Ok(());
        }
        tracing::warn!("{topic}/{partition}: a transaction of `{producer}` stays open: ending it");
        let fencer: BaseProducer =
            self.options.transactional(&producer).create().map_err(failed("start a producer"))?;
        fencer.init_transactions(TIMEOUT).map_err(failed("end a transaction"))
    }
}
