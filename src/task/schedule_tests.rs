//! Any schedule of appends, commits, sweeps and crashes gives the values that the oracle gives.

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;

use super::tests::Bench;
use super::{PendingCommit, Runner, UnitRead, cell};
use crate::config::DefinitionFiles;
use crate::log::{Log, TaskCommit};
use crate::model::key::KeyPart;
use crate::model::{Change, Millis, Offset, Value};
use crate::oracle::{Oracle, OracleRecord, is_equal};

pub(super) const DEFINITIONS: &str = "
entities: { user: { key: user_id, type: string } }
sources:
  clicks:
    key: user_id
    event_time: { path: t, format: unix_ms }
    event_id: id
    grace: 5m
    fields: { user_id: { type: string }, x: { type: float64 } }
feature_groups:
  g:
    entity: user
    source: clicks
    history: 10m
    features:
      n: { aggregate: count, window: 20m }
      sum: { aggregate: sum, of: x, window: 20m }
      p95: { aggregate: percentile, q: 0.95, of: x, window: 20m }
      max: { aggregate: max, of: x, window: 5m }
      last: { aggregate: last_k, k: 3, of: x, window: 10m }
      run: { aggregate: count, session: 20s, max: 3m }
      runs: { aggregate: session_count, gap: 20s, window: 3m }
  tiled:
    entity: user
    source: clicks
    history: 10m
    features:
      n: { aggregate: count, window: 24h, edge: tile }
      spread: { aggregate: stddev, of: x, window: 24h, edge: tile }
      median: { aggregate: median, of: x, window: 1m }
      all: { aggregate: sum, of: x, window: lifetime }
";
const FEATURES: [(&str, &[&str]); 2] =
    [("g", &["n", "sum", "p95", "max", "last", "run", "runs"]), ("tiled", &["n", "spread", "median", "all"])];
const USERS: u8 = 12;
/// All units that may are evicted at once and all are due at once, some, or none.
pub(super) const CACHES: [usize; 3] = [0, 64 << 10, 16 << 20];

#[derive(Clone, Debug)]
pub(super) struct Click {
    pub user: u8,
    /// Than the newest before it.
    pub later: Millis,
    /// Sent twice.
    pub is_repeated: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Act {
    Append(Vec<Click>),
    Apply,
    BeginCommit,
    /// The commit under way becomes durable; until then it may have been aborted any number of times.
    EndCommit,
    /// The next boundary looks for garbage.
    MakeSweepDue,
    Crash {
        /// Whether the commit under way had become durable.
        is_durable: bool,
    },
}

fn click() -> impl Strategy<Value = Click> {
    let later = prop_oneof![300 => 0..8_000_i64, 20 => -400_000..0_i64, 2 => -4_000_000..0_i64, 1 => 0..14_400_000_i64];
    // One of them has most, as in life.
    let user = prop_oneof![10 => Just(0), 1 => 1..USERS];
    (user, later, prop::bool::weighted(0.1)).prop_map(|(user, later, is_repeated)| Click {
        user,
        later,
        is_repeated,
    })
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => vec(click(), 1..200).prop_map(Act::Append),
        3 => vec(click(), 1..4).prop_map(Act::Append),
        6 => Just(Act::Apply),
        5 => Just(Act::BeginCommit),
        4 => Just(Act::EndCommit),
        2 => Just(Act::MakeSweepDue),
        1 => any::<bool>().prop_map(|is_durable| Act::Crash { is_durable }),
    ]
}

pub(super) struct Run {
    pub bench: Bench,
    runner: Runner,
    under_way: Option<(TaskCommit, PendingCommit)>,
    oracle: Oracle,
    next_id: u32,
    time: Millis,
    is_sweep_due: bool,
    /// Rows of all commits so far.
    pub changelog: Vec<Vec<Change>>,
}

impl Run {
    /// `is_cut`: the log has lost its first records before anybody reads it.
    pub fn new(checkpoint_interval: Duration, cache_bytes: usize, is_cut: bool) -> Self {
        let bench = Bench::of(DEFINITIONS, checkpoint_interval, cache_bytes);
        let definitions = DefinitionFiles::of_text(DEFINITIONS).definitions;
        let mut oracle = Oracle::new(&definitions, 1).expect("no mistakes");
        if is_cut {
            bench.append(3);
            bench.log.purge("clicks", 0, 3).expect("purged");
            oracle.cut("clicks", 0);
        }
        let runner = bench.take_over().expect("a new one");
        let (time, under_way, changelog) = (10_000_000, None, Vec::new());
        Self { bench, runner, under_way, oracle, next_id: 0, time, is_sweep_due: false, changelog }
    }

    pub fn act(&mut self, act: &Act) {
        match act {
            Act::Append(clicks) => self.append(clicks),
            Act::Apply => self.bench.catch_up(&mut self.runner),
            Act::BeginCommit if self.under_way.is_none() => {
                if !std::mem::take(&mut self.is_sweep_due) {
                    // However long a case takes.
                    self.runner.sweep.at = Instant::now();
                }
                self.under_way = self.runner.prepare_commit(false).expect("readable");
            }
            Act::EndCommit => {
                if let Some((commit, pending)) = self.under_way.take() {
                    self.settle(commit);
                    self.runner.complete_commit(pending, None).expect("writable");
                }
            }
            Act::BeginCommit => {}
            Act::MakeSweepDue => {
                let long_ago = Instant::now().checked_sub(Duration::from_secs(60));
                self.runner.sweep.at = long_ago.unwrap_or(self.runner.sweep.at);
                self.is_sweep_due = true;
            }
            Act::Crash { is_durable } => {
                if let Some((commit, _)) = self.under_way.take()
                    && *is_durable
                {
                    self.settle(commit);
                }
                self.runner = self.bench.take_over().expect("it goes on");
            }
        }
    }

    /// Next offset that is committed.
    pub fn committed(&self) -> Offset {
        self.runner.committed
    }

    fn settle(&mut self, commit: TaskCommit) {
        self.changelog.extend(commit.rows.as_ref().map(|rows| rows.to_vec()));
        self.bench.settle(commit);
    }

    fn append(&mut self, clicks: &[Click]) {
        let mut append = crate::log::Append::to("clicks");
        for click in clicks {
            let time = self.time + click.later;
            self.time = self.time.max(time);
            self.next_id += 1;
            let event = format!(
                "{{\"user_id\":\"u{}\",\"t\":{},\"id\":{},\"x\":{}}}",
                click.user,
                time,
                self.next_id,
                f64::from(self.next_id * 7 % 101) / 8.0
            );
            for _ in 0..=u8::from(click.is_repeated) {
                append.push(0, None, Some(event.as_bytes()), &[]);
            }
        }
        self.bench.log.append(append).expect("appended");
    }

    /// What the store holds of units when everything is applied and committed.
    fn rows(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        for act in [Act::Apply, Act::EndCommit, Act::BeginCommit, Act::EndCommit] {
            self.act(&act);
        }
        let mut rows = Vec::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        };
        self.runner.task().store.scan(b"u", visit).expect("readable");
        rows
    }

    /// Everything that can be read is what the oracle makes of the records below the position.
    pub fn check(&mut self) {
        check(&self.bench, &self.runner, &mut self.oracle);
    }
}

/// The same, of any runner on the records of `bench` and an oracle that is not behind it.
pub(super) fn check(bench: &Bench, runner: &Runner, oracle: &mut Oracle) {
    let start = bench.log.start_offset("clicks", 0);
    for batch in bench.log.read("clicks", 0, start, usize::MAX).expect("readable") {
        for record in batch.records().filter(|r| r.offset < runner.position) {
            oracle.push(&OracleRecord {
                topic: "clicks".to_owned(),
                partition: 0,
                offset: record.offset,
                timestamp: record.time,
                key: None,
                value: record.value.map(<[u8]>::to_vec),
            });
        }
    }
    let Some(now) = oracle.stream_time("g") else {
        assert_eq!(runner.position, start, "the first record is always accepted");
        return;
    };
    for (slot, (group, features)) in FEATURES.iter().enumerate() {
        check_group(runner, oracle, (slot, group), features, now);
    }
}

fn check_group(
    runner: &Runner,
    oracle: &mut Oracle,
    (slot, name): (usize, &str),
    features: &[&str],
    now: Millis,
) {
    let task = runner.task();
    let group = &task.groups[slot].group;
    assert_eq!(group.name, name);
    // A standby does not count.
    if !task.is_standby() {
        let counts = task.state.read().groups[slot];
        let expected = oracle.group_counts(name);
        let expected = |name: &str| expected.get(name).copied().unwrap_or(0);
        assert_eq!((counts.applied, counts.duplicate), (expected("applied"), expected("duplicate")));
    }
    let all: Vec<usize> = (0..features.len()).collect();
    for user in (0..USERS).map(|n| format!("u{n}")) {
        let mut entity = Vec::new();
        KeyPart::String(&user).encode(&mut entity);
        for now in [now - 900_000, now - 500_000, now, now + 600_000] {
            let read = UnitRead { slot, entity: &entity, features: &all, now };
            let (answers, _) = task.read(&[read]).expect("readable");
            for (i, feature) in features.iter().enumerate() {
                let key = [Value::String(user.as_str().into())];
                let theirs = oracle.lookup(name, feature, &key, now);
                let ours = cell(&group.features[i], &answers[0], answers[0].answers.get(i), now);
                assert!(
                    is_equal(&theirs.value, &ours.value, theirs.scale) && theirs.status == ours.status.name(),
                    "{feature} of {user} at {now}: {ours:?}, and by the oracle {theirs:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// All units are due at every boundary, none are, or those that were changed a while ago.
    #[test]
    fn every_schedule_gives_the_values_of_the_oracle(
        acts in vec(act(), 1..100),
        interval in prop::sample::select(vec![0, 400, 3_600_000_000]),
        cache_bytes in prop::sample::select(CACHES.to_vec()),
        has_sweeps in any::<bool>(),
        is_cut in any::<bool>(),
    ) {
        let mut run = Run::new(Duration::from_micros(interval), cache_bytes, is_cut);
        for act in acts.iter().filter(|a| has_sweeps || !matches!(a, Act::MakeSweepDue)) {
            run.act(act);
            run.check();
        }
        run.act(&Act::Crash { is_durable: false });
        run.check();
        let mut undisturbed = Run::new(Duration::ZERO, cache_bytes, is_cut);
        for act in acts.iter().filter(|a| matches!(a, Act::Append(_))) {
            undisturbed.act(act);
        }
        if interval == 0 && !has_sweeps {
            prop_assert_eq!(run.rows(), undisturbed.rows());
        }
    }
}
