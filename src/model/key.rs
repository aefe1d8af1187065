//! Entity keys, their bytes in the log and in the state, and Kafka's partitioner.
//!
//! In the state a key is order-preserving and prefix-free: strings end with `00 01` and have their
//! zero bytes written as `00 ff`; integers are eight big-endian bytes with the sign bit flipped.

use super::{ScalarType, Value};

/// Separates the parts of a composite key in a record key.
const PART_SEPARATOR: u8 = 0x1f;

/// An entity value over this many bytes is no entity.
pub const KEY_BYTES_MAX: usize = 1024;

/// One part of an entity key, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPart<'a> {
    /// A string part.
    String(&'a str),
    /// An integer part.
    Int(i64),
}

impl KeyPart<'_> {
    /// Appends the part in state form.
    pub fn encode(self, out: &mut Vec<u8>) {
        match self {
            Self::String(text) => {
                for byte in text.bytes() {
                    out.push(byte);
                    if byte == 0 {
                        out.push(0xff);
                    }
                }
                out.extend([0, 1]);
            }
            Self::Int(n) => out.extend((n as u64 ^ (1 << 63)).to_be_bytes()),
        }
    }
}

/// Appends the record-key bytes of `parts`: UTF-8, decimal digits, joined by U+001F.
pub fn record_key(parts: &[KeyPart<'_>], out: &mut Vec<u8>) {
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            out.push(PART_SEPARATOR);
        }
        match part {
            KeyPart::String(text) => out.extend(text.as_bytes()),
            KeyPart::Int(n) => out.extend(n.to_string().as_bytes()),
        }
    }
}

/// The record key of an entity, from the values of its parts.
pub fn record_key_of(parts: &[Value]) -> Vec<u8> {
    let parts: Vec<KeyPart<'_>> = parts
        .iter()
        .map(|part| match part {
            Value::Int(n) => KeyPart::Int(*n),
            Value::String(text) => KeyPart::String(text),
            _ => KeyPart::String(""),
        })
        .collect();
    let mut key = Vec::new();
    record_key(&parts, &mut key);
    key
}

/// Reads back the parts of a key in state form.
///
/// Returns `None` when the bytes are not a key of these types.
pub fn decode_parts(mut bytes: &[u8], types: &[ScalarType]) -> Option<Vec<Value>> {
    let mut parts = Vec::with_capacity(types.len());
    for scalar in types {
        if *scalar == ScalarType::Int64 {
            let (head, rest) = bytes.split_first_chunk::<8>()?;
            parts.push(Value::Int((u64::from_be_bytes(*head) ^ (1 << 63)) as i64));
            bytes = rest;
        } else {
            let mut text = Vec::new();
            let mut i = 0;
            loop {
                match (bytes.get(i)?, bytes.get(i + 1)) {
                    (0, Some(0xff)) => {
                        text.push(0);
                        i += 2;
                    }
                    (0, Some(1)) => break,
                    (0, _) => return None,
                    (byte, _) => {
                        text.push(*byte);
                        i += 1;
                    }
                }
            }
            parts.push(Value::String(String::from_utf8(text).ok()?.into()));
            bytes = &bytes[i + 2..];
        }
    }
    bytes.is_empty().then_some(parts)
}

/// Kafka's hash of key bytes (`org.apache.kafka.common.utils.Utils.murmur2`).
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        k = k.wrapping_mul(M);
        h = h.wrapping_mul(M) ^ k;
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

/// Kafka's default partition for key bytes.
pub fn partition_of(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_agrees_with_librdkafkas_vectors() {
        for (key, hash) in [
            ("kafka", 0xd067_cf64),
            ("giberish123456789", 0x8f55_2b0c),
            ("1234", 0x9fc9_7b14),
            ("", 0x106e_08d9),
        ] {
            assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
        }
    }

    #[test]
    fn keys_come_back_and_are_prefix_free() {
        let types = [ScalarType::String, ScalarType::Int64, ScalarType::String];
        for (a, n, b) in [("", 0, ""), ("a\0b", -5, "\u{1}"), ("ab", i64::MIN, "\0")] {
            let mut bytes = Vec::new();
            for part in [KeyPart::String(a), KeyPart::Int(n), KeyPart::String(b)] {
                part.encode(&mut bytes);
            }
            let parts = decode_parts(&bytes, &types).expect("a key");
            assert_eq!(parts, [Value::from(a), Value::Int(n), Value::from(b)]);
            assert_eq!(decode_parts(&bytes[..bytes.len() - 1], &types), None);
        }
    }
}
