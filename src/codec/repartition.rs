//! Records of repartition topics (PROTOCOL 5): projected events and progress markers.
//!
//! A record is one version byte, one kind byte (`e` or `m`), then:
//! - `e`: source partition u32, offset u64, event time i64, advance i64, stream time before it i64,
//!   flag byte and id u128 if there is one, entity key bytes, the event as a buffer of one.
//! - `m`: source partition u32, next offset u64, stream time i64.

use super::bytes::{Reader, put_bytes};
use crate::model::{Millis, Offset};
use crate::operator::{EventBuf, Layout};

const VERSION: u8 = 1;

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
        out.push(u8::from(self.id.is_some()));
        if let Some(id) = self.id {
            out.extend(id.to_le_bytes());
        }
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
        })),
        b'e' => {
            let (partition, offset) = (reader.u32()?, reader.u64()?);
            let (advance, stream_time) = (reader.i64()?, reader.i64()?);
            let id = if reader.u8()? == 1 { Some(reader.u128()?) } else { None };
            let key = reader.bytes()?.to_vec();
            let event = EventBuf::decode(layout, &mut reader.0)?;
            Some(Routed::Event(RoutedEvent { partition, offset, advance, stream_time, id, key, event }))
        }
        _ => None,
    }
}
