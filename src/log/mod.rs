//! The log: where events come from, and where everything that must survive goes.
//!
//! One trait, held to one contract: a commit is atomic, and what is acknowledged survives.

mod batch;
#[cfg(feature = "rocksdb")]
mod embedded;
mod memory;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::model::Offset;

pub use batch::{Append, Header, LogBatch, RecordView};
#[cfg(feature = "rocksdb")]
pub use embedded::{EmbeddedLog, FsyncPolicy, LogOptions, hold_folder};
pub use memory::MemoryLog;

/// What one task commits (PROTOCOL 2, 3, 15, 16).
#[derive(Debug)]
pub struct TaskCommit {
    /// Name of the task.
    pub task: String,
    /// Next offset of its input.
    pub next_offset: Offset,
    /// The barrier record, which on this log stands beside the offsets.
    pub barrier: Vec<u8>,
}

/// Everything that becomes durable together.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Commits of tasks.
    pub commits: Vec<TaskCommit>,
    /// Outputs, dead letters, repartitioned records and markers.
    pub appends: Vec<Append>,
    /// Whether state that is derived from it is handed over afterwards, so that it must be on the
    /// disk whatever the policy says (PROTOCOL 18).
    pub must_sync: bool,
}

/// A partitioned log.
pub trait Log: Send + Sync {
    /// Creates `topic`, or checks that it has `partitions`.
    ///
    /// # Errors
    /// It exists with another number.
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<()>;

    /// Number of partitions; `None`: no such topic.
    fn partitions(&self, topic: &str) -> Option<u32>;

    /// Appends; durable by the log's policy when this returns. Next offsets by partition.
    ///
    /// # Errors
    /// Nothing was appended.
    fn append(&self, append: Append) -> Result<BTreeMap<u32, Offset>>;

    /// Batches from the one that holds `from` on, up to about `bytes_max`.
    ///
    /// # Errors
    /// `from` was cut off, or the log cannot be read.
    fn read(
        &self,
        topic: &str,
        partition: u32,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<LogBatch>>>;

    /// First offset that is still there.
    fn start_offset(&self, topic: &str, partition: u32) -> Offset;

    /// Next offset to be appended.
    fn end_offset(&self, topic: &str, partition: u32) -> Offset;

    /// Makes a transaction durable, wholly or not at all.
    ///
    /// # Errors
    /// Nothing of it happened.
    fn commit(&self, transaction: Transaction) -> Result<()>;

    /// Barrier record of the last commit of `task`.
    ///
    /// # Errors
    /// The log cannot be read.
    fn committed(&self, task: &str) -> Result<Option<Vec<u8>>>;

    /// Waits until something was appended after `seen`, which an earlier call returned; at most
    /// `timeout`.
    fn wait(&self, seen: u64, timeout: Duration) -> u64;

    /// Removes whole batches that lie below `offset`.
    ///
    /// # Errors
    /// The log cannot be written.
    fn purge(&self, topic: &str, partition: u32, offset: Offset) -> Result<()>;
}
