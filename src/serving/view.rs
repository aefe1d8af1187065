//! What serving sees of the engine: the plan, the tasks, the log.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use super::cluster::{Cluster, Route};
use super::owned::Owned;
use crate::clock::Clock;
use crate::codec::KeyReader;
use crate::error::{Error, ErrorKind, Result};
use crate::log::{Append, Log};
use crate::model::names::did_you_mean;
use crate::model::{Millis, Positions, partition_of};
use crate::task::{Lease, Status, Task, TaskInput};
use crate::telemetry::Metrics;
use crate::topology::{Group, Topology};

/// Limits of requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub append_body: usize,
    /// Entities of a lookup.
    pub request_entities: usize,
    /// Features of a lookup.
    pub request_features: usize,
    /// Requests at once.
    pub in_flight: usize,
}

/// A worker that makes no turn for so long is not alive. Brokers that are away hold it up for less.
const STILL_MAX: Duration = Duration::from_secs(300);

/// What serving sees of the engine.
pub struct View {
    /// Name of the application: prefix of internal topics.
    pub app: String,
    /// The plan.
    pub topology: Arc<Topology>,
    /// What this node owns.
    owned: RwLock<Arc<Owned>>,
    /// Whether every partition that was owned at first has given right answers.
    is_started: AtomicBool,
    /// The log.
    pub log: Arc<dyn Log>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// Limits of requests.
    pub limits: Limits,
    /// Figures.
    pub metrics: Arc<Metrics>,
    /// Number of partitions by group.
    partitions: Vec<u32>,
    /// Pulses of the workers.
    pulses: RwLock<Vec<Arc<Lease>>>,
    /// The other nodes, on a log that several share.
    cluster: OnceLock<Arc<Cluster>>,
    keys: HashMap<String, Option<KeyReader>>,
}

impl View {
    /// A view on an engine that owns nothing yet. The topics of all groups exist.
    pub fn new(
        app: &str,
        topology: Arc<Topology>,
        log: Arc<dyn Log>,
        clock: Arc<dyn Clock>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let count = |group: &Arc<Group>| {
            let topic =
                if group.is_direct { group.source.topic.clone() } else { group.repartition_topic(app) };
            log.partitions(&topic).unwrap_or(1)
        };
        let partitions = topology.groups.iter().map(count).collect();
        let mut keys: HashMap<String, Option<KeyReader>> = HashMap::new();
        for source in &topology.sources {
            keys.entry(source.topic.clone()).or_insert_with(|| KeyReader::new(source));
        }
        let view = Self {
            app: app.to_owned(),
            topology,
            owned: RwLock::default(),
            is_started: AtomicBool::new(false),
            log,
            clock,
            limits,
            metrics,
            partitions,
            pulses: RwLock::default(),
            cluster: OnceLock::new(),
            keys,
        };
        view.set_tasks(Vec::new());
        view
    }

    /// What this node owns now.
    pub fn owned(&self) -> Arc<Owned> {
        Arc::clone(&self.owned.read())
    }

    /// From now on this node owns `tasks`.
    pub fn set_tasks(&self, tasks: Vec<Arc<Task>>) {
        *self.owned.write() = Arc::new(Owned::new(&self.topology, &self.partitions, tasks));
    }

    /// From now on this node owns what `change` makes of its tasks.
    pub fn change_tasks(&self, change: impl FnOnce(&mut Vec<Arc<Task>>)) {
        let mut owned = self.owned.write();
        let mut tasks = owned.tasks.clone();
        change(&mut tasks);
        *owned = Arc::new(Owned::new(&self.topology, &self.partitions, tasks));
    }

    /// Every partition that is owned gives right answers: requests may come.
    pub fn set_started(&self) {
        self.is_started.store(true, Ordering::Release);
    }

    /// Whether every partition gave right answers once.
    ///
    /// # Errors
    /// It did not yet.
    pub fn check_ready(&self) -> Result<()> {
        if self.is_started.load(Ordering::Acquire) {
            return Ok(());
        }
        let owned = self.owned();
        let restoring = owned.tasks.iter().filter(|t| t.status() == Status::Restoring).count();
        let message = match restoring {
            0 => "partitions are being assigned and taken over".to_owned(),
            some => format!("{some} of {} partitions are being restored", owned.tasks.len()),
        };
        Err(Error::unavailable(message).with_hint("try again in a moment"))
    }

    /// Appends payloads to a topic of a source, each to the partition of its key.
    ///
    /// # Errors
    /// An unknown topic; or nothing was appended.
    pub fn append(&self, topic: &str, payloads: &[&[u8]]) -> Result<Positions> {
        let started = Instant::now();
        let Some(key_reader) = self.keys.get(topic) else {
            let hint = did_you_mean(topic, self.keys.keys().map(String::as_str));
            return Err(Error::not_found(format!("no source reads a topic `{topic}`")).with_hint(hint));
        };
        let partitions = self.log.partitions(topic).unwrap_or(1);
        let mut append = Append::to(topic);
        for payload in payloads {
            let key = key_reader.as_ref().and_then(|reader| reader.read(payload));
            let partition = partition_of(key.as_deref().unwrap_or(payload), partitions);
            append.push(partition, key.as_deref(), Some(payload), &[]);
        }
        let mut positions = Positions::new();
        if !append.is_empty() {
            positions.insert(topic.to_owned(), self.log.append(append)?);
        }
        self.metrics.write_latency(started.elapsed());
        Ok(positions)
    }

    /// The greatest stream time of the group's source over all of its partitions.
    ///
    /// # Errors
    /// Other nodes have partitions of which nothing is known.
    pub(super) fn source_stream_time(&self, group: &Group) -> Result<Option<Millis>> {
        let owned = self.owned();
        let mut here = 0;
        let mut greatest = None;
        for task in owned.own() {
            let TaskInput::Topic { sources } = &task.input else { continue };
            if let Some(at) = sources.iter().position(|s| s.index == group.source.index)
                && task.status() != Status::Restoring
            {
                here += 1;
                greatest = greatest.max(task.stream_time(at));
            }
        }
        let partitions = self.log.partitions(&group.source.topic).unwrap_or(1);
        match self.cluster() {
            Some(cluster) if here < partitions => {
                Ok(greatest.max(cluster.stream_time(&group.source.name, partitions)?))
            }
            _ => Ok(greatest),
        }
    }

    /// A pulse for one more worker.
    pub fn new_pulse(&self) -> Arc<Lease> {
        let pulse = Arc::new(Lease::new(STILL_MAX));
        self.pulses.write().push(Arc::clone(&pulse));
        pulse
    }

    /// Whether every worker goes on.
    ///
    /// # Errors
    /// One has stood still for minutes.
    pub fn check_alive(&self) -> Result<()> {
        let pulses = self.pulses.read();
        match pulses.iter().find(|p| !p.is_valid()) {
            Some(still) => {
                let message = format!("a worker has stood still for {:?}", still.age());
                Err(Error::unavailable(message).with_hint("its log says on what; a restart loses nothing"))
            }
            None => Ok(()),
        }
    }

    /// From now on there are other nodes.
    pub fn join(&self, cluster: Arc<Cluster>) {
        // Only the first counts; there is one.
        let _ = self.cluster.set(cluster);
    }

    /// The other nodes, if there can be any.
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.get()
    }

    /// Number of partitions of group `index`.
    pub(super) fn group_partitions(&self, index: usize) -> u32 {
        self.partitions[index]
    }

    /// Who has a partition of a group.
    pub(super) fn route(&self, group: &Group, partition: u32) -> Route {
        let topic =
            if group.is_direct { group.source.topic.clone() } else { group.repartition_topic(&self.app) };
        self.cluster().map_or_else(Route::default, |c| c.route(&topic, partition))
    }

    /// Who has which partition of `group`, or of all groups.
    ///
    /// # Errors
    /// An unknown group, or there is one node alone.
    #[cfg(feature = "serving")]
    pub(super) fn routing(&self, group: Option<&str>) -> Result<Vec<(String, u32, Route)>> {
        if self.cluster().is_none() {
            let message = "routing is for several nodes on one Kafka, and this one is alone with its log";
            return Err(Error::invalid(message));
        }
        group.map(|name| self.group(name)).transpose()?;
        let groups = self.topology.groups.iter().filter(|g| group.is_none_or(|name| g.name == name));
        let routes = groups.flat_map(|g| {
            (0..self.group_partitions(g.index)).map(move |p| (g.name.clone(), p, self.route(g, p)))
        });
        Ok(routes.collect())
    }

    /// The group `name`.
    ///
    /// # Errors
    /// There is none; the hint names the nearest.
    #[cfg(feature = "serving")]
    pub(super) fn group(&self, name: &str) -> Result<&Arc<Group>> {
        self.topology.group(name).ok_or_else(|| {
            let hint = did_you_mean(name, self.topology.groups.iter().map(|g| g.name.as_str()));
            Error::not_found(format!("no feature group `{name}`")).with_hint(hint)
        })
    }

    /// Refuses positions of topics that no source reads.
    ///
    /// # Errors
    /// Names the topic.
    pub(super) fn check_topics(&self, wanted: &Positions) -> Result<()> {
        match wanted.keys().find(|topic| !self.keys.contains_key(*topic)) {
            Some(topic) => Err(Error::invalid(format!("min_positions names an unknown topic `{topic}`"))),
            None => Ok(()),
        }
    }

    /// Waits until `tasks` contain `wanted`.
    ///
    /// # Errors
    /// They did not within `wait`.
    pub(super) fn await_positions(
        &self,
        tasks: &[&Arc<Task>],
        wanted: &Positions,
        wait: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + wait;
        for task in tasks {
            let is_reached = task.wait_for(deadline, |state| task.contains(state, wanted));
            if !is_reached {
                let message = format!("{} has not applied the demanded positions within the wait", task.name);
                return Err(Error::new(ErrorKind::NotYetApplied, message)
                    .with_hint("read again, or with a longer `wait`"));
            }
        }
        Ok(())
    }
}
