//! Records in batches, as the embedded log stores them.
//!
//! Version u8, log timestamp i64, count u32; then per record: optional key, optional value, number
//! of headers u16, each a name and a value.

use crate::codec::bytes::{Reader, put_bytes, put_optional_bytes};
use crate::error::{Error, Result};
use crate::model::{Millis, Offset, Record};

const VERSION: u8 = 1;

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

impl LogBatch {
    /// Reads a stored batch.
    ///
    /// # Errors
    /// Bytes that are no batch of this version.
    pub fn decode(base: Offset, bytes: Vec<u8>) -> Result<Self> {
        let mut reader = Reader(&bytes);
        let head = (|| {
            let version = reader.u8()?;
            (version == VERSION).then_some(())?;
            Some((reader.i64()?, reader.u32()?))
        })();
        let (time, count) = head.ok_or_else(|| Error::corrupted("a batch of the log is unreadable"))?;
        Ok(Self { base, count, time, bytes })
    }

    /// Offset behind the last record.
    pub fn next_offset(&self) -> Offset {
        self.base + u64::from(self.count)
    }

    /// Stored bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The records, in order.
    pub fn records(&self) -> impl Iterator<Item = RecordView<'_>> {
        let mut reader = Reader(&self.bytes[HEAD_BYTES..]);
        (0..u64::from(self.count)).map_while(move |i| {
            let key = reader.optional_bytes()?;
            let value = reader.optional_bytes()?;
            let header_count = reader.u16()?;
            let all = reader.0;
            for _ in 0..header_count {
                reader.bytes()?;
                reader.bytes()?;
            }
            let headers = &all[..all.len() - reader.0.len()];
            Some(RecordView { offset: self.base + i, time: self.time, key, value, headers, header_count })
        })
    }
}

/// Collects records into a batch.
#[derive(Debug)]
pub struct BatchBuilder {
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
    pub fn push(&mut self, record: &Record) {
        put_optional_bytes(&mut self.bytes, record.key.as_deref());
        put_optional_bytes(&mut self.bytes, record.value.as_deref());
        self.bytes.extend((record.headers.len() as u16).to_le_bytes());
        for (name, value) in &record.headers {
            put_bytes(&mut self.bytes, name.as_bytes());
            put_bytes(&mut self.bytes, value);
        }
        self.count += 1;
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no record was added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The batch at `base`, of log timestamp `time`.
    pub fn finish(mut self, base: Offset, time: Millis) -> LogBatch {
        self.bytes[1..9].copy_from_slice(&time.to_le_bytes());
        self.bytes[9..13].copy_from_slice(&self.count.to_le_bytes());
        LogBatch { base, count: self.count, time, bytes: self.bytes }
    }
}

/// Splits records into batches per partition of about `bytes_max`, in order.
pub(super) fn batches(
    records: Vec<(u32, Record)>,
    bytes_max: usize,
) -> Vec<(u32, Vec<BatchBuilder>)> {
    let mut by_partition: Vec<(u32, Vec<BatchBuilder>)> = Vec::new();
    for (partition, record) in records {
        let index = match by_partition.iter().position(|(p, _)| *p == partition) {
            Some(index) => index,
            None => {
                by_partition.push((partition, vec![BatchBuilder::default()]));
                by_partition.len() - 1
            }
        };
        let builders = &mut by_partition[index].1;
        if builders.last().is_none_or(|b| b.len() >= bytes_max) {
            builders.push(BatchBuilder::default());
        }
        if let Some(builder) = builders.last_mut() {
            builder.push(&record);
        }
    }
    by_partition
}
