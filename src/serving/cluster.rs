//! The other nodes: what they own, as each of them publishes it in the owners topic, and how to ask
//! them. One hop at most: a node that is asked for another never asks further.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hasher as _;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::lookup::{LookupRequest, LookupResponse};
use crate::error::{Error, Result};
use crate::model::Millis;

/// What a node has of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It answers as the owner.
    Owner,
    /// It is about to.
    Restoring,
    /// It follows the owner.
    Standby,
}

/// A task as its node publishes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Topic of its input.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// See [`Role`].
    pub role: Role,
    /// Name of the takeover: a later one is of a later owner.
    pub incarnation: u64,
    /// Stream time by source, of those that it judges.
    pub stream_times: BTreeMap<String, Option<Millis>>,
}

/// What a node publishes about itself; the record's key is its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub node: String,
    /// Where its gRPC listener is reached, host:port.
    pub grpc: String,
    /// Where its REST listener is reached, host:port.
    pub rest: String,
    /// What it has.
    pub tasks: Vec<TaskRecord>,
}

/// A node that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its name.
    pub node: String,
    /// Its gRPC address.
    pub grpc: String,
    /// Its REST address.
    pub rest: String,
}

/// Who has a partition.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Its owner, if one is known and alive.
    pub owner: Option<Endpoint>,
    /// Those that follow it.
    pub standbys: Vec<Endpoint>,
}

struct Known {
    record: NodeRecord,
    heard_at: Instant,
    /// By topic and partition: the takeover, and when it was first heard of.
    claims: HashMap<(String, u32), (u64, u64)>,
}

/// How other nodes are asked. Never to be called on a thread that serves other requests.
pub trait Peers: Send + Sync {
    /// The answer of the node at `address`.
    ///
    /// # Errors
    /// Its refusal, or it does not answer.
    fn lookup(&self, address: &str, request: &LookupRequest) -> Result<LookupResponse>;

    /// Counts of the node at `address`, as `/v1/stats`.
    ///
    /// # Errors
    /// It does not answer.
    fn stats(&self, address: &str) -> Result<Json>;
}

/// What this node knows of all of them.
pub struct Cluster {
    /// This node's name.
    pub me: String,
    /// How to ask others.
    pub peers: Box<dyn Peers>,
    /// A node that was not heard for so long is gone.
    patience: Duration,
    nodes: RwLock<HashMap<String, Known>>,
    /// Greatest stream time that was ever heard, by source and partition.
    stream_times: RwLock<HashMap<(String, u32), Option<Millis>>>,
}

impl Cluster {
    /// A cluster of which only `me` is known.
    pub fn new(me: String, peers: Box<dyn Peers>, patience: Duration) -> Self {
        Self { me, peers, patience, nodes: RwLock::default(), stream_times: RwLock::default() }
    }

    /// A node has published `record` before `age`, as the `order`th of all records; none: it has
    /// left.
    pub fn hear(&self, node: &str, record: Option<NodeRecord>, order: u64, age: Duration) {
        let mut nodes = self.nodes.write();
        let Some(record) = record else {
            nodes.remove(node);
            return;
        };
        let before = nodes.remove(node).map(|k| k.claims).unwrap_or_default();
        let mut claims = HashMap::new();
        let mut times = self.stream_times.write();
        for task in &record.tasks {
            let place = (task.topic.clone(), task.partition);
            if task.role != Role::Standby {
                let first = before.get(&place).filter(|(name, _)| *name == task.incarnation);
                claims.insert(place, (task.incarnation, first.map_or(order, |(_, order)| *order)));
            }
            for (source, time) in &task.stream_times {
                let known = times.entry((source.clone(), task.partition)).or_default();
                *known = (*known).max(*time);
            }
        }
        drop(times);
        let now = Instant::now();
        // A machine that has not run for so long has not heard of it either.
        let heard_at = now.checked_sub(age).unwrap_or(now);
        nodes.insert(node.to_owned(), Known { record, heard_at, claims });
    }

    /// Names of nodes that are alive, this one included.
    pub fn alive(&self) -> Vec<String> {
        let nodes = self.nodes.read();
        let others = nodes.iter().filter(|(name, k)| **name != self.me && self.is_alive(k));
        let mut alive: Vec<String> = others.map(|(name, _)| name.clone()).collect();
        alive.push(self.me.clone());
        alive.sort();
        alive
    }

    fn is_alive(&self, known: &Known) -> bool {
        known.heard_at.elapsed() < self.patience
    }

    /// Who has `partition` of `topic`: of several that claim it, the one that did so last.
    pub fn route(&self, topic: &str, partition: u32) -> Route {
        let nodes = self.nodes.read();
        let mut route = Route::default();
        let mut latest = None;
        for known in nodes.values().filter(|k| self.is_alive(k)) {
            let record = &known.record;
            let endpoint = || Endpoint {
                node: record.node.clone(),
                grpc: record.grpc.clone(),
                rest: record.rest.clone(),
            };
            for task in record.tasks.iter().filter(|t| t.topic == topic && t.partition == partition) {
                if task.role == Role::Standby {
                    route.standbys.push(endpoint());
                    continue;
                }
                let claimed = known.claims.get(&(topic.to_owned(), partition)).map(|(_, order)| *order);
                if claimed > latest {
                    (latest, route.owner) = (claimed, Some(endpoint()));
                }
            }
        }
        route.standbys.sort_by(|a, b| a.node.cmp(&b.node));
        route
    }

    /// Whether this node is to follow `partition` of `topic`, where `count` of those that do not own
    /// it are: rendezvous hashing, so that a node that comes or goes moves only its own share.
    pub fn is_standby_here(&self, topic: &str, partition: u32, count: usize) -> bool {
        let Some(owner) = self.route(topic, partition).owner else { return false };
        let weight = |node: &str| {
            let mut hasher = twox_hash::XxHash64::with_seed(7);
            hasher.write(format!("{node}/{topic}/{partition}").as_bytes());
            hasher.finish()
        };
        let mut others: Vec<String> = self.alive().into_iter().filter(|n| *n != owner.node).collect();
        others.sort_by_key(|n| std::cmp::Reverse(weight(n)));
        others.iter().take(count).any(|n| *n == self.me)
    }

    /// The greatest stream time of `source` over its `partitions`; none: no event was accepted.
    ///
    /// # Errors
    /// Of some partition nothing was ever heard.
    pub fn stream_time(&self, source: &str, partitions: u32) -> Result<Option<Millis>> {
        let times = self.stream_times.read();
        let mut greatest = None;
        for partition in 0..partitions {
            let Some(time) = times.get(&(source.to_owned(), partition)) else {
                let message =
                    format!("the stream time of partition {partition} of `{source}` is not known yet");
                return Err(Error::unavailable(message).with_hint("try again, or give `as_of`"));
            };
            greatest = greatest.max(*time);
        }
        Ok(greatest)
    }

    /// Whether a node that is alive has `partition` of `topic`, and answers.
    pub fn is_owned(&self, topic: &str, partition: u32) -> bool {
        self.has_task(|t| t.role == Role::Owner && t.topic == topic && t.partition == partition)
    }

    /// Whether any node that is alive has anything.
    pub fn has_owners(&self) -> bool {
        self.has_task(|t| t.role != Role::Standby)
    }

    fn has_task(&self, is_it: impl Fn(&TaskRecord) -> bool) -> bool {
        let nodes = self.nodes.read();
        nodes.values().filter(|k| self.is_alive(k)).flat_map(|k| &k.record.tasks).any(is_it)
    }

    /// All nodes that are alive.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let nodes = self.nodes.read();
        let alive = nodes.values().filter(|k| self.is_alive(k)).map(|k| &k.record);
        alive.map(|r| Endpoint { node: r.node.clone(), grpc: r.grpc.clone(), rest: r.rest.clone() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(node: &str, role: Role, incarnation: u64) -> NodeRecord {
        let task = TaskRecord {
            topic: "t".to_owned(),
            partition: 0,
            role,
            incarnation,
            stream_times: BTreeMap::from([("s".to_owned(), Some(incarnation as i64))]),
        };
        NodeRecord { node: node.to_owned(), tasks: vec![task], ..NodeRecord::default() }
    }

    /// Others that never answer.
    struct Silent;

    impl Peers for Silent {
        fn lookup(&self, address: &str, _: &LookupRequest) -> Result<LookupResponse> {
            Err(Error::unavailable(address.to_owned()))
        }

        fn stats(&self, address: &str) -> Result<Json> {
            Err(Error::unavailable(address.to_owned()))
        }
    }

    fn cluster() -> Cluster {
        Cluster::new("a".to_owned(), Box::new(Silent), Duration::from_secs(60))
    }

    fn owner(cluster: &Cluster) -> Option<String> {
        cluster.route("t", 0).owner.map(|o| o.node)
    }

    #[test]
    fn the_latest_claim_wins_however_often_an_old_one_is_repeated() {
        let cluster = cluster();
        cluster.hear("a", Some(record("a", Role::Owner, 1)), 1, Duration::ZERO);
        cluster.hear("b", Some(record("b", Role::Restoring, 2)), 2, Duration::ZERO);
        cluster.hear("a", Some(record("a", Role::Owner, 1)), 3, Duration::ZERO);
        assert_eq!(owner(&cluster).as_deref(), Some("b"));
        cluster.hear("a", Some(record("a", Role::Restoring, 3)), 4, Duration::ZERO);
        assert_eq!(owner(&cluster).as_deref(), Some("a"));
        cluster.hear("a", None, 5, Duration::ZERO);
        assert_eq!(owner(&cluster).as_deref(), Some("b"));
    }

    #[test]
    fn stream_times_are_known_of_every_partition_or_refused() {
        let cluster = cluster();
        cluster.hear("a", Some(record("a", Role::Owner, 7)), 1, Duration::ZERO);
        assert_eq!(cluster.stream_time("s", 1).expect("known"), Some(7));
        assert!(cluster.stream_time("s", 2).is_err());
        // What was once heard stays a lower bound when its node is gone.
        cluster.hear("a", None, 2, Duration::ZERO);
        assert_eq!(cluster.stream_time("s", 1).expect("known"), Some(7));
    }

    #[test]
    fn as_many_standbys_as_asked_for_and_never_the_owner() {
        let nodes = ["a", "b", "c", "d"];
        let here = nodes.map(|me| {
            let cluster = Cluster { me: me.to_owned(), ..cluster() };
            for (i, node) in nodes.iter().enumerate() {
                let mut record = record(node, Role::Owner, 1);
                if *node != "c" {
                    record.tasks.clear();
                }
                cluster.hear(node, Some(record), i as u64, Duration::ZERO);
            }
            cluster.is_standby_here("t", 0, 2)
        });
        assert_eq!(here.iter().filter(|h| **h).count(), 2);
        assert!(!here[2]);
    }
}
