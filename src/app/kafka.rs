//! An engine on Kafka: workers join a group, and take over the partitions that it gives them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::members::Members;
use super::recovery::Recovery;
use super::standby::Standbys;
use super::takeover::{Mine, begin, take_over};
use super::{Engine, Housekeeper, Opened, Parts, Place, random, task_of};
use crate::config::settings::{KafkaSettings, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::log::{KafkaLog, KafkaOptions, KafkaSession, Log, ResumePoint, TopicKind};
use crate::model::{Millis, Offset};
use crate::serving::cluster::{Cluster, NodeRecord};
use crate::serving::{GrpcPeers, View};
use crate::state::SharedStore;
use crate::task::{Lease, Runner, RunnerOptions, Task, txn_id_of};
use crate::worker::{Host, Worker, WorkerOptions};

/// After so long without a word a member of a group that says only changes has nothing, if others have all.
const UNTOLD: Duration = Duration::from_secs(5);
/// Pause between tries to reach brokers that are away.
const REACH_PAUSE: Duration = Duration::from_secs(1);
/// Pause while another task of this process still holds the store.
const HELD_PAUSE: Duration = Duration::from_millis(50);

pub(super) fn start(parts: Parts, kafka: &KafkaSettings, hold: File) -> Result<Engine> {
    let app = parts.settings.app.clone();
    let options = KafkaOptions {
        brokers: kafka.brokers.clone(),
        properties: kafka.properties.clone(),
        app: app.clone(),
        node: node_name(&parts.settings.data_dir)?,
        partitions: kafka.partitions,
    };
    let log = Arc::new(reach(|| KafkaLog::connect(options.clone()))?);
    let inputs = parts.topology.input_topics(&app);
    let owners = format!("{app}-owners");
    let all = reach(|| ensure_topics(&parts, &log, &inputs, &owners))?;
    let shared = Arc::clone(&log) as Arc<dyn Log>;
    let view = parts.view(&shared);
    let cluster = Arc::new(Cluster::new(
        log.options().node.clone(),
        Box::new(GrpcPeers::new(tokio::runtime::Handle::current())),
        log.options().lease(),
    ));
    view.join(Arc::clone(&cluster));
    let interval = parts.settings.checkpoint_interval;
    let count = parts.workers(all.len());
    // A standby takes as much as an owner.
    let copies = if parts.settings.standby_replicas > 0 { 2 } else { 1 };
    let options = parts.runner_options(all.len() * copies, true);
    let parts = Arc::new(parts);
    let stop = Arc::new(AtomicBool::new(false));
    let node = Node { parts, log, view, cluster, options, stop };
    let (mut workers, mut opened) = (Vec::new(), Vec::new());
    for index in 0..count {
        let (worker, is_open) = reach(|| node.start_worker(index, &inputs))?;
        workers.push(worker);
        opened.push(is_open);
    }
    let Node { parts, log, view, cluster, options, stop } = node;
    let housekeeper = Housekeeper {
        view: Arc::clone(&view),
        every: interval / 2,
        // What is not flushed is in the changelog.
        flush_turns: 2,
        // Brokers keep to their own retention.
        expired: Box::new(|_, _| Ok(0)),
        outputs: Vec::new(),
        stop: Arc::clone(&stop),
    };
    let members = Members {
        standbys: Standbys::new(Arc::clone(&parts), Arc::clone(&log), Arc::clone(&view), options, all),
        me: me(&parts.settings, &log.options().node),
        clock: Arc::clone(&parts.clock),
        echo: Millis::MIN,
        topic: owners,
        log,
        view: Arc::clone(&view),
        cluster,
        stop: Arc::clone(&stop),
    };
    let helpers = vec![housekeeper.start()?, members.start()?];
    Ok(Engine { view, workers, opened, helpers, stop, _hold: hold })
}

/// Tries until brokers that are away have come back.
fn reach<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    loop {
        match attempt() {
            Err(error) if error.kind == ErrorKind::Unavailable => {
                tracing::warn!("{error}; trying again");
                std::thread::sleep(REACH_PAUSE);
            }
            other => return other,
        }
    }
}

/// Makes sure that all topics exist. Returns all inputs of tasks.
fn ensure_topics(
    parts: &Parts,
    log: &KafkaLog,
    inputs: &[String],
    owners: &str,
) -> Result<Vec<(String, u32)>> {
    let mut all = Vec::new();
    for topic in inputs {
        let is_source = parts.topology.topics().contains(&topic.as_str());
        if is_source && log.partitions(topic).is_none() {
            tracing::warn!("topic `{topic}` of a source is not there: it is made");
        }
        let kind = if is_source { TopicKind::Events } else { TopicKind::Repartition };
        let partitions = log.ensure_topic(topic, None, kind)?;
        log.ensure_changelog(topic, partitions)?;
        all.extend((0..partitions).map(|p| (topic.clone(), p)));
    }
    log.ensure_topic(&format!("{}-dead-letters", parts.settings.app), None, TopicKind::Events)?;
    for topic in parts.topology.groups.iter().filter_map(|g| g.feature_topic(&parts.settings.app)) {
        log.ensure_topic(&topic, None, TopicKind::Events)?;
    }
    log.ensure_topic(owners, Some(1), TopicKind::Owners)?;
    Ok(all)
}

/// What workers of this node share.
struct Node {
    parts: Arc<Parts>,
    log: Arc<KafkaLog>,
    view: Arc<View>,
    cluster: Arc<Cluster>,
    options: RunnerOptions,
    stop: Arc<AtomicBool>,
}

impl Node {
    fn start_worker(&self, index: usize, inputs: &[String]) -> Result<(Worker, Opened)> {
        let lease = Arc::new(Lease::new(self.log.options().lease()));
        let host = KafkaHost {
            lease: Arc::clone(&lease),
            parts: Arc::clone(&self.parts),
            log: Arc::clone(&self.log),
            view: Arc::clone(&self.view),
            cluster: Arc::clone(&self.cluster),
            options: self.options.clone(),
            mine: Mine::default(),
        };
        let is_open = self.is_open(host.mine.clone());
        let topics: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let session = KafkaSession::join(self.log.options(), index, &topics, Arc::clone(&self.stop))?;
        let worker = Worker::start(WorkerOptions {
            index,
            runners: Vec::new(),
            session: Box::new(session),
            host: Box::new(host),
            lease: Some(lease),
            commit_interval: self.parts.settings.commit_interval,
            metrics: Arc::clone(&self.parts.metrics),
            pulse: self.view.new_pulse(),
            stop: Arc::new(AtomicBool::new(false)),
        })?;
        Ok((worker, is_open))
    }

    /// Whether a worker has opened all that is its own.
    fn is_open(&self, mine: Mine) -> Opened {
        let (view, since) = (Arc::clone(&self.view), Instant::now());
        // KIP-848 tells a member nothing that gets nothing.
        let is_told = !self.log.options().has_consumer_protocol();
        Box::new(move || {
            if !is_told && !mine.is_known() {
                return since.elapsed() > UNTOLD && view.is_all_owned();
            }
            let owned = view.owned();
            mine.all(|p| owned.tasks.iter().any(|t| t.incarnation == p.incarnation))
        })
    }
}

/// Where other nodes reach this one.
fn me(settings: &Settings, node: &str) -> NodeRecord {
    let reached = |address: &str| match &settings.advertise {
        Some(host) => format!("{host}:{}", address.rsplit(':').next().unwrap_or("")),
        None => address.to_owned(),
    };
    NodeRecord {
        node: node.to_owned(),
        grpc: reached(&settings.listen_grpc),
        rest: reached(&settings.listen_rest),
        tasks: Vec::new(),
    }
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

/// Opens tasks for one worker.
struct KafkaHost {
    parts: Arc<Parts>,
    log: Arc<KafkaLog>,
    view: Arc<View>,
    cluster: Arc<Cluster>,
    options: RunnerOptions,
    lease: Arc<Lease>,
    mine: Mine,
}

impl Host for KafkaHost {
    fn take_over(&self, inputs: &[(String, u32)], done: &Sender<Runner>) {
        for (topic, partition) in inputs {
            let wanted = Place { topic: topic.clone(), partition: *partition, incarnation: random() };
            self.mine.add(wanted.clone());
            // A standby of this node lets the store go.
            self.parts.taken.lock().insert((topic.clone(), *partition), wanted.incarnation);
            let (mine, name) = (self.mine.clone(), wanted.incarnation);
            let is_wanted = move || mine.has(name);
            let takeover = Takeover {
                recovery: Recovery {
                    parts: Arc::clone(&self.parts),
                    log: Arc::clone(&self.log),
                    place: wanted.clone(),
                    is_wanted: Box::new(is_wanted),
                    is_standby: false,
                },
                view: Arc::clone(&self.view),
                options: self.options.clone(),
                lease: Arc::clone(&self.lease),
                mine: self.mine.clone(),
            };
            let done = done.clone();
            begin(&wanted, move || takeover.run(&done));
        }
    }

    fn assigned(&self) {
        self.mine.settle();
    }

    fn has_others(&self) -> bool {
        // One that was never ready has not heard of all of them, and nothing to come back to.
        self.cluster.alive().len() > 1 || self.view.check_ready().is_err()
    }

    fn is_wanted(&self, incarnation: u64) -> bool {
        self.mine.has(incarnation)
    }

    fn keep_only(&self, inputs: &[(String, u32)]) {
        let gone = self.mine.keep_only(inputs);
        // Another worker of this node may have taken one over in the meantime.
        let is_gone = |incarnation: u64| gone.iter().any(|w| w.incarnation == incarnation);
        self.parts.taken.lock().retain(|_, by| !is_gone(*by));
        self.view.change_tasks(|tasks| tasks.retain(|t| !is_gone(t.incarnation)));
    }
}

/// One takeover (PROTOCOL 23 to 29), on its own thread.
struct Takeover {
    recovery: Recovery,
    view: Arc<View>,
    options: RunnerOptions,
    lease: Arc<Lease>,
    mine: Mine,
}

impl Takeover {
    fn is_wanted(&self) -> bool {
        (self.recovery.is_wanted)()
    }

    fn run(self, done: &Sender<Runner>) {
        let Some(store) = self.open() else { return };
        let app = &self.recovery.parts.settings.app;
        let lease = Some(Arc::clone(&self.lease));
        let mut task = task_of(&self.recovery.parts.topology, app, &self.recovery.place, store);
        task.lease = lease;
        let task = Arc::new(task);
        if self.mine.show(&self.view, &task) {
            take_over(&task, &*self.recovery.is_wanted, done, |task| self.try_once(task));
        }
    }

    /// The store, once nobody else of this process holds it; `None`: it is no longer wanted.
    fn open(&self) -> Option<SharedStore> {
        let (parts, place) = (&self.recovery.parts, &self.recovery.place);
        let name = format!("{}/{}", place.topic, place.partition);
        let mut is_told = false;
        while self.is_wanted() {
            let error = match parts.open_store(&place.topic, place.partition) {
                Ok(store) => return Some(store),
                Err(error) => error,
            };
            let is_wiped = error.kind == ErrorKind::Corrupted
                && std::fs::remove_dir_all(parts.store_path(&place.topic, place.partition)).is_ok();
            if is_wiped {
                tracing::warn!("{name}: {error}: the store is rebuilt from the changelog");
            } else if !is_told && error.kind == ErrorKind::Unavailable {
                tracing::info!("{name}: {error}; waiting");
                is_told = true;
            } else if !is_told {
                tracing::error!("{name}: {error}; trying again until it can be opened");
                is_told = true;
            }
            std::thread::sleep(HELD_PAUSE);
        }
        None
    }

    fn try_once(&self, task: &Arc<Task>) -> Result<Runner> {
        // Offsets first, then the end of the changelog: what they name is below it.
        let recovered = self.recovery.log.recovered(&task.topic, task.partition)?;
        self.recovery.follow_changelog(task)?;
        let mut barrier = self.recovery.barrier(&*task.store)?;
        if let Some(why) = contradiction(task, &recovered.committed, barrier.as_deref())? {
            if self.recovery.log.recovered(&task.topic, task.partition)?.committed != recovered.committed {
                // The group has given it to somebody else, as this worker is about to hear.
                return Err(Error::unavailable(format!("another commits for {}", task.name)));
            }
            tracing::warn!(task = %task.name, "{why}: the store is rebuilt from the changelog");
            self.recovery.rebuild(task)?;
            barrier = self.recovery.barrier(&*task.store)?;
            if let Some(why) = contradiction(task, &recovered.committed, barrier.as_deref())? {
                return Err(Error::corrupted(why)
                    .with_hint("offsets were reset or the changelog was cut; start under another `app`"));
            }
        }
        let topic_id = self.recovery.log.topic_id(&task.topic)?;
        let from = ResumePoint { committed: barrier, start: recovered.start, end: recovered.end, topic_id };
        let log = Arc::clone(&self.recovery.log) as Arc<dyn Log>;
        Runner::take_over(Arc::clone(task), log, &from, self.options.clone())
    }
}

/// What is wrong when offsets and the newest barrier record are not of the same commit (PROTOCOL 26).
fn contradiction(
    task: &Task,
    committed: &Option<(Offset, String)>,
    barrier: Option<&[u8]>,
) -> Result<Option<String>> {
    let newest = barrier.map(txn_id_of).transpose()?;
    Ok(match committed {
        Some((next, txn)) if newest.as_ref() != Some(txn) => Some(format!(
            "offset {next} of {} was committed by `{txn}`, and the newest commit in its changelog is `{}`",
            task.name,
            newest.as_deref().unwrap_or("none")
        )),
        _ => None,
    })
}
