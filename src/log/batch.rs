//! Records in batches, as the embedded log stores them.
//!
//! Version u8, log timestamp i64, count u32; then per record: its own timestamp i64 (version 2 only),
//! optional key, optional value, number of headers u16, each a name and a value. A batch that came from elsewhere keeps offsets and
//! log timestamps of its records apart.

use crate::codec::bytes::{Reader, put_bytes, put_optional_bytes};
use crate::error::{Error, Result};
use crate::model::{Millis, Offset, Record};

const VERSION: u8 = 1;
/// Records say their times themselves.
const VERSION_TIMED: u8 = 2;

/// Consecutive records of a partition with one log timestamp.
#[derive(Debug)]
pub struct LogBatch {
    /// Offset of the first record.
    pub base: Offset,
    /// Number of records.
    pub count: u32,
    /// Log timestamp of all of them.
    pub time: Millis,
    bytes: Vec<u8>,
    /// Offset and log timestamp by record, where they are not consecutive and the same.
    places: Option<Box<[(Offset, Millis)]>>,
}

/// One record of a batch.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    /// Its offset.
    pub offset: Offset,
    /// Its log timestamp.
    pub time: Millis,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its payload.
    pub value: Option<&'a [u8]>,
    headers: &'a [u8],
    header_count: u16,
}

impl RecordView<'_> {
    /// The record on its own.
    pub fn to_record(self) -> Record {
        let mut reader = Reader(self.headers);
        let headers = (0..self.header_count)
            .map_while(|_| Some((reader.text()?.to_owned(), reader.bytes()?.to_vec())))
            .collect();
        Record { key: self.key.map(<[u8]>::to_vec), value: self.value.map(<[u8]>::to_vec), headers }
    }
}

const HEAD_BYTES: usize = 13;
/// Bytes of a stored batch, about.
const BATCH_BYTES: usize = 128 << 10;

/// Name and value of a header.
pub type Header = (String, Vec<u8>);

impl LogBatch {
    /// Reads a stored batch.
    ///
    /// # Errors
    /// Bytes that are no batch of this version.
    pub fn decode(base: Offset, bytes: Vec<u8>) -> Result<Self> {
        let mut reader = Reader(&bytes);
        let head = (|| {
            let version = reader.u8()?;
            matches!(version, VERSION | VERSION_TIMED).then_some(())?;
            Some((reader.i64()?, reader.u32()?))
        })();
        let (time, count) = head.ok_or_else(|| Error::corrupted("a batch of the log is unreadable"))?;
        Ok(Self { base, count, time, bytes, places: None })
    }

    /// Offset behind the last record.
    pub fn next_offset(&self) -> Offset {
        let last = self.places.as_ref().and_then(|places| places.last());
        last.map_or(self.base + u64::from(self.count), |(offset, _)| offset + 1)
    }

    /// Whether its records say their times themselves, rather than being given the log's.
    pub fn is_timed(&self) -> bool {
        self.bytes[0] == VERSION_TIMED
    }

    /// Stored bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The records, in order.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'_>> {
        let mut reader = Reader(&self.bytes[HEAD_BYTES..]);
        let is_timed = self.is_timed();
        (0..u64::from(self.count)).map_while(move |i| {
            let own_time = if is_timed { Some(reader.i64()?) } else { None };
            let key = reader.optional_bytes()?;
            let value = reader.optional_bytes()?;
            let header_count = reader.u16()?;
            let all = reader.0;
            for _ in 0..header_count {
                reader.bytes()?;
                reader.bytes()?;
            }
            let headers = &all[..all.len() - reader.0.len()];
            let (offset, time) =
                self.places.as_ref().map_or((self.base + i, self.time), |places| places[i as usize]);
            let time = own_time.unwrap_or(time);
            Some(RecordView { offset, time, key, value, headers, header_count })
        })
    }
}

/// Collects records into a batch.
#[derive(Clone, Debug)]
pub(super) struct BatchBuilder {
    bytes: Vec<u8>,
    count: u32,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        let mut bytes = Vec::with_capacity(4096);
        bytes.push(VERSION);
        bytes.extend([0; HEAD_BYTES - 1]);
        Self { bytes, count: 0 }
    }
}

impl BatchBuilder {
    /// Adds a record.
    fn push(&mut self, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header]) {
        put_optional_bytes(&mut self.bytes, key);
        put_optional_bytes(&mut self.bytes, value);
        self.bytes.extend((headers.len() as u16).to_le_bytes());
        for (name, value) in headers {
            put_bytes(&mut self.bytes, name.as_bytes());
            put_bytes(&mut self.bytes, value);
        }
        self.count += 1;
    }

    /// Adds a record that says its time. All of a batch do, or none.
    fn push_at(&mut self, time: Millis, key: Option<&[u8]>, value: Option<&[u8]>) {
        self.bytes[0] = VERSION_TIMED;
        self.bytes.extend(time.to_le_bytes());
        self.push(key, value, &[]);
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The batch at `base`, of log timestamp `time`.
    pub(super) fn finish(mut self, base: Offset, time: Millis) -> LogBatch {
        self.bytes[1..9].copy_from_slice(&time.to_le_bytes());
        self.bytes[9..13].copy_from_slice(&self.count.to_le_bytes());
        LogBatch { base, count: self.count, time, bytes: self.bytes, places: None }
    }
}

/// Collects records that have their places already.
#[derive(Debug, Default)]
#[cfg(feature = "kafka")]
pub(super) struct SparseBuilder {
    records: BatchBuilder,
    places: Vec<(Offset, Millis)>,
}

#[cfg(feature = "kafka")]
impl SparseBuilder {
    /// Adds the record at `offset`.
    pub(super) fn push(
        &mut self,
        (offset, time): (Offset, Millis),
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header],
    ) {
        self.records.push(key, value, headers);
        self.places.push((offset, time));
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The batch, if there is any record.
    pub(super) fn finish(self) -> Option<LogBatch> {
        let (base, time) = *self.places.first()?;
        Some(LogBatch { places: Some(self.places.into()), ..self.records.finish(base, time) })
    }
}

/// Records to append to a topic, by partition, already in batches.
#[derive(Debug, Default)]
pub struct Append {
    /// Topic.
    pub topic: String,
    partitions: Vec<(u32, Vec<BatchBuilder>)>,
}

impl Append {
    /// No records for `topic` yet.
    pub fn to(topic: &str) -> Self {
        Self { topic: topic.to_owned(), partitions: Vec::new() }
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.partitions.is_empty()
    }

    /// Bytes of its records.
    pub fn bytes(&self) -> usize {
        self.partitions.iter().flat_map(|(_, builders)| builders).map(BatchBuilder::len).sum()
    }

    /// Adds a record behind the others of its partition.
    pub fn push(&mut self, partition: u32, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[Header]) {
        if let Some(builder) = self.builder(partition) {
            builder.push(key, value, headers);
        }
    }

    /// Adds a record that says its own time. Nothing else may be pushed with it.
    pub fn push_at(&mut self, partition: u32, time: Millis, key: &[u8], value: &[u8]) {
        if let Some(builder) = self.builder(partition) {
            builder.push_at(time, Some(key), Some(value));
        }
    }

    fn builder(&mut self, partition: u32) -> Option<&mut BatchBuilder> {
        let index = match self.partitions.iter().position(|(p, _)| *p == partition) {
            Some(index) => index,
            None => {
                self.partitions.push((partition, vec![BatchBuilder::default()]));
                self.partitions.len() - 1
            }
        };
        let builders = &mut self.partitions[index].1;
        if builders.last().is_none_or(|b| b.len() >= BATCH_BYTES) {
            builders.push(BatchBuilder::default());
        }
        builders.last_mut()
    }

    /// Adds a record.
    pub fn push_record(&mut self, partition: u32, record: &Record) {
        self.push(partition, record.key.as_deref(), record.value.as_deref(), &record.headers);
    }

    /// Copies of all batches with their partitions; offsets in them mean nothing yet.
    #[cfg(feature = "kafka")]
    pub(super) fn batches(&self) -> impl Iterator<Item = (u32, LogBatch)> {
        let all = self.partitions.iter();
        all.flat_map(|(p, builders)| builders.iter().map(|b| (*p, b.clone().finish(0, 0))))
    }

    /// Batches by partition.
    pub(super) fn into_partitions(self) -> Vec<(u32, Vec<BatchBuilder>)> {
        self.partitions
    }
}
