//! A worker's side of a log.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use super::{LocalLog, LogBatch, TaskCommit, Ticket};
use crate::error::{Error, Result};
use crate::model::Offset;

/// A change of what a worker owns. Partitions are those of inputs of tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The partitions `inputs` are the worker's from now on, and no others. Of those that it had
    /// before, nobody has owned `retained` meanwhile.
    Assigned {
        /// All of them.
        inputs: Vec<(String, u32)>,
        /// Those whose tasks may go on as they are.
        retained: Vec<(String, u32)>,
    },
    /// No partition is the worker's any more once it has said [`Session::release`]; it may commit
    /// until then. Some may come back at once.
    Revoked,
    /// These partitions are the worker's no more, once it has said [`Session::release_some`].
    Taken(Vec<(String, u32)>),
    /// Others may own the partitions already: nothing may be committed.
    Lost,
}

/// A task that is ready for records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Topic of its input.
    pub topic: String,
    /// Partition of its input.
    pub partition: u32,
    /// The first offset that it wants.
    pub from: Offset,
    /// Next offset and name of its last commit.
    pub committed: Option<(Offset, String)>,
}

/// What a group says of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It is in its group, and owns what it believes to own.
    Valid,
    /// It is not: others may own everything.
    Lost,
    /// The group does not answer.
    Unknown,
    /// Nothing that it owns was ever committed, by which the group could know it.
    Unproven,
}

/// What became of a commit.
#[derive(Debug)]
pub enum Outcome {
    /// It is durable. Offsets of barrier records by commit, on a log with changelogs, where known.
    Committed(Vec<Offset>),
    /// Nothing of it happened, for this reason; it can be made again.
    Aborted(String, Vec<TaskCommit>),
    /// Nothing of it happened, for this reason, and would not the next time for the sake of the commit of
    /// this index; the others can be made again.
    Refused(String, usize, Vec<TaskCommit>),
    /// Another may own the tasks: what they hold in memory is worth nothing (PROTOCOL 21).
    Fenced(String),
}

impl Outcome {
    /// Its name in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Committed(_) => "committed",
            Self::Aborted(..) => "aborted",
            Self::Refused(..) => "refused",
            Self::Fenced(_) => "fenced",
        }
    }
}

/// Where a task's records come from.
pub trait Input {
    /// Batches from the one that holds `from` on, up to about `bytes_max`.
    ///
    /// # Errors
    /// `from` was cut off, or the log cannot be read.
    fn read(
        &mut self,
        topic: &str,
        partition: u32,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<LogBatch>>>;

    /// Where the next record behind `from` may be, when all before it has been read: offsets may
    /// be left out, and some hold no records.
    fn skip(&mut self, _topic: &str, _partition: u32, from: Offset) -> Offset {
        from
    }
}

/// A worker's side of a log: what it owns, what it reads, what it commits.
pub trait Session: Input + Send {
    /// Lets the log work for at most `timeout`, or until there is something to read. Returns what
    /// has changed in ownership, one change at a time, since the next stands on the answer to it; while
    /// a commit is under way it is kept back, unless all is lost.
    fn wait(&mut self, timeout: Duration) -> Option<Ownership>;

    /// Whether there may be something to read that nobody has to be waited for.
    fn has_more(&self) -> bool {
        true
    }

    /// Begins to make all of `commits` durable, or none. One at a time.
    fn begin_commit(&mut self, commits: Vec<TaskCommit>);

    /// What became of the commit that was begun; none: that is not known within `timeout`.
    fn outcome(&mut self, timeout: Duration) -> Option<Outcome>;

    /// Asks the group whether the worker still owns what it believes to own. Not while a commit is
    /// under way.
    fn confirm(&mut self) -> Membership {
        Membership::Valid
    }

    /// The worker has let go of what was revoked.
    fn release(&mut self) {}

    /// The worker has let go of these partitions, which were taken.
    fn release_some(&mut self, _inputs: &[(String, u32)]) {}

    /// The node ends, and others may have what was the worker's without waiting for it to come back.
    /// Everything has been let go of.
    fn leave(&mut self) {}

    /// Tasks on these inputs have ended or failed; they may start anew, from elsewhere.
    fn stop(&mut self, _inputs: &[(String, u32)]) {}

    /// A task is ready for its records.
    fn start(&mut self, _start: Start) {}
}

/// The session of a worker on a log that this process alone writes: it owns what it was given.
pub struct LocalSession {
    log: Arc<dyn LocalLog>,
    seen: u64,
    under_way: Option<Ticket>,
}

impl LocalSession {
    /// A session on `log`.
    pub fn new(log: Arc<dyn LocalLog>) -> Self {
        Self { log, seen: 0, under_way: None }
    }
}

impl Input for LocalSession {
    fn read(
        &mut self,
        topic: &str,
        partition: u32,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<LogBatch>>> {
        self.log.read(topic, partition, from, bytes_max)
    }
}

impl Session for LocalSession {
    fn wait(&mut self, timeout: Duration) -> Option<Ownership> {
        self.seen = self.log.wait(self.seen, timeout);
        None
    }

    fn begin_commit(&mut self, commits: Vec<TaskCommit>) {
        self.under_way = Some(self.log.commit(commits));
    }

    fn outcome(&mut self, timeout: Duration) -> Option<Outcome> {
        let durable = match self.under_way.as_ref()?.recv_timeout(timeout) {
            Err(RecvTimeoutError::Timeout) => return None,
            Err(RecvTimeoutError::Disconnected) => Err(Error::unavailable("the log is closed")),
            Ok(durable) => durable,
        };
        self.under_way = None;
        Some(match durable {
            Ok(()) => Outcome::Committed(Vec::new()),
            // Whether it took effect is known only after a restart.
            Err(error) => Outcome::Fenced(error.to_string()),
        })
    }
}
