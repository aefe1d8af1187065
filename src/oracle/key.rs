//! This file holds entity keys and the partitioner.

use crate::model::Value;

/// Longest text of an entity key and of an event id, in bytes.
pub(super) const TEXT_MAX: usize = 1024;

/// A part of an entity key, or an event id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeyPart {
    /// An integer.
    Int(i64),
    /// A text.
    Text(String),
}

/// The parts of an entity key, in order.
pub(super) type EntityKey = Vec<KeyPart>;

/// The key with these parts; none when one of them is neither text nor integer.
pub(super) fn key_of<'a>(parts: impl Iterator<Item = &'a Value>) -> Option<EntityKey> {
    let mut key = Vec::new();
    for part in parts {
        key.push(match part {
            Value::Int(number) => KeyPart::Int(*number),
            Value::String(text) => KeyPart::Text(text.to_string()),
            _ => return None,
        });
    }
    Some(key)
}

/// Whether every text of the key is short enough for an entity.
pub(super) fn is_short(key: &[KeyPart]) -> bool {
    key.iter().all(|part| match part {
        KeyPart::Int(_) => true,
        KeyPart::Text(text) => text.len() <= TEXT_MAX,
    })
}

/// The key as values.
pub(super) fn values_of(key: &[KeyPart]) -> Vec<Value> {
    key.iter()
        .map(|part| match part {
            KeyPart::Int(number) => Value::Int(*number),
            KeyPart::Text(text) => Value::from(text.as_str()),
        })
        .collect()
}

/// The partition, of `partitions`, that holds the key.
pub(super) fn partition_of(key: &[KeyPart], partitions: u32) -> u32 {
    let parts: Vec<String> = key
        .iter()
        .map(|part| match part {
            KeyPart::Int(number) => number.to_string(),
            KeyPart::Text(text) => text.clone(),
        })
        .collect();
    (murmur2(parts.join("\u{1f}").as_bytes()) & 0x7fff_ffff) % partitions
}

/// The hash of Kafka's default partitioner.
fn murmur2(data: &[u8]) -> u32 {
    const MULTIPLIER: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    for chunk in data.chunks(4) {
        let mut word = 0_u32;
        for (index, byte) in chunk.iter().enumerate() {
            word |= u32::from(*byte) << (8 * index);
        }
        if chunk.len() == 4 {
            word = word.wrapping_mul(MULTIPLIER);
            word ^= word >> 24;
            word = word.wrapping_mul(MULTIPLIER);
            hash = hash.wrapping_mul(MULTIPLIER) ^ word;
        } else {
            hash = (hash ^ word).wrapping_mul(MULTIPLIER);
        }
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_kafka() {
        assert_eq!(murmur2(b"kafka"), 0xd067_cf64);
        assert_eq!(murmur2(b"giberish123456789"), 0x8f55_2b0c);
        assert_eq!(murmur2(b"1234"), 0x9fc9_7b14);
        assert_eq!(murmur2(b""), 0x106e_08d9);
    }
}
