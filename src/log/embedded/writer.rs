//! The only thread that writes the log: everything that waits goes into one write batch, which is
//! the group commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rocksdb::{WriteBatch, WriteOptions};

use super::synced::SyncedMark;
use super::{FsyncPolicy, GROUP_BYTES, Request, Shared, Topic, batch_key, failed, task_key};
use crate::error::{Error, Result};
use crate::log::Append;
use crate::log::batch::LogBatch;
use crate::model::Offset;

pub(super) struct Writer {
    shared: Arc<Shared>,
    last_sync: Instant,
    is_unsynced: bool,
    synced: SyncedMark,
}

/// Batches that a group commit has placed but not yet published.
type Placed = Vec<(Arc<Topic>, u32, Arc<LogBatch>)>;

enum Answer {
    Append(Sender<Result<BTreeMap<u32, Offset>>>, BTreeMap<u32, Offset>),
    Commit(Sender<Result<()>>),
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, synced: SyncedMark) -> Self {
        Self { shared, last_sync: Instant::now(), is_unsynced: false, synced }
    }

    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        while let Some(first) = self.next(requests) {
            let mut writes = WriteBatch::default();
            let mut placed = Placed::new();
            let mut answers = Vec::new();
            let mut must_sync = false;
            let mut next = Some(first);
            while let Some(request) = next {
                must_sync |= matches!(&request, Request::Commit(all, _) if all.iter().any(|c| c.must_sync));
                self.place(request, &mut writes, &mut placed, &mut answers);
                let is_full = writes.size_in_bytes() > GROUP_BYTES;
                next = if is_full { None } else { requests.try_recv().ok() };
            }
            let written = self.write(writes, must_sync);
            if written.is_ok() {
                self.publish(placed);
            }
            for answer in answers {
                let error = || match &written {
                    Err(e) => Err(Error::new(e.kind, e.message.clone())),
                    Ok(()) => Ok(()),
                };
                // A caller that has gone away no longer wants the answer.
                let _ = match answer {
                    Answer::Append(sender, positions) => {
                        sender.send(error().map(|()| positions)).map_err(drop)
                    }
                    Answer::Commit(sender) => sender.send(error()).map_err(drop),
                };
            }
        }
    }

    /// The next request. Meanwhile what was written is synced when its interval is over.
    fn next(&mut self, requests: &Receiver<Request>) -> Option<Request> {
        if let FsyncPolicy::Interval(every) = self.shared.options.fsync
            && self.is_unsynced
        {
            let left = every.saturating_sub(self.last_sync.elapsed());
            match requests.recv_timeout(left) {
                Ok(request) => return Some(request),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => match self.sync() {
                    Ok(()) => {
                        self.is_unsynced = false;
                        self.last_sync = Instant::now();
                    }
                    Err(error) => tracing::error!("sync the log: {error}"),
                },
            }
        }
        requests.recv().ok()
    }

    fn sync(&self) -> std::result::Result<(), rocksdb::Error> {
        let before = self.shared.db.latest_sequence_number();
        self.shared.db.flush_wal(true)?;
        self.synced.set(before);
        Ok(())
    }

    fn place(
        &self,
        request: Request,
        writes: &mut WriteBatch,
        placed: &mut Placed,
        answers: &mut Vec<Answer>,
    ) {
        match request {
            Request::Append(append, sender) => match self.place_append(append, writes, placed) {
                Ok(positions) => answers.push(Answer::Append(sender, positions)),
                Err(error) => drop(sender.send(Err(error))),
            },
            Request::Commit(commits, sender) => {
                let missing = commits
                    .iter()
                    .flat_map(|c| &c.appends)
                    .find(|a| self.shared.topic(&a.topic).is_none())
                    .map(|a| Error::not_found(format!("no topic `{}`", a.topic)));
                if let Some(error) = missing {
                    drop(sender.send(Err(error)));
                    return;
                }
                for commit in commits {
                    for append in commit.appends {
                        // Cannot fail: every topic is there.
                        let _ = self.place_append(append, writes, placed);
                    }
                    writes.put(task_key(&commit.task), commit.barrier);
                }
                answers.push(Answer::Commit(sender));
            }
        }
    }

    fn place_append(
        &self,
        append: Append,
        writes: &mut WriteBatch,
        placed: &mut Placed,
    ) -> Result<BTreeMap<u32, Offset>> {
        let topic = self.shared.topic(&append.topic);
        let topic = topic.ok_or_else(|| Error::not_found(format!("no topic `{}`", append.topic)))?;
        let time = self.shared.clock.now();
        let mut positions = BTreeMap::new();
        for (partition, builders) in append.into_partitions() {
            let is_same = |t: &Arc<Topic>, p: u32| t.id == topic.id && p == partition;
            let pending = placed.iter().rev().find(|(t, p, _)| is_same(t, *p));
            let mut base = match pending {
                Some((_, _, batch)) => batch.next_offset(),
                None => topic.partitions[partition as usize].lock().end,
            };
            for builder in builders {
                let batch = builder.finish(base, time);
                base = batch.next_offset();
                let mut index = batch.count.to_le_bytes().to_vec();
                index.extend((batch.size() as u64).to_le_bytes());
                index.extend(batch.time.to_le_bytes());
                writes.put(batch_key(b'i', topic.id, partition, batch.base), index);
                writes.put(batch_key(b'b', topic.id, partition, batch.base), batch.stored_bytes());
                placed.push((Arc::clone(&topic), partition, Arc::new(batch)));
            }
            positions.insert(partition, base);
        }
        Ok(positions)
    }

    fn write(&mut self, writes: WriteBatch, must_sync: bool) -> Result<()> {
        let mut options = WriteOptions::default();
        let sync = match self.shared.options.fsync {
            FsyncPolicy::Commit => true,
            FsyncPolicy::Interval(every) => self.last_sync.elapsed() >= every,
            FsyncPolicy::Never => false,
        };
        let sync = sync || must_sync;
        options.set_sync(sync);
        self.is_unsynced = !sync;
        if sync {
            self.last_sync = Instant::now();
        }
        // Others write beside this: what they have by then may not be synced.
        let least = self.shared.db.latest_sequence_number() + writes.len() as u64;
        self.shared.db.write_opt(writes, &options).map_err(failed("write the log"))?;
        if sync {
            self.synced.set(least);
        }
        Ok(())
    }

    fn publish(&self, placed: Placed) {
        let share = self.shared.options.recent_bytes
            / self.shared.topics.read().values().map(|t| t.partitions.len()).sum::<usize>().max(1);
        for (topic, partition, batch) in placed {
            let mut log = topic.partitions[partition as usize].lock();
            log.end = batch.next_offset();
            log.recent_bytes += batch.size();
            log.recent.push_back(batch);
            while log.recent_bytes > share && log.recent.len() > 1 {
                let gone = log.recent.pop_front();
                log.recent_bytes -= gone.map_or(0, |b| b.size());
            }
        }
        *self.shared.version.lock() += 1;
        self.shared.appended.notify_all();
    }
}
