//! The honest fake of the log, in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use parking_lot::{Condvar, Mutex};

use super::batch::LogBatch;
use super::{Append, LocalLog, Log, TaskCommit, Ticket};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::model::Offset;

/// A log in memory.
pub struct MemoryLog {
    clock: Arc<dyn Clock>,
    inner: Mutex<Inner>,
    /// What would be left after a loss of power.
    synced: Mutex<Inner>,
    appended: Condvar,
}

#[derive(Clone, Default)]
struct Inner {
    topics: HashMap<String, Vec<Partition>>,
    commits: HashMap<String, Vec<u8>>,
    version: u64,
}

#[derive(Clone, Default)]
struct Partition {
    start: Offset,
    next: Offset,
    batches: Vec<Arc<LogBatch>>,
}

impl MemoryLog {
    /// An empty log whose log timestamps come from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, inner: Mutex::default(), synced: Mutex::default(), appended: Condvar::new() }
    }

    /// Loses everything since the last commit that had to be on the disk: what `fsync: never`
    /// risks.
    pub fn lose_power(&self) {
        *self.inner.lock() = self.synced.lock().clone();
    }

    fn put(&self, inner: &mut Inner, append: Append) -> Result<BTreeMap<u32, Offset>> {
        let time = self.clock.now();
        let topic = inner.topics.get_mut(&append.topic);
        let topic = topic.ok_or_else(|| Error::not_found(format!("no topic `{}`", append.topic)))?;
        let mut positions = BTreeMap::new();
        for (partition, builders) in append.into_partitions() {
            let log = &mut topic[partition as usize];
            for builder in builders {
                let batch = builder.finish(log.next, time);
                log.next = batch.next_offset();
                log.batches.push(Arc::new(batch));
            }
            positions.insert(partition, log.next);
        }
        inner.version += 1;
        Ok(positions)
    }

    fn commit_now(&self, commits: Vec<TaskCommit>) -> Result<()> {
        let mut inner = self.inner.lock();
        let must_sync = commits.iter().any(|c| c.must_sync);
        for commit in commits {
            for append in commit.appends {
                self.put(&mut inner, append)?;
            }
            inner.commits.insert(commit.task, commit.barrier);
        }
        if must_sync {
            *self.synced.lock() = inner.clone();
        }
        self.appended.notify_all();
        Ok(())
    }
}

impl Log for MemoryLog {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<()> {
        let mut inner = self.inner.lock();
        let known = inner
            .topics
            .entry(topic.to_owned())
            .or_insert_with(|| (0..partitions).map(|_| Partition::default()).collect());
        if known.len() == partitions as usize {
            // Topics are always on the disk.
            self.synced
                .lock()
                .topics
                .entry(topic.to_owned())
                .or_insert_with(|| (0..partitions).map(|_| Partition::default()).collect());
            return Ok(());
        }
        Err(Error::invalid(format!("topic `{topic}` has {} partitions, not {partitions}", known.len())))
    }

    fn partitions(&self, topic: &str) -> Option<u32> {
        self.inner.lock().topics.get(topic).map(|t| t.len() as u32)
    }

    fn append(&self, append: Append) -> Result<BTreeMap<u32, Offset>> {
        let positions = self.put(&mut self.inner.lock(), append)?;
        self.appended.notify_all();
        Ok(positions)
    }

    fn read(
        &self,
        topic: &str,
        partition: u32,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<LogBatch>>> {
        let inner = self.inner.lock();
        let Some(log) = inner.topics.get(topic).and_then(|t| t.get(partition as usize)) else {
            return Ok(Vec::new());
        };
        if from < log.start {
            return Err(Error::corrupted(format!("offset {from} of {topic}/{partition} is cut off")));
        }
        let first = log.batches.partition_point(|b| b.next_offset() <= from);
        let mut bytes = 0;
        Ok(log.batches[first..]
            .iter()
            .take_while(|b| {
                let fits = bytes == 0 || bytes < bytes_max;
                bytes += b.size();
                fits
            })
            .cloned()
            .collect())
    }

    fn start_offset(&self, topic: &str, partition: u32) -> Offset {
        let inner = self.inner.lock();
        inner.topics.get(topic).map_or(0, |t| t[partition as usize].start)
    }

    fn end_offset(&self, topic: &str, partition: u32) -> Offset {
        let inner = self.inner.lock();
        inner.topics.get(topic).map_or(0, |t| t[partition as usize].next)
    }

    fn purge(&self, topic: &str, partition: u32, offset: Offset) -> Result<()> {
        let mut inner = self.inner.lock();
        if let Some(log) = inner.topics.get_mut(topic).and_then(|t| t.get_mut(partition as usize)) {
            let gone = log.batches.partition_point(|b| b.next_offset() <= offset);
            log.batches.drain(..gone);
            log.start = log.batches.first().map_or(log.next, |b| b.base);
        }
        Ok(())
    }
}

impl LocalLog for MemoryLog {
    fn commit(&self, commits: Vec<TaskCommit>) -> Ticket {
        let (answer, ticket) = bounded(1);
        // The ticket is in this very function.
        let _ = answer.send(self.commit_now(commits));
        ticket
    }

    fn committed(&self, task: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.inner.lock().commits.get(task).cloned())
    }

    fn wait(&self, seen: u64, timeout: Duration) -> u64 {
        let mut inner = self.inner.lock();
        if inner.version == seen {
            self.appended.wait_for(&mut inner, timeout);
        }
        inner.version
    }
}
