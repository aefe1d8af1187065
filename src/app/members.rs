//! What this node tells the others in the owners topic, and hears of them there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::standby::Standbys;
use crate::clock::Clock;
use crate::error::Result;
use crate::log::{KafkaLog, Log, PartitionReader};
use crate::model::Millis;
use crate::serving::View;
use crate::serving::cluster::{Cluster, NodeRecord, Role, TaskRecord};
use crate::task::{Status, Task, TaskInput};

/// Longest time between a change and its record.
const EVERY: Duration = Duration::from_millis(100);
/// A node that has nothing new says so.
const ALIVE_EVERY: Duration = Duration::from_millis(500);
const ROWS_BYTES: usize = 4 << 20;

/// The thread that tells and hears.
pub(super) struct Members {
    pub log: Arc<KafkaLog>,
    pub view: Arc<View>,
    pub cluster: Arc<Cluster>,
    pub clock: Arc<dyn Clock>,
    /// The topic.
    pub topic: String,
    /// Where this node is reached.
    pub me: NodeRecord,
    /// When the last own record was written that has come back.
    pub echo: Millis,
    pub standbys: Standbys,
    pub stop: Arc<AtomicBool>,
}

impl Members {
    pub fn start(self) -> Result<JoinHandle<()>> {
        let reader = self.reader()?;
        let thread = std::thread::Builder::new().name("members".to_owned());
        Ok(thread.spawn(move || self.run(reader))?)
    }

    fn reader(&self) -> Result<PartitionReader> {
        self.log.reader(&self.topic, 0, self.log.start_offset(&self.topic, 0))
    }

    fn run(mut self, mut reader: PartitionReader) {
        let (mut told, mut told_at) = (NodeRecord::default(), Instant::now() - ALIVE_EVERY);
        while !self.stop.load(Ordering::Acquire) {
            if let Err(error) = self.hear(&mut reader) {
                tracing::warn!("{}: {error}", self.topic);
                std::thread::sleep(EVERY);
                // Behind an offset that is gone nothing more would be fetched. To hear twice harms nobody.
                if let Ok(anew) = self.reader() {
                    reader = anew;
                }
            }
            let record = self.record();
            if self.is_news(&record, &told) || told_at.elapsed() >= ALIVE_EVERY {
                match serde_json::to_vec(&record) {
                    Ok(value) => self.log.publish(&self.topic, record.node.as_bytes(), Some(&value)),
                    Err(error) => tracing::error!("{}: {error}", self.topic),
                }
                (told, told_at) = (record, Instant::now());
            }
            self.standbys.adjust(&self.cluster);
        }
        self.standbys.stop();
        self.log.publish(&self.topic, self.me.node.as_bytes(), None);
    }

    fn hear(&mut self, reader: &mut PartitionReader) -> Result<()> {
        for row in reader.rows(EVERY, ROWS_BYTES)? {
            let Ok(node) = String::from_utf8(row.key) else { continue };
            let record = match row.value.map(|v| serde_json::from_slice::<NodeRecord>(&v)) {
                Some(Err(error)) => {
                    tracing::warn!("{}: record of `{node}`: {error}", self.topic);
                    continue;
                }
                Some(Ok(record)) => Some(record),
                None => None,
            };
            if node == self.me.node {
                self.echo = self.echo.max(row.time);
            }
            // Clocks of nodes differ. By this one's, what follows an own record was not written before it.
            let written = row.time.max(self.echo);
            let age = Duration::from_millis((self.clock.now() - written).max(0).unsigned_abs());
            self.cluster.hear(&node, record, row.offset, age);
        }
        Ok(())
    }

    /// Whether others have to hear of what has changed at once. One that is alone has nobody to whom its
    /// stream times matter.
    fn is_news(&self, record: &NodeRecord, told: &NodeRecord) -> bool {
        let roles = |r: &NodeRecord| {
            r.tasks.iter().map(|t| (t.topic.clone(), t.partition, t.role, t.incarnation)).collect::<Vec<_>>()
        };
        let has_others = self.cluster.alive().len() > 1;
        if has_others { record != told } else { roles(record) != roles(told) }
    }

    fn record(&self) -> NodeRecord {
        let tasks = self.view.owned().tasks.iter().map(|t| task_record(t)).collect();
        NodeRecord { tasks, ..self.me.clone() }
    }
}

fn task_record(task: &Task) -> TaskRecord {
    let role = match task.status() {
        _ if task.is_standby() => Role::Standby,
        Status::Restoring => Role::Restoring,
        _ => Role::Owner,
    };
    let mut stream_times = BTreeMap::new();
    if let (TaskInput::Topic { sources }, Role::Owner) = (&task.input, role) {
        for (i, source) in sources.iter().enumerate() {
            stream_times.insert(source.name.clone(), task.stream_time(i));
        }
    }
    TaskRecord {
        topic: task.topic.clone(),
        partition: task.partition,
        role,
        incarnation: task.incarnation,
        stream_times,
    }
}
