//! One partition: its source stages and groups, its state, its commits, its takeover.
//!
//! A task is a partition of a topic with everything that reads it directly, or a partition of a
//! repartitioned group. A worker owns its [`Runner`]; readers share its [`Task`].

mod barrier;
mod cell;
mod commit;
mod dead_letter;
mod emit;
mod follow;
#[cfg(test)]
mod follow_tests;
mod follower;
mod lease;
mod read;
mod restore;
mod runner;
#[cfg(test)]
mod schedule_tests;
mod source_stage;
mod store_meta;
mod sweep;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::codec::Reason;
use crate::model::{Millis, Offset, Positions};
use crate::state::{SharedStore, UnitCache, UnitRules};
use crate::topology::{Group, Source};

pub use barrier::{Barrier, txn_id_of};
pub use cell::{Cell, CellStatus, cell, degraded};
pub use commit::PendingCommit;
pub use follow::Adoption;
pub use follower::Follower;
pub use lease::Lease;
pub use read::{UnitAnswer, UnitRead};
pub use runner::{Runner, RunnerOptions};
pub use store_meta::StoreMeta;

/// Counts of a source's records by outcome (SEMANTICS §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// All records.
    pub read: u64,
    /// Ignored tombstones.
    pub ignored: u64,
    /// Accepted events.
    pub accepted: u64,
    /// Late events.
    pub late: u64,
    /// Dead letters by [`Reason`]; `Late` is never counted here.
    pub dead_lettered: [u64; Reason::NAMES.len()],
}

/// Counts of a group's events by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupCounts {
    /// A part of the key is null.
    pub no_entity: u64,
    /// The group's `where` is not true.
    pub filtered: u64,
    /// The entity has applied one with its id.
    pub duplicate: u64,
    /// Applied.
    pub applied: u64,
    /// Units that exist.
    pub entities: u64,
    /// Rows that were handed over beside their HEADs.
    #[serde(default)]
    pub sealed: u64,
}

/// Up to how far back a source partition is known (SEMANTICS §4, "Coverage").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Coverage {
    /// It was read from its first offset.
    #[default]
    Whole,
    /// Its first records were gone, and it has accepted nothing since.
    Nothing,
    /// Its first records were gone: from the event time of the first that it accepted.
    From(Millis),
}

impl Coverage {
    /// Event time from which on everything is known; none: all, or there is nothing.
    pub fn start(self) -> Option<Millis> {
        match self {
            Self::From(time) => Some(time),
            Self::Whole | Self::Nothing => None,
        }
    }
}

/// A source stage as far as it has judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceProgress {
    /// Greatest advance so far.
    pub stream_time: Option<Millis>,
    /// Counts so far.
    pub counts: SourceCounts,
    /// What is known of its past.
    #[serde(default)]
    pub coverage: Coverage,
}

/// How far a source partition is contained in a repartitioned one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contained {
    /// Next offset.
    pub next_offset: Offset,
    /// Stream time.
    pub stream_time: Option<Millis>,
    /// Event time from which on it is known, if its first records were gone.
    #[serde(default)]
    pub covered_from: Option<Millis>,
}

/// What readers see, all at one point of the input.
#[derive(Default)]
pub struct TaskState {
    /// Cached units.
    pub cache: UnitCache,
    /// Next offset of the input.
    pub applied: Offset,
    /// By source of the task.
    pub sources: Vec<SourceProgress>,
    /// By group that the task counts for.
    pub groups: Vec<GroupCounts>,
    /// Of a repartitioned group: what it contains of each source partition.
    pub vector: BTreeMap<u32, Contained>,
}

/// Where a task is in its life.
///
/// ```text
/// Restoring ──► Running
///     │  └──► Standby
///     └─────────┴────► Failed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Replays what was committed; answers nothing.
    Restoring,
    /// Answers as the owner.
    Running,
    /// Follows the owner, and answers those who accept that.
    Standby,
    /// Stopped by an error that only a person can mend.
    Failed,
}

/// What a task reads.
#[derive(Clone, Debug)]
pub enum TaskInput {
    /// A topic, by the sources on it.
    Topic {
        /// Sources on the topic.
        sources: Vec<Arc<Source>>,
    },
    /// The repartition topic of the task's only group.
    Repartition,
}

/// A group as a task serves it.
#[derive(Clone, Debug)]
pub struct TaskGroup {
    /// The plan.
    pub group: Arc<Group>,
    /// What rows of its units begin with.
    pub id: u32,
    /// What decides about their layout.
    pub rules: UnitRules,
    /// Whether its units are here, rather than behind a repartition topic.
    pub is_local: bool,
}

/// A task, as readers and the worker share it.
pub struct Task {
    /// Its name, which its commits go by.
    pub name: String,
    /// Topic that it reads.
    pub topic: String,
    /// Partition that it reads, and is.
    pub partition: u32,
    /// Name of this takeover of it (PROTOCOL 2); 0 where nobody can take over.
    pub incarnation: u64,
    /// See [`TaskInput`].
    pub input: TaskInput,
    /// Groups that it serves or feeds.
    pub groups: Vec<TaskGroup>,
    /// Its store.
    pub store: SharedStore,
    /// Until when readers may be answered, where others could take over.
    pub lease: Option<Arc<Lease>>,
    /// How a standby lies behind; none: it is no standby.
    pub follower: Option<Arc<Follower>>,
    /// Its state; the worker alone writes it.
    pub state: RwLock<TaskState>,
    /// Stream time by source, for readers of other tasks; the least number: none.
    stream_times: Vec<AtomicI64>,
    status: AtomicU8,
    failure: Mutex<Option<String>>,
    /// Whether the worker that applied its records has let go of it.
    is_let_go: AtomicBool,
    changed: (Mutex<()>, Condvar),
    /// Next offset that is committed.
    pub committed: AtomicU64,
    /// Redo start of the last commit.
    pub barrier: AtomicU64,
    /// While it is restored: the position in its changelog, and where that ends.
    pub changelog: (AtomicU64, AtomicU64),
    /// Milliseconds since `started` of the last commit that wrote rows.
    checkpoint_at: AtomicU64,
    started: Instant,
}

/// The id that rows of a group go by: a hash of its name and version.
pub fn group_id(group: &Group) -> u32 {
    let name = format!("{}-v{}", group.name, group.version);
    twox_hash::XxHash3_64::oneshot(name.as_bytes()) as u32
}

impl Task {
    /// A task that has restored nothing yet.
    pub fn new(
        topic: &str,
        partition: u32,
        incarnation: u64,
        input: TaskInput,
        groups: Vec<(Arc<Group>, bool)>,
        store: SharedStore,
    ) -> Self {
        let groups: Vec<TaskGroup> = groups
            .into_iter()
            .map(|(group, is_local)| TaskGroup {
                id: group_id(&group),
                rules: UnitRules {
                    horizon: group.horizon,
                    has_base: group.has_base,
                    fold: group.fold,
                    grace: group.source.grace,
                },
                group,
                is_local,
            })
            .collect();
        let sources = match &input {
            TaskInput::Topic { sources } => sources.len(),
            TaskInput::Repartition => 0,
        };
        let state = TaskState {
            sources: vec![SourceProgress::default(); sources],
            groups: vec![GroupCounts::default(); groups.len()],
            ..TaskState::default()
        };
        Self {
            name: format!("{topic}/{partition}"),
            topic: topic.to_owned(),
            partition,
            incarnation,
            input,
            groups,
            store,
            lease: None,
            follower: None,
            state: RwLock::new(state),
            stream_times: (0..sources).map(|_| AtomicI64::new(i64::MIN)).collect(),
            status: AtomicU8::new(0),
            failure: Mutex::new(None),
            is_let_go: AtomicBool::new(false),
            changed: (Mutex::new(()), Condvar::new()),
            committed: AtomicU64::new(0),
            barrier: AtomicU64::new(0),
            changelog: (AtomicU64::new(0), AtomicU64::new(0)),
            checkpoint_at: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// Where it is in its life.
    pub fn status(&self) -> Status {
        match self.status.load(Ordering::Acquire) {
            0 => Status::Restoring,
            1 => Status::Running,
            3 => Status::Standby,
            _ => Status::Failed,
        }
    }

    /// Whether it follows the owner rather than being it.
    pub fn is_standby(&self) -> bool {
        self.follower.is_some()
    }

    fn let_go(&self) {
        self.is_let_go.store(true, Ordering::Release);
    }

    /// Whether what was just read of it may be answered: it is somebody's of this node, and nobody else
    /// can have it.
    pub fn may_answer(&self) -> bool {
        !self.is_let_go.load(Ordering::Acquire) && self.lease.as_ref().is_none_or(|l| l.is_valid())
    }

    /// How far the answers of a standby may lie behind; none: it cannot answer.
    pub fn behind(&self) -> Option<Duration> {
        let follower = self.follower.as_ref().filter(|_| self.status() == Status::Standby)?;
        follower.behind()
    }

    /// Why it failed.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    fn run(&self) {
        self.status.store(1, Ordering::Release);
        tracing::info!(task = %self.name, "running");
        self.announce();
    }

    pub(crate) fn stand_by(&self) {
        self.status.store(3, Ordering::Release);
        self.announce();
    }

    /// The task cannot go on.
    pub fn fail(&self, why: &str) {
        tracing::error!(task = %self.name, "failed: {why}");
        *self.failure.lock() = Some(why.to_owned());
        self.status.store(2, Ordering::Release);
        self.announce();
    }

    fn announce(&self) {
        let _guard = self.changed.0.lock();
        self.changed.1.notify_all();
    }

    /// Waits until `is_reached` says so of the state; false when `deadline` comes first.
    pub fn wait_for(&self, deadline: Instant, is_reached: impl Fn(&TaskState) -> bool) -> bool {
        loop {
            let mut guard = self.changed.0.lock();
            if is_reached(&self.state.read()) {
                return true;
            }
            if self.changed.1.wait_until(&mut guard, deadline).timed_out() {
                drop(guard);
                return is_reached(&self.state.read());
            }
        }
    }

    /// Stream time of source `index` of the task on this partition.
    pub fn stream_time(&self, index: usize) -> Option<Millis> {
        self.stream_times.get(index).map(|t| t.load(Ordering::Acquire)).filter(|t| *t != i64::MIN)
    }

    /// Index in `groups` of a group by its index in the topology.
    pub fn group_slot(&self, index: usize) -> Option<usize> {
        self.groups.iter().position(|g| g.group.index == index)
    }

    /// Time since the last commit that wrote rows, or since the start.
    pub fn checkpoint_age(&self) -> Duration {
        let at = Duration::from_millis(self.checkpoint_at.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(at)
    }

    /// Positions of the source partitions that the state contains (SEMANTICS §7).
    pub fn positions(&self, state: &TaskState) -> Positions {
        let mut positions = Positions::new();
        match &self.input {
            TaskInput::Topic { .. } => {
                positions.entry(self.topic.clone()).or_default().insert(self.partition, state.applied);
            }
            TaskInput::Repartition => {
                let topic = &self.groups[0].group.source.topic;
                let by_partition = positions.entry(topic.clone()).or_default();
                for (partition, contained) in &state.vector {
                    by_partition.insert(*partition, contained.next_offset);
                }
            }
        }
        positions
    }

    /// Whether `state` contains all of `wanted` that feeds the task.
    pub fn contains(&self, state: &TaskState, wanted: &Positions) -> bool {
        let positions = self.positions(state);
        let is_fed = |topic: &str, partition: u32| match &self.input {
            TaskInput::Topic { .. } => self.topic == topic && self.partition == partition,
            TaskInput::Repartition => self.groups[0].group.source.topic == topic,
        };
        let reached =
            |topic: &str, p: u32| positions.get(topic).and_then(|by| by.get(&p)).copied().unwrap_or(0);
        wanted
            .iter()
            .all(|(topic, by)| by.iter().all(|(p, next)| !is_fed(topic, *p) || reached(topic, *p) >= *next))
    }

    /// Stream time of the partition of group `slot`.
    pub fn group_stream_time(&self, state: &TaskState, slot: usize) -> Option<Millis> {
        match &self.input {
            TaskInput::Topic { sources } => {
                let source = self.groups[slot].group.source.index;
                let at = sources.iter().position(|s| s.index == source)?;
                state.sources[at].stream_time
            }
            TaskInput::Repartition => state.vector.values().filter_map(|c| c.stream_time).max(),
        }
    }

    /// Event time from which on all events of group `slot` are known here; none: all are.
    pub fn covered_from(&self, state: &TaskState, slot: usize) -> Option<Millis> {
        self.coverage_of(&state.sources, &state.vector, slot)
    }

    fn coverage_of(
        &self,
        progress: &[SourceProgress],
        vector: &BTreeMap<u32, Contained>,
        slot: usize,
    ) -> Option<Millis> {
        match &self.input {
            TaskInput::Topic { sources } => {
                let source = self.groups[slot].group.source.index;
                let at = sources.iter().position(|s| s.index == source)?;
                progress[at].coverage.start()
            }
            TaskInput::Repartition => vector.values().filter_map(|c| c.covered_from).max(),
        }
    }
}
