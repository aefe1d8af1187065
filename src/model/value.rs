//! Values that features and fields take, and their types.

use std::cmp::Ordering;
use std::sync::Arc;

/// Type of a field, a join key or a request value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScalarType {
    /// UTF-8 text.
    String,
    /// Signed 64-bit integer.
    Int64,
    /// Finite double.
    Float64,
    /// Truth value.
    Bool,
    /// Milliseconds since the epoch.
    Timestamp,
}

impl ScalarType {
    /// All of them, with the names that definitions use.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("string", Self::String),
        ("int64", Self::Int64),
        ("float64", Self::Float64),
        ("bool", Self::Bool),
        ("timestamp", Self::Timestamp),
    ];

    /// The name in definitions.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, t)| *t == self).map_or("", |(name, _)| name)
    }

    /// Whether sums and means make sense.
    pub fn is_number(self) -> bool {
        matches!(self, Self::Int64 | Self::Float64)
    }
}

/// Type of an expression or a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// One value.
    Scalar(ScalarType),
    /// A list of values.
    List(ScalarType),
    /// `top_k`: a list of maps with `value` and `count`.
    Ranking(ScalarType),
    /// `value_counts`: a map from values of this type (as text) to counts.
    Counts(ScalarType),
    /// The literal `null`.
    Null,
}

impl Type {
    /// The name in messages.
    pub fn name(self) -> String {
        match self {
            Self::Scalar(t) => t.name().to_owned(),
            Self::List(t) => format!("list of {}", t.name()),
            Self::Ranking(t) => format!("list of {{value: {}, count: int64}}", t.name()),
            Self::Counts(t) => format!("map from {} to int64", t.name()),
            Self::Null => "null".to_owned(),
        }
    }
}

/// A value. Floats are finite, and there is no −0.0.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Value {
    /// No value.
    #[default]
    Null,
    /// Truth value.
    Bool(bool),
    /// Integer.
    Int(i64),
    /// Finite double.
    Float(f64),
    /// Milliseconds since the epoch.
    Timestamp(i64),
    /// Text.
    String(Arc<str>),
    /// List.
    List(Arc<[Value]>),
    /// Map, in the order in which it is shown.
    Map(Arc<[(Arc<str>, Value)]>),
}

impl Value {
    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// An ascending order among values of one type; strings by bytes.
    pub fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) | (Self::Timestamp(a), Self::Timestamp(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (Self::String(a), Self::String(b)) => a.as_bytes().cmp(b.as_bytes()),
            _ => Ordering::Equal,
        }
    }

    /// Text of a scalar as `value_counts` shows it: its JSON without quotes.
    pub fn plain_text(&self) -> String {
        match self {
            Self::Bool(b) => b.to_string(),
            Self::Int(i) => i.to_string(),
            Self::Float(x) => ryu::Buffer::new().format_finite(*x).to_owned(),
            Self::Timestamp(t) => super::time::format_rfc3339(*t),
            Self::String(s) => s.to_string(),
            Self::Null | Self::List(_) | Self::Map(_) => String::new(),
        }
    }

    /// The value as JSON (SEMANTICS §8): floats with a fraction, timestamps as RFC 3339.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Self::Null => Json::Null,
            Self::Bool(b) => Json::Bool(*b),
            Self::Int(i) => Json::from(*i),
            Self::Float(x) => Json::from(*x),
            Self::Timestamp(t) => Json::String(super::time::format_rfc3339(*t)),
            Self::String(s) => Json::String(s.to_string()),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(entries) => entries.iter().map(|(k, v)| (k.to_string(), v.to_json())).collect(),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}
