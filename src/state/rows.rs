//! Keys of rows.
//!
//! `u`, group id (4 bytes big-endian), entity key in state form, then `H` for the HEAD row or `R`
//! and a row id (8 bytes big-endian) for a sealed row. Entity keys are prefix-free, so all rows of
//! a unit stand together and those of two units never mix.

/// First byte of all rows of units.
const UNIT: u8 = b'u';

/// Which row of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// The HEAD row.
    Head,
    /// A sealed row.
    Sealed(u64),
}

/// What all rows of a unit begin with.
pub fn unit_prefix(group_id: u32, entity: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(entity.len() + 14);
    put_unit_prefix(group_id, entity, &mut key);
    key
}

/// The same, behind what `key` holds.
pub fn put_unit_prefix(group_id: u32, entity: &[u8], key: &mut Vec<u8>) {
    key.push(UNIT);
    key.extend(group_id.to_be_bytes());
    key.extend(entity);
}

/// Key of the HEAD row of the unit at `prefix`.
pub fn head_key(prefix: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(prefix.len() + 1);
    key.extend(prefix);
    key.push(b'H');
    key
}

/// Key of a sealed row.
pub fn row_key(prefix: &[u8], id: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(prefix.len() + 9);
    key.extend(prefix);
    key.push(b'R');
    key.extend(id.to_be_bytes());
    key
}

/// Whether `key` could be that of a HEAD row.
pub fn is_head(key: &[u8]) -> bool {
    key.first() == Some(&UNIT) && key.last() == Some(&b'H')
}

/// Group id and entity key of a unit prefix.
pub fn split_key(prefix: &[u8]) -> Option<(u32, &[u8])> {
    let rest = prefix.strip_prefix(&[UNIT])?;
    let (id, entity) = rest.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*id), entity))
}
