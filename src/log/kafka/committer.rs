//! A thread that commits for a worker, which goes on meanwhile: also while it has to be found out what
//! became of a transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rdkafka::consumer::{BaseConsumer, ConsumerGroupMetadata};

use super::offsets::surely_committed;
use super::producer::{Failure, RENEW_PAUSE, Transactions};
use super::{TIMEOUT, failed};
use crate::error::Result;
use crate::log::{Outcome, TaskCommit};

/// A commit, with all that it takes to make it.
pub(super) struct Job {
    pub transactions: Transactions,
    pub group: ConsumerGroupMetadata,
    pub commits: Vec<TaskCommit>,
    /// Names of the commits before, by commit.
    pub before: Vec<Option<String>>,
}

/// What came of a [`Job`].
pub(super) struct Done {
    pub transactions: Transactions,
    pub outcome: Outcome,
}

impl Job {
    fn run(self, stop: &AtomicBool) -> Done {
        let Self { mut transactions, group, commits, before } = self;
        let outcome = match transactions.commit(&group, &commits) {
            Ok(barriers) => Outcome::Committed(barriers),
            Err(Failure::Aborted(why)) => Outcome::Aborted(why, commits),
            Err(Failure::Refused(why, of)) => Outcome::Refused(why, of, commits),
            Err(Failure::Unknown(why)) => {
                tracing::warn!("a transaction ended without an answer: {why}");
                resolve(&mut transactions, commits, &before, stop)
            }
        };
        Done { transactions, outcome }
    }
}

/// Finds out what became of a transaction whose answer was lost (PROTOCOL 20).
fn resolve(
    transactions: &mut Transactions,
    commits: Vec<TaskCommit>,
    before: &[Option<String>],
    stop: &AtomicBool,
) -> Outcome {
    let inputs: Vec<(&str, u32)> = commits.iter().map(|c| (c.topic.as_str(), c.partition)).collect();
    loop {
        let found = transactions.renew().map_err(failed("start a producer")).and_then(|()| {
            let reader: BaseConsumer =
                transactions.options().reader().create().map_err(failed("read committed offsets"))?;
            surely_committed(&reader, &inputs, TIMEOUT)
        });
        match found {
            Ok(found) => {
                let names: Vec<Option<&str>> =
                    found.iter().map(|one| one.as_ref().map(|(_, txn)| txn.as_str())).collect();
                let is_mine = names.iter().zip(&commits).all(|(name, c)| *name == Some(&c.txn_id));
                let is_before = names.iter().zip(before).all(|(name, before)| *name == before.as_deref());
                return match (is_mine, is_before) {
                    (true, _) => Outcome::Committed(Vec::new()),
                    (_, true) => Outcome::Aborted("the transaction did not commit".to_owned(), commits),
                    _ => Outcome::Fenced("another has committed".to_owned()),
                };
            }
            Err(error) if stop.load(Ordering::Acquire) => return Outcome::Fenced(error.to_string()),
            Err(error) => {
                tracing::warn!("the outcome of a transaction is unknown: {error}");
                std::thread::sleep(RENEW_PAUSE);
            }
        }
    }
}

/// The thread, which ends when this is dropped.
pub(super) struct Committer {
    jobs: Sender<Job>,
    done: Receiver<Done>,
}

impl Committer {
    /// `stop`: nothing needs to be found out any more.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(index: usize, stop: Arc<AtomicBool>) -> Result<Self> {
        let (jobs, next) = bounded::<Job>(1);
        let (finished, done) = bounded(1);
        std::thread::Builder::new().name(format!("commit-{index}")).spawn(move || {
            for job in next {
                if finished.send(job.run(&stop)).is_err() {
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
