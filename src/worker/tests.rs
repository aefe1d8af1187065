//! A worker on a log whose commits take their time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::{Host, Worker, WorkerOptions};
use crate::error::{Error, Result};
use crate::log::{
    Append, Input, LocalLog, LocalSession, Log, LogBatch, MemoryLog, Outcome, Ownership, Session, TaskCommit,
};
use crate::model::Offset;
use crate::task::tests::Bench;
use crate::task::{Lease, Runner};
use crate::telemetry::Metrics;

const COMMIT_INTERVAL: Duration = Duration::from_millis(5);
/// How long a commit takes.
const COMMIT: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(20);

/// What the worker did.
#[derive(Default)]
struct Seen {
    commits: AtomicUsize,
    is_under_way: AtomicBool,
    is_released: AtomicBool,
    takeovers: AtomicUsize,
    beside_a_commit: AtomicUsize,
}

/// A session on the log in memory to which records come without end.
struct Slow {
    log: Arc<MemoryLog>,
    session: LocalSession,
    begun: Instant,
    /// Whether the group takes everything back after some commits.
    is_revoked: bool,
    /// Whether the log cannot be read, once, while a commit is under way.
    is_to_fail: bool,
    seen: Arc<Seen>,
}

impl Input for Slow {
    fn read(&mut self, topic: &str, partition: u32, from: Offset, max: usize) -> Result<Vec<Arc<LogBatch>>> {
        if self.is_to_fail && self.seen.is_under_way.load(Ordering::SeqCst) {
            self.is_to_fail = false;
            return Err(Error::unavailable("too many open files"));
        }
        self.session.read(topic, partition, from, max)
    }
}

impl Session for Slow {
    fn wait(&mut self, _: Duration) -> Option<Ownership> {
        let mut append = Append::to("clicks");
        append.push(0, None, Some(b"{\"user_id\":\"u\",\"t\":900000}"), &[]);
        self.log.append(append).expect("appended");
        let is_due = self.is_revoked && self.seen.commits.load(Ordering::SeqCst) >= 2;
        let is_heard = is_due && !self.seen.is_under_way.load(Ordering::SeqCst);
        is_heard.then(|| {
            self.is_revoked = false;
            Ownership::Revoked
        })
    }

    fn begin_commit(&mut self, commits: Vec<TaskCommit>) {
        self.seen.is_under_way.store(true, Ordering::SeqCst);
        self.session.begin_commit(commits);
        self.begun = Instant::now();
    }

    fn outcome(&mut self, timeout: Duration) -> Option<Outcome> {
        let left = COMMIT.saturating_sub(self.begun.elapsed());
        std::thread::sleep(left.min(timeout));
        if left > timeout {
            return None;
        }
        let outcome = self.session.outcome(PATIENCE);
        self.seen.is_under_way.store(false, Ordering::SeqCst);
        self.seen.commits.fetch_add(1, Ordering::SeqCst);
        outcome
    }

    fn release(&mut self) {
        self.seen.is_released.store(true, Ordering::SeqCst);
    }
}

struct Noting(Arc<Seen>);

impl Host for Noting {
    fn take_over(&self, inputs: &[(String, u32)], _: &Sender<Runner>) {
        self.0.takeovers.fetch_add(inputs.len(), Ordering::SeqCst);
        let is_beside = self.0.is_under_way.load(Ordering::SeqCst);
        self.0.beside_a_commit.fetch_add(usize::from(is_beside), Ordering::SeqCst);
    }

    fn keep_only(&self, _: &[(String, u32)]) {}

    fn is_wanted(&self, _: u64) -> bool {
        true
    }
}

/// Runs a worker until `is_over`, or for too long.
fn run(is_revoked: bool, is_to_fail: bool, is_over: impl Fn(&Seen) -> bool) -> Arc<Seen> {
    let bench = Bench::new(Duration::ZERO);
    let runner = bench.take_over().expect("it starts");
    let seen = Arc::new(Seen::default());
    let session = Slow {
        log: Arc::clone(&bench.log),
        session: LocalSession::new(Arc::clone(&bench.log) as Arc<dyn LocalLog>),
        begun: Instant::now(),
        is_revoked,
        is_to_fail,
        seen: Arc::clone(&seen),
    };
    let worker = Worker::start(WorkerOptions {
        index: 0,
        runners: vec![runner],
        session: Box::new(session),
        host: Box::new(Noting(Arc::clone(&seen))),
        lease: None,
        commit_interval: COMMIT_INTERVAL,
        metrics: Arc::new(Metrics::default()),
        pulse: Arc::new(Lease::new(PATIENCE)),
        stop: Arc::default(),
    });
    let worker = worker.expect("it starts");
    let deadline = Instant::now() + PATIENCE;
    while !is_over(&seen) && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let is_in_time = is_over(&seen);
    worker.stop();
    worker.join();
    assert!(is_in_time, "{} commits", seen.commits.load(Ordering::SeqCst));
    seen
}

/// Commits that take longer than their distance would follow each other without a gap.
#[test]
fn the_group_is_heard_however_long_commits_take() {
    run(true, false, |seen| seen.is_released.load(Ordering::SeqCst));
}

/// Who takes over beside a commit would not see what it makes durable.
#[test]
fn a_task_that_is_interrupted_is_taken_over_once_no_commit_is_under_way() {
    let seen = run(false, true, |seen| seen.takeovers.load(Ordering::SeqCst) > 0);
    assert_eq!(seen.beside_a_commit.load(Ordering::SeqCst), 0);
}
