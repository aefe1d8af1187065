//! The nouns: values and their types, event time, entity keys, records, positions.

pub mod aggregate;
pub mod decimal;
pub mod key;
pub mod names;
pub mod time;
pub mod value;

use std::collections::BTreeMap;

pub use aggregate::{Aggregate, CalendarUnit};
pub use key::{murmur2, partition_of};
pub use value::{ScalarType, Type, Value};

/// Event time: milliseconds since 1970-01-01T00:00:00Z.
pub type Millis = i64;

/// Position of a record in its partition.
pub type Offset = u64;

/// One record of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Key bytes; `None` when the record has no usable key.
    pub key: Option<Vec<u8>>,
    /// Payload; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values, in order.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Next offsets by topic and partition (SEMANTICS §7).
pub type Positions = BTreeMap<String, BTreeMap<u32, Offset>>;

/// Key and value of a row that changes; no value: it is deleted.
pub type Change = (Vec<u8>, Option<Vec<u8>>);
