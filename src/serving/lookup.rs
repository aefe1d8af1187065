//! A lookup: names and keys in, columns out. The same for REST, gRPC and tests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::catalog::{Needs, Wanted, resolve};
use super::compute::{Cell, Status, on_demand};
use super::gather::Gathered;
use super::view::View;
use crate::config::definitions::NowRule;
use crate::error::{Error, ErrorKind, Result};
use crate::expr::Val;
use crate::model::names::did_you_mean;
use crate::model::{Millis, Positions, ScalarType, Value};
use crate::task::{Status as TaskStatus, degraded};
use crate::topology::Input;

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct LookupRequest {
    /// `group:feature`, in the order of the answer.
    pub features: Vec<String>,
    /// Values of join keys, all lists of one length.
    pub entities: BTreeMap<String, Vec<Value>>,
    /// Values for on-demand features.
    pub request: BTreeMap<String, Vec<Value>>,
    /// Read times: none, one for all rows, or one per row.
    pub as_of: Vec<Millis>,
    /// Positions that the values must contain.
    pub min_positions: Positions,
    /// How long to wait for them.
    pub wait: Option<Duration>,
    /// `group:name` instead of `name`.
    pub full_feature_names: bool,
    /// Whether the number of entities is not limited.
    pub is_batch: bool,
    /// How far, by stream time, an answer may lie behind; none: only owners answer.
    pub max_age: Option<Duration>,
    /// Whether another node passes it on: what is not here is not asked for elsewhere.
    pub is_passed_on: bool,
    /// Read times that an earlier part of the same request was given, by group.
    pub group_nows: BTreeMap<String, Millis>,
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub struct LookupResponse {
    /// Join keys, then features.
    pub names: Vec<String>,
    /// One column per name, one cell per row.
    pub columns: Vec<Vec<Cell>>,
    /// Who answered, at which positions.
    pub positions: Vec<PartitionAnswer>,
    /// Read times by group, where the request gave none.
    pub as_of: BTreeMap<String, Millis>,
}

/// A partition of a group, as far as an answer draws on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionAnswer {
    /// The group.
    pub group: String,
    /// Its partition.
    pub partition: u32,
    /// Positions that the values contain.
    pub offsets: Positions,
    /// The node that answered, where there may be several.
    pub node: Option<String>,
    /// Whether that node only follows the owner.
    pub is_standby: bool,
}

/// Values that a request reads in about a millisecond.
const LONG: usize = 1000;
/// How often a lookup is read again whose read time, decided here, lies too far back by then.
const TRIES: usize = 5;
/// The longest wait for positions.
const WAIT_MAX: Duration = Duration::from_secs(30);

impl View {
    /// Answers `request`.
    ///
    /// # Errors
    /// The caller's mistakes, positions that are not reached, an engine that is not ready.
    pub fn lookup(&self, request: &LookupRequest) -> Result<LookupResponse> {
        self.check_ready()?;
        Lookup::plan(self, request)?.run()
    }
}

impl View {
    /// Whether `request` may take longer than a thread that serves other requests can be without:
    /// it waits, asks other nodes, or is large.
    pub fn is_long(&self, request: &LookupRequest) -> bool {
        let rows = request.entities.values().next().map_or(0, Vec::len);
        !request.min_positions.is_empty()
            || rows.saturating_mul(request.features.len()) > LONG
            || !self.owned().is_whole()
    }
}

#[cfg(feature = "serving")]
impl View {
    /// Refuses what [`View::lookup`] would refuse, whatever the engine's state.
    ///
    /// # Errors
    /// The caller's mistakes.
    pub(super) fn check_lookup(&self, request: &LookupRequest) -> Result<()> {
        Lookup::plan(self, request).map(drop)
    }
}

pub(super) struct Lookup<'a> {
    pub view: &'a View,
    pub request: &'a LookupRequest,
    wanted: Vec<Wanted>,
    names: Vec<String>,
    pub needs: Needs,
    pub rows: usize,
    /// Values of needed request values, by their index in `needs.request`.
    request_values: Vec<Vec<Value>>,
}

/// Columns of needed features, by needed group and feature.
pub(super) type Columns = Vec<Vec<Vec<Cell>>>;

impl<'a> Lookup<'a> {
    fn plan(view: &'a View, request: &'a LookupRequest) -> Result<Self> {
        let topology = &view.topology;
        let too_large = |what: &str, found: usize, most: usize| {
            let message = format!("{found} {what}, and at most {most} are allowed");
            Error::new(ErrorKind::TooLarge, message).with_hint("split the request")
        };
        if request.features.is_empty() {
            return Err(Error::invalid("`features` is empty; expected at least one `group:feature`"));
        }
        if request.features.len() > view.limits.request_features {
            return Err(too_large("features", request.features.len(), view.limits.request_features));
        }
        let rows = row_count(request)?;
        if rows > view.limits.request_entities && !request.is_batch {
            return Err(too_large("entities", rows, view.limits.request_entities));
        }
        if request.as_of.len() > 1 && request.as_of.len() != rows {
            let message = format!(
                "`as_of` has {} times for {rows} rows; expected none, one, or one per row",
                request.as_of.len()
            );
            return Err(Error::invalid(message));
        }
        if request.wait.is_some_and(|w| w > WAIT_MAX) {
            return Err(Error::invalid("`wait` is over 30 s; expected at most 30s"));
        }
        let wanted =
            request.features.iter().map(|name| resolve(topology, name)).collect::<Result<Vec<_>>>()?;
        let needs = Needs::of(topology, &wanted);
        for name in request.entities.keys() {
            let mut known = topology.entities.iter().flat_map(|e| e.keys.iter().map(|(n, _)| n.as_str()));
            if !known.clone().any(|k| k == name) {
                let hint = did_you_mean(name, &mut known);
                return Err(Error::invalid(format!("`{name}` is no join key of any entity")).with_hint(hint));
            }
        }
        let names = names(request, &wanted)?;
        let mut lookup = Self { view, request, wanted, names, needs, rows, request_values: Vec::new() };
        lookup.check_entities()?;
        lookup.request_values = lookup.typed_request_values()?;
        Ok(lookup)
    }

    /// Every needed join key is there, with values of its type.
    fn check_entities(&self) -> Result<()> {
        for (group, _) in &self.needs.groups {
            let group = &self.view.topology.groups[*group];
            for (name, scalar) in &self.view.topology.entities[group.entity].keys {
                let values = self.request.entities.get(name).ok_or_else(|| {
                    Error::invalid(format!("`entities` lacks join key `{name}` of group `{}`", group.name))
                })?;
                let is_typed = |v: &Value| match (v, scalar) {
                    (Value::String(_), ScalarType::String) | (Value::Int(_), ScalarType::Int64) => true,
                    (Value::Float(x), ScalarType::Int64) => is_integer(*x),
                    _ => false,
                };
                if let Some(row) = values.iter().position(|v| !is_typed(v)) {
                    let message = format!("value {row} of join key `{name}` is no {}", scalar.name());
                    return Err(Error::invalid(message));
                }
            }
        }
        Ok(())
    }

    fn typed_request_values(&self) -> Result<Vec<Vec<Value>>> {
        let declared = &self.view.topology.request;
        let mut given = BTreeMap::new();
        for (name, values) in &self.request.request {
            let Some((_, scalar)) = declared.iter().find(|(n, _)| n == name) else {
                let hint = did_you_mean(name, declared.iter().map(|(n, _)| n.as_str()));
                return Err(Error::invalid(format!("`{name}` is no declared request value")).with_hint(hint));
            };
            let typed: Option<Vec<Value>> = values.iter().map(|value| typed(value, *scalar)).collect();
            let wrong = || Error::invalid(format!("request value `{name}` is no {}", scalar.name()));
            given.insert(name, typed.ok_or_else(wrong)?);
        }
        let needed = self.needs.request.iter().map(|index| &declared[*index].0);
        needed
            .map(|name| {
                given.remove(name).ok_or_else(|| {
                    Error::invalid(format!("`request` lacks `{name}`, which a requested feature needs"))
                })
            })
            .collect()
    }

    fn run(mut self) -> Result<LookupResponse> {
        let view = self.view;
        let owned = view.owned();
        let places = self.find(&owned)?;
        let mut gathered = self.gather(&owned, &places)?;
        for _ in 1..TRIES {
            if !self.is_outrun(&gathered.cells) {
                break;
            }
            gathered = self.gather(&owned, &places)?;
        }
        let Gathered { nows, mut cells, tasks, positions } = gathered;
        let mut computed = self.compute(&cells);
        for task in &tasks {
            // Last of all: a process that was frozen at any place before finds it out here.
            let is_too_old = task.status() == TaskStatus::Standby
                && self.request.max_age.is_none_or(|most| task.behind().is_none_or(|b| b > most));
            if !task.may_answer() || is_too_old {
                let message =
                    format!("partition {} of {} may have gone on elsewhere", task.partition, task.topic);
                return Err(Error::unavailable(message).with_hint("ask again in a moment, or another node"));
            }
        }
        let names = std::mem::take(&mut self.names);
        let mut response = LookupResponse { names, positions, ..LookupResponse::default() };
        if self.request.as_of.is_empty() {
            for ((group, _), now) in self.needs.groups.iter().zip(&nows) {
                let name = view.topology.groups[*group].name.clone();
                response.as_of.insert(name, now.first().copied().unwrap_or(0));
            }
        }
        for (name, values) in &self.request.entities {
            let keys = view.topology.entities.iter().flat_map(|e| &e.keys);
            let is_int = keys.into_iter().any(|(n, scalar)| n == name && *scalar == ScalarType::Int64);
            let value = |v: &Value| match v {
                Value::Float(x) if is_int && is_integer(*x) => Value::Int(*x as i64),
                other => other.clone(),
            };
            let cell = |v: &Value| Cell { value: value(v), status: Status::Present, timestamp: 0 };
            response.columns.push(values.iter().map(cell).collect());
        }
        for (i, wanted) in self.wanted.iter().enumerate() {
            let column = match wanted {
                Wanted::Feature(group, feature) => {
                    let (need, at) = self.needs.place(*group, *feature);
                    &mut cells[need][at]
                }
                Wanted::OnDemand(index) => computed.get_mut(index).expect("it was computed"),
            };
            let is_asked_again = self.wanted[i + 1..].contains(wanted);
            response.columns.push(if is_asked_again { column.clone() } else { std::mem::take(column) });
        }
        Ok(response)
    }

    /// All cells, before anybody has answered.
    pub fn degraded_cells(&self) -> Columns {
        let of_group = |(group, features): &(usize, Vec<usize>)| {
            let plan = &self.view.topology.groups[*group];
            features.iter().map(|f| vec![degraded(&plan.features[*f]); self.rows]).collect()
        };
        self.needs.groups.iter().map(of_group).collect()
    }

    /// Whether the read time of a needed group is its source's stream time, which this node decides.
    pub fn is_stream_time(&self, need: usize) -> bool {
        let group = &self.view.topology.groups[self.needs.groups[need].0];
        let is_given = !self.request.as_of.is_empty() || self.request.group_nows.contains_key(&group.name);
        !is_given && group.now == NowRule::Stream
    }

    /// Whether a partition has gone on by more than its `history` since the read time was decided.
    fn is_outrun(&self, cells: &Columns) -> bool {
        let is_out = |column: &Vec<Cell>| column.iter().any(|cell| cell.status == Status::OutOfRange);
        cells
            .iter()
            .enumerate()
            .any(|(need, columns)| self.is_stream_time(need) && columns.first().is_some_and(is_out))
    }

    /// Read time of every row, by needed group.
    pub fn nows(&self) -> Result<Vec<Vec<Millis>>> {
        let wall = self.view.clock.now();
        self.needs
            .groups
            .iter()
            .map(|(group, _)| {
                let group = &self.view.topology.groups[*group];
                Ok(match self.request.as_of[..] {
                    [] => {
                        let given = self.request.group_nows.get(&group.name);
                        if let Some(now) = given {
                            return Ok(vec![*now; self.rows.max(1)]);
                        }
                        let now = match group.now {
                            NowRule::Wall => wall,
                            NowRule::Stream => self.view.source_stream_time(group)?.unwrap_or(0),
                        };
                        vec![now; self.rows.max(1)]
                    }
                    [one] => vec![one; self.rows.max(1)],
                    _ => self.request.as_of.clone(),
                })
            })
            .collect()
    }

    /// Columns of needed on-demand features.
    fn compute(&self, cells: &Columns) -> BTreeMap<usize, Vec<Cell>> {
        let mut computed: BTreeMap<usize, Vec<Cell>> = BTreeMap::new();
        for index in &self.needs.on_demand {
            let feature = &self.view.topology.on_demand[*index];
            let column = (0..self.rows)
                .map(|row| {
                    let mut inputs: Vec<&Cell> = Vec::new();
                    let mut values: Vec<Val<'_>> = Vec::new();
                    for input in &feature.inputs {
                        let cell = match input {
                            Input::Feature(group, f) => {
                                let (need, at) = self.needs.place(*group, *f);
                                &cells[need][at][row]
                            }
                            Input::OnDemand(other) => &computed[other][row],
                            Input::Request(value) => {
                                let at = self.needs.request.iter().position(|r| r == value);
                                let at = at.expect("needs list every request value");
                                values.push(Val::of(&self.request_values[at][row]));
                                continue;
                            }
                        };
                        inputs.push(cell);
                        values.push(Val::of(&cell.value));
                    }
                    on_demand(feature, &inputs, &values)
                })
                .collect();
            computed.insert(*index, column);
        }
        computed
    }
}

/// Number of rows: the length of every list.
fn row_count(request: &LookupRequest) -> Result<usize> {
    let mut lists = request.entities.iter().chain(&request.request);
    let rows = request.entities.values().next().map_or(0, Vec::len);
    match lists.find(|(_, values)| values.len() != rows) {
        Some((name, values)) => {
            let message = format!(
                "`{name}` has {} values, and another list {rows}; expected lists of one length",
                values.len()
            );
            Err(Error::invalid(message))
        }
        None => Ok(rows),
    }
}

/// Names of the answer; short names must not clash.
fn names(request: &LookupRequest, wanted: &[Wanted]) -> Result<Vec<String>> {
    let mut names: Vec<String> = request.entities.keys().cloned().collect();
    let keys = names.len();
    for (i, full) in request.features.iter().enumerate() {
        if request.full_feature_names {
            names.push(full.clone());
            continue;
        }
        let short = full.split_once(':').map_or(full.as_str(), |(_, name)| name);
        let clash = names.iter().position(|n| n == short);
        if clash.is_some_and(|at| at < keys || wanted[at - keys] != wanted[i]) {
            return Err(Error::invalid(format!("more than one result would be named `{short}`"))
                .with_hint("ask with full_feature_names: true"));
        }
        names.push(short.to_owned());
    }
    Ok(names)
}

/// Whether a number with a point means an integer, and says exactly which.
fn is_integer(x: f64) -> bool {
    x.fract() == 0.0 && x.abs() < 9e15
}

/// A request value as its declared type.
fn typed(value: &Value, scalar: ScalarType) -> Option<Value> {
    match (scalar, value) {
        (ScalarType::String, Value::String(_))
        | (ScalarType::Bool, Value::Bool(_))
        | (ScalarType::Int64, Value::Int(_))
        | (ScalarType::Timestamp, Value::Timestamp(_)) => Some(value.clone()),
        (ScalarType::Float64, Value::Float(x)) => Some(Value::Float(*x + 0.0)),
        (ScalarType::Float64, Value::Int(n)) => Some(Value::Float(*n as f64)),
        (ScalarType::Int64, Value::Float(x)) if is_integer(*x) => Some(Value::Int(*x as i64)),
        (ScalarType::Timestamp, Value::String(text)) => {
            crate::model::time::parse_rfc3339(text, None).map(Value::Timestamp)
        }
        _ => None,
    }
}
