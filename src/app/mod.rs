//! The composition root: settings and definitions become a running engine.

mod embedded;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "kafka")]
mod members;
#[cfg(feature = "kafka")]
mod recovery;
#[cfg(feature = "kafka")]
mod standby;
mod takeover;

use std::collections::BTreeSet;
#[cfg(feature = "kafka")]
use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[cfg(feature = "kafka")]
use parking_lot::Mutex;

use crate::clock::{Clock, SystemClock};
use crate::config::DefinitionFiles;
use crate::config::settings::Settings;
use crate::config::show_mistake;
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Log, hold_folder};
use crate::model::Offset;
use crate::serving::{Limits, View};
use crate::state::{RocksStore, SharedMemory, SharedStore};
use crate::task::{RunnerOptions, Status, Task, TaskInput};
use crate::telemetry::Metrics;
use crate::topology::{Group, Topology};
use crate::worker::Worker;

pub use embedded::open_read_only;

/// Says whether a worker knows what it owns, and readers see all of it.
type Opened = Box<dyn Fn() -> bool + Send + Sync>;

/// Pause between two looks at what is not ready yet.
const READY_PAUSE: Duration = Duration::from_millis(10);

/// A running engine.
pub struct Engine {
    /// What serving sees of it.
    pub view: Arc<View>,
    workers: Vec<Worker>,
    /// By worker that is given its tasks: whether it has opened all of them.
    opened: Vec<Opened>,
    /// Threads beside the workers.
    helpers: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    _hold: File,
}

fn limits_of(settings: &Settings) -> Limits {
    Limits {
        append_body: settings.append_body,
        request_entities: settings.request_entities,
        request_features: settings.request_features,
        in_flight: settings.in_flight,
    }
}

/// Memory of code, threads, requests under way and what tasks need however small their state.
const FIXED_BYTES: u64 = 80 << 20;

/// Shares of the memory limit, in percent of what is not fixed. What is left over is for copies of what
/// is being written, and for what allocators keep.
struct Memory {
    units: usize,
    blocks: usize,
    write_buffers: usize,
    log_recent: usize,
    log_buffers: usize,
}

impl Memory {
    /// Units get most: they are what makes events cheap. Write buffers count as part of blocks.
    fn of(bytes: u64) -> Self {
        let shared = bytes.saturating_sub(FIXED_BYTES).max(bytes / 4);
        let percent = |n: u64| (shared / 100 * n) as usize;
        Self {
            units: percent(40),
            blocks: percent(25),
            write_buffers: percent(12),
            log_recent: percent(3),
            log_buffers: percent(6),
        }
    }
}

/// Reads definition files into a plan.
///
/// # Errors
/// Every mistake, as lines to print.
pub fn load_definitions(paths: &[PathBuf]) -> Result<Topology, Vec<String>> {
    Topology::of_files(DefinitionFiles::read(paths))
        .map_err(|(mistakes, paths)| mistakes.iter().map(|m| show_mistake(m, &paths)).collect())
}

/// What both kinds of log need to start tasks.
struct Parts {
    settings: Settings,
    topology: Arc<Topology>,
    clock: Arc<dyn Clock>,
    memory: Memory,
    shared: SharedMemory,
    metrics: Arc<Metrics>,
    /// Inputs that workers of this node own or take over, each by which takeover.
    #[cfg(feature = "kafka")]
    taken: Mutex<HashMap<(String, u32), u64>>,
    #[cfg(feature = "kafka")]
    restores: recovery::Turns,
}

impl Parts {
    fn new(settings: &Settings, topology: Topology, clock: Arc<dyn Clock>) -> Self {
        let memory = Memory::of(settings.memory);
        Self {
            settings: settings.clone(),
            topology: Arc::new(topology),
            clock,
            shared: SharedMemory::new(memory.blocks, memory.write_buffers),
            memory,
            metrics: Arc::new(Metrics::default()),
            #[cfg(feature = "kafka")]
            taken: Mutex::default(),
            #[cfg(feature = "kafka")]
            restores: recovery::Turns::default(),
        }
    }

    fn view(&self, log: &Arc<dyn Log>) -> Arc<View> {
        let (topology, clock) = (Arc::clone(&self.topology), Arc::clone(&self.clock));
        let limits = limits_of(&self.settings);
        let metrics = Arc::clone(&self.metrics);
        Arc::new(View::new(&self.settings.app, topology, Arc::clone(log), clock, limits, metrics))
    }

    /// Number of workers for `tasks` tasks.
    fn workers(&self, tasks: usize) -> usize {
        let wanted = if self.settings.workers == 0 { cores() } else { self.settings.workers };
        wanted.clamp(1, tasks.max(1))
    }

    /// Options of runners, where `with_units` tasks share the memory for units.
    fn runner_options(&self, with_units: usize, has_changelog: bool) -> RunnerOptions {
        RunnerOptions {
            app: self.settings.app.clone(),
            checkpoint_interval: self.settings.checkpoint_interval,
            commit_interval: self.settings.commit_interval,
            cache_bytes: self.memory.units / with_units.max(1),
            has_changelog,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
        }
    }

    fn store_path(&self, topic: &str, partition: u32) -> PathBuf {
        self.settings.data_dir.join("state").join(format!("{topic}-{partition}"))
    }

    fn open_store(&self, topic: &str, partition: u32) -> Result<SharedStore> {
        let path = self.store_path(topic, partition);
        std::fs::create_dir_all(&path)?;
        Ok(Arc::new(RocksStore::open(&path, &self.shared)?))
    }
}

/// A name that no other takeover has.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Refuses sources that read what the engine itself writes.
fn check_topics(topology: &Topology, app: &str) -> Result<()> {
    let between = topology.groups.iter().map(|g| g.repartition_topic(app));
    let features = topology.groups.iter().filter_map(|g| g.feature_topic(app));
    let changelogs = topology.topics().into_iter().map(|topic| format!("{app}-{topic}-changelog"));
    let own: Vec<String> = between
        .chain(features)
        .chain(changelogs)
        .chain([format!("{app}-dead-letters"), format!("{app}-owners")])
        .collect();
    let Some(source) = topology.sources.iter().find(|s| own.contains(&s.topic)) else { return Ok(()) };
    let message =
        format!("source `{}` reads `{}`, which this application writes itself", source.name, source.topic);
    Err(Error::invalid(message).with_hint("read it under another `app`"))
}

/// The task at `place`, whose topic is a source's or a repartition topic.
fn task_of(topology: &Topology, app: &str, place: &Place, store: SharedStore) -> Task {
    let Place { topic, partition, incarnation } = place;
    let repartitioned = topology.groups.iter().find(|g| !g.is_direct && g.repartition_topic(app) == *topic);
    if let Some(group) = repartitioned {
        let groups = vec![(Arc::clone(group), true)];
        return Task::new(topic, *partition, *incarnation, TaskInput::Repartition, groups, store);
    }
    let sources = topology.sources.iter().filter(|s| s.topic == *topic).cloned().collect();
    let groups: Vec<(Arc<Group>, bool)> = topology
        .groups
        .iter()
        .filter(|g| g.source.topic == *topic)
        .map(|g| (Arc::clone(g), g.is_direct))
        .collect();
    Task::new(topic, *partition, *incarnation, TaskInput::Topic { sources }, groups, store)
}

/// A partition that a worker owns.
#[derive(Clone, PartialEq, Eq)]
struct Place {
    topic: String,
    partition: u32,
    /// Names the takeover; 0 where nobody can take over.
    incarnation: u64,
}

impl Engine {
    /// Opens or creates the data folder and starts working.
    ///
    /// # Errors
    /// The folder is held by another process, what it holds cannot be continued, or Kafka does not
    /// answer.
    pub fn start(settings: &Settings, topology: Topology) -> Result<Self> {
        check_topics(&topology, &settings.app)?;
        let hold = hold_folder(&settings.data_dir)?;
        let parts = Parts::new(settings, topology, Arc::new(SystemClock));
        #[cfg(feature = "kafka")]
        if let Some(kafka) = &settings.kafka {
            return kafka::start(parts, kafka, hold);
        }
        embedded::start(parts, hold)
    }

    /// Waits until every partition gives right answers.
    ///
    /// # Errors
    /// One cannot.
    pub fn wait_ready(&self) -> Result<()> {
        while !self.stop.load(Ordering::Acquire) {
            let is_open = self.opened.iter().all(|is_open| is_open());
            // Asked anew: tasks may move while others restore.
            let owned = self.view.owned();
            let restoring = owned.tasks.iter().find(|t| t.status() == Status::Restoring);
            match restoring {
                Some(task) => {
                    task.wait_for(Instant::now() + READY_PAUSE, |_| task.status() != Status::Restoring);
                }
                None if is_open => {
                    let failed = owned.tasks.iter().find_map(|t| Some((&t.name, t.failure()?)));
                    if let Some((task, why)) = failed {
                        return Err(Error::internal(format!("{task}: {why}")));
                    }
                    self.view.set_started();
                    break;
                }
                None => std::thread::sleep(READY_PAUSE),
            }
        }
        Ok(())
    }

    /// Ends [`Engine::wait_ready`].
    pub fn give_up_waiting(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Commits everything, hands it to the stores, and lets the folder go.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Release);
        for worker in &self.workers {
            worker.stop();
        }
        for worker in self.workers.drain(..) {
            worker.join();
        }
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            if helper.join().is_err() {
                tracing::error!("a thread beside the workers has panicked");
            }
        }
    }
}

/// Flushes stores and cuts logs, beside the workers.
struct Housekeeper {
    view: Arc<View>,
    every: Duration,
    /// Turns from one flush of the stores to the next.
    flush_turns: u32,
    /// Offset of a partition below which retention may cut.
    expired: Expired,
    /// Topics that are only written, with their numbers of partitions.
    outputs: Vec<(String, u32)>,
    stop: Arc<AtomicBool>,
}

type Expired = Box<dyn Fn(&str, u32) -> Result<Offset> + Send>;

impl Housekeeper {
    fn start(self) -> Result<JoinHandle<()>> {
        let thread = std::thread::Builder::new().name("housekeeper".to_owned());
        Ok(thread.spawn(move || self.run())?)
    }

    fn run(self) {
        let mut turns = 0;
        while !self.stop.load(Ordering::Acquire) {
            std::thread::park_timeout(self.every);
            self.check_inputs();
            turns += 1;
            // The last turn is that of a stop.
            if turns % self.flush_turns != 0 && !self.stop.load(Ordering::Acquire) {
                continue;
            }
            // A task that is given up meanwhile lets its store go at once.
            let tasks: Vec<Weak<Task>> = self.view.owned().tasks.iter().map(Arc::downgrade).collect();
            // A standby's rows come from the changelog, and nothing is its to cut.
            for task in tasks.iter().filter_map(Weak::upgrade).filter(|t| !t.is_standby()) {
                let name = task.name.clone();
                if let Err(error) = self.keep(task) {
                    // Brokers that are away come back; the next turn does it.
                    tracing::warn!(task = %name, "housekeeping: {error}");
                }
            }
            for (topic, partitions) in &self.outputs {
                for partition in 0..*partitions {
                    let cut = (self.expired)(topic, partition)
                        .and_then(|cut| self.view.log.purge(topic, partition, cut));
                    if let Err(error) = cut {
                        tracing::warn!("housekeeping of {topic}/{partition}: {error}");
                    }
                }
            }
        }
    }

    /// Ends the tasks of inputs that are no longer what they were (PROTOCOL 27).
    fn check_inputs(&self) {
        let topics: BTreeSet<String> = self.view.owned().tasks.iter().map(|t| t.topic.clone()).collect();
        for topic in topics {
            match self.view.log.check_topic(&topic) {
                Err(error) if error.kind != ErrorKind::Unavailable => {
                    let owned = self.view.owned();
                    let is_hit = |t: &&Arc<Task>| t.topic == topic && t.status() != Status::Failed;
                    for task in owned.tasks.iter().filter(is_hit) {
                        task.fail(&error.to_string());
                    }
                }
                Err(error) => tracing::warn!("{topic}: {error}"),
                Ok(()) => {}
            }
        }
    }

    /// Flushes the store, so that a restart redoes little, then cuts what no redo needs.
    fn keep(&self, task: Arc<Task>) -> Result<()> {
        // Read first: the flush holds at least the commit that set it.
        let barrier = task.barrier.load(Ordering::Acquire);
        task.store.flush()?;
        let cut = match task.input {
            TaskInput::Repartition => barrier,
            TaskInput::Topic { .. } => (self.expired)(&task.topic, task.partition)?.min(barrier),
        };
        let (topic, partition) = (task.topic.clone(), task.partition);
        // Brokers that do not answer must not keep the store from its next task.
        drop(task);
        if cut == 0 {
            return Ok(());
        }
        self.view.log.purge(&topic, partition, cut)
    }
}

/// File in the data folder that says where a running engine listens.
pub fn endpoints_file(data_dir: &Path) -> PathBuf {
    data_dir.join("endpoints.json")
}
