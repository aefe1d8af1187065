//! A task on the log and the store in memory, through crashes and losses of power.

use std::sync::Arc;
use std::time::Duration;

use super::{Runner, RunnerOptions, Task, TaskInput, UnitRead};
use crate::clock::ManualClock;
use crate::config::DefinitionFiles;
use crate::log::{Append, LocalLog, LocalSession, Log, MemoryLog, ResumePoint, TaskCommit};
use crate::model::key::KeyPart;
use crate::model::{Positions, Value};
use crate::state::{MemoryStore, SharedStore};
use crate::telemetry::Metrics;
use crate::topology::Topology;

const DEFINITIONS: &str = "
entities: { user: { key: user_id, type: string } }
sources:
  clicks:
    key: user_id
    event_time: { path: t, format: unix_ms }
    fields: { user_id: { type: string } }
feature_groups:
  g: { entity: user, source: clicks, features: { n: { aggregate: count, window: 1h } } }
";

pub(crate) struct Bench {
    pub topology: Arc<Topology>,
    pub log: Arc<MemoryLog>,
    store: SharedStore,
    app: String,
    checkpoint_interval: Duration,
    cache_bytes: usize,
    /// Whether commits have the rows that would go to a changelog.
    pub has_changelog: bool,
}

impl Bench {
    pub fn new(checkpoint_interval: Duration) -> Self {
        Self::of(DEFINITIONS, checkpoint_interval, 1 << 20)
    }

    /// Of definitions with the source `clicks` alone.
    pub fn of(definitions: &str, checkpoint_interval: Duration, cache_bytes: usize) -> Self {
        let topology = Topology::of_files(DefinitionFiles::of_text(definitions)).expect("no mistakes");
        let clock = ManualClock::default();
        clock.set(1_000_000_000_000);
        let log = MemoryLog::new(Arc::new(clock));
        log.create_topic("clicks", 1).expect("a topic");
        log.create_topic("test-dead-letters", 1).expect("a topic");
        Self {
            topology: Arc::new(topology),
            log: Arc::new(log),
            store: Arc::new(MemoryStore::default()),
            app: "test".to_owned(),
            checkpoint_interval,
            cache_bytes,
            has_changelog: false,
        }
    }

    pub fn take_over(&self) -> crate::error::Result<Runner> {
        let task = self.task(&self.store);
        let from = self.log.resume_point(&task.name, "clicks", 0)?;
        let mut runner = self.runner(task, &from)?;
        self.catch_up(&mut runner);
        Ok(runner)
    }

    /// The task over any store.
    pub fn task(&self, store: &SharedStore) -> Task {
        let groups = self.topology.groups.iter().map(|g| (Arc::clone(g), true)).collect();
        let input = TaskInput::Topic { sources: self.topology.sources.clone() };
        Task::new("clicks", 0, 0, input, groups, Arc::clone(store))
    }

    pub fn runner(&self, task: Task, from: &ResumePoint) -> crate::error::Result<Runner> {
        let options = RunnerOptions {
            app: self.app.clone(),
            checkpoint_interval: self.checkpoint_interval,
            commit_interval: Duration::ZERO,
            cache_bytes: self.cache_bytes,
            has_changelog: self.has_changelog,
            clock: Arc::new(ManualClock::default()),
            metrics: Arc::new(Metrics::default()),
        };
        let log = Arc::clone(&self.log) as Arc<dyn Log>;
        Runner::take_over(Arc::new(task), log, from, options)
    }

    pub fn catch_up(&self, runner: &mut Runner) {
        let mut session = LocalSession::new(Arc::clone(&self.log) as Arc<dyn LocalLog>);
        while runner.step(&mut session) > 0 {}
    }

    pub fn append(&self, count: u32) -> Positions {
        let mut append = Append::to("clicks");
        for n in 0..count {
            let event = format!("{{\"user_id\":\"u{n}\",\"t\":{}}}", 900_000 + n);
            append.push(0, None, Some(event.as_bytes()), &[]);
        }
        let positions = self.log.append(append).expect("appended");
        [("clicks".to_owned(), positions)].into()
    }

    pub fn settle(&self, commit: TaskCommit) {
        self.log.commit(vec![commit]).recv().expect("an answer").expect("committed");
    }

    fn commit(&self, runner: &mut Runner) {
        let prepared = runner.prepare_commit(false).expect("prepared");
        if let Some((commit, pending)) = prepared {
            self.settle(commit);
            runner.complete_commit(pending, None).expect("completed");
        }
    }
}

#[test]
fn the_store_is_never_ahead_of_what_a_loss_of_power_leaves_of_the_log() {
    for checkpoint_interval in [Duration::ZERO, Duration::from_secs(3600)] {
        let bench = Bench::new(checkpoint_interval);
        for round in 1..=3 {
            let mut runner = bench.take_over().expect("it can go on after a loss of power");
            bench.append(10 * round);
            bench.catch_up(&mut runner);
            bench.commit(&mut runner);
            drop(runner);
            bench.log.lose_power();
        }
    }
}

#[test]
fn another_application_name_is_refused() {
    let mut bench = Bench::new(Duration::ZERO);
    let mut runner = bench.take_over().expect("it starts");
    bench.append(3);
    bench.catch_up(&mut runner);
    bench.commit(&mut runner);
    bench.app = "other".to_owned();
    let refused = bench.take_over().err().expect("its internal topics have other names");
    assert!(refused.message.contains("app"), "{}", refused.message);
}

#[test]
fn a_lost_store_is_refused_once_the_log_has_lost_what_it_was_made_of() {
    for is_cut_before in [true, false] {
        let mut bench = Bench::new(Duration::ZERO);
        if is_cut_before {
            bench.append(3);
            bench.log.purge("clicks", 0, 3).expect("purged");
        }
        let mut runner = bench.take_over().expect("it starts with what there is");
        bench.append(4);
        bench.catch_up(&mut runner);
        bench.commit(&mut runner);
        bench.store = Arc::new(MemoryStore::default());
        let runner = bench.take_over().expect("all that was applied is still there");
        assert_eq!(runner.position(), if is_cut_before { 7 } else { 4 });
        drop(runner);
        bench.log.purge("clicks", 0, 7).expect("purged");
        bench.append(1);
        bench.store = Arc::new(MemoryStore::default());
        let refused = bench.take_over().err().expect("the past of its state is gone");
        assert!(refused.message.contains("needs it from"), "{}", refused.message);
    }
}

/// A commit that was aborted is sent again; what its units take up meanwhile must not be lost.
#[test]
fn events_between_a_boundary_and_its_commit_stay_unwritten() {
    let bench = Bench::new(Duration::ZERO);
    let mut runner = bench.take_over().expect("it starts");
    bench.append(3);
    bench.catch_up(&mut runner);
    let (commit, pending) = runner.prepare_commit(false).expect("prepared").expect("there is work");
    bench.append(3);
    bench.catch_up(&mut runner);
    bench.settle(commit);
    runner.complete_commit(pending, None).expect("completed");
    bench.catch_up(&mut runner);
    bench.commit(&mut runner);
    drop(runner);
    let runner = bench.take_over().expect("it goes on");
    let mut entity = Vec::new();
    KeyPart::String("u0").encode(&mut entity);
    let read = UnitRead { slot: 0, entity: &entity, features: &[0], now: 1_000_000 };
    let (answers, _) = runner.task().read(&[read]).expect("readable");
    assert_eq!(answers[0].answers[0].value, Value::Int(2));
}

/// Sums of which a part is out of range, bounds that a double cannot tell from their neighbours.
#[test]
fn numbers_at_the_edge_of_their_types_are_summed_and_counted_right() {
    const EDGES: &str = "
entities: { user: { key: user_id, type: string } }
sources:
  clicks:
    key: user_id
    event_time: { path: t, format: unix_ms }
    fields: { user_id: { type: string }, x: { type: float64 }, n: { type: int64 } }
feature_groups:
  g:
    entity: user
    source: clicks
    features:
      decayed: { aggregate: decayed_sum, of: x, half_life: 1m }
      counts: { aggregate: histogram, of: n, bounds: [9007199254740992], window: 1h }
";
    let bench = Bench::of(EDGES, Duration::ZERO, 1 << 20);
    let mut runner = bench.take_over().expect("it starts");
    let mut append = Append::to("clicks");
    for (t, x, n) in [
        (0, "1.5e308", 9_007_199_254_740_993_i64),
        (0, "1.5e308", 9_007_199_254_740_992),
        (60_000, "-2.0", 1),
    ] {
        let event = format!("{{\"user_id\":\"u\",\"t\":{t},\"x\":{x},\"n\":{n}}}");
        append.push(0, None, Some(event.as_bytes()), &[]);
    }
    bench.log.append(append).expect("appended");
    bench.catch_up(&mut runner);
    let mut entity = Vec::new();
    KeyPart::String("u").encode(&mut entity);
    let read = |now| {
        let (answers, _) = runner
            .task()
            .read(&[UnitRead { slot: 0, entity: &entity, features: &[0, 1], now }])
            .expect("readable");
        (answers[0].answers[0].value.clone(), answers[0].answers[1].value.clone())
    };
    let (Value::Float(decayed), counts) = read(60_000) else { panic!("out of range") };
    assert!((decayed / 1.5e308 - 1.0).abs() < 1e-12, "{decayed}");
    assert_eq!(counts, Value::List([Value::Int(2), Value::Int(1)].into()));
    // 2,200 half-lives later.
    assert_eq!(read(60_000 + 2_200 * 60_000).0, Value::Float(0.0));
}

/// What one commit may copy is less than what is dirty: the next goes on, whether or not it is time.
#[test]
fn commits_go_on_until_memory_is_free() {
    let bench = Bench::of(DEFINITIONS, Duration::from_secs(3600), 4 << 20);
    let mut runner = bench.take_over().expect("it starts");
    bench.append(50_000);
    bench.catch_up(&mut runner);
    let mut commits = 0;
    while runner.is_under_pressure() {
        let prepared = runner.prepare_commit(false).expect("prepared");
        let (commit, pending) = prepared.expect("nothing is read until there is room, and nothing is due");
        bench.settle(commit);
        runner.complete_commit(pending, None).expect("completed");
        commits += 1;
    }
    assert!(commits > 1, "one was enough");
}
