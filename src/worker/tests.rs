//! A worker on a log whose commits take their time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::{Host, Worker, WorkerOptions};
use crate::error::{Error, Result};
use crate::log::{
    Append, Input, LocalLog, LocalSession, Log, LogBatch, Membership, MemoryLog, Outcome, Ownership, Session,
    TaskCommit,
};
use crate::model::Offset;
use crate::task::tests::Bench;
use crate::task::{Lease, Runner, Status};
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

/// Runs a worker on such commits until `is_over`.
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
    work(runner, Box::new(session), None, &seen, is_over);
    seen
}

/// Runs a worker until `is_over`, or for too long.
fn work(
    runner: Runner,
    session: Box<dyn Session>,
    lease: Option<Arc<Lease>>,
    seen: &Arc<Seen>,
    is_over: impl Fn(&Seen) -> bool,
) {
    let worker = Worker::start(WorkerOptions {
        index: 0,
        runners: vec![runner],
        session,
        host: Box::new(Noting(Arc::clone(seen))),
        lease,
        commit_interval: COMMIT_INTERVAL,
        metrics: Arc::new(Metrics::default()),
        pulse: Arc::new(Lease::new(PATIENCE)),
        stop: Arc::default(),
    });
    let worker = worker.expect("it starts");
    let deadline = Instant::now() + PATIENCE;
    while !is_over(seen) && Instant::now() < deadline {
        std::thread::yield_now();
    }
    let is_in_time = is_over(seen);
    worker.stop();
    worker.join();
    assert!(is_in_time, "{} commits", seen.commits.load(Ordering::SeqCst));
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

/// A session that stands still until others have taken over, and removed what they have read.
struct Frozen {
    still: Duration,
    seen: Arc<Seen>,
}

impl Input for Frozen {
    fn read(&mut self, _: &str, _: u32, _: Offset, _: usize) -> Result<Vec<Arc<LogBatch>>> {
        Err(Error::corrupted("what comes next was removed"))
    }
}

impl Session for Frozen {
    fn wait(&mut self, _: Duration) -> Option<Ownership> {
        std::thread::sleep(std::mem::take(&mut self.still));
        None
    }

    fn begin_commit(&mut self, _: Vec<TaskCommit>) {}

    fn outcome(&mut self, _: Duration) -> Option<Outcome> {
        Some(Outcome::Fenced("others own it".to_owned()))
    }

    fn confirm(&mut self) -> Membership {
        Membership::Lost
    }

    fn release(&mut self) {
        self.seen.is_released.store(true, Ordering::SeqCst);
    }
}

/// It would say that its input is damaged, which it is not for those who own it.
#[test]
fn a_worker_that_stood_still_proves_itself_before_it_reads() {
    let bench = Bench::new(Duration::ZERO);
    let runner = bench.take_over().expect("it starts");
    let task = Arc::clone(runner.task());
    let seen = Arc::new(Seen::default());
    let session = Frozen { still: Duration::from_millis(60), seen: Arc::clone(&seen) };
    let lease = Arc::new(Lease::new(Duration::from_millis(100)));
    work(runner, Box::new(session), Some(lease), &seen, |seen| seen.is_released.load(Ordering::SeqCst));
    assert_ne!(task.status(), Status::Failed);
}
