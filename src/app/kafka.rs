//! An engine on Kafka: workers join a group, and take over the partitions that it gives them.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::{Engine, Housekeeper, Opened, Parts, Place, input_topics, task_of};
use crate::config::settings::KafkaSettings;
use crate::error::{Error, ErrorKind, Result};
use crate::fault::crash_point;
use crate::log::{BARRIER_KEY, Following, KafkaLog, KafkaOptions, KafkaSession, Log, ResumePoint, TopicKind};
use crate::model::Change;
use crate::serving::View;
use crate::state::{SharedStore, StateStore};
use crate::task::{Lease, Runner, RunnerOptions, StoreMeta, Task, txn_id_of};
use crate::worker::{Host, Worker, WorkerOptions};

/// Pause before a takeover that failed for a passing reason is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Pause while another task of this process still holds the store.
const HELD_PAUSE: Duration = Duration::from_millis(50);
/// Half of `delete.retention.ms` of changelogs: a store that stood still for longer may lack
/// deletions (PROTOCOL 24).
const STORE_AGE_MAX: i64 = 12 * 3_600_000;

/// Rows that are removed at once.
const WIPE_CHUNK: usize = 20_000;

pub(super) fn start(parts: Parts, kafka: &KafkaSettings, hold: File) -> Result<Engine> {
    let app = parts.settings.app.clone();
    let log = Arc::new(KafkaLog::connect(KafkaOptions {
        brokers: kafka.brokers.clone(),
        properties: kafka.properties.clone(),
        app: app.clone(),
        node: node_name(&parts.settings.data_dir)?,
        partitions: kafka.partitions,
    })?);
    let inputs = input_topics(&parts.topology, &app);
    let mut tasks = 0;
    for topic in &inputs {
        let is_source = parts.topology.topics().contains(&topic.as_str());
        let kind = if is_source { TopicKind::Events } else { TopicKind::Repartition };
        let partitions = log.ensure_topic(topic, None, kind)?;
        log.ensure_changelog(topic, partitions)?;
        tasks += partitions as usize;
    }
    log.ensure_topic(&format!("{app}-dead-letters"), None, TopicKind::Events)?;
    let shared = Arc::clone(&log) as Arc<dyn Log>;
    let view = parts.view(&shared);
    let (interval, commit_interval) = (parts.settings.checkpoint_interval, parts.settings.commit_interval);
    let count = parts.workers(tasks);
    let options = parts.runner_options(tasks, true);
    let parts = Arc::new(parts);
    let stop = Arc::new(AtomicBool::new(false));
    let topics: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let (mut workers, mut opened) = (Vec::new(), Vec::<Opened>::new());
    for index in 0..count {
        let lease = Arc::new(Lease::new(log.options().lease()));
        let host = KafkaHost {
            lease: Arc::clone(&lease),
            parts: Arc::clone(&parts),
            log: Arc::clone(&log),
            view: Arc::clone(&view),
            options: options.clone(),
            mine: Arc::default(),
        };
        let (mine, seen) = (Arc::clone(&host.mine), Arc::clone(&view));
        opened.push(Box::new(move || {
            let owned = seen.owned();
            let is_shown = |p: &Place| owned.tasks.iter().any(|t| t.incarnation == p.incarnation);
            mine.lock().as_ref().is_some_and(|mine| mine.iter().all(is_shown))
        }));
        let session = KafkaSession::join(log.options(), index, &topics, Arc::clone(&stop))?;
        workers.push(Worker::start(WorkerOptions {
            index,
            runners: Vec::new(),
            session: Box::new(session),
            host: Some(Box::new(host)),
            lease: Some(lease),
            commit_interval,
            metrics: Arc::clone(&parts.metrics),
            stop: Arc::new(AtomicBool::new(false)),
        })?);
    }
    let housekeeper = Housekeeper {
        view: Arc::clone(&view),
        every: interval / 2,
        expired: Box::new(|_| Ok(0)),
        stop: Arc::clone(&stop),
    };
    let housekeeper = Some(housekeeper.start()?);
    Ok(Engine { view, workers, opened, housekeeper, stop, _hold: hold })
}

/// A name for this node that no other has and that a restart keeps: the pod's, or one that is kept
/// in the data folder.
fn node_name(data_dir: &Path) -> Result<String> {
    if let Ok(pod) = std::env::var("POD_NAME") {
        return Ok(pod);
    }
    let path = data_dir.join("node");
    if let Ok(name) = std::fs::read_to_string(&path) {
        return Ok(name);
    }
    let name = format!("{:016x}", random());
    std::fs::write(&path, &name)?;
    Ok(name)
}

fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Opens tasks for one worker.
struct KafkaHost {
    parts: Arc<Parts>,
    log: Arc<KafkaLog>,
    view: Arc<View>,
    options: RunnerOptions,
    lease: Arc<Lease>,
    mine: Mine,
}

/// Tasks of a worker, once it knows of any. A takeover goes on as long as its task is among them.
type Mine = Arc<Mutex<Option<Vec<Place>>>>;

impl Host for KafkaHost {
    fn take_over(&self, inputs: &[(String, u32)], done: &Sender<Runner>) {
        for (topic, partition) in inputs {
            let wanted = Place { topic: topic.clone(), partition: *partition, incarnation: random() };
            self.mine.lock().get_or_insert_default().push(wanted.clone());
            let takeover = Takeover {
                parts: Arc::clone(&self.parts),
                log: Arc::clone(&self.log),
                view: Arc::clone(&self.view),
                options: self.options.clone(),
                lease: Arc::clone(&self.lease),
                mine: Arc::clone(&self.mine),
                wanted,
            };
            let done = done.clone();
            let thread = std::thread::Builder::new().name(format!("takeover-{partition}"));
            if let Err(error) = thread.spawn(move || takeover.run(&done)) {
                tracing::error!("{topic}/{partition}: no thread to take over: {error}");
            }
        }
        // Nothing to own is also something to know.
        self.mine.lock().get_or_insert_default();
    }

    fn is_wanted(&self, incarnation: u64) -> bool {
        self.mine.lock().iter().flatten().any(|w| w.incarnation == incarnation)
    }

    fn keep_only(&self, inputs: &[(String, u32)]) {
        let is_kept = |w: &Place| inputs.iter().any(|(t, p)| *t == w.topic && *p == w.partition);
        let mut mine = self.mine.lock();
        let Some(all) = mine.take() else { return };
        let (kept, gone): (Vec<Place>, Vec<Place>) = all.into_iter().partition(is_kept);
        *mine = Some(kept);
        drop(mine);
        self.view.change_tasks(|tasks| {
            // Another worker of this node may have taken one over in the meantime.
            tasks.retain(|t| !gone.iter().any(|w| w.incarnation == t.incarnation));
        });
    }
}

/// One takeover (PROTOCOL 23 to 29), on its own thread.
struct Takeover {
    parts: Arc<Parts>,
    log: Arc<KafkaLog>,
    view: Arc<View>,
    options: RunnerOptions,
    lease: Arc<Lease>,
    mine: Mine,
    wanted: Place,
}

impl Takeover {
    fn is_wanted(&self) -> bool {
        self.mine.lock().iter().flatten().any(|p| *p == self.wanted)
    }

    fn run(self, done: &Sender<Runner>) {
        let Some(store) = self.open() else { return };
        let app = &self.parts.settings.app;
        let lease = Some(Arc::clone(&self.lease));
        let mut task = task_of(&self.parts.topology, app, &self.wanted, store);
        task.lease = lease;
        let task = Arc::new(task);
        self.show(&task);
        while self.is_wanted() {
            match self.try_once(&task) {
                Ok(runner) => {
                    // The worker may have ended; then nobody misses the task.
                    let _ = done.send(runner);
                    return;
                }
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    tracing::warn!(task = %task.name, "takeover: {error}; trying again");
                    std::thread::sleep(RETRY_PAUSE);
                }
                Err(error) => {
                    task.fail(&error.to_string());
                    return;
                }
            }
        }
    }

    /// The store, once nobody else of this process holds it; `None`: it is no longer wanted.
    fn open(&self) -> Option<SharedStore> {
        let mut is_told = false;
        while self.is_wanted() {
            match self.parts.open_store(&self.wanted.topic, self.wanted.partition) {
                Ok(store) => return Some(store),
                Err(error) if !is_told => {
                    tracing::info!("{}/{}: {error}; waiting", self.wanted.topic, self.wanted.partition);
                    is_told = true;
                }
                Err(_) => std::thread::sleep(HELD_PAUSE),
            }
        }
        None
    }

    /// Shows the task to readers, in place of another for the same input.
    fn show(&self, task: &Arc<Task>) {
        self.view.change_tasks(|tasks| {
            tasks.retain(|t| t.name != task.name);
            tasks.push(Arc::clone(task));
        });
    }

    fn try_once(&self, task: &Arc<Task>) -> Result<Runner> {
        // Offsets first, then the end of the changelog: what they name is below it.
        let recovered = self.log.recovered(&task.topic, task.partition)?;
        let position = match self.usable_position(&*task.store)? {
            Some(position) => position,
            None => {
                self.wipe(task)?;
                0
            }
        };
        self.follow(task, position)?;
        let barrier = task.store.get(BARRIER_KEY)?;
        let found = barrier.as_deref().map(txn_id_of).transpose()?;
        match (&recovered.committed, &found) {
            (Some((_, txn)), Some(newest)) if txn == newest => {}
            (None, _) => {}
            (Some((next, txn)), newest) => {
                let newest = newest.as_deref().unwrap_or("none");
                let message = format!(
                    "offset {next} of {} was committed by `{txn}`, and the newest commit in its changelog is `{newest}`",
                    task.name
                );
                return Err(Error::corrupted(message)
                    .with_hint("offsets were reset or the changelog was cut; start under another `app`"));
            }
        }
        let from = ResumePoint { committed: barrier, start: recovered.start, end: recovered.end };
        let log = Arc::clone(&self.log) as Arc<dyn Log>;
        Runner::take_over(Arc::clone(task), log, &from, self.options.clone())
    }

    /// From where the store can follow the changelog; `None`: it cannot (PROTOCOL 24, 32).
    fn usable_position(&self, store: &dyn StateStore) -> Result<Option<u64>> {
        let Some(meta) = StoreMeta::read(store)? else {
            return Ok(None);
        };
        let (start, end) = self.log.changelog_ends(&self.wanted.topic, self.wanted.partition)?;
        let age = self.parts.clock.now() - meta.time;
        let is_usable = (start..=end).contains(&meta.position) && age < STORE_AGE_MAX;
        if !is_usable {
            tracing::warn!(
                "{}/{}: the store stands at {} of {start} to {end}, {} min ago: it is rebuilt from the changelog",
                self.wanted.topic,
                self.wanted.partition,
                meta.position,
                age / 60_000
            );
        }
        Ok(is_usable.then_some(meta.position))
    }

    /// Empties the store. What says that it can be followed from somewhere goes first.
    fn wipe(&self, task: &Task) -> Result<()> {
        task.store.write(&[StoreMeta::removal()])?;
        crash_point("wiping");
        loop {
            let mut changes: Vec<Change> = Vec::new();
            task.store.scan(&[], &mut |key, _| {
                changes.push((key.to_vec(), None));
                changes.len() < WIPE_CHUNK
            })?;
            if changes.is_empty() {
                return Ok(());
            }
            task.store.write(&changes)?;
        }
    }

    fn follow(&self, task: &Task, position: u64) -> Result<()> {
        let now = self.parts.clock.now();
        let mut adopt = |rows: &[Change], next: u64| {
            let mut rows = rows.to_vec();
            rows.push(StoreMeta::restoring_at(next, now).row());
            task.store.write(&rows)?;
            crash_point("following");
            Ok(())
        };
        let metrics = &self.parts.metrics;
        let mut last = 0;
        let mut progress = |records: u64, at: u64, goal: u64| {
            metrics.restored(&task.topic, task.partition, records - last);
            last = records;
            tracing::info!(task = %task.name, records, at, goal, "following the changelog");
        };
        let mut following = Following { adopt: &mut adopt, progress: &mut progress };
        let (next, records) = self.log.follow(&task.topic, task.partition, position, &mut following)?;
        crash_point("followed");
        StoreMeta::consistent_at(next, now).write(&*task.store)?;
        crash_point("consistent");
        if records > 0 {
            task.store.flush()?;
        }
        Ok(())
    }
}
