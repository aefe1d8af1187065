//! Counts by source and group, summed over the partitions of this node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Map, Value as Json, json};

use super::owned::Owned;
use super::view::View;
use crate::codec::Reason;
use crate::error::{Error, Result};
use crate::model::{Offset, time};
use crate::task::{GroupCounts, SourceCounts, Status, Task, TaskInput};

impl View {
    /// Counts of source `index`.
    pub fn source_counts(&self, index: usize) -> SourceCounts {
        let mut total = SourceCounts::default();
        for task in self.owned().own() {
            let TaskInput::Topic { sources } = &task.input else { continue };
            let Some(at) = sources.iter().position(|s| s.index == index) else { continue };
            let counts = task.state.read().sources[at].counts;
            total.read += counts.read;
            total.ignored += counts.ignored;
            total.accepted += counts.accepted;
            total.late += counts.late;
            for (sum, n) in total.dead_lettered.iter_mut().zip(counts.dead_lettered) {
                *sum += n;
            }
        }
        total
    }

    /// Counts of group `index`, rows and bytes.
    pub fn group_counts(&self, index: usize) -> (GroupCounts, u64, u64) {
        let mut total = GroupCounts::default();
        let (mut rows, mut bytes) = (0, 0);
        for task in self.owned().own() {
            let Some(slot) = task.group_slot(index) else { continue };
            let state = task.state.read();
            let counts = state.groups[slot];
            total.no_entity += counts.no_entity;
            total.filtered += counts.filtered;
            total.duplicate += counts.duplicate;
            total.applied += counts.applied;
            total.entities += counts.entities;
            if task.groups[slot].is_local {
                // What groups of one task share is theirs by their rows.
                let own = counts.entities + counts.sealed;
                let local = task.groups.iter().zip(&state.groups).filter(|(to, _)| to.is_local);
                let all: u64 = local.map(|(_, counts)| counts.entities + counts.sealed).sum();
                rows += own;
                bytes += (task.store.disk_bytes() as f64 * own as f64 / all.max(1) as f64) as u64;
            }
        }
        (total, rows, bytes)
    }

    /// `GET /v1/stats`.
    pub fn stats(&self) -> Json {
        let mut sources = Map::new();
        for source in &self.topology.sources {
            let counts = self.source_counts(source.index);
            let reasons: Map<String, Json> = Reason::NAMES
                .iter()
                .filter(|(reason, _)| *reason != Reason::Late)
                .map(|(reason, name)| {
                    ((*name).to_owned(), Json::from(counts.dead_lettered[*reason as usize]))
                })
                .collect();
            let of_source = json!({
                "read": counts.read,
                "ignored": counts.ignored,
                "accepted": counts.accepted,
                "late": counts.late,
                "dead_lettered": reasons,
            });
            sources.insert(source.name.clone(), of_source);
        }
        let mut groups = Map::new();
        for group in &self.topology.groups {
            let (counts, rows, bytes) = self.group_counts(group.index);
            let of_group = json!({
                "no_entity": counts.no_entity,
                "filtered": counts.filtered,
                "duplicate": counts.duplicate,
                "applied": counts.applied,
                "entities": counts.entities,
                "rows": rows,
                "bytes": bytes,
            });
            groups.insert(group.name.clone(), of_group);
        }
        json!({ "sources": sources, "groups": groups })
    }

    /// `GET /v1/stats?cluster=true`: the sum over all nodes. May wait for them.
    ///
    /// # Errors
    /// One of them does not answer, or some partition has no owner that could be asked.
    pub fn cluster_stats(&self) -> Result<Json> {
        let mut total = self.stats();
        if let Some(cluster) = self.cluster() {
            if let Some((topic, p)) = self.unowned() {
                let message =
                    format!("partition {p} of `{topic}` has no owner now, so its counts are missing");
                return Err(Error::unavailable(message).with_hint("ask again in a moment"));
            }
            for node in cluster.endpoints().iter().filter(|n| n.node != cluster.me) {
                add(&mut total, &cluster.peers.stats(&node.grpc)?);
            }
        }
        Ok(total)
    }

    /// `GET /v1/health`, and whether all is well.
    pub fn health(&self) -> (bool, Json) {
        let owned = self.owned();
        let is_well = self.is_well(&owned);
        let mut partitions: Vec<Json> = owned
            .tasks
            .iter()
            .zip(self.input_ends(&owned))
            .map(|(task, end)| {
                let status = task.status();
                let (applied, covered_from) = {
                    let state = task.state.read();
                    let of_groups = (0..task.groups.len()).map(|slot| task.covered_from(&state, slot));
                    (state.applied, of_groups.max().flatten())
                };
                let mut partition = json!({
                    "task": task.name,
                    "topic": task.topic,
                    "partition": task.partition,
                    "state": format!("{status:?}").to_lowercase(),
                    "lag": end.saturating_sub(applied),
                    "applied": applied,
                    "committed": task.committed.load(Ordering::Relaxed),
                    "redo_from": task.barrier.load(Ordering::Relaxed),
                    "checkpoint_age_seconds": task.checkpoint_age().as_secs_f64(),
                });
                let goal = task.changelog.1.load(Ordering::Relaxed);
                if status == Status::Restoring && goal > 0 {
                    let at = task.changelog.0.load(Ordering::Relaxed);
                    partition["changelog"] = json!({ "at": at, "goal": goal });
                }
                if let Some(start) = covered_from {
                    partition["covered_from"] = Json::from(time::format_rfc3339(start));
                }
                if let Some(why) = task.failure() {
                    partition["failure"] = Json::from(why);
                }
                partition
            })
            .collect();
        // Without others all of them are this node's, also while one is opened anew.
        for (topic, partition) in self.away(&owned) {
            let task = format!("{topic}/{partition}");
            partitions
                .push(json!({ "task": task, "topic": topic, "partition": partition, "state": "restoring" }));
        }
        let status = if is_well { "ok" } else { "unavailable" };
        (is_well, json!({ "status": status, "partitions": partitions }))
    }
}

impl View {
    /// Whether this node answers, and everything that is its own does: brokers are not asked.
    pub(super) fn is_well(&self, owned: &Owned) -> bool {
        let is_running = |t: &Arc<Task>| matches!(t.status(), Status::Running | Status::Standby);
        self.check_ready().is_ok()
            && owned.tasks.iter().all(is_running)
            && self.away(owned).is_empty()
            && self.cluster().is_none_or(|c| owned.own().next().is_some() || c.has_owners())
    }

    /// Whether this node or others have all partitions, and answer.
    pub fn is_all_owned(&self) -> bool {
        self.unowned().is_none()
    }

    /// A partition that nobody has who answers.
    fn unowned(&self) -> Option<(String, u32)> {
        let (owned, cluster) = (self.owned(), self.cluster());
        let is_here = |topic: &str, p: u32| {
            let mut own = owned.own().filter(|t| t.status() == Status::Running);
            own.any(|t| t.topic == topic && t.partition == p)
        };
        let is_there = |topic: &str, p: u32| cluster.is_some_and(|c| c.is_owned(topic, p));
        self.inputs().find(|(topic, p)| !is_here(topic, *p) && !is_there(topic, *p))
    }

    /// Where the inputs of the tasks end.
    pub(super) fn input_ends(&self, owned: &Owned) -> Vec<Offset> {
        let places: Vec<(&str, u32)> = owned.tasks.iter().map(|t| (t.topic.as_str(), t.partition)).collect();
        self.log.ends(&places)
    }

    /// All inputs of tasks.
    fn inputs(&self) -> impl Iterator<Item = (String, u32)> {
        let topics = self.topology.input_topics(&self.app).into_iter();
        topics.flat_map(|topic| {
            let all = 0..self.log.partitions(&topic).unwrap_or(0);
            all.map(move |p| (topic.clone(), p))
        })
    }

    /// Inputs of tasks that nobody has, where there is nobody else.
    fn away(&self, owned: &Owned) -> Vec<(String, u32)> {
        if self.cluster().is_some() {
            return Vec::new();
        }
        let has = |topic: &str, p: u32| owned.tasks.iter().any(|t| t.topic == topic && t.partition == p);
        self.inputs().filter(|(topic, p)| !has(topic, *p)).collect()
    }
}

/// Adds the numbers of `other` to those of `total`, key by key.
fn add(total: &mut Json, other: &Json) {
    match (total, other) {
        (Json::Object(total), Json::Object(other)) => {
            for (key, value) in other {
                match total.get_mut(key) {
                    Some(known) => add(known, value),
                    None => drop(total.insert(key.clone(), value.clone())),
                }
            }
        }
        (total, other) => {
            if let (Some(a), Some(b)) = (total.as_u64(), other.as_u64()) {
                *total = Json::from(a + b);
            }
        }
    }
}
