//! Event ids that a unit remembers to find duplicates (SEMANTICS §2, PROTOCOL 9).
//!
//! Ids are sorted by source partition, event time and hash, in chunks. The newest chunk of a
//! partition stands in HEAD, as far as all of them have room there; others are sealed rows.

use std::ops::RangeInclusive;

use super::view::RowSource;
use crate::codec::bytes::Reader;
use crate::error::{Error, Result};
use crate::model::Millis;

/// Ids of a chunk before it is split, and where a unit has very many of them: its list of chunks stands
/// in HEAD, and a row stays below 64 KiB.
const CHUNK: RangeInclusive<usize> = if cfg!(test) { 8..=16 } else { 1024..=2560 };
/// Ids that stand in HEAD, of all partitions together.
const HERE_MAX: usize = if cfg!(test) { 12 } else { 1536 };

/// Event time and hash of an id.
pub type Id = (Millis, u128);

/// Ids of one source partition.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chunk {
    pub partition: u32,
    pub lo: Id,
    pub hi: Id,
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
    /// By partition and first id.
    chunks: Vec<Chunk>,
    /// Ids of all chunks in HEAD.
    here: usize,
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

impl FromIterator<Chunk> for IdSet {
    fn from_iter<T: IntoIterator<Item = Chunk>>(chunks: T) -> Self {
        let chunks: Vec<Chunk> = chunks.into_iter().collect();
        let here = chunks.iter().map(Chunk::here).sum();
        Self { chunks, here }
    }
}

impl Chunk {
    fn here(&self) -> usize {
        match &self.data {
            ChunkData::Here(ids) => ids.len(),
            ChunkData::Row(_) => 0,
        }
    }
}

impl IdSet {
    /// All chunks, by partition and first id.
    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The chunk that holds the id if any does: the last of the partition that begins at or before it, else
    /// its first.
    fn chunk_of(&self, partition: u32, id: Id) -> Option<usize> {
        let after = self.chunks.partition_point(|c| (c.partition, c.lo) <= (partition, id));
        let is_own = |index: &usize| self.chunks.get(*index).is_some_and(|c| c.partition == partition);
        after.checked_sub(1).filter(is_own).or_else(|| Some(after).filter(is_own))
    }

    /// Whether the id is held.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub fn contains(&self, partition: u32, id: Id, rows: &dyn RowSource) -> Result<bool> {
        let Some(chunk) = self.chunk_of(partition, id).map(|index| &self.chunks[index]) else {
            return Ok(false);
        };
        if !(chunk.lo..=chunk.hi).contains(&id) {
            return Ok(false);
        }
        Ok(match &chunk.data {
            ChunkData::Here(ids) => ids.binary_search(&id).is_ok(),
            ChunkData::Row(row) => load(*row, rows)?.binary_search(&id).is_ok(),
        })
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
        match self.chunk_of(partition, id) {
            // Behind what is sealed a new chunk begins.
            Some(index)
                if !(self.is_newest(index)
                    && id > self.chunks[index].hi
                    && matches!(self.chunks[index].data, ChunkData::Row(_))) =>
            {
                let mut ids = self.take(index, rows, &mut changes)?;
                ids.insert(ids.partition_point(|other| *other < id), id);
                self.put_back(index, ids, next_row, &mut changes);
            }
            found => {
                let at = found.map_or_else(
                    || self.chunks.partition_point(|c| (c.partition, c.lo) < (partition, id)),
                    |index| index + 1,
                );
                self.here += 1;
                let data = ChunkData::Here(vec![id]);
                self.chunks.insert(at, Chunk { partition, lo: id, hi: id, data });
            }
        }
        while self.here > HERE_MAX {
            self.seal_largest(rows, next_row, &mut changes)?;
        }
        Ok(changes)
    }

    /// Whether it is the last chunk of its partition.
    fn is_newest(&self, index: usize) -> bool {
        self.chunks.get(index + 1).is_none_or(|c| c.partition != self.chunks[index].partition)
    }

    fn size_max(&self) -> usize {
        (self.chunks.len() * 4).clamp(*CHUNK.start(), *CHUNK.end())
    }

    /// The ids of a chunk, which is to be put back or removed.
    fn take(&mut self, index: usize, rows: &dyn RowSource, changes: &mut RowChanges) -> Result<Vec<Id>> {
        match &mut self.chunks[index].data {
            ChunkData::Here(ids) => {
                self.here -= ids.len();
                Ok(std::mem::take(ids))
            }
            ChunkData::Row(row) => {
                let ids = match changes.fresh.iter().position(|(fresh, _)| fresh == row) {
                    // Of this very change: nobody else has heard of it.
                    Some(at) => {
                        let (_, bytes) = changes.fresh.remove(at);
                        decode(&mut Reader(&bytes)).unwrap_or_default()
                    }
                    None => {
                        changes.dead.push(*row);
                        load(*row, rows)?
                    }
                };
                Ok(ids)
            }
        }
    }

    /// Ids of chunk `index`, in one or two: the newest stays in HEAD, others are sealed.
    fn put_back(&mut self, index: usize, mut ids: Vec<Id>, next_row: &mut u64, changes: &mut RowChanges) {
        let (is_newest, partition) = (self.is_newest(index), self.chunks[index].partition);
        if ids.len() > self.size_max() {
            // What comes in order is not torn apart again and again.
            let upper = ids.split_off(if is_newest { ids.len() * 3 / 4 } else { ids.len() / 2 });
            let next = self.chunk(partition, upper, is_newest, next_row, changes);
            self.chunks.insert(index + 1, next);
            self.chunks[index] = self.chunk(partition, ids, false, next_row, changes);
        } else {
            self.chunks[index] = self.chunk(partition, ids, is_newest, next_row, changes);
        }
    }

    fn chunk(
        &mut self,
        partition: u32,
        ids: Vec<Id>,
        is_here: bool,
        next_row: &mut u64,
        changes: &mut RowChanges,
    ) -> Chunk {
        let (lo, hi) = (ids[0], ids[ids.len() - 1]);
        let data = if is_here {
            self.here += ids.len();
            ChunkData::Here(ids)
        } else {
            let (row, mut bytes) = (*next_row, Vec::new());
            *next_row += 1;
            encode(&ids, &mut bytes);
            changes.fresh.push((row, bytes));
            ChunkData::Row(row)
        };
        Chunk { partition, lo, hi, data }
    }

    /// Seals the largest chunk in HEAD, together with the one before it if both are small.
    fn seal_largest(
        &mut self,
        rows: &dyn RowSource,
        next_row: &mut u64,
        changes: &mut RowChanges,
    ) -> Result<()> {
        let largest = (0..self.chunks.len()).max_by_key(|index| self.chunks[*index].here());
        let Some(index) = largest else { return Ok(()) };
        let partition = self.chunks[index].partition;
        let mut ids = self.take(index, rows, changes)?;
        let before = index.checked_sub(1).filter(|b| self.chunks[*b].partition == partition);
        let Some(before) = before else {
            self.chunks[index] = self.chunk(partition, ids, false, next_row, changes);
            return Ok(());
        };
        let mut all = self.take(before, rows, changes)?;
        if all.len() + ids.len() <= self.size_max() {
            all.append(&mut ids);
            self.chunks.remove(index);
        } else {
            self.chunks[index] = self.chunk(partition, ids, false, next_row, changes);
        }
        self.chunks[before] = self.chunk(partition, all, false, next_row, changes);
        Ok(())
    }

    /// Drops ids of `partition` with event times before `limit`; returns rows that are now dead.
    pub(super) fn expire(&mut self, partition: u32, limit: Millis) -> Vec<u64> {
        let mut dead = Vec::new();
        let first = self.chunks.partition_point(|c| c.partition < partition);
        let is_gone = |c: &&Chunk| c.partition == partition && c.hi.0 < limit;
        let count = self.chunks[first..].iter().take_while(is_gone).count();
        for chunk in self.chunks.drain(first..first + count) {
            self.here -= chunk.here();
            if let ChunkData::Row(row) = chunk.data {
                dead.push(row);
            }
        }
        let next = self.chunks.get_mut(first).filter(|c| c.partition == partition && c.lo.0 < limit);
        if let Some(chunk) = next
            && let ChunkData::Here(ids) = &mut chunk.data
        {
            let expired = ids.partition_point(|id| id.0 < limit);
            // Moving the rest each time would cost more than it saves.
            if expired * 2 > ids.len() {
                ids.drain(..expired);
                self.here -= expired;
                chunk.lo = ids[0];
            }
        }
        dead
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        // A list of ids has room for up to twice as many.
        self.here * 2 * size_of::<Id>() + self.chunks.len() * size_of::<Chunk>()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Rows(BTreeMap<u64, Vec<u8>>);

    impl RowSource for Rows {
        fn row(&self, id: u64) -> Result<Vec<u8>> {
            self.0.get(&id).cloned().ok_or_else(|| Error::corrupted("no such row"))
        }
    }

    proptest! {
        #[test]
        fn ids_are_those_of_a_plain_set(
            events in vec((0..5_u32, -6..3_i64, 0..3_u128), 1..400),
            is_one_time in any::<bool>(),
        ) {
            let (mut ids, mut rows, mut plain) = (IdSet::default(), Rows::default(), BTreeSet::new());
            let (mut next_row, mut time) = (0, 0);
            for (number, (partition, later, hash)) in events.into_iter().enumerate() {
                time += later.max(0);
                // One of each few is a retransmission of what may be held.
                let at = if is_one_time { 0 } else { time + later };
                let id = (at, if hash == 0 { 7 } else { number as u128 % 97 * hash });
                let is_held = ids.contains(partition, id, &rows).expect("readable");
                prop_assert_eq!(is_held, plain.contains(&(partition, id)));
                if !is_held {
                    let changes = ids.insert(partition, id, &rows, &mut next_row).expect("readable");
                    plain.insert((partition, id));
                    rows.0.extend(changes.fresh);
                    for row in changes.dead {
                        prop_assert!(rows.0.remove(&row).is_some());
                    }
                }
                let limit = time - 20;
                for row in ids.expire(partition, limit) {
                    prop_assert!(rows.0.remove(&row).is_some());
                }
                // What has expired may be held for a while: nobody asks.
                plain.retain(|(of, id)| *of != partition || id.0 >= limit);
                let found: BTreeSet<(u32, Id)> = all(&ids, &rows).filter(|(of, id)| *of != partition || id.0 >= limit).collect();
                prop_assert!(plain.is_subset(&found), "{:?} of {:?}", plain, found);
                let named = ids.chunks.iter().filter(|c| matches!(c.data, ChunkData::Row(_))).count();
                prop_assert_eq!(named, rows.0.len(), "rows that nothing refers to");
                prop_assert!(ids.here <= HERE_MAX);
                prop_assert_eq!(ids.here, ids.chunks.iter().map(Chunk::here).sum::<usize>());
            }
        }
    }

    fn all<'a>(ids: &'a IdSet, rows: &'a Rows) -> impl Iterator<Item = (u32, Id)> + 'a {
        ids.chunks.iter().flat_map(|chunk| {
            let held = match &chunk.data {
                ChunkData::Here(ids) => ids.clone(),
                ChunkData::Row(row) => load(*row, rows).expect("readable"),
            };
            assert_eq!((held[0], held[held.len() - 1]), (chunk.lo, chunk.hi));
            assert!(held.len() <= *CHUNK.end());
            held.into_iter().map(|id| (chunk.partition, id))
        })
    }
}
