//! An engine on the embedded log: all partitions are this process's.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::takeover::{Mine, begin, take_over};
use super::{Engine, Expired, Housekeeper, Opened, Parts, Place, limits_of, random, task_of};
use crate::clock::{Clock, SystemClock};
use crate::config::settings::{Fsync, Settings};
use crate::error::{Error, Result};
use crate::log::{EmbeddedLog, FsyncPolicy, LocalLog, LocalSession, Log, LogOptions, check_not_held};
use crate::model::Positions;
use crate::serving::View;
use crate::state::{RocksStore, SharedStore};
use crate::task::{Runner, RunnerOptions, Task};
use crate::telemetry::Metrics;
use crate::topology::Topology;
use crate::worker::{Host, Worker, WorkerOptions};

/// Pause before tasks that were ended are opened anew.
const BEFORE_RETAKE: Duration = Duration::from_millis(500);

/// Opens a data folder that no process holds, to look inside. What was committed but not yet in
/// the stores is redone in memory; nothing is written.
///
/// # Errors
/// The folder is held by a process, is missing, or cannot be continued.
pub fn open_read_only(settings: &Settings, topology: Topology) -> Result<View> {
    if !settings.data_dir.join("log").is_dir() {
        let message = format!("{} holds no embedded log", settings.data_dir.display());
        return Err(Error::not_found(message).with_hint("`thalweg run` makes one, unless its log is Kafka"));
    }
    check_not_held(&settings.data_dir)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let embedded = Arc::new(EmbeddedLog::open_read_only(&settings.data_dir.join("log"), Arc::clone(&clock))?);
    let log: Arc<dyn Log> = Arc::clone(&embedded) as Arc<dyn Log>;
    let topology = Arc::new(topology);
    let open = |topic: &str, partition: u32| -> Result<SharedStore> {
        let path = settings.data_dir.join("state").join(format!("{topic}-{partition}"));
        Ok(Arc::new(RocksStore::open_read_only(Path::new(&path))?))
    };
    let tasks = open_tasks(&topology, settings, &open)?;
    let metrics = Arc::new(Metrics::default());
    let options = RunnerOptions {
        app: settings.app.clone(),
        checkpoint_interval: settings.checkpoint_interval,
        commit_interval: settings.commit_interval,
        cache_bytes: usize::MAX,
        has_changelog: false,
        clock: Arc::clone(&clock),
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
    let view = View::new(&settings.app, topology, log, clock, limits, metrics);
    view.set_tasks(tasks);
    view.set_started();
    Ok(view)
}

pub(super) fn start(parts: Parts, hold: File) -> Result<Engine> {
    let parts = Arc::new(parts);
    let settings = &parts.settings;
    let options = LogOptions {
        fsync: match settings.fsync {
            Fsync::Commit => FsyncPolicy::Commit,
            Fsync::Interval(every) => FsyncPolicy::Interval(every),
            Fsync::Never => FsyncPolicy::Never,
        },
        recent_bytes: parts.memory.log_recent,
        buffer_bytes: parts.memory.log_buffers,
    };
    let path = settings.data_dir.join("log");
    let embedded = Arc::new(EmbeddedLog::open(&path, options, Arc::clone(&parts.clock))?);
    let log = Arc::clone(&embedded) as Arc<dyn Log>;
    for topic in parts.topology.input_topics(&settings.app) {
        log.create_topic(&topic, settings.partitions)?;
    }
    let features = parts.topology.groups.iter().filter_map(|g| g.feature_topic(&settings.app));
    let outputs: Vec<String> = features.chain([format!("{}-dead-letters", settings.app)]).collect();
    for topic in &outputs {
        log.create_topic(topic, settings.partitions)?;
    }
    let tasks = open_tasks(&parts.topology, settings, &|topic, p| parts.open_store(topic, p))?;
    let view = parts.view(&log);
    let opened: Opened = Box::new(contains_all(&view, &parts.topology));
    view.set_tasks(tasks.clone());
    let workers = start_workers(&parts, &view, &tasks, &embedded)?;
    let stop = Arc::new(AtomicBool::new(false));
    let housekeeper = Housekeeper {
        view: Arc::clone(&view),
        every: settings.checkpoint_interval / 2,
        flush_turns: 1,
        expired: expired(embedded, settings, Arc::clone(&parts.clock)),
        outputs: outputs.into_iter().map(|topic| (topic, settings.partitions)).collect(),
        stop: Arc::clone(&stop),
    };
    let helpers = vec![housekeeper.start()?];
    Ok(Engine { view, workers, opened: vec![opened], helpers, stop, _hold: hold })
}

/// Says whether every task contains what the sources held just now: what was acknowledged before a
/// crash is in the first answers after it.
fn contains_all(view: &Arc<View>, topology: &Topology) -> impl Fn() -> bool + use<> {
    let ends = |topic: &str| {
        let partitions = view.log.partitions(topic).unwrap_or(0);
        (0..partitions).map(|p| (p, view.log.end_offset(topic, p))).collect()
    };
    let held: Positions =
        topology.topics().into_iter().map(|topic| (topic.to_owned(), ends(topic))).collect();
    let view = Arc::clone(view);
    move || {
        let tasks = &view.owned().tasks;
        // One that has failed never will, nor what it feeds; and it is told about elsewhere.
        tasks.iter().any(|task| task.failure().is_some())
            || tasks.iter().all(|task| task.contains(&task.state.read(), &held))
    }
}

fn expired(log: Arc<EmbeddedLog>, settings: &Settings, clock: Arc<dyn Clock>) -> Expired {
    let (time, bytes) = (settings.retention_time, settings.retention_bytes);
    Box::new(move |topic, partition| {
        if time.is_none() && bytes.is_none() {
            return Ok(0);
        }
        let before = time.map(|t| clock.now() - t);
        log.expired(topic, partition, before, bytes)
    })
}

/// One task per partition of every source topic and of every repartitioned group.
fn open_tasks(
    topology: &Topology,
    settings: &Settings,
    open_store: &dyn Fn(&str, u32) -> Result<SharedStore>,
) -> Result<Vec<Arc<Task>>> {
    let mut tasks = Vec::new();
    for topic in topology.input_topics(&settings.app) {
        for partition in 0..settings.partitions {
            let store = open_store(&topic, partition)?;
            let place = Place { topic: topic.clone(), partition, incarnation: 0 };
            tasks.push(Arc::new(task_of(topology, &settings.app, &place, store)));
        }
    }
    Ok(tasks)
}

fn start_workers(
    parts: &Arc<Parts>,
    view: &Arc<View>,
    tasks: &[Arc<Task>],
    log: &Arc<EmbeddedLog>,
) -> Result<Vec<Worker>> {
    let with_units = tasks.iter().filter(|t| t.groups.iter().any(|g| g.is_local)).count();
    let options = parts.runner_options(with_units, false);
    let count = parts.workers(tasks.len());
    let mut shares: Vec<Vec<Runner>> = (0..count).map(|_| Vec::new()).collect();
    for (index, task) in tasks.iter().enumerate() {
        let from = log.resume_point(&task.name, &task.topic, task.partition)?;
        let shared = Arc::clone(log) as Arc<dyn Log>;
        let runner = Runner::take_over(Arc::clone(task), shared, &from, options.clone())?;
        shares[index % count].push(runner);
    }
    shares
        .into_iter()
        .enumerate()
        .map(|(index, runners)| {
            let host = LocalHost {
                parts: Arc::clone(parts),
                log: Arc::clone(log),
                view: Arc::clone(view),
                options: options.clone(),
                mine: Mine::default(),
            };
            for runner in &runners {
                let task = runner.task();
                let (topic, partition) = (task.topic.clone(), task.partition);
                host.mine.add(Place { topic, partition, incarnation: task.incarnation });
            }
            Worker::start(WorkerOptions {
                index,
                runners,
                session: Box::new(LocalSession::new(Arc::clone(log) as Arc<dyn LocalLog>)),
                host: Box::new(host),
                lease: None,
                commit_interval: parts.settings.commit_interval,
                metrics: Arc::clone(&parts.metrics),
                pulse: view.new_pulse(),
                stop: Arc::new(AtomicBool::new(false)),
            })
        })
        .collect()
}

/// Opens tasks of a worker anew: a full disk or too many open files have ended them, and pass.
#[derive(Clone)]
struct LocalHost {
    parts: Arc<Parts>,
    log: Arc<EmbeddedLog>,
    view: Arc<View>,
    options: RunnerOptions,
    mine: Mine,
}

impl Host for LocalHost {
    fn take_over(&self, inputs: &[(String, u32)], done: &Sender<Runner>) {
        for (topic, partition) in inputs {
            let place = Place { topic: topic.clone(), partition: *partition, incarnation: random() };
            self.mine.add(place.clone());
            let (host, done) = (self.clone(), done.clone());
            begin(&place.clone(), move || host.retake(&place, &done));
        }
    }

    /// What is given up lets its store go.
    fn keep_only(&self, inputs: &[(String, u32)]) {
        let gone = self.mine.keep_only(inputs);
        let is_gone = |t: &Task| gone.iter().any(|p| p.topic == t.topic && p.partition == t.partition);
        self.view.change_tasks(|tasks| tasks.retain(|t| !is_gone(t)));
    }

    fn is_wanted(&self, incarnation: u64) -> bool {
        self.mine.has(incarnation)
    }
}

impl LocalHost {
    /// Opens the store anew, which takes no more writes once one has failed, and goes on from there.
    fn retake(&self, place: &Place, done: &Sender<Runner>) {
        let is_wanted = || self.mine.has(place.incarnation);
        let store = loop {
            // What has ended it is hardly over yet.
            std::thread::sleep(BEFORE_RETAKE);
            if !is_wanted() {
                return;
            }
            match self.parts.open_store(&place.topic, place.partition) {
                Ok(store) => break store,
                Err(error) => tracing::warn!("{}/{}: {error}; trying again", place.topic, place.partition),
            }
        };
        let task = Arc::new(task_of(&self.parts.topology, &self.parts.settings.app, place, store));
        if self.mine.show(&self.view, &task) {
            take_over(&task, &is_wanted, done, |task| {
                let from = self.log.resume_point(&task.name, &task.topic, task.partition)?;
                let log = Arc::clone(&self.log) as Arc<dyn Log>;
                Runner::take_over(Arc::clone(task), log, &from, self.options.clone())
            });
        }
    }
}
