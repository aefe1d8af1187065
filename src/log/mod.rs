//! The log: where events come from, and where everything that must survive goes.
//!
//! One contract: a commit is atomic, and what is acknowledged survives. [`Log`] is what everybody
//! sees of a log; a [`Session`] is what one worker owns of it, reads and commits.

mod batch;
#[cfg(feature = "rocksdb")]
mod embedded;
#[cfg(feature = "kafka")]
mod kafka;
mod memory;
mod session;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;

use crate::error::{Error, Result};
use crate::model::{Change, Offset};

pub use batch::{Append, Header, LogBatch, RecordView};
#[cfg(feature = "rocksdb")]
pub use embedded::{EmbeddedLog, FsyncPolicy, LogOptions, check_not_held, hold_folder};
#[cfg(feature = "kafka")]
pub use kafka::{
    BARRIER_KEY, Following, KafkaLog, KafkaOptions, KafkaSession, PartitionReader, TableRow, TopicKind,
};
pub use memory::MemoryLog;
pub use session::{Input, LocalSession, Membership, Outcome, Ownership, Session, Start};

/// What one task commits (PROTOCOL 2, 3, 15, 16). All commits that are handed over together become
/// durable together.
#[derive(Debug, Default)]
pub struct TaskCommit {
    /// Name of the task.
    pub task: String,
    /// Topic of its input.
    pub topic: String,
    /// Partition of its input, and the task's own.
    pub partition: u32,
    /// Next offset of its input.
    pub next_offset: Offset,
    /// Names this commit among all of the task: who made it, and the how manieth it is.
    pub txn_id: String,
    /// The barrier record, which stands beside the offsets or in the changelog.
    pub barrier: Vec<u8>,
    /// Rows for the changelog, on a log that has one.
    pub rows: Option<Arc<Vec<Change>>>,
    /// Outputs, dead letters, repartitioned records and markers.
    pub appends: Vec<Append>,
    /// Whether state that is derived from it is handed over afterwards, so that it must be on the
    /// disk whatever the policy says (PROTOCOL 18).
    pub must_sync: bool,
}

/// From where a task goes on.
#[derive(Clone, Debug, Default)]
pub struct ResumePoint {
    /// Barrier record of its last commit.
    pub committed: Option<Vec<u8>>,
    /// First offset of its input that is still there.
    pub start: Offset,
    /// Next offset of its input to be appended.
    pub end: Offset,
    /// What tells its input from a topic made anew under the same name, on a log that knows.
    pub topic_id: Option<String>,
}

/// The error of a topic that is another than the one whose records were applied (PROTOCOL 27).
pub fn made_anew(topic: &str) -> Error {
    Error::corrupted(format!("topic `{topic}` was deleted and made anew"))
        .with_hint("its state is of records that are gone; start under another `app`")
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

    /// Whether `topic` is still the one that was found first, with the partitions by which keys were placed.
    ///
    /// # Errors
    /// It is not; of the kind [`ErrorKind::Unavailable`](crate::error::ErrorKind): it cannot be asked.
    fn check_topic(&self, _topic: &str) -> Result<()> {
        Ok(())
    }

    /// Appends; durable by the log's policy when this returns. Next offsets by partition.
    ///
    /// # Errors
    /// Nothing was appended.
    fn append(&self, append: Append) -> Result<BTreeMap<u32, Offset>>;

    /// Batches from the one that holds `from` on, up to about `bytes_max`.
    ///
    /// # Errors
    /// `from` was cut off, or the log cannot be read.
    fn read(&self, topic: &str, partition: u32, from: Offset, bytes_max: usize)
    -> Result<Vec<Arc<LogBatch>>>;

    /// First offset that is still there.
    fn start_offset(&self, topic: &str, partition: u32) -> Offset;

    /// Next offset to be appended.
    fn end_offset(&self, topic: &str, partition: u32) -> Offset;

    /// The same of several partitions, soon: of those that cannot be asked now, as it was known last.
    fn ends(&self, places: &[(&str, u32)]) -> Vec<Offset> {
        places.iter().map(|(topic, partition)| self.end_offset(topic, *partition)).collect()
    }

    /// Removes whole batches that lie below `offset`.
    ///
    /// # Errors
    /// The log cannot be written.
    fn purge(&self, topic: &str, partition: u32, offset: Offset) -> Result<()>;
}

/// Brings the outcome of a commit, once it is known.
pub type Ticket = Receiver<Result<()>>;

/// A log that this process alone writes.
pub trait LocalLog: Log {
    /// Begins to make commits durable, wholly or not at all.
    fn commit(&self, commits: Vec<TaskCommit>) -> Ticket;

    /// Barrier record of the last commit of `task`.
    ///
    /// # Errors
    /// The log cannot be read.
    fn committed(&self, task: &str) -> Result<Option<Vec<u8>>>;

    /// Waits until something was appended after `seen`, which an earlier call returned; at most
    /// `timeout`.
    fn wait(&self, seen: u64, timeout: Duration) -> u64;

    /// From where `task` goes on, whose input is `partition` of `topic`.
    ///
    /// # Errors
    /// The log cannot be read.
    fn resume_point(&self, task: &str, topic: &str, partition: u32) -> Result<ResumePoint> {
        Ok(ResumePoint {
            committed: self.committed(task)?,
            start: self.start_offset(topic, partition),
            end: self.end_offset(topic, partition),
            topic_id: None,
        })
    }
}
