//! A thread that commits for a worker, which goes on meanwhile.

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rdkafka::consumer::ConsumerGroupMetadata;

use super::producer::{Failure, Transactions};
use crate::error::Result;
use crate::log::TaskCommit;
use crate::model::Offset;

/// A commit, with all that it takes to make it.
pub(super) struct Job {
    pub transactions: Transactions,
    pub group: ConsumerGroupMetadata,
    pub commits: Vec<TaskCommit>,
}

/// What came of a [`Job`].
pub(super) struct Done {
    pub transactions: Transactions,
    pub commits: Vec<TaskCommit>,
    /// Offsets of barrier records, by commit.
    pub result: Result<Vec<Offset>, Failure>,
}

/// The thread, which ends when this is dropped.
pub(super) struct Committer {
    jobs: Sender<Job>,
    done: Receiver<Done>,
}

impl Committer {
    /// # Errors
    /// The thread cannot be started.
    pub fn start(index: usize) -> Result<Self> {
        let (jobs, next) = bounded::<Job>(1);
        let (finished, done) = bounded(1);
        std::thread::Builder::new().name(format!("commit-{index}")).spawn(move || {
            for Job { mut transactions, group, commits } in next {
                let result = transactions.commit(&group, &commits);
                if finished.send(Done { transactions, commits, result }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, done })
    }

    /// Begins to commit. One at a time.
    pub fn begin(&self, job: Job) {
        // A thread that has panicked is noticed by who waits for its answer.
        let _ = self.jobs.send(job);
    }

    /// What came of it; none: it is not known within `timeout`.
    ///
    /// # Panics
    /// The thread has panicked: nothing can be committed any more.
    pub fn wait(&self, timeout: Duration) -> Option<Done> {
        match self.done.recv_timeout(timeout) {
            Ok(done) => Some(done),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the thread that commits has panicked"),
        }
    }
}
