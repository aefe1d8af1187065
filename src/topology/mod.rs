//! Definitions made into a plan: names resolved, expressions compiled, layouts chosen. A
//! [`Topology`] that exists is valid.

mod check_group;
mod check_source;
mod on_demand;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::config::DefinitionFiles;
use crate::config::definitions::{Definitions, EntityDef, NowRule, RequestDef};
use crate::config::reader::Mistakes;
use crate::config::yaml::Mistake;
use crate::expr::Expr;
use crate::model::{Millis, ScalarType, Type, Value};
use crate::operator::{Feature, Fold, Layout};

pub use crate::config::definitions::EmitRule;

/// A validated plan of everything that is defined.
#[derive(Debug, Default)]
pub struct Topology {
    /// What it was made from.
    pub definitions: Definitions,
    /// Entities.
    pub entities: Vec<Entity>,
    /// Request values: name and type.
    pub request: Vec<(String, ScalarType)>,
    /// Sources.
    pub sources: Vec<Arc<Source>>,
    /// Groups.
    pub groups: Vec<Arc<Group>>,
    /// On-demand features, each after those that it uses.
    pub on_demand: Vec<OnDemand>,
}

/// An entity.
#[derive(Clone, Debug)]
pub struct Entity {
    /// Its name.
    pub name: String,
    /// Join keys with their types, in order.
    pub keys: Vec<(String, ScalarType)>,
}

/// A timestamp's text form.
#[derive(Clone, Debug, PartialEq)]
pub enum TimeText {
    /// RFC 3339, local to the zone where it has no offset.
    Rfc3339(Option<TimeZone>),
    /// A number of units of 10^-n seconds, n = 0, 3 or 6.
    Unix(u8),
}

/// A source.
#[derive(Debug)]
pub struct Source {
    /// Its index in the topology.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its topic.
    pub topic: String,
    /// Variables that are the record key.
    pub key: Option<Vec<usize>>,
    /// Path and form of event time; `None`: the record's timestamp.
    pub event_time: Option<(Vec<String>, TimeText)>,
    /// How late an event may be.
    pub grace: Millis,
    /// How far ahead of its record's timestamp an event may be.
    pub max_ahead: Millis,
    /// Largest payload.
    pub max_event_bytes: usize,
    /// Whether late events become dead letters.
    pub late_to_dead_letters: bool,
    /// Whether tombstones are ignored.
    pub ignores_tombstones: bool,
    /// Path of the event id.
    pub event_id: Option<Vec<String>>,
    /// CSV cells that mean null.
    pub null_values: Vec<String>,
    /// Fields in file order.
    pub fields: Vec<Field>,
    /// Rules with their text.
    pub rules: Vec<(Expr, String)>,
    /// Names and types of the variables of expressions: `event_time`, then the fields.
    pub variables: Vec<(String, Type)>,
}

/// A field of a source. Its variable is its index + 1.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    pub scalar: ScalarType,
    /// Where its value comes from.
    pub origin: Origin,
}

/// Where a field's value comes from.
#[derive(Debug)]
pub enum Origin {
    /// The payload.
    Path {
        /// The path.
        path: Vec<String>,
        /// Whether it may be missing or null.
        is_nullable: bool,
        /// Whether text and numbers are taken for each other.
        coerce: bool,
        /// Longest string.
        max_bytes: usize,
        /// How a timestamp is written.
        time: TimeText,
    },
    /// Computed.
    Expr(Expr),
}

/// A feature group.
#[derive(Debug)]
pub struct Group {
    /// Its index in the topology.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// Index of its entity.
    pub entity: usize,
    /// Names of the parts of its entity's key.
    pub key_names: Vec<String>,
    /// Types of the parts of its entity's key.
    pub key_types: Vec<ScalarType>,
    /// Variables that are the parts of its entity's key.
    pub key: Vec<usize>,
    /// Its source.
    pub source: Arc<Source>,
    /// Whether its entity is the record key, so that it reads the source itself.
    pub is_direct: bool,
    /// Which events count.
    pub filter: Option<Expr>,
    /// What `now` is when a read does not say.
    pub now: NowRule,
    /// What goes to its feature topic.
    pub emit: EmitRule,
    /// How far back reads may go.
    pub history: Millis,
    /// The longest that a feature looks back; `None`: without end.
    pub reach: Option<Millis>,
    /// How long raw events are kept behind the row clock; `None`: for ever.
    pub horizon: Option<Millis>,
    /// Whether events that leave the horizon enter lifetime accumulators.
    pub has_base: bool,
    /// When events are folded into tiles; none: they stay until they leave the horizon.
    pub fold: Option<Fold>,
    /// The feature that asks for single events furthest back, by its index.
    pub furthest: Option<usize>,
    /// Columns of stored events.
    pub columns: Vec<Expr>,
    /// Flags of stored events.
    pub flags: Vec<Expr>,
    /// Layout of stored events.
    pub layout: Layout,
    /// Features.
    pub features: Vec<GroupFeature>,
}

/// A feature of a group.
#[derive(Clone, Debug)]
pub struct GroupFeature {
    /// Its name.
    pub name: String,
    /// What to compute.
    pub plan: Feature,
    /// Type of its value.
    pub value_type: Type,
    /// Value when there is none.
    pub default: Option<Value>,
    /// Longest age.
    pub ttl: Option<Millis>,
}

/// An on-demand feature.
#[derive(Clone, Debug)]
pub struct OnDemand {
    /// Index of its group.
    pub group: usize,
    /// Its name.
    pub name: String,
    /// Its expression, over `inputs`.
    pub expr: Expr,
    /// Its type.
    pub scalar: ScalarType,
    /// Value when there is none.
    pub default: Option<Value>,
    /// What the variables of its expression are; only used ones are there.
    pub inputs: Vec<Input>,
}

/// What a variable of an on-demand feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A feature: group and feature.
    Feature(usize, usize),
    /// Another on-demand feature.
    OnDemand(usize),
    /// A request value.
    Request(usize),
}

impl Topology {
    /// The plan of `files`.
    ///
    /// # Errors
    /// Every mistake, by place.
    pub fn of_files(files: DefinitionFiles) -> Result<Self, (Vec<Mistake>, Vec<PathBuf>)> {
        let DefinitionFiles { paths, definitions, mut mistakes } = files;
        let mut topology = Self::build(&definitions, &mut mistakes);
        topology.definitions = definitions;
        if mistakes.is_empty() { Ok(topology) } else { Err((mistakes.sorted(), paths)) }
    }

    fn build(definitions: &Definitions, mistakes: &mut Mistakes) -> Self {
        let mut topology = Self {
            entities: definitions.entities.iter().map(entity).collect(),
            request: definitions.request.iter().map(request).collect(),
            ..Self::default()
        };
        for def in &definitions.sources {
            let index = topology.sources.len();
            topology.sources.push(Arc::new(check_source::source(index, def, mistakes)));
        }
        check_source::same_key_by_topic(definitions, mistakes);
        let mut kept = Vec::new();
        for def in &definitions.groups {
            let index = topology.groups.len();
            if let Some(group) = check_group::group(index, def, &topology, definitions, mistakes) {
                topology.groups.push(Arc::new(group));
                kept.push(def);
            } else {
                mistakes.note_unreadable(&def.name);
            }
        }
        topology.on_demand = on_demand::all(&kept, &topology, mistakes);
        topology
    }

    /// The group `name`.
    pub fn group(&self, name: &str) -> Option<&Arc<Group>> {
        self.groups.iter().find(|g| g.name == name)
    }

    /// Topics that tasks of `app` read: those of sources, and those between the stages.
    pub fn input_topics(&self, app: &str) -> Vec<String> {
        let sources = self.topics().into_iter().map(str::to_owned);
        let between = self.groups.iter().filter(|g| !g.is_direct).map(|g| g.repartition_topic(app));
        sources.chain(between).collect()
    }

    /// Topics that sources read, each once.
    pub fn topics(&self) -> Vec<&str> {
        let mut topics: Vec<&str> = self.sources.iter().map(|s| s.topic.as_str()).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }
}

impl Group {
    /// The topic of a group that does not read its source itself.
    pub fn repartition_topic(&self, app: &str) -> String {
        format!("{app}-{}-v{}-repartition", self.name, self.version)
    }

    /// The topic that its features go to, if they do.
    pub fn feature_topic(&self, app: &str) -> Option<String> {
        (self.emit != EmitRule::Never).then(|| format!("{app}-{}-features", self.name))
    }

    /// A number that changes whenever the stored rows would mean something else.
    pub fn fingerprint(&self) -> u64 {
        self.layout.fingerprint()
    }
}

fn entity(def: &EntityDef) -> Entity {
    Entity { name: def.name.clone(), keys: def.keys.clone() }
}

fn request(def: &RequestDef) -> (String, ScalarType) {
    (def.name.clone(), def.scalar)
}
