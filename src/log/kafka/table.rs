//! Following single partitions: a table of nodes, a changelog that never ends, an input beside its
//! owner.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::changelog::{changelog_topic, passed};
use super::offsets::committed;
use super::session::push_message;
use super::{KafkaLog, TIMEOUT, failed};
use crate::error::Result;
use crate::log::LogBatch;
use crate::log::batch::SparseBuilder;
use crate::model::{Millis, Offset};

/// How long who follows waits for offsets.
const GLANCE: Duration = Duration::from_millis(100);

/// A record of a compacted topic.
#[derive(Clone, Debug)]
pub struct TableRow {
    /// Its offset.
    pub offset: Offset,
    /// When it was sent.
    pub time: Millis,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value; none: the key leaves the table.
    pub value: Option<Vec<u8>>,
}

/// Reads committed records of one partition as they come.
pub struct PartitionReader {
    consumer: BaseConsumer,
    topic: String,
    partition: u32,
    next: Offset,
}

impl PartitionReader {
    /// Next offset to be read.
    pub fn position(&self) -> Offset {
        self.next
    }

    /// Rows that are there, or come within `timeout`; about `bytes_max` at most.
    ///
    /// # Errors
    /// The position was cut off.
    pub fn rows(&mut self, timeout: Duration, bytes_max: usize) -> Result<Vec<TableRow>> {
        let mut rows = Vec::new();
        self.poll(timeout, bytes_max, |message| {
            rows.push(TableRow {
                offset: message.offset() as Offset,
                time: message.timestamp().to_millis().unwrap_or(0),
                key: message.key().unwrap_or_default().to_vec(),
                value: message.payload().map(<[u8]>::to_vec),
            });
        })?;
        Ok(rows)
    }

    /// Records that are there, or come within `timeout`; about `bytes_max` at most.
    ///
    /// # Errors
    /// The position was cut off.
    pub fn batch(&mut self, timeout: Duration, bytes_max: usize) -> Result<Option<LogBatch>> {
        let mut builder = SparseBuilder::default();
        self.poll(timeout, bytes_max, |message| push_message(&mut builder, message))?;
        Ok(builder.finish())
    }

    fn poll(
        &mut self,
        timeout: Duration,
        bytes_max: usize,
        mut take: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<()> {
        let (mut bytes, mut patience) = (0, timeout);
        while bytes < bytes_max {
            match self.consumer.poll(patience) {
                Some(Ok(message)) => {
                    self.next = message.offset() as Offset + 1;
                    bytes += message.payload_len() + message.key_len() + 64;
                    take(&message);
                    patience = Duration::ZERO;
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None => break,
                Some(Err(error)) => return Err(failed("follow a partition")(error)),
            }
        }
        Ok(())
    }

    /// Whether everything that is committed has been read, and when that was asked.
    ///
    /// # Errors
    /// The brokers do not answer.
    pub fn is_at_end(&mut self) -> Result<Option<Instant>> {
        let asked_at = Instant::now();
        let marks = self.consumer.fetch_watermarks(&self.topic, self.partition as i32, TIMEOUT);
        let end = marks.map_err(failed("read the end of a partition"))?.1.max(0) as Offset;
        self.next = self.next.max(passed(&self.consumer, &self.topic, self.partition));
        Ok((self.next >= end).then_some(asked_at))
    }

    /// Next offset that is committed for an input of the application. None as long as a transaction
    /// decides about it, or the brokers are away: whoever follows has other things to do meanwhile.
    pub fn committed(&self, topic: &str, partition: u32) -> Option<Offset> {
        let found = committed(&self.consumer, &[(topic, partition)], GLANCE).ok()?;
        found.into_iter().next().flatten().map(|(next, _)| next)
    }
}

impl KafkaLog {
    /// Follows `partition` of `topic` from `from` on.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn reader(&self, topic: &str, partition: u32, from: Offset) -> Result<PartitionReader> {
        let consumer: BaseConsumer = self.options.reader().create().map_err(failed("follow a partition"))?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition as i32, KafkaOffset::Offset(from as i64))
            .and_then(|()| consumer.assign(&list))
            .map_err(failed("follow a partition"))?;
        Ok(PartitionReader { consumer, topic: topic.to_owned(), partition, next: from })
    }

    /// Follows the changelog of the task on `partition` of `topic` from `from` on.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn changelog_reader(&self, topic: &str, partition: u32, from: Offset) -> Result<PartitionReader> {
        self.reader(&changelog_topic(&self.options.app, topic), partition, from)
    }

    /// Sends a record of a table, without waiting for it; no value: the key leaves the table.
    pub fn publish(&self, topic: &str, key: &[u8], value: Option<&[u8]>) {
        let mut record: BaseRecord<'_, [u8], [u8], usize> =
            BaseRecord::with_opaque_to(topic, 0).partition(0).key(key);
        record.payload = value;
        let sent = self.appender().map(|appender| appender.send(record).map_err(|(error, _)| error));
        if let Ok(Err(error)) = sent {
            tracing::warn!("Kafka: {topic}: {error}");
        }
    }
}
