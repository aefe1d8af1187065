//! The worker's side of a task: reads its input, judges, applies. Commits are in `commit`.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use super::barrier::LastRecord;
use super::dead_letter::{Provenance, dead_letter};
use super::source_stage::{Projection, Projector, SourceStage, Verdict, routing_key};
use super::sweep::Sweep;
use super::{Contained, GroupCounts, SourceProgress, Status, Task, TaskInput};
use crate::clock::Clock;
use crate::codec::Reason;
use crate::codec::repartition::{Routed, RoutedEvent, decode as decode_routed};
use crate::error::{Error, Result};
use crate::fault::crash_point;
use crate::log::{Append, Input, Log, LogBatch, RecordView, ResumePoint};
use crate::model::key::{decode_parts, record_key_of};
use crate::model::{Millis, Offset, partition_of};
use crate::operator::EventBuf;
use crate::state::{Arrival, Outcome, StoredRows, Unit, head_key, split_key, unit_prefix};
use crate::telemetry::Metrics;
use crate::topology::EmitRule;

/// Bytes of input that one step reads.
const STEP_BYTES: usize = 1 << 20;
/// Records that are applied under one lock: readers wait no longer than these take.
const CHUNK: usize = 128;
/// Records whose place is checked after a takeover, and the distance of those behind.
const CHECK_FIRST: Offset = 1000;
const CHECK_EVERY: Offset = 64;

/// Settings of a task's work.
#[derive(Clone)]
pub struct RunnerOptions {
    /// Name of the application: prefix of internal topics.
    pub app: String,
    /// Longest time from a change to its row in the store.
    pub checkpoint_interval: Duration,
    /// Distance of commits.
    pub commit_interval: Duration,
    /// Bytes of units that the task may cache.
    pub cache_bytes: usize,
    /// Whether committed rows also go to a changelog.
    pub has_changelog: bool,
    /// The time of day, for how old the store is.
    pub clock: Arc<dyn Clock>,
    /// Figures.
    pub metrics: Arc<Metrics>,
}

/// An event that is ready to be applied.
#[derive(Debug, Default)]
struct Ready {
    slot: usize,
    prefix: Vec<u8>,
    event: EventBuf,
    offset: Offset,
    advance: Millis,
    stream_time: Millis,
    /// Stream time with it, as readers of the partition know it: the greatest of all that feed it.
    readers_time: Millis,
    /// Event time from which on its partition was known when it came, if somebody is told per event.
    covered_from: Option<Millis>,
    id: Option<u128>,
    /// Where its unit is cached, if it was when last looked.
    cached: Option<u32>,
}

/// A change that is not in the store yet.
pub(super) struct Dirty {
    pub slot: u32,
    pub from: Offset,
    pub since: Instant,
}

/// Stream times just before an offset, one per source.
pub(super) struct Mark {
    pub offset: Offset,
    pub stream_times: Vec<Option<Millis>>,
}

/// The worker's side of a task.
pub struct Runner {
    /// The shared side.
    pub task: Arc<Task>,
    pub(super) log: Arc<dyn Log>,
    pub(super) options: RunnerOptions,
    pub(super) stages: Vec<SourceStage>,
    projector: Projector,
    /// Next offset to read.
    pub(super) position: Offset,
    /// Everything below is committed: replayed without outputs.
    pub(super) committed: Offset,
    /// What the store knows to be committed, and since when.
    pub(super) stored: Offset,
    pub(super) stored_at: Instant,
    pub(super) last_txn_id: Option<String>,
    pub(super) sequence: u64,
    pub(super) sources: Vec<SourceProgress>,
    pub(super) groups: Vec<GroupCounts>,
    pub(super) vector: BTreeMap<u32, Contained>,
    pub(super) dirty: VecDeque<Dirty>,
    pub(super) marks: VecDeque<Mark>,
    /// Outputs of offsets that are not committed, by topic.
    pub(super) outputs: HashMap<String, Append>,
    pub(super) fingerprints: BTreeMap<String, u64>,
    pub(super) sweep: Sweep,
    ready: Vec<Ready>,
    /// Slots of ready events, while they are looked for.
    found: Vec<Option<u32>>,
    /// Every record below is checked for its place; behind, some.
    checked_until: Offset,
    /// Records that were found in another partition than their key's.
    misplaced: u64,
    /// The first offset of the input that there was when the task began.
    pub(super) begun_at: Offset,
    /// The last record that was applied.
    pub(super) last_record: Option<LastRecord>,
    /// What tells the input from a topic made anew under its name.
    pub(super) topic_id: Option<String>,
    /// Units of groups that emit their latest state, as (group, place in the cache).
    pub(super) changed: BTreeSet<(usize, u32)>,
    /// Units that a commit under way removes, by the prefix of their rows: what the store still has of
    /// them is not theirs any more.
    pub(super) removed: HashSet<Vec<u8>>,
    /// What lies behind is not to be applied yet.
    pub(super) limit: Offset,
    used: usize,
    dead_letter_partitions: u32,
    hold: Option<Hold>,
    /// Why it is to be taken over anew.
    pub(super) interrupted: Option<String>,
}

/// Says of a task that nobody applies its records any more, also when the worker has panicked.
struct Hold(Arc<Task>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

impl Runner {
    /// Takes `task` over: loads where it stands, and refuses what cannot be continued.
    ///
    /// # Errors
    /// State that does not fit the definitions or the log.
    pub fn take_over(
        task: Arc<Task>,
        log: Arc<dyn Log>,
        from: &ResumePoint,
        options: RunnerOptions,
    ) -> Result<Self> {
        let stages = match &task.input {
            TaskInput::Topic { sources } => sources.iter().map(SourceStage::new).collect(),
            TaskInput::Repartition => Vec::new(),
        };
        let dead_letters = format!("{}-dead-letters", options.app);
        let dead_letter_partitions = log.partitions(&dead_letters).unwrap_or(1);
        let mut runner = Self {
            stages,
            projector: Projector::default(),
            position: 0,
            committed: 0,
            stored: 0,
            stored_at: Instant::now(),
            last_txn_id: None,
            sequence: 0,
            sources: vec![SourceProgress::default(); task.stream_times.len()],
            groups: vec![GroupCounts::default(); task.groups.len()],
            vector: BTreeMap::new(),
            dirty: VecDeque::new(),
            marks: VecDeque::new(),
            outputs: HashMap::new(),
            fingerprints: BTreeMap::new(),
            sweep: Sweep::default(),
            ready: Vec::new(),
            found: Vec::new(),
            checked_until: 0,
            misplaced: 0,
            begun_at: 0,
            last_record: None,
            topic_id: None,
            changed: BTreeSet::new(),
            removed: HashSet::new(),
            limit: Offset::MAX,
            used: 0,
            dead_letter_partitions,
            hold: None,
            interrupted: None,
            task,
            log,
            options,
        };
        runner.restore(from)?;
        runner.checked_until = runner.position + CHECK_FIRST;
        Ok(runner)
    }

    /// A worker begins with the task: once the runner is gone, nothing of it is answered any more.
    pub fn hold(&mut self) {
        self.hold = Some(Hold(Arc::clone(&self.task)));
    }

    /// Applies some of what waits in the input. Returns how many records that were.
    pub fn step(&mut self, input: &mut dyn Input) -> usize {
        if self.task.status() == Status::Failed || self.interrupted.is_some() {
            return 0;
        }
        match self.try_step(input) {
            Ok(records) => records,
            Err(error) => {
                self.interrupt(error);
                0
            }
        }
    }

    fn try_step(&mut self, input: &mut dyn Input) -> Result<usize> {
        let (topic, partition) = (self.task.topic.clone(), self.task.partition);
        let batches = input.read(&topic, partition, self.position, STEP_BYTES)?;
        let mut records = 0;
        if batches.is_empty() {
            self.pass(input.skip(&topic, partition, self.position));
        }
        for batch in &batches {
            let started = Instant::now();
            records += self.apply_batch(batch)?;
            self.options.metrics.processing_latency(started.elapsed());
        }
        if self.task.status() == Status::Restoring && self.position >= self.committed {
            self.finish_restore()?;
        }
        Ok(records)
    }

    /// Goes on behind offsets that hold no records.
    fn pass(&mut self, offset: Offset) {
        if offset > self.position {
            self.mark(self.position);
            self.position = offset;
            if self.task.status() != Status::Restoring {
                self.task.state.write().applied = offset;
                self.task.announce();
            }
        }
    }

    fn apply_batch(&mut self, batch: &LogBatch) -> Result<usize> {
        let mut applied = 0;
        let mut in_chunk = 0;
        let from = self.position;
        let is_redo = self.task.status() == Status::Restoring;
        let (limit, mut last) = (self.limit, None);
        for record in batch.records().filter(|r| r.offset >= from && r.offset < limit) {
            if in_chunk == 0 {
                self.mark(record.offset);
            }
            match self.task.input {
                TaskInput::Topic { .. } => self.judge(record)?,
                TaskInput::Repartition => self.receive(record)?,
            }
            last = Some(record);
            in_chunk += 1;
            applied += 1;
            self.position = record.offset + 1;
            if is_redo {
                crash_point("redo");
            }
            if in_chunk == CHUNK || record.offset + 1 == self.committed {
                self.apply_ready()?;
                in_chunk = 0;
            }
        }
        if in_chunk > 0 {
            self.apply_ready()?;
        }
        self.last_record = last.map(LastRecord::of).or(self.last_record);
        Ok(applied)
    }

    fn mark(&mut self, offset: Offset) {
        let stream_times = self.sources.iter().map(|s| s.stream_time).collect();
        self.marks.push_back(Mark { offset, stream_times });
    }

    /// A place for the next ready event.
    fn next_ready(&mut self) -> &mut Ready {
        if self.used == self.ready.len() {
            self.ready.push(Ready::default());
        }
        self.used += 1;
        &mut self.ready[self.used - 1]
    }

    fn judge(&mut self, record: RecordView<'_>) -> Result<()> {
        // What was counted and sent before the takeover is not counted or sent again.
        let is_new = record.offset >= self.committed;
        for index in 0..self.stages.len() {
            let mut progress = self.sources[index];
            let verdict = self.stages[index].judge(record, &mut progress);
            if is_new {
                progress.counts.read += 1;
            }
            match verdict {
                Verdict::Ignored if is_new => progress.counts.ignored += 1,
                Verdict::Refused(reason, detail) if is_new => {
                    let goes_aside = if reason == Reason::Late {
                        progress.counts.late += 1;
                        self.stages[index].source.late_to_dead_letters
                    } else {
                        progress.counts.dead_lettered[reason as usize] += 1;
                        true
                    };
                    if goes_aside {
                        self.set_aside(index, record, reason, &detail);
                    }
                }
                Verdict::Ignored | Verdict::Refused(..) => {}
                Verdict::Accepted { event, advance, stream_time } => {
                    if is_new {
                        progress.counts.accepted += 1;
                    }
                    self.sources[index] = progress;
                    self.project(index, &event, record.offset, advance, stream_time, is_new);
                    self.stages[index].recycle(event);
                }
            }
            self.sources[index] = progress;
        }
        Ok(())
    }

    fn set_aside(&mut self, stage: usize, record: RecordView<'_>, reason: Reason, detail: &str) {
        let from = Provenance {
            app: &self.options.app,
            topic: &self.task.topic,
            partition: self.task.partition,
            source: &self.stages[stage].source.name,
        };
        let (to, letter) = dead_letter(record, &from, reason, detail, self.dead_letter_partitions);
        self.output(&format!("{}-dead-letters", self.options.app)).push_record(to, &letter);
    }

    /// Records that the next commit appends to `topic`.
    pub(super) fn output(&mut self, topic: &str) -> &mut Append {
        if !self.outputs.contains_key(topic) {
            self.outputs.insert(topic.to_owned(), Append::to(topic));
        }
        self.outputs.get_mut(topic).expect("just inserted")
    }

    fn project(
        &mut self,
        stage: usize,
        event: &crate::codec::Decoded<'_>,
        offset: Offset,
        advance: Millis,
        stream_time: Millis,
        is_new: bool,
    ) {
        let task = Arc::clone(&self.task);
        let source = self.stages[stage].source.index;
        for (slot, to) in task.groups.iter().enumerate().filter(|(_, g)| g.group.source.index == source) {
            match self.projector.project(to, event, task.partition, offset) {
                Projection::NoEntity if is_new => self.groups[slot].no_entity += 1,
                Projection::Filtered if is_new => self.groups[slot].filtered += 1,
                Projection::NoEntity | Projection::Filtered => {}
                Projection::Projected if to.is_local => {
                    if offset < self.checked_until || offset % CHECK_EVERY == 0 {
                        self.check_place(slot, offset);
                    }
                    let mut projector = std::mem::take(&mut self.projector);
                    let covered_from = self.sources[stage].coverage.start();
                    let ready = self.next_ready();
                    ready.covered_from = covered_from;
                    ready.slot = slot;
                    std::mem::swap(&mut ready.prefix, &mut projector.prefix);
                    std::mem::swap(&mut ready.event, &mut projector.event);
                    (ready.offset, ready.advance) = (offset, advance);
                    (ready.stream_time, ready.id) = (stream_time, event.id);
                    ready.readers_time = stream_time.max(ready.advance);
                    self.projector = projector;
                }
                Projection::Projected if is_new => {
                    let routed = RoutedEvent {
                        partition: task.partition,
                        offset,
                        advance,
                        stream_time,
                        id: event.id,
                        covered_from: self.sources[stage].coverage.start(),
                        key: self.projector.prefix[unit_prefix(0, &[]).len()..].to_vec(),
                        event: self.projector.event.clone(),
                    };
                    let key = routing_key(&to.group, event);
                    let topic = to.group.repartition_topic(&self.options.app);
                    let count = self.log.partitions(&topic).unwrap_or(1);
                    let partition = partition_of(&key, count);
                    let value = routed.encode(&to.group.layout);
                    self.output(&topic).push(partition, Some(&key), Some(&value), &[]);
                }
                Projection::Projected => {}
            }
        }
    }

    /// Says so when the producer of a topic places keys elsewhere than readers look for them; of many,
    /// ever more rarely.
    fn check_place(&mut self, slot: usize, offset: Offset) {
        let group = &self.task.groups[slot].group;
        let prefix = &self.projector.prefix;
        let Some(parts) = split_key(prefix).and_then(|(_, e)| decode_parts(e, &group.key_types)) else {
            return;
        };
        let key = record_key_of(&parts);
        let count = self.log.partitions(&self.task.topic).unwrap_or(1);
        let wanted = partition_of(&key, count);
        if wanted != self.task.partition {
            let key = String::from_utf8_lossy(&key);
            self.options.metrics.misplaced(&self.task.topic);
            self.misplaced += 1;
            if !self.misplaced.is_power_of_two() {
                return;
            }
            tracing::error!(
                "offset {offset} of {}: key `{key}` belongs to partition {wanted} of {count}: its producer does not \
                 use Kafka's default partitioner on the key of source `{}`; lookups of it will not find it",
                self.task.name,
                group.source.name
            );
        }
    }

    /// Takes a record of a repartition topic.
    fn receive(&mut self, record: RecordView<'_>) -> Result<()> {
        let to = &self.task.groups[0];
        let routed = record.value.and_then(|v| decode_routed(&to.group.layout, v));
        let routed = routed.ok_or_else(|| {
            let message = format!("offset {} of {} is no repartition record", record.offset, self.task.topic);
            Error::corrupted(message).with_hint("it was written under another definition of the group")
        })?;
        let id = to.id;
        let (partition, contained) = match &routed {
            Routed::Event(e) => {
                let stream_time = Some(e.stream_time.max(e.advance));
                let (next_offset, covered_from) = (e.offset + 1, e.covered_from);
                (e.partition, Contained { next_offset, stream_time, covered_from })
            }
            Routed::Marker(m) => {
                let stream_time = (m.stream_time != Millis::MIN).then_some(m.stream_time);
                let (next_offset, covered_from) = (m.next_offset, m.covered_from);
                (m.partition, Contained { next_offset, stream_time, covered_from })
            }
        };
        let known = self.vector.entry(partition).or_default();
        known.next_offset = known.next_offset.max(contained.next_offset);
        known.stream_time = known.stream_time.max(contained.stream_time);
        known.covered_from = known.covered_from.max(contained.covered_from);
        if let Routed::Event(e) = routed {
            let is_told = to.group.emit == EmitRule::PerEvent;
            let known = is_told.then(|| self.task.coverage_of(&self.sources, &self.vector, 0));
            let greatest = self.vector.values().filter_map(|c| c.stream_time).max();
            let ready = self.next_ready();
            ready.covered_from = known.flatten();
            ready.readers_time = greatest.unwrap_or(e.stream_time);
            ready.slot = 0;
            ready.prefix = unit_prefix(id, &e.key);
            ready.event = e.event;
            (ready.offset, ready.advance) = (record.offset, e.advance);
            (ready.stream_time, ready.id) = (e.stream_time, e.id);
        }
        Ok(())
    }

    /// Applies what is ready under one lock, and publishes where the task is.
    fn apply_ready(&mut self) -> Result<()> {
        let task = Arc::clone(&self.task);
        let mut loaded = self.load_missing()?;
        let since = Instant::now();
        let mut state = task.state.write();
        let all = std::mem::take(&mut self.ready);
        for ready in &all[..self.used] {
            let to = &task.groups[ready.slot];
            let layout = &to.group.layout;
            // Nothing is evicted between the look and here.
            let slot = match ready.cached.or_else(|| state.cache.find(&ready.prefix)) {
                Some(slot) => slot,
                None => {
                    let unit = loaded.remove(&ready.prefix).flatten();
                    let is_new = unit.is_none() && ready.offset >= self.committed;
                    self.groups[ready.slot].entities += u64::from(is_new);
                    state.cache.insert(ready.prefix.as_slice().into(), unit.unwrap_or_default())
                }
            };
            let unit = state.cache.unit_mut(slot);
            let was_clean = unit.dirty_from.is_none();
            let arrival = Arrival {
                event: &ready.event,
                offset: ready.offset,
                advance: ready.advance,
                stream_time: ready.stream_time,
                id: ready.id,
            };
            let rows = StoredRows { store: &*task.store, prefix: &ready.prefix };
            let outcome = unit.apply(layout, &to.rules, arrival, &rows)?;
            let is_dirty = unit.dirty_from.is_some();
            state.cache.measure(slot);
            if was_clean && is_dirty {
                self.dirty.push_back(Dirty { slot, from: ready.offset, since });
            }
            if ready.offset >= self.committed {
                match outcome {
                    Outcome::Applied => {
                        self.groups[ready.slot].applied += 1;
                        if to.group.emit != EmitRule::Never {
                            let now = ready.event.get(layout, 0).time();
                            let known = (ready.readers_time, ready.covered_from);
                            self.emit(&state, (ready.slot, slot), &ready.prefix, now, known)?;
                        }
                    }
                    Outcome::Duplicate => self.groups[ready.slot].duplicate += 1,
                    Outcome::Skipped => {}
                }
            }
        }
        self.ready = all;
        self.used = 0;
        if state.cache.bytes() > self.options.cache_bytes {
            state.cache.evict(self.options.cache_bytes);
        }
        state.applied = self.position;
        state.sources.copy_from_slice(&self.sources);
        state.groups.copy_from_slice(&self.groups);
        state.vector.clone_from(&self.vector);
        for (shared, progress) in task.stream_times.iter().zip(&self.sources) {
            shared.store(progress.stream_time.unwrap_or(i64::MIN), Ordering::Release);
        }
        drop(state);
        task.announce();
        Ok(())
    }

    /// Units of ready events that are not cached, read outside the lock that readers wait for.
    fn load_missing(&mut self) -> Result<HashMap<Vec<u8>, Option<Unit>>> {
        let mut missing: HashMap<Vec<u8>, Option<Unit>> = HashMap::new();
        let task = Arc::clone(&self.task);
        let state = task.state.read();
        let mut keys = Vec::new();
        let mut slots = Vec::new();
        state.cache.find_all(self.ready[..self.used].iter().map(|r| &*r.prefix), &mut self.found);
        for (ready, found) in self.ready[..self.used].iter_mut().zip(&self.found) {
            ready.cached = *found;
            if ready.cached.is_none() && !missing.contains_key(&ready.prefix) {
                missing.insert(ready.prefix.clone(), None);
                if self.removed.contains(&ready.prefix) {
                    continue;
                }
                keys.push(head_key(&ready.prefix));
                slots.push((ready.slot, ready.prefix.clone()));
            }
        }
        drop(state);
        if keys.is_empty() {
            return Ok(missing);
        }
        for (row, (slot, prefix)) in self.task.store.multi_get(&keys)?.into_iter().zip(slots) {
            if let Some(row) = row {
                let unit = Unit::decode_head(&self.task.groups[slot].group.layout, &row)?;
                missing.insert(prefix, Some(unit));
            }
        }
        Ok(missing)
    }
}
