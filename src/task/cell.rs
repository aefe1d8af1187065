//! Values and statuses of features (SEMANTICS §5, the table at its end).

use super::UnitAnswer;
use crate::model::{Aggregate, Millis, ScalarType, Type, Value};
use crate::operator::Answer;
use crate::topology::GroupFeature;

/// What a value is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellStatus {
    /// A value.
    Present,
    /// No value.
    NullValue,
    /// The entity is not known.
    NotFound,
    /// The entity's newest event is too old.
    OutsideMaxAge,
    /// The declared default.
    Defaulted,
    /// The window reaches back beyond what the state has seen.
    Warming,
    /// A sketch answered.
    Approximate,
    /// `now` is before the readable past.
    OutOfRange,
    /// The owner cannot answer now.
    Degraded,
}

impl CellStatus {
    /// The name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Present => "PRESENT",
            Self::NullValue => "NULL_VALUE",
            Self::NotFound => "NOT_FOUND",
            Self::OutsideMaxAge => "OUTSIDE_MAX_AGE",
            Self::Defaulted => "DEFAULTED",
            Self::Warming => "WARMING",
            Self::Approximate => "APPROXIMATE",
            Self::OutOfRange => "OUT_OF_RANGE",
            Self::Degraded => "DEGRADED",
        }
    }
}

/// One value of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The value.
    pub value: Value,
    /// Its status.
    pub status: CellStatus,
    /// Event time of what it rests on; 0 for none.
    pub timestamp: Millis,
}

/// The value over no events.
fn empty_value(feature: &GroupFeature) -> Value {
    match (feature.plan.aggregate, feature.value_type) {
        (Aggregate::Count | Aggregate::Distinct | Aggregate::SessionCount, _) => Value::Int(0),
        (Aggregate::Sum, Type::Scalar(ScalarType::Int64)) => Value::Int(0),
        (Aggregate::Sum | Aggregate::Rate | Aggregate::DecayedSum | Aggregate::DecayedCount, _) => {
            Value::Float(0.0)
        }
        (Aggregate::Histogram, _) => Value::List(vec![Value::Int(0); feature.plan.bounds.len() + 1].into()),
        (_, Type::List(_) | Type::Ranking(_)) => Value::List([].into()),
        (_, Type::Counts(_)) => Value::Map([].into()),
        _ => Value::Null,
    }
}

/// The cell of a feature whose owner cannot answer.
pub fn degraded(feature: &GroupFeature) -> Cell {
    let value = feature.default.clone().unwrap_or_default();
    Cell { value, status: CellStatus::Degraded, timestamp: 0 }
}

/// The cell of a feature; `answer` is there when the entity is known.
pub fn cell(feature: &GroupFeature, unit: &UnitAnswer, answer: Option<&Answer>, now: Millis) -> Cell {
    let or_default = |fallback: Value| feature.default.clone().unwrap_or(fallback);
    if unit.is_out_of_range {
        return Cell { value: Value::Null, status: CellStatus::OutOfRange, timestamp: 0 };
    }
    let (Some(newest), Some(answer)) = (unit.newest, answer) else {
        let value = or_default(empty_value(feature));
        return Cell { value, status: CellStatus::NotFound, timestamp: 0 };
    };
    if feature.ttl.is_some_and(|ttl| now.saturating_sub(newest) > ttl) {
        let value = or_default(Value::Null);
        return Cell { value, status: CellStatus::OutsideMaxAge, timestamp: newest };
    }
    let is_covered = unit.covered_from.is_none_or(|start| start <= answer.oldest);
    let (value, status) = match (&answer.value, &feature.default) {
        (value, _) if !is_covered => (value.clone(), CellStatus::Warming),
        (Value::Null, Some(default)) => (default.clone(), CellStatus::Defaulted),
        (Value::Null, None) => (Value::Null, CellStatus::NullValue),
        (value, _) if answer.is_approximate => (value.clone(), CellStatus::Approximate),
        (value, _) => (value.clone(), CellStatus::Present),
    };
    Cell { value, status, timestamp: newest }
}
