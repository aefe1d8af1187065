//! Following single partitions: a table of nodes, a changelog that never ends, an input beside its
//! owner.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::producer::BaseRecord;

use super::changelog::changelog_topic;
use super::fetcher::Fetcher;
use super::offsets::committed;
use super::{KafkaLog, TIMEOUT, failed};
use crate::error::Result;
use crate::log::{LogBatch, RecordView};
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
    fetcher: Fetcher,
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
        let batch = self.batch(timeout, bytes_max)?;
        let row = |record: RecordView<'_>| TableRow {
            offset: record.offset,
            time: record.time,
            key: record.key.unwrap_or_default().to_vec(),
            value: record.value.map(<[u8]>::to_vec),
        };
        Ok(batch.iter().flat_map(LogBatch::records).map(row).collect())
    }

    /// Records that are there, or come within `timeout`; about `bytes_max` at most.
    ///
    /// # Errors
    /// The position was cut off.
    pub fn batch(&mut self, timeout: Duration, bytes_max: usize) -> Result<Option<LogBatch>> {
        let taken = self.fetcher.take(timeout, bytes_max);
        let Some(arrived) = taken.of_one().map_err(failed("follow a partition"))? else { return Ok(None) };
        let next = arrived.batch.as_ref().map(LogBatch::next_offset);
        self.next = self.next.max(next.unwrap_or(0)).max(arrived.end.unwrap_or(0));
        Ok(arrived.batch)
    }

    /// Whether everything that is committed has been read, and when that was asked.
    ///
    /// # Errors
    /// The brokers do not answer.
    pub fn is_at_end(&mut self) -> Result<Option<Instant>> {
        let asked_at = Instant::now();
        let marks = self.fetcher.consumer().fetch_watermarks(&self.topic, self.partition as i32, TIMEOUT);
        let end = marks.map_err(failed("read the end of a partition"))?.1.max(0) as Offset;
        let position = self.fetcher.positions().first().map(|(_, at)| *at);
        self.next = self.next.max(position.unwrap_or(0));
        Ok((self.next >= end).then_some(asked_at))
    }

    /// Next offset that is committed for an input of the application. None as long as a transaction
    /// decides about it, or the brokers are away: whoever follows has other things to do meanwhile.
    pub fn committed(&self, topic: &str, partition: u32) -> Option<Offset> {
        let found = committed(self.fetcher.consumer(), &[(topic, partition)], GLANCE).ok()?;
        found.into_iter().next().flatten().map(|(next, _)| next)
    }
}

impl KafkaLog {
    /// Follows `partition` of `topic` from `from` on.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn reader(&self, topic: &str, partition: u32, from: Offset) -> Result<PartitionReader> {
        let fetcher =
            Fetcher::of(&self.options, topic, partition, from).map_err(failed("follow a partition"))?;
        Ok(PartitionReader { fetcher, topic: topic.to_owned(), partition, next: from })
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
