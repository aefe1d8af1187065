//! Records in batches, as the embedded log stores them.
//!
//! Version u8, log timestamp i64, count u32; then per record: its own timestamp i64 (version 2 only),
//! optional key, optional value, number of headers u16, each a name and a value. A batch that came from
//! elsewhere is held as it came.

use std::fmt::Debug;

use crate::codec::bytes::{Reader, put_bytes, put_optional_bytes};
use crate::error::{Error, Result};
use crate::model::{Millis, Offset, Record};

const VERSION: u8 = 1;
/// Records say their times themselves.
const VERSION_TIMED: u8 = 2;

/// Successive records of a partition.
#[derive(Debug)]
pub struct LogBatch {
    /// Offset of the first record.
    pub base: Offset,
    /// Number of records.
    pub count: u32,
    /// Log timestamp of the first record.
    pub time: Millis,
    body: Body,
}

/// Where the records of a batch are.
#[derive(Debug)]
enum Body {
    /// Encoded: their offsets are consecutive, and their log timestamp is one.
    Stored(Vec<u8>),
    /// With whom they came from, in the order of their offsets.
    Held(Box<dyn HeldRecords>),
}

/// Records that are held as they came, in the order of their offsets.
pub(super) trait HeldRecords: Debug + Send + Sync {
    /// Number of records.
    fn len(&self) -> usize;

    /// Bytes of memory, about.
    fn size(&self) -> usize;

    /// Offset, log timestamp, key and value of the record at `index`.
    fn record(&self, index: usize) -> HeldRecord<'_>;

    /// Headers of the record at `index`.
    fn headers(&self, index: usize) -> Vec<Header>;
}

/// Offset, log timestamp, key and value.
pub(super) type HeldRecord<'a> = (Offset, Millis, Option<&'a [u8]>, Option<&'a [u8]>);

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
    headers: Headers<'a>,
}

/// Where the headers of a record are; few are ever asked for.
#[derive(Clone, Copy, Debug)]
enum Headers<'a> {
    /// So many, as they are stored.
    Stored(&'a [u8], u16),
    /// Those of the record at this index.
    Held(&'a dyn HeldRecords, usize),
}

impl RecordView<'_> {
    /// The record on its own.
    pub fn to_record(self) -> Record {
        let headers = match self.headers {
            Headers::Held(records, index) => records.headers(index),
            Headers::Stored(bytes, count) => {
                let mut reader = Reader(bytes);
                let header = |_| Some((reader.text()?.to_owned(), reader.bytes()?.to_vec()));
                (0..count).map_while(header).collect()
            }
        };
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
        Ok(Self { base, count, time, body: Body::Stored(bytes) })
    }

    /// A batch of records that are held as they came; none of none.
    #[cfg_attr(not(feature = "kafka"), allow(dead_code))]
    pub(super) fn of_held(records: Box<dyn HeldRecords>) -> Option<Self> {
        let count = records.len() as u32;
        let (base, time) = (count > 0).then(|| records.record(0)).map(|first| (first.0, first.1))?;
        Some(Self { base, count, time, body: Body::Held(records) })
    }

    /// Offset behind the last record.
    pub fn next_offset(&self) -> Offset {
        match &self.body {
            Body::Stored(_) => self.base + u64::from(self.count),
            Body::Held(records) => records.record(records.len() - 1).0 + 1,
        }
    }

    /// Whether its records say their times themselves, rather than being given the log's.
    pub fn is_timed(&self) -> bool {
        self.stored_bytes().first() == Some(&VERSION_TIMED)
    }

    /// Bytes as they are stored, if they are.
    pub fn stored_bytes(&self) -> &[u8] {
        match &self.body {
            Body::Stored(bytes) => bytes,
            Body::Held(_) => &[],
        }
    }

    /// Bytes of memory, about.
    pub fn size(&self) -> usize {
        match &self.body {
            Body::Stored(bytes) => bytes.len(),
            Body::Held(records) => records.size(),
        }
    }

    /// The records, in order.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'_>> {
        let held = match &self.body {
            Body::Held(records) => Some(&**records),
            Body::Stored(_) => None,
        };
        let held = held.into_iter().flat_map(|records| {
            (0..records.len()).map(|index| {
                let (offset, time, key, value) = records.record(index);
                RecordView { offset, time, key, value, headers: Headers::Held(records, index) }
            })
        });
        self.stored().chain(held)
    }

    fn stored(&self) -> impl Iterator<Item = RecordView<'_>> {
        let (bytes, is_timed) = (self.stored_bytes(), self.is_timed());
        let mut reader = Reader(bytes.get(HEAD_BYTES..).unwrap_or_default());
        let count = if bytes.is_empty() { 0 } else { u64::from(self.count) };
        (0..count).map_while(move |i| {
            let own_time = if is_timed { Some(reader.i64()?) } else { None };
            let key = reader.optional_bytes()?;
            let value = reader.optional_bytes()?;
            let header_count = reader.u16()?;
            let all = reader.0;
            for _ in 0..header_count {
                reader.bytes()?;
                reader.bytes()?;
            }
            let headers = Headers::Stored(&all[..all.len() - reader.0.len()], header_count);
            let time = own_time.unwrap_or(self.time);
            Some(RecordView { offset: self.base + i, time, key, value, headers })
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
        // Nobody means so many, and a count that wraps would spoil the records behind.
        let headers = &headers[..headers.len().min(usize::from(u16::MAX))];
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
        LogBatch { base, count: self.count, time, body: Body::Stored(self.bytes) }
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
