//! The composition root: settings and definitions become a running engine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::clock::{Clock, SystemClock};
use crate::config::DefinitionFiles;
use crate::config::settings::{Fsync, Settings};
use crate::config::show_mistake;
use crate::error::{Error, Result};
use crate::log::{EmbeddedLog, FsyncPolicy, LocalLog, LocalSession, Log, LogOptions, hold_folder};
use crate::serving::{Limits, View};
use crate::state::{RocksStore, SharedMemory, SharedStore};
use crate::task::{Runner, RunnerOptions, Status, Task, TaskInput};
use crate::telemetry::Metrics;
use crate::topology::{Group, Source, Topology};
use crate::worker::Worker;

/// A running engine.
pub struct Engine {
    /// What serving sees of it.
    pub view: Arc<View>,
    workers: Vec<Worker>,
    housekeeper: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    _hold: File,
}

/// Opens a data folder that no process holds, to look inside. What was committed but not yet in
/// the stores is redone in memory; nothing is written.
///
/// # Errors
/// The folder is held by a process, is missing, or cannot be continued.
pub fn open_read_only(settings: &Settings, topology: Topology) -> Result<View> {
    if !settings.data_dir.join("log").is_dir() {
        let message = format!("{} is no data folder", settings.data_dir.display());
        return Err(Error::not_found(message).with_hint("`thalweg run` makes one"));
    }
    drop(hold_folder(&settings.data_dir)?);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let embedded =
        Arc::new(EmbeddedLog::open_read_only(&settings.data_dir.join("log"), Arc::clone(&clock))?);
    let log: Arc<dyn Log> = Arc::clone(&embedded) as Arc<dyn Log>;
    let topology = Arc::new(topology);
    let open = |path: &Path| -> Result<SharedStore> { Ok(Arc::new(RocksStore::open_read_only(path)?)) };
    let tasks = open_tasks(&topology, settings, &open)?;
    let metrics = Arc::new(Metrics::default());
    let options = RunnerOptions {
        app: settings.app.clone(),
        checkpoint_interval: settings.checkpoint_interval,
        cache_bytes: usize::MAX,
        has_changelog: false,
        incarnation: 0,
        metrics: Arc::clone(&metrics),
    };
    let mut session = LocalSession::new(Arc::clone(&embedded) as Arc<dyn LocalLog>);
    for task in &tasks {
        let from = embedded.resume_point(&task.name, &task.topic, task.partition)?;
        let mut runner = Runner::take_over(Arc::clone(task), Arc::clone(&log), &from, options.clone())?;
        while runner.step(&mut session) > 0 {}
        if let Some(why) = task.failure() {
            return Err(Error::corrupted(format!("{}: {why}", task.name)));
        }
    }
    let limits = limits_of(settings);
    Ok(View::new(&settings.app, topology, tasks, log, clock, limits, metrics))
}

fn limits_of(settings: &Settings) -> Limits {
    Limits {
        append_body: settings.append_body,
        request_entities: settings.request_entities,
        request_features: settings.request_features,
        in_flight: settings.in_flight,
    }
}

/// Shares of the memory limit, in percent. What is left over is for requests, threads and code.
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
        let percent = |n: u64| (bytes / 100 * n) as usize;
        Self {
            units: percent(45),
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

impl Engine {
    /// Opens or creates the data folder and starts working.
    ///
    /// # Errors
    /// The folder is held by another process, or what it holds cannot be continued.
    pub fn start(settings: &Settings, topology: Topology) -> Result<Self> {
        Self::start_with(settings, topology, Arc::new(SystemClock))
    }

    /// The same with another clock.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_with(
        settings: &Settings,
        topology: Topology,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let hold = hold_folder(&settings.data_dir)?;
        let memory = Memory::of(settings.memory);
        let options = LogOptions {
            fsync: match settings.fsync {
                Fsync::Commit => FsyncPolicy::Commit,
                Fsync::Interval(every) => FsyncPolicy::Interval(every),
                Fsync::Never => FsyncPolicy::Never,
            },
            recent_bytes: memory.log_recent,
            buffer_bytes: memory.log_buffers,
        };
        let embedded =
            Arc::new(EmbeddedLog::open(&settings.data_dir.join("log"), options, Arc::clone(&clock))?);
        let log: Arc<dyn Log> = Arc::clone(&embedded) as Arc<dyn Log>;
        let topology = Arc::new(topology);
        create_topics(&*log, &topology, settings)?;
        let shared = SharedMemory::new(memory.blocks, memory.write_buffers);
        let open = |path: &Path| -> Result<SharedStore> {
            std::fs::create_dir_all(path)?;
            Ok(Arc::new(RocksStore::open(path, &shared)?))
        };
        let tasks = open_tasks(&topology, settings, &open)?;
        let metrics = Arc::new(Metrics::default());
        let workers = start_workers(&tasks, &embedded, settings, &memory, &metrics)?;
        let limits = limits_of(settings);
        let view = Arc::new(View::new(&settings.app, topology, tasks, Arc::clone(&log), clock, limits, metrics));
        let stop = Arc::new(AtomicBool::new(false));
        let housekeeper = Housekeeper {
            view: Arc::clone(&view),
            log: embedded,
            every: settings.checkpoint_interval / 2,
            retention: (settings.retention_time, settings.retention_bytes),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new().name("housekeeper".to_owned());
        let housekeeper = Some(thread.spawn(move || housekeeper.run())?);
        Ok(Self { view, workers, housekeeper, stop, _hold: hold })
    }

    /// Waits until every partition gives right answers.
    ///
    /// # Errors
    /// One cannot.
    pub fn wait_ready(&self) -> Result<()> {
        for task in &self.view.tasks {
            let far = Instant::now() + Duration::from_secs(24 * 3600);
            task.wait_for(far, |_| task.status() != Status::Restoring);
            if let Some(why) = task.failure() {
                return Err(Error::internal(format!("{}: {why}", task.name)));
            }
        }
        Ok(())
    }

    /// Commits everything, hands it to the stores, and lets the folder go.
    pub fn stop(mut self) {
        for worker in &self.workers {
            worker.stop();
        }
        for worker in self.workers.drain(..) {
            worker.join();
        }
        self.stop.store(true, Ordering::Release);
        if let Some(housekeeper) = self.housekeeper.take() {
            housekeeper.thread().unpark();
            if housekeeper.join().is_err() {
                tracing::error!("the housekeeper has panicked");
            }
        }
    }
}

fn create_topics(log: &dyn Log, topology: &Topology, settings: &Settings) -> Result<()> {
    for topic in topology.topics() {
        log.create_topic(topic, settings.partitions)?;
    }
    log.create_topic(&format!("{}-dead-letters", settings.app), settings.partitions)?;
    for group in topology.groups.iter().filter(|g| !g.is_direct) {
        log.create_topic(&group.repartition_topic(&settings.app), settings.partitions)?;
    }
    Ok(())
}

/// One task per partition of every source topic and of every repartitioned group.
fn open_tasks(
    topology: &Topology,
    settings: &Settings,
    open_store: &dyn Fn(&Path) -> Result<SharedStore>,
) -> Result<Vec<Arc<Task>>> {
    let open = |name: &str| {
        open_store(&settings.data_dir.join("state").join(name.replace('/', "-")))
    };
    let mut tasks = Vec::new();
    for topic in topology.topics() {
        let sources: Vec<Arc<Source>> =
            topology.sources.iter().filter(|s| s.topic == topic).cloned().collect();
        for partition in 0..settings.partitions {
            let groups: Vec<(Arc<Group>, bool)> = topology
                .groups
                .iter()
                .filter(|g| g.source.topic == topic)
                .map(|g| (Arc::clone(g), g.is_direct))
                .collect();
            let store = open(&format!("{topic}/{partition}"))?;
            let input = TaskInput::Topic { sources: sources.clone() };
            tasks.push(Arc::new(Task::new(topic, partition, input, groups, store)));
        }
    }
    for group in topology.groups.iter().filter(|g| !g.is_direct) {
        let topic = group.repartition_topic(&settings.app);
        for partition in 0..settings.partitions {
            let store = open(&format!("{topic}/{partition}"))?;
            let groups = vec![(Arc::clone(group), true)];
            tasks.push(Arc::new(Task::new(&topic, partition, TaskInput::Repartition, groups, store)));
        }
    }
    Ok(tasks)
}

fn start_workers(
    tasks: &[Arc<Task>],
    embedded: &Arc<EmbeddedLog>,
    settings: &Settings,
    memory: &Memory,
    metrics: &Arc<Metrics>,
) -> Result<Vec<Worker>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = if settings.workers == 0 { cores } else { settings.workers };
    let count = wanted.clamp(1, tasks.len().max(1));
    let with_units = tasks.iter().filter(|t| t.groups.iter().any(|g| g.is_local)).count().max(1);
    let options = RunnerOptions {
        app: settings.app.clone(),
        checkpoint_interval: settings.checkpoint_interval,
        cache_bytes: memory.units / with_units,
        has_changelog: false,
        incarnation: 0,
        metrics: Arc::clone(metrics),
    };
    let mut shares: Vec<Vec<Runner>> = (0..count).map(|_| Vec::new()).collect();
    for (index, task) in tasks.iter().enumerate() {
        let log = Arc::clone(embedded) as Arc<dyn Log>;
        let from = embedded.resume_point(&task.name, &task.topic, task.partition)?;
        let runner = Runner::take_over(Arc::clone(task), log, &from, options.clone())?;
        shares[index % count].push(runner);
    }
    shares
        .into_iter()
        .enumerate()
        .map(|(i, runners)| {
            let session = Box::new(LocalSession::new(Arc::clone(embedded) as Arc<dyn LocalLog>));
            Worker::start(i, runners, session, settings.commit_interval)
        })
        .collect()
}

/// Flushes stores and cuts logs, beside the workers.
struct Housekeeper {
    view: Arc<View>,
    log: Arc<EmbeddedLog>,
    every: Duration,
    retention: (Option<i64>, Option<u64>),
    stop: Arc<AtomicBool>,
}

impl Housekeeper {
    fn run(self) {
        while !self.stop.load(Ordering::Acquire) {
            std::thread::park_timeout(self.every);
            for task in &self.view.tasks {
                if let Err(error) = self.keep(task) {
                    tracing::error!(task = %task.name, "housekeeping: {error}");
                }
            }
        }
    }

    /// Flushes the store, so that a restart redoes little, then cuts what no redo needs.
    fn keep(&self, task: &Task) -> Result<()> {
        // Read first: the flush holds at least the commit that set it.
        let barrier = task.barrier.load(Ordering::Acquire);
        task.store.flush()?;
        task.flushed_barrier.store(barrier, Ordering::Release);
        let cut = match task.input {
            TaskInput::Repartition => barrier,
            TaskInput::Topic { .. } => {
                let (time, bytes) = self.retention;
                if time.is_none() && bytes.is_none() {
                    return Ok(());
                }
                let before = time.map(|t| self.view.clock.now() - t);
                self.log.expired(&task.topic, task.partition, before, bytes)?.min(barrier)
            }
        };
        self.log.purge(&task.topic, task.partition, cut)
    }
}

/// File in the data folder that says where a running engine listens.
pub fn endpoints_file(data_dir: &Path) -> PathBuf {
    data_dir.join("endpoints.json")
}
