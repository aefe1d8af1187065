//! Standbys of this node: tasks of other nodes that it follows, to answer for them and to take them
//! over without a restore (PROTOCOL 31 to 34).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::recovery::{Recovery, STORE_AGE_MAX};
use super::{Parts, Place, task_of};
use crate::error::Result;
use crate::log::{Input, KafkaLog, Log, LogBatch, PartitionReader, ResumePoint};
use crate::model::{Change, Offset};
use crate::serving::View;
use crate::serving::cluster::Cluster;
use crate::task::{Adoption, Follower, Runner, RunnerOptions, Task};

/// Between two looks at who should follow what.
const ADJUST_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at what the owner has committed.
const ROUND: Duration = Duration::from_millis(100);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const BATCH_BYTES: usize = 256 << 10;
/// Bytes of records that wait for their commit, and of rows that wait for their adoption.
const AHEAD_MAX: usize = 16 << 20;

/// All standbys of this node.
pub(super) struct Standbys {
    parts: Arc<Parts>,
    log: Arc<KafkaLog>,
    view: Arc<View>,
    options: RunnerOptions,
    /// Inputs of all tasks.
    inputs: Vec<(String, u32)>,
    running: HashMap<(String, u32), Running>,
    adjusted_at: Instant,
}

struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Standbys {
    pub fn new(
        parts: Arc<Parts>,
        log: Arc<KafkaLog>,
        view: Arc<View>,
        options: RunnerOptions,
        inputs: Vec<(String, u32)>,
    ) -> Self {
        Self { parts, log, view, options, inputs, running: HashMap::new(), adjusted_at: Instant::now() }
    }

    /// Starts and stops what the owners topic asks for, now and then. A partition that this node
    /// owns is given up at once: its store is wanted.
    pub fn adjust(&mut self, cluster: &Cluster) {
        let count = self.parts.settings.standby_replicas;
        if count == 0 || self.adjusted_at.elapsed() < ADJUST_EVERY {
            return;
        }
        self.adjusted_at = Instant::now();
        let owned = self.view.owned();
        let is_wanted = |(topic, partition): &(String, u32)| {
            !owned.own().any(|t| t.topic == *topic && t.partition == *partition)
                && cluster.is_standby_here(topic, *partition, count)
        };
        let wanted: Vec<(String, u32)> = self.inputs.iter().filter(|i| is_wanted(i)).cloned().collect();
        self.running.retain(|input, running| {
            if !wanted.contains(input) {
                running.stop.store(true, Ordering::Release);
            }
            !running.thread.is_finished()
        });
        for input in wanted {
            if !self.running.contains_key(&input) {
                self.begin(input);
            }
        }
    }

    fn begin(&mut self, input: (String, u32)) {
        let stop = Arc::new(AtomicBool::new(false));
        let place = Place { topic: input.0.clone(), partition: input.1, incarnation: super::random() };
        let (parts, ended, wanted) = (Arc::clone(&self.parts), Arc::clone(&stop), input.clone());
        // A worker that takes it over wants the store.
        let is_wanted = move || !ended.load(Ordering::Acquire) && !parts.taken.lock().contains_key(&wanted);
        let standby = Standby {
            recovery: Recovery {
                parts: Arc::clone(&self.parts),
                log: Arc::clone(&self.log),
                is_wanted: Box::new(is_wanted),
                is_standby: true,
                place,
            },
            view: Arc::clone(&self.view),
            options: self.options.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("standby-{}", input.1));
        match thread.spawn(move || standby.run()) {
            Ok(thread) => drop(self.running.insert(input, Running { stop, thread })),
            Err(error) => tracing::error!("{}/{}: no thread to follow: {error}", input.0, input.1),
        }
    }

    pub fn stop(&mut self) {
        for running in self.running.values() {
            running.stop.store(true, Ordering::Release);
        }
        for (_, running) in self.running.drain() {
            if running.thread.join().is_err() {
                tracing::error!("a standby has panicked");
            }
        }
    }
}

/// Following one task.
struct Standby {
    recovery: Recovery,
    view: Arc<View>,
    options: RunnerOptions,
}

impl Standby {
    fn is_over(&self) -> bool {
        !(self.recovery.is_wanted)()
    }

    fn run(self) {
        let name = format!("{}/{}", self.recovery.place.topic, self.recovery.place.partition);
        tracing::info!("{name}: following its owner");
        while !self.is_over() {
            if let Err(error) = self.follow_anew() {
                tracing::debug!("{name}: standby: {error}; trying again");
                std::thread::sleep(RETRY_PAUSE);
            }
        }
        tracing::info!("{name}: followed no longer");
    }

    /// Follows with an empty overlay until it is over, or the overlay has to be made anew.
    fn follow_anew(&self) -> Result<()> {
        let place = &self.recovery.place;
        let parts = &self.recovery.parts;
        let store = parts.open_store(&place.topic, place.partition)?;
        let mut task = task_of(&parts.topology, &parts.settings.app, place, store);
        task.follower = Some(Arc::new(Follower::default()));
        let task = Arc::new(task);
        let is_other = |t: &Arc<Task>| t.incarnation != place.incarnation;
        self.view.change_tasks(|tasks| tasks.push(Arc::clone(&task)));
        let outcome = self.follow(&task);
        self.view.change_tasks(|tasks| tasks.retain(is_other));
        outcome
    }

    fn follow(&self, task: &Arc<Task>) -> Result<()> {
        let log = &self.recovery.log;
        let position = self.recovery.follow_changelog(task)?;
        let from = ResumePoint {
            committed: self.recovery.barrier(&*task.store)?,
            start: log.start_offset(&task.topic, task.partition),
            end: log.end_offset(&task.topic, task.partition),
            topic_id: log.topic_id(&task.topic)?,
        };
        if from.committed.is_none() && from.start > 0 {
            // Where its owner began only the first commit tells.
            std::thread::sleep(ROUND);
            return Ok(());
        }
        let shared = Arc::clone(log) as Arc<dyn Log>;
        let mut runner = Runner::take_over(Arc::clone(task), shared, &from, self.options.clone())?;
        runner.follow_to(runner.committed());
        let mut rows = Rows {
            reader: log.changelog_reader(&task.topic, task.partition, position)?,
            staged: Vec::new(),
            bytes: 0,
        };
        let mut input = Records {
            reader: log.reader(&task.topic, task.partition, runner.position())?,
            batches: VecDeque::new(),
            bytes: 0,
        };
        let clock = &self.recovery.parts.clock;
        let mut read_at = clock.now();
        while !self.is_over() {
            // The machine may have slept, and deletions may be gone (PROTOCOL 32): the store says how old it is.
            let before = std::mem::replace(&mut read_at, clock.now());
            if read_at - before > STORE_AGE_MAX {
                return Ok(());
            }
            let begun = Instant::now();
            // The end first: what is committed by then is below.
            rows.read()?;
            if let Some(committed) = rows.reader.committed(&task.topic, task.partition) {
                runner.follow_to(committed);
            }
            let end = input.read()?;
            while runner.step(&mut input) > 0 {}
            if rows.adopt(&mut runner)? == Adoption::Restart {
                return Ok(());
            }
            if let (Some(at), Some(follower)) = (end, &task.follower) {
                let ahead = runner.stream_time_ahead(input.batches.iter().map(|b| &**b));
                follower.note(runner.stream_time(), ahead, at);
            }
            if let Some(why) = task.failure() {
                return Err(crate::error::Error::internal(why));
            }
            std::thread::sleep(ROUND.saturating_sub(begun.elapsed()));
        }
        Ok(())
    }
}

/// Rows of the changelog that wait for their adoption.
struct Rows {
    reader: PartitionReader,
    staged: Vec<Change>,
    bytes: usize,
}

impl Rows {
    fn read(&mut self) -> Result<()> {
        for row in self.reader.rows(Duration::ZERO, AHEAD_MAX)? {
            self.bytes += row.key.len() + row.value.as_ref().map_or(0, Vec::len);
            self.staged.push((row.key, row.value));
        }
        Ok(())
    }

    /// Adopts what is staged, at the end of the changelog only (PROTOCOL 31).
    fn adopt(&mut self, runner: &mut Runner) -> Result<Adoption> {
        if self.staged.is_empty() || self.reader.is_at_end()?.is_none() {
            return Ok(Adoption::Early);
        }
        let adoption = runner.adopt(&self.staged, self.reader.position())?;
        if adoption == Adoption::Done {
            self.staged.clear();
            self.bytes = 0;
        } else if self.bytes > AHEAD_MAX {
            // More than memory is for: from the store again.
            return Ok(Adoption::Restart);
        }
        Ok(adoption)
    }
}

/// Records of the input, those included that nobody has committed yet.
struct Records {
    reader: PartitionReader,
    batches: VecDeque<Arc<LogBatch>>,
    bytes: usize,
}

impl Records {
    /// Reads on. Returns when everything there was had been read.
    fn read(&mut self) -> Result<Option<Instant>> {
        while self.bytes < AHEAD_MAX {
            let Some(batch) = self.reader.batch(Duration::from_millis(1), BATCH_BYTES)? else {
                return self.reader.is_at_end();
            };
            self.bytes += batch.size();
            self.batches.push_back(Arc::new(batch));
        }
        Ok(None)
    }
}

impl Input for Records {
    fn read(&mut self, _: &str, _: u32, from: Offset, _: usize) -> Result<Vec<Arc<LogBatch>>> {
        while let Some(first) = self.batches.front().filter(|b| b.next_offset() <= from) {
            self.bytes -= first.size();
            self.batches.pop_front();
        }
        // One that is applied in part comes again.
        Ok(self.batches.front().cloned().into_iter().collect())
    }

    fn skip(&mut self, _: &str, _: u32, from: Offset) -> Offset {
        if self.batches.is_empty() { from.max(self.reader.position()) } else { from }
    }
}
