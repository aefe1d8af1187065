//! Where the rows of a lookup are, and reading them: here, or on the node that has them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, Endpoint};
use super::lookup::{Columns, Lookup, LookupRequest, PartitionAnswer};
use super::owned::Owned;
use crate::error::{Error, ErrorKind, Result};
use crate::model::key::{KEY_BYTES_MAX, KeyPart, record_key};
use crate::model::{Millis, Value, partition_of};
use crate::task::{Status as TaskStatus, Task, UnitAnswer, UnitRead, cell};
use crate::topology::Group;

/// The wait for positions when the request names none.
const WAIT_DEFAULT: Duration = Duration::from_secs(1);

/// A row of a needed group.
struct Placed {
    home: Home,
    /// Key in state form.
    entity: Vec<u8>,
    /// Whether any entity can have this key.
    is_entity: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    /// Index of a task of this node.
    Here(usize),
    /// A partition that others have.
    There(u32),
}

/// Rows of a group that one node is asked for, and who else could be.
struct Errand {
    need: usize,
    rows: Vec<usize>,
    to: Vec<Endpoint>,
}

/// Where all rows are, of a lookup whose demanded positions are there.
pub(super) struct Places {
    /// By needed group.
    rows: Vec<Vec<Placed>>,
    /// Indices of the tasks of this node among them.
    tasks: Vec<usize>,
    /// Until when others may be waited for.
    deadline: Instant,
}

/// What was read.
pub(super) struct Gathered {
    /// Read time of every row, by needed group.
    pub nows: Vec<Vec<Millis>>,
    /// The values.
    pub cells: Columns,
    /// Tasks of this node that were read.
    pub tasks: Vec<Arc<Task>>,
    /// Who answered what.
    pub positions: Vec<PartitionAnswer>,
}

impl Lookup<'_> {
    /// Finds all rows, and waits for the positions that are demanded of this node.
    pub fn find(&self, owned: &Owned) -> Result<Places> {
        self.view.check_topics(&self.request.min_positions)?;
        let rows =
            (0..self.needs.groups.len()).map(|need| self.place(owned, need)).collect::<Result<Vec<_>>>()?;
        let mut tasks: Vec<usize> = rows
            .iter()
            .flatten()
            .filter_map(|p| match p.home {
                Home::Here(task) => Some(task),
                Home::There(_) => None,
            })
            .collect();
        tasks.sort_unstable();
        tasks.dedup();
        let wait = self.request.wait.unwrap_or(WAIT_DEFAULT);
        let deadline = Instant::now() + wait;
        if !self.request.min_positions.is_empty() {
            // Stream time is of all partitions; a batch asks for read times before its first row.
            let is_batch = self.request.is_batch && self.rows == 0;
            let groups = self.needs.groups.iter().enumerate();
            let whole: Vec<usize> =
                groups.filter(|(i, _)| is_batch || self.is_stream_time(*i)).map(|(_, (g, _))| *g).collect();
            let is_running = |t: &&Arc<Task>| t.status() == TaskStatus::Running;
            let is_of_whole = |t: &&Arc<Task>| whole.iter().any(|group| t.group_slot(*group).is_some());
            let more = owned.own().filter(is_running).filter(is_of_whole);
            let here = tasks.iter().map(|i| &owned.tasks[*i]);
            let awaited: Vec<&Arc<Task>> = here.chain(more).collect();
            self.view.await_positions(&awaited, &self.request.min_positions, wait)?;
        }
        Ok(Places { rows, tasks, deadline })
    }

    /// Reads all rows.
    pub fn gather(&self, owned: &Owned, places: &Places) -> Result<Gathered> {
        let tasks = places.tasks.iter().map(|i| Arc::clone(&owned.tasks[*i])).collect();
        let mut all =
            Gathered { nows: self.nows()?, cells: self.degraded_cells(), tasks, positions: Vec::new() };
        for &task in &places.tasks {
            self.read_task(owned, task, &places.rows, &mut all)?;
        }
        for errand in self.errands(&places.rows)? {
            self.run_errand(&errand, places.deadline, &mut all)?;
        }
        Ok(all)
    }

    fn place(&self, owned: &Owned, need: usize) -> Result<Vec<Placed>> {
        let plan: &Group = &self.view.topology.groups[self.needs.groups[need].0];
        let columns: Vec<&Vec<Value>> = self.view.topology.entities[plan.entity]
            .keys
            .iter()
            .map(|(name, _)| &self.request.entities[name])
            .collect();
        // All rows of a partition from one place, even if a standby falls behind meanwhile.
        let mut homes: BTreeMap<u32, Home> = BTreeMap::new();
        (0..self.rows)
            .map(|row| {
                let parts: Vec<KeyPart<'_>> = columns
                    .iter()
                    .map(|values| match &values[row] {
                        Value::String(s) => KeyPart::String(s),
                        Value::Int(n) => KeyPart::Int(*n),
                        Value::Float(x) => KeyPart::Int(*x as i64),
                        _ => KeyPart::Int(0),
                    })
                    .collect();
                let mut bytes = Vec::new();
                record_key(&parts, &mut bytes);
                let partition = partition_of(&bytes, self.view.group_partitions(plan.index));
                let mut entity = Vec::new();
                for part in &parts {
                    part.encode(&mut entity);
                }
                let is_entity =
                    parts.iter().all(|p| !matches!(p, KeyPart::String(s) if s.len() > KEY_BYTES_MAX));
                let home = match homes.entry(partition) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => *new.insert(self.home(owned, plan, partition)?),
                };
                Ok(Placed { home, entity, is_entity })
            })
            .collect()
    }

    /// Who has a partition: this node, as its owner, or as its standby if the request allows that;
    /// or others.
    fn home(&self, owned: &Owned, plan: &Group, partition: u32) -> Result<Home> {
        let restoring = match owned.route(plan.index, partition) {
            Some(at) if owned.tasks[at].status() != TaskStatus::Restoring => return Ok(Home::Here(at)),
            other => other,
        };
        if let (Some(max_age), Some(at)) = (self.request.max_age, owned.standby_route(plan.index, partition))
            && owned.tasks[at].behind().is_some_and(|behind| behind <= max_age)
        {
            return Ok(Home::Here(at));
        }
        let has_others = self.view.cluster().is_some() && !self.request.is_passed_on;
        if has_others && (restoring.is_none() || self.request.max_age.is_some()) {
            return Ok(Home::There(partition));
        }
        let refusal = match restoring {
            Some(_) => {
                Error::unavailable(format!("partition {partition} of `{}` is being restored", plan.name))
                    .with_hint("try again in a moment")
            }
            None => {
                let owner = self.view.route(plan, partition).owner;
                let hint =
                    owner.map_or_else(|| "ask again in a moment".to_owned(), |o| format!("ask {}", o.grpc));
                Error::unavailable(format!("partition {partition} of `{}` is not on this node", plan.name))
                    .with_hint(hint)
            }
        };
        Err(refusal)
    }

    /// Reads everything that one task has, at one point of its input.
    fn read_task(
        &self,
        owned: &Owned,
        index: usize,
        placed: &[Vec<Placed>],
        all: &mut Gathered,
    ) -> Result<()> {
        let Gathered { nows, cells, positions, .. } = all;
        let task = &owned.tasks[index];
        if task.status() == TaskStatus::Failed {
            return Ok(());
        }
        let mut reads = Vec::new();
        let mut origins = Vec::new();
        for (need, (group, features)) in self.needs.groups.iter().enumerate() {
            let Some(slot) = task.group_slot(*group) else { continue };
            let here = placed[need].iter().enumerate().filter(|(_, p)| p.home == Home::Here(index));
            for (row, place) in here {
                if !place.is_entity {
                    self.fill(need, row, &UnitAnswer::default(), nows[need][row], cells);
                    continue;
                }
                reads.push(UnitRead { slot, entity: &place.entity, features, now: nows[need][row] });
                origins.push((need, row));
            }
        }
        let (answers, at) = task.read(&reads)?;
        for (answer, (need, row)) in answers.iter().zip(&origins) {
            self.view.metrics.cache_read(answer.is_cached);
            self.fill(*need, *row, answer, nows[*need][*row], cells);
        }
        let mut groups: Vec<usize> = origins.iter().map(|(need, _)| self.needs.groups[*need].0).collect();
        groups.dedup();
        for group in groups {
            positions.push(PartitionAnswer {
                group: self.view.topology.groups[group].name.clone(),
                partition: task.partition,
                offsets: at.clone(),
                node: self.view.cluster().map(|c| c.me.clone()),
                is_standby: task.status() == TaskStatus::Standby,
            });
        }
        Ok(())
    }

    fn fill(&self, need: usize, row: usize, unit: &UnitAnswer, now: Millis, cells: &mut Columns) {
        let (group, features) = &self.needs.groups[need];
        let plan = &self.view.topology.groups[*group];
        for (i, feature) in features.iter().enumerate() {
            cells[need][i][row] = cell(&plan.features[*feature], unit, unit.answers.get(i), now);
        }
    }

    /// What is to be asked of whom: per group and partition's holders, all rows at once.
    fn errands(&self, placed: &[Vec<Placed>]) -> Result<Vec<Errand>> {
        let mut errands = Vec::new();
        for (need, rows) in placed.iter().enumerate() {
            let plan = &self.view.topology.groups[self.needs.groups[need].0];
            let mut by_partition: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for (row, place) in rows.iter().enumerate() {
                if let Home::There(partition) = place.home {
                    by_partition.entry(partition).or_default().push(row);
                }
            }
            let mut by_holders: BTreeMap<String, Errand> = BTreeMap::new();
            for (partition, rows) in by_partition {
                let to = self.holders(plan, partition)?;
                let name = to.iter().map(|e| e.node.as_str()).collect::<Vec<_>>().join(" ");
                let errand = by_holders.entry(name).or_insert_with(|| Errand { need, rows: Vec::new(), to });
                errand.rows.extend(rows);
            }
            errands.extend(by_holders.into_values());
        }
        Ok(errands)
    }

    /// Other nodes that may answer for a partition, the best first.
    fn holders(&self, plan: &Group, partition: u32) -> Result<Vec<Endpoint>> {
        let route = self.view.route(plan, partition);
        let me = self.view.cluster().map_or("", |c| c.me.as_str());
        let standbys = route.standbys.into_iter().filter(|_| self.request.max_age.is_some());
        let holders: Vec<Endpoint> =
            route.owner.into_iter().chain(standbys).filter(|e| e.node != me).collect();
        if holders.is_empty() {
            let message = format!("partition {partition} of `{}` has no owner now", plan.name);
            return Err(Error::unavailable(message).with_hint("ask again in a moment"));
        }
        Ok(holders)
    }

    fn run_errand(&self, errand: &Errand, deadline: Instant, all: &mut Gathered) -> Result<()> {
        let Some(cluster) = self.view.cluster() else {
            return Err(Error::internal("there are no other nodes"));
        };
        let mut request = self.errand_request(errand, &all.nows);
        // What was waited here is not waited there again.
        request.wait = Some(deadline.saturating_duration_since(Instant::now()));
        let answer = ask(cluster, &errand.to, &request)?;
        if let Some(now) = answer.as_of.values().next() {
            all.nows[errand.need].fill(*now);
        }
        let columns = answer.columns.len() - self.needs.groups[errand.need].1.len();
        for (i, column) in answer.columns.into_iter().skip(columns).enumerate() {
            for (row, cell) in errand.rows.iter().zip(column) {
                all.cells[errand.need][i][*row] = cell;
            }
        }
        all.positions.extend(answer.positions);
        self.view.metrics.request("hop", "OK");
        Ok(())
    }

    fn errand_request(&self, errand: &Errand, nows: &[Vec<Millis>]) -> LookupRequest {
        let (group, features) = &self.needs.groups[errand.need];
        let plan = &self.view.topology.groups[*group];
        let keys = &self.view.topology.entities[plan.entity].keys;
        // Who has all rows knows stream time best, and later: it may have to wait for positions.
        let is_theirs = errand.rows.len() == self.rows && self.is_stream_time(errand.need);
        let as_of = errand.rows.iter().map(|row| nows[errand.need][*row]);
        let pick = |values: &Vec<Value>| errand.rows.iter().map(|row| values[*row].clone()).collect();
        LookupRequest {
            features: features.iter().map(|f| format!("{}:{}", plan.name, plan.features[*f].name)).collect(),
            entities: keys.iter().map(|(k, _)| (k.clone(), pick(&self.request.entities[k]))).collect(),
            as_of: if is_theirs { Vec::new() } else { as_of.collect() },
            full_feature_names: true,
            min_positions: self.request.min_positions.clone(),
            max_age: self.request.max_age,
            ..LookupRequest::default()
        }
    }
}

/// The first answer of nodes that may give it. Another is asked only where the one before cannot.
fn ask(
    cluster: &Cluster,
    holders: &[Endpoint],
    request: &LookupRequest,
) -> Result<super::lookup::LookupResponse> {
    let mut refusal = Error::unavailable("no node has it");
    for holder in holders {
        match cluster.peers.lookup(&holder.grpc, request) {
            Ok(answer) => return Ok(answer),
            Err(error) if matches!(error.kind, ErrorKind::Unavailable) => refusal = error,
            Err(error) => return Err(error),
        }
    }
    Err(refusal)
}
