//! Records of repartition topics (PROTOCOL 5): projected events and progress markers.
//!
//! A record is one version byte, one kind byte (`e` or `m`), then:
//! - `e`: source partition u32, offset u64, event time i64, advance i64, stream time before it i64,
//!   flag byte (1: it has an id, 2: its log was cut), id u128, first event time known i64, entity key
//!   bytes, the event as a buffer of one.
//! - `m`: source partition u32, next offset u64, stream time i64, and, if its log was cut, the first
//!   event time known i64.

use super::bytes::{Reader, put_bytes};
use crate::model::{Millis, Offset};
use crate::operator::{EventBuf, Layout};

const VERSION: u8 = 1;
const HAS_ID: u8 = 1;
const IS_CUT: u8 = 2;

/// A projected event on its way to the group that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedEvent {
    /// Partition of the source record.
    pub partition: u32,
    /// Its offset.
    pub offset: Offset,
    /// Smaller of event time and log timestamp.
    pub advance: Millis,
    /// Stream time of the source partition just before it.
    pub stream_time: Millis,
    /// Hash of event id and time.
    pub id: Option<u128>,
    /// Event time from which on its partition is known, if its first records were gone.
    pub covered_from: Option<Millis>,
    /// Key of the entity in state form.
    pub key: Vec<u8>,
    /// The event.
    pub event: EventBuf,
}

/// How far a source partition has been judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The source partition.
    pub partition: u32,
    /// Next offset.
    pub next_offset: Offset,
    /// Its stream time.
    pub stream_time: Millis,
    /// Event time from which on it is known, if its first records were gone.
    pub covered_from: Option<Millis>,
}

/// What a repartition topic holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Routed {
    /// An event.
    Event(RoutedEvent),
    /// A progress marker.
    Marker(Marker),
}

impl RoutedEvent {
    /// The stored form.
    pub fn encode(&self, layout: &Layout) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.key.len() + self.event.bytes());
        out.extend([VERSION, b'e']);
        out.extend(self.partition.to_le_bytes());
        out.extend(self.offset.to_le_bytes());
        out.extend(self.advance.to_le_bytes());
        out.extend(self.stream_time.to_le_bytes());
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        out.push(flag(self.id.is_some(), HAS_ID) | flag(self.covered_from.is_some(), IS_CUT));
        out.extend(self.id.iter().flat_map(|id| id.to_le_bytes()));
        out.extend(self.covered_from.iter().flat_map(|time| time.to_le_bytes()));
        put_bytes(&mut out, &self.key);
        self.event.encode(layout, &mut out);
        out
    }
}

impl Marker {
    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, b'm'];
        out.extend(self.partition.to_le_bytes());
        out.extend(self.next_offset.to_le_bytes());
        out.extend(self.stream_time.to_le_bytes());
        out.extend(self.covered_from.iter().flat_map(|time| time.to_le_bytes()));
        out
    }
}

/// Reads a stored record. `None` when it is not one.
pub fn decode(layout: &Layout, bytes: &[u8]) -> Option<Routed> {
    let mut reader = Reader(bytes);
    if reader.u8()? != VERSION {
        return None;
    }
    match reader.u8()? {
        b'm' => Some(Routed::Marker(Marker {
            partition: reader.u32()?,
            next_offset: reader.u64()?,
            stream_time: reader.i64()?,
            covered_from: if reader.0.is_empty() { None } else { Some(reader.i64()?) },
        })),
        b'e' => {
            let (partition, offset) = (reader.u32()?, reader.u64()?);
            let (advance, stream_time) = (reader.i64()?, reader.i64()?);
            let flags = reader.u8()?;
            let id = if flags & HAS_ID == 0 { None } else { Some(reader.u128()?) };
            let covered_from = if flags & IS_CUT == 0 { None } else { Some(reader.i64()?) };
            let key = reader.bytes()?.to_vec();
            let event = EventBuf::decode(layout, &mut reader.0)?;
            let event = RoutedEvent { partition, offset, advance, stream_time, id, covered_from, key, event };
            Some(Routed::Event(event))
        }
        _ => None,
    }
}
