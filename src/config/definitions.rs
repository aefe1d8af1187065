//! Definitions as they are written (SEMANTICS §9): every value typed and within its range, names
//! not yet resolved, expressions still text. Not here: what they mean together (`topology`).

use crate::model::aggregate::{Aggregate, CalendarUnit};
use crate::model::{Millis, ScalarType, Value};

use super::yaml::{Node, Place};

/// A name or text with its place.
#[derive(Clone, Debug)]
pub struct Named<T> {
    /// The thing.
    pub value: T,
    /// Where it stands.
    pub place: Place,
}

/// An expression as text, with the node that it stands in, so that mistakes find their column.
#[derive(Clone, Debug)]
pub struct ExprText {
    /// The text.
    pub text: String,
    /// Its node.
    pub node: Node,
}

/// Everything that definition files say.
#[derive(Clone, Debug, Default)]
pub struct Definitions {
    /// What features describe.
    pub entities: Vec<EntityDef>,
    /// Values that a caller brings.
    pub request: Vec<RequestDef>,
    /// Where events come from.
    pub sources: Vec<SourceDef>,
    /// Features of one entity from one source.
    pub groups: Vec<GroupDef>,
}

/// An entity.
#[derive(Clone, Debug)]
pub struct EntityDef {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Join keys with their types, in order.
    pub keys: Vec<(String, ScalarType)>,
}

/// A request value.
#[derive(Clone, Debug)]
pub struct RequestDef {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Its type.
    pub scalar: ScalarType,
}

/// How a timestamp is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum TimeFormat {
    /// RFC 3339 text; local to `zone` where it has no offset.
    Rfc3339 {
        /// Name of the zone.
        zone: Option<String>,
    },
    /// Seconds, perhaps with a fraction.
    UnixSeconds,
    /// Milliseconds.
    #[default]
    UnixMillis,
    /// Microseconds.
    UnixMicros,
}

/// Where event time comes from.
#[derive(Clone, Debug)]
pub enum EventTimeDef {
    /// The record's own timestamp.
    Record,
    /// A path into the payload.
    Path {
        /// The path.
        path: Vec<String>,
        /// How it is written.
        format: TimeFormat,
    },
}

/// A source.
#[derive(Clone, Debug)]
pub struct SourceDef {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Its topic.
    pub topic: String,
    /// Fields that are the record key.
    pub key: Option<Vec<Named<String>>>,
    /// Where event time comes from.
    pub event_time: EventTimeDef,
    /// How late an event may be.
    pub grace: Millis,
    /// How far ahead of its record's timestamp an event may be.
    pub max_ahead: Millis,
    /// Largest payload.
    pub max_event_bytes: u64,
    /// Whether late events become dead letters.
    pub late_to_dead_letters: bool,
    /// Whether tombstones are ignored rather than dead letters.
    pub ignores_tombstones: bool,
    /// Path of the event id.
    pub event_id: Option<Vec<String>>,
    /// CSV cells that mean null.
    pub null_values: Vec<String>,
    /// Fields, in file order.
    pub fields: Vec<FieldDef>,
    /// Rules.
    pub validate: Vec<ExprText>,
}

/// A field of a source.
#[derive(Clone, Debug)]
pub struct FieldDef {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Its type.
    pub scalar: ScalarType,
    /// Where its value comes from.
    pub origin: FieldOrigin,
}

/// Where a field's value comes from.
#[derive(Clone, Debug)]
pub enum FieldOrigin {
    /// A path into the payload.
    Path {
        /// The path.
        path: Vec<String>,
        /// Whether it may be missing or null.
        is_nullable: bool,
        /// Whether text and numbers are taken for each other.
        coerce: bool,
        /// Longest string, if stated.
        max_bytes: Option<u64>,
        /// How a timestamp is written.
        format: TimeFormat,
    },
    /// Computed once per event.
    Expr(ExprText),
}

/// What `now` of a read is when the request does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NowRule {
    /// The server's clock.
    Wall,
    /// The source's stream time.
    Stream,
}

/// What a group writes to its feature topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmitRule {
    /// Nothing: it has none.
    Never,
    /// Entities that have changed since the last commit.
    Latest,
    /// Every event's entity, as of that event.
    PerEvent,
}

/// A feature group.
#[derive(Clone, Debug)]
pub struct GroupDef {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Its version.
    pub version: u32,
    /// Its entity.
    pub entity: Named<String>,
    /// Its source.
    pub source: Named<String>,
    /// Fields of join keys whose names differ.
    pub keys: Vec<(Named<String>, Named<String>)>,
    /// Which events count.
    pub filter: Option<ExprText>,
    /// See [`NowRule`].
    pub now: NowRule,
    /// See [`EmitRule`].
    pub emit: EmitRule,
    /// How far back reads may go.
    pub history: Millis,
    /// Its features.
    pub features: Vec<FeatureDef>,
    /// Its on-demand features.
    pub on_demand: Vec<OnDemandDef>,
}

/// The span of events that a feature covers.
#[derive(Clone, Debug, PartialEq)]
pub enum WindowDef {
    /// `(now − length, now]`; with a tile its start is rounded down to a multiple of it.
    Sliding {
        /// Nominal length.
        length: Millis,
        /// Tile width.
        tile: Option<Millis>,
    },
    /// The last complete hop.
    Hopping {
        /// Length.
        length: Millis,
        /// Hop.
        hop: Millis,
    },
    /// The current calendar unit.
    Since {
        /// The unit.
        unit: CalendarUnit,
        /// Name of the zone.
        zone: String,
    },
    /// The current session.
    Session {
        /// Largest distance of neighbours.
        gap: Millis,
        /// Longest session.
        max: Millis,
    },
    /// All of the past.
    Lifetime,
}

/// A feature.
#[derive(Clone, Debug)]
pub struct FeatureDef {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// What it computes.
    pub aggregate: Aggregate,
    /// Of what.
    pub of: Option<ExprText>,
    /// Over which events.
    pub filter: Option<ExprText>,
    /// Over which span.
    pub window: WindowDef,
    /// `k` of `last_k` and `top_k`, `limit` of `distinct_values` and `value_counts`.
    pub limit: usize,
    /// Quantile.
    pub q: f64,
    /// Bounds of a histogram.
    pub bounds: Vec<f64>,
    /// Half-life of `decayed_*`, `per` of `rate`, `gap` of `session_count`.
    pub span: Millis,
    /// Events up to which the answer is exact.
    pub exact_limit: u64,
    /// Value when there is none.
    pub default: Option<Node>,
    /// Longest age.
    pub ttl: Option<Millis>,
    /// For people.
    pub description: String,
    /// For people.
    pub owner: String,
}

/// An on-demand feature.
#[derive(Clone, Debug)]
pub struct OnDemandDef {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Its expression.
    pub expr: ExprText,
    /// Its type.
    pub scalar: Named<ScalarType>,
    /// Value when there is none.
    pub default: Option<Node>,
    /// For people.
    pub description: String,
}

/// Reads `node` as a value of `scalar`; integers fit float64.
pub fn value_of(node: &Node, scalar: ScalarType) -> Option<Value> {
    use super::yaml::Kind;
    match (scalar, &node.kind) {
        (ScalarType::String, Kind::Text(text)) => Some(Value::from(text.as_str())),
        (ScalarType::Int64, Kind::Int(n)) => Some(Value::Int(*n)),
        (ScalarType::Float64, Kind::Float(x)) => x.is_finite().then_some(Value::Float(*x + 0.0)),
        (ScalarType::Float64, Kind::Int(n)) => Some(Value::Float(*n as f64)),
        (ScalarType::Bool, Kind::Bool(b)) => Some(Value::Bool(*b)),
        (ScalarType::Timestamp, Kind::Text(text)) => {
            crate::model::time::parse_rfc3339(text, None).map(Value::Timestamp)
        }
        _ => None,
    }
}
