//! This file compiles features and holds what does not depend on events: type, default, reach.

use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::config::definitions::{FeatureDef, WindowDef};
use crate::config::yaml::Kind;
use crate::model::{Aggregate, Value};

use super::check::{Shape, Typed, compile, compile_condition};
use super::evaluate::{evaluate, is_true};
use super::source::Event;
use super::time;

/// A feature.
pub(super) struct Feature {
    /// The feature as it was written.
    pub(super) definition: FeatureDef,
    /// The shape of its value.
    pub(super) shape: Shape,
    /// Its value when there is none.
    pub(super) default: Option<Value>,
    /// The zone of its calendar unit.
    pub(super) zone: Option<TimeZone>,
    of: Option<Typed>,
    filter: Option<Typed>,
}

impl Feature {
    /// Compiles a feature over the variables of its group's source.
    pub(super) fn new(definition: &FeatureDef, scope: &[(String, Shape)]) -> Result<Self, String> {
        let of = definition.of.as_ref().map(|of| compile(&of.text, scope)).transpose()?;
        let filter =
            definition.filter.as_ref().map(|filter| compile_condition(&filter.text, scope)).transpose()?;
        let zone = match &definition.window {
            WindowDef::Since { zone, .. } => Some(time::zone(zone)?),
            _ => None,
        };
        let of_shape = of.as_ref().map(|of| of.shape.clone());
        let shape = shape_of(definition.aggregate, of_shape)
            .ok_or_else(|| format!("feature `{}` has no `of`", definition.name))?;
        let default = match definition.default.as_ref().map(|node| &node.kind) {
            None | Some(Kind::Null) => None,
            Some(kind) => {
                let value = value_of(kind, &shape);
                Some(value.ok_or_else(|| {
                    format!("the default of feature `{}` is not {shape:?}", definition.name)
                })?)
            }
        };
        Ok(Self { definition: definition.clone(), shape, default, zone, of, filter })
    }

    /// The value that the feature takes from an event: null when it is of nothing, none when it
    /// skips the event.
    pub(super) fn value_of(&self, event: &Event) -> Option<Value> {
        if self.filter.as_ref().is_some_and(|filter| !is_true(filter, &event.values)) {
            return None;
        }
        let Some(of) = &self.of else {
            return Some(Value::Null);
        };
        let value = evaluate(of, &event.values);
        (!value.is_null()).then_some(value)
    }

    /// Whether its floats are results of arithmetic, which are compared with a tolerance.
    pub(super) fn is_computed_float(&self) -> bool {
        let is_taken_as_is = matches!(
            self.definition.aggregate,
            Aggregate::Min | Aggregate::Max | Aggregate::First | Aggregate::Last
        );
        self.shape == Shape::Float && !is_taken_as_is
    }
}

/// The shape of an aggregate's value; none when it needs an `of` and has none.
fn shape_of(aggregate: Aggregate, of: Option<Shape>) -> Option<Shape> {
    Some(match aggregate {
        Aggregate::Count | Aggregate::Distinct | Aggregate::SessionCount => Shape::Int,
        Aggregate::Sum | Aggregate::Min | Aggregate::Max | Aggregate::First | Aggregate::Last => of?,
        Aggregate::LastK | Aggregate::DistinctValues => Shape::List(Box::new(of?)),
        Aggregate::TopK => {
            let entry = vec![("value".to_owned(), of?), ("count".to_owned(), Shape::Int)];
            Shape::List(Box::new(Shape::Record(entry)))
        }
        Aggregate::ValueCounts => Shape::Map(Box::new(Shape::Int)),
        Aggregate::Histogram => Shape::List(Box::new(Shape::Int)),
        _ => Shape::Float,
    })
}

/// A value of a definition file as one of this shape.
fn value_of(kind: &Kind, shape: &Shape) -> Option<Value> {
    match (shape, kind) {
        (Shape::Bool, Kind::Bool(flag)) => Some(Value::Bool(*flag)),
        (Shape::Int, Kind::Int(number)) => Some(Value::Int(*number)),
        (Shape::Float, Kind::Int(number)) => Some(Value::Float(*number as f64)),
        (Shape::Float, Kind::Float(number)) => number.is_finite().then_some(Value::Float(*number + 0.0)),
        (Shape::String, Kind::Text(text)) => Some(Value::from(text.as_str())),
        (Shape::Timestamp, Kind::Text(text)) => time::parse_rfc3339(text, None).map(Value::Timestamp),
        (Shape::List(item), Kind::List(nodes)) => {
            let items: Option<Vec<Value>> = nodes.iter().map(|node| value_of(&node.kind, item)).collect();
            items.map(|items| Value::List(items.into()))
        }
        (Shape::Map(_) | Shape::Record(_), Kind::Map(entries)) => {
            let mut known: Vec<(Arc<str>, Value)> = Vec::new();
            for (key, node) in entries {
                let entry = match shape {
                    Shape::Record(names) => {
                        names.iter().find(|(name, _)| *name == key.name).map(|(_, entry)| entry)
                    }
                    Shape::Map(entry) => Some(&**entry),
                    _ => None,
                };
                known.push((Arc::from(key.name.as_str()), value_of(&node.kind, entry?)?));
            }
            Some(Value::Map(known.into()))
        }
        _ => None,
    }
}
