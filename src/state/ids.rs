//! Event ids that a unit remembers to find duplicates (SEMANTICS §2, PROTOCOL 9).
//!
//! Ids are sorted by source partition, event time and hash, in chunks. The newest chunk of a
//! partition stands in HEAD; a full one becomes a sealed row.

use super::view::RowSource;
use crate::codec::bytes::Reader;
use crate::error::{Error, Result};
use crate::model::Millis;

/// Ids of a chunk in HEAD before it is sealed, and of a sealed one before it is split.
const CHUNK_MAX: usize = 1024;

/// Event time and hash of an id.
pub type Id = (Millis, u128);

/// Ids of one source partition.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chunk {
    pub partition: u32,
    pub lo: Millis,
    pub hi: Millis,
    pub data: ChunkData,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum ChunkData {
    Here(Vec<Id>),
    Row(u64),
}

/// What an insertion does to rows.
#[derive(Debug, Default)]
pub(super) struct RowChanges {
    /// New rows, by the placeholder id that stands in their chunk.
    pub fresh: Vec<(u64, Vec<u8>)>,
    /// Rows that nothing refers to any more.
    pub dead: Vec<u64>,
}

/// All ids of a unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IdSet {
    pub(super) chunks: Vec<Chunk>,
}

fn load(id: u64, rows: &dyn RowSource) -> Result<Vec<Id>> {
    let bytes = rows.row(id)?;
    decode(&mut Reader(&bytes)).ok_or_else(|| Error::corrupted("a row of event ids is cut short"))
}

pub(super) fn encode(ids: &[Id], out: &mut Vec<u8>) {
    out.extend((ids.len() as u32).to_le_bytes());
    for (time, hash) in ids {
        out.extend(time.to_le_bytes());
        out.extend(hash.to_le_bytes());
    }
}

pub(super) fn decode(reader: &mut Reader<'_>) -> Option<Vec<Id>> {
    let len = reader.u32()?;
    (0..len).map(|_| Some((reader.i64()?, reader.u128()?))).collect()
}

impl IdSet {
    fn chunk_of(&self, partition: u32, time: Millis) -> Option<usize> {
        // The last chunk of the partition that begins at or before the time, else its first.
        let of_partition = |c: &&Chunk| c.partition == partition;
        let last = self.chunks.iter().rposition(|c| c.partition == partition && c.lo <= time);
        last.or_else(|| self.chunks.iter().position(|c| of_partition(&c)))
    }

    /// Whether the id is held.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub fn contains(&self, partition: u32, id: Id, rows: &dyn RowSource) -> Result<bool> {
        for chunk in &self.chunks {
            if chunk.partition != partition || id.0 < chunk.lo || id.0 > chunk.hi {
                continue;
            }
            let is_held = match &chunk.data {
                ChunkData::Here(ids) => ids.binary_search(&id).is_ok(),
                ChunkData::Row(row) => load(*row, rows)?.binary_search(&id).is_ok(),
            };
            if is_held {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds an id that is not held. Row ids come from `next_row`.
    pub(super) fn insert(
        &mut self,
        partition: u32,
        id: Id,
        rows: &dyn RowSource,
        next_row: &mut u64,
    ) -> Result<RowChanges> {
        let mut changes = RowChanges::default();
        let Some(index) = self.chunk_of(partition, id.0) else {
            let chunk = Chunk { partition, lo: id.0, hi: id.0, data: ChunkData::Here(vec![id]) };
            let at = self.chunks.partition_point(|c| c.partition <= partition);
            self.chunks.insert(at, chunk);
            return Ok(changes);
        };
        let is_newest = self.chunks.get(index + 1).is_none_or(|c| c.partition != partition);
        let chunk = &mut self.chunks[index];
        let mut ids = match &mut chunk.data {
            ChunkData::Here(ids) => std::mem::take(ids),
            ChunkData::Row(row) if is_newest && id.0 > chunk.hi => {
                // The newest chunk is sealed: a new one begins.
                let _ = row;
                let next = Chunk { partition, lo: id.0, hi: id.0, data: ChunkData::Here(vec![id]) };
                self.chunks.insert(index + 1, next);
                return Ok(changes);
            }
            ChunkData::Row(row) => {
                changes.dead.push(*row);
                load(*row, rows)?
            }
        };
        let at = ids.partition_point(|other| *other < id);
        ids.insert(at, id);
        let mut seal = |ids: &[Id]| {
            let row = *next_row;
            *next_row += 1;
            let mut bytes = Vec::new();
            encode(ids, &mut bytes);
            changes.fresh.push((row, bytes));
            ChunkData::Row(row)
        };
        if ids.len() > CHUNK_MAX {
            let upper = ids.split_off(ids.len() / 2);
            let data = if is_newest { ChunkData::Here(upper.clone()) } else { seal(&upper) };
            let next = Chunk { partition, lo: upper[0].0, hi: upper[upper.len() - 1].0, data };
            let data = seal(&ids);
            *chunk = Chunk { partition, lo: ids[0].0, hi: ids[ids.len() - 1].0, data };
            self.chunks.insert(index + 1, next);
        } else {
            let (lo, hi) = (ids[0].0, ids[ids.len() - 1].0);
            let data = if is_newest { ChunkData::Here(ids) } else { seal(&ids) };
            *chunk = Chunk { partition, lo, hi, data };
        }
        Ok(changes)
    }

    /// Drops ids of `partition` with event times before `limit`; returns rows that are now dead.
    pub(super) fn expire(&mut self, partition: u32, limit: Millis) -> Vec<u64> {
        let mut dead = Vec::new();
        if self.chunks.is_empty() {
            return dead;
        }
        self.chunks.retain_mut(|chunk| {
            if chunk.partition != partition || chunk.lo >= limit {
                return true;
            }
            if chunk.hi < limit {
                if let ChunkData::Row(row) = chunk.data {
                    dead.push(row);
                }
                return false;
            }
            if let ChunkData::Here(ids) = &mut chunk.data {
                let expired = ids.partition_point(|id| id.0 < limit);
                // Moving the rest each time would cost more than it saves.
                if expired * 2 > ids.len() {
                    ids.drain(..expired);
                    chunk.lo = ids[0].0;
                }
            }
            true
        });
        dead
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        let held = |c: &Chunk| match &c.data {
            ChunkData::Here(ids) => ids.capacity() * 32,
            ChunkData::Row(_) => 0,
        };
        // Chunks in HEAD are among the last of their partition; a long list is sealed rows.
        let listed: usize = self.chunks.iter().rev().take(16).map(held).sum();
        listed + self.chunks.len() * 64
    }
}
