//! The write-back cache of units: a hash table over slots, with CLOCK eviction of clean ones.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};

use hashbrown::{DefaultHashBuilder, HashTable};

use super::unit::Unit;

/// A cached unit.
#[derive(Debug)]
pub struct Slot {
    /// Prefix of its rows.
    pub key: Box<[u8]>,
    /// The unit.
    pub unit: Unit,
    /// Bytes when it was last measured.
    bytes: usize,
    /// Whether it was used since the hand last passed.
    is_recent: AtomicBool,
}

/// Where a unit is, and the hash of its key: a growing table need not look at the keys again.
#[derive(Clone, Copy, Debug)]
struct Place {
    hash: u32,
    slot: u32,
}

/// Slots of a block: a growing cache moves none.
const BLOCK: usize = 256;

/// All cached units of a task.
#[derive(Debug, Default)]
pub struct UnitCache {
    index: HashTable<Place>,
    blocks: Vec<Box<[Option<Slot>]>>,
    /// Slots that have been in use, the first of all.
    used: usize,
    free: Vec<u32>,
    hasher: DefaultHashBuilder,
    hand: usize,
    bytes: usize,
}

/// Slots that one eviction looks at: readers wait meanwhile.
const EVICT_STEPS: usize = 1024;
/// Bytes of a slot beside its unit and key.
const SLOT_BYTES: usize = size_of::<Slot>() - size_of::<Unit>() + 16;

impl UnitCache {
    /// Number of units.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Bytes of all units, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn hash(&self, key: &[u8]) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    fn taken(&self, index: u32) -> Option<&Slot> {
        self.blocks[index as usize / BLOCK][index as usize % BLOCK].as_ref()
    }

    fn place(&mut self, index: u32) -> &mut Option<Slot> {
        &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK]
    }

    /// The slot of `key`.
    pub fn find(&self, key: &[u8]) -> Option<u32> {
        let hash = self.hash(key);
        let is_it =
            |place: &Place| place.hash == hash && self.taken(place.slot).is_some_and(|s| *s.key == *key);
        self.index.find(spread(hash), is_it).map(|place| place.slot)
    }

    /// The slots of `keys`, in their order, into `found`. What one look waits for in memory all wait for
    /// together: at each level they do not depend on each other, so the processor has many under way.
    /// Units that are found are in its caches afterwards.
    pub fn find_all<'k>(&self, keys: impl Iterator<Item = &'k [u8]> + Clone, found: &mut Vec<Option<u32>>) {
        found.clear();
        found.extend(keys.clone().map(|key| {
            let hash = self.hash(key);
            self.index.find(spread(hash), |place| place.hash == hash).map(|place| place.slot)
        }));
        let touched = found.iter().flatten().filter_map(|slot| {
            let slot = self.taken(*slot)?;
            Some(slot.unit.touch() ^ u64::from(*slot.key.last()?))
        });
        std::hint::black_box(touched.fold(0, |all, one| all ^ one));
        for (key, found) in keys.zip(found) {
            if found.is_some_and(|slot| self.taken(slot).is_none_or(|s| *s.key != *key)) {
                // Another key has the same hash.
                *found = self.find(key);
            }
        }
    }

    /// The unit of `key`, marked as used.
    pub fn get(&self, key: &[u8]) -> Option<&Unit> {
        let slot = self.slot(self.find(key)?);
        slot.is_recent.store(true, Ordering::Relaxed);
        Some(&slot.unit)
    }

    /// Slot `index`, which must be taken.
    pub fn slot(&self, index: u32) -> &Slot {
        self.taken(index).expect("a taken slot")
    }

    /// The unit in slot `index`, to be changed; tell [`UnitCache::measure`] afterwards.
    pub fn unit_mut(&mut self, index: u32) -> &mut Unit {
        let slot = self.place(index).as_mut().expect("a taken slot");
        *slot.is_recent.get_mut() = true;
        &mut slot.unit
    }

    /// Takes the size of a changed unit into account.
    pub fn measure(&mut self, index: u32) {
        let slot = self.place(index).as_mut().expect("a taken slot");
        let bytes = slot.unit.bytes() + slot.key.len() + SLOT_BYTES;
        let before = std::mem::replace(&mut slot.bytes, bytes);
        self.bytes = self.bytes + bytes - before;
    }

    /// Adds a unit that is not there; returns its slot.
    pub fn insert(&mut self, key: Box<[u8]>, unit: Unit) -> u32 {
        let hash = self.hash(&key);
        let index = self.free.pop().unwrap_or_else(|| {
            if self.used == self.blocks.len() * BLOCK {
                self.blocks.push((0..BLOCK).map(|_| None).collect());
            }
            self.used += 1;
            (self.used - 1) as u32
        });
        *self.place(index) = Some(Slot { key, unit, bytes: 0, is_recent: AtomicBool::new(true) });
        self.index.insert_unique(spread(hash), Place { hash, slot: index }, |place| spread(place.hash));
        self.measure(index);
        index
    }

    /// Removes a unit.
    pub fn remove(&mut self, index: u32) {
        let Some(slot) = self.place(index).take() else { return };
        let hash = self.hash(&slot.key);
        if let Ok(entry) = self.index.find_entry(spread(hash), |place| place.slot == index) {
            entry.remove();
        }
        self.free.push(index);
        self.bytes -= slot.bytes;
    }

    /// Evicts clean units until at most `limit` bytes are left, or enough was looked at for now.
    pub fn evict(&mut self, limit: usize) {
        let mut steps = EVICT_STEPS;
        while self.bytes > limit && steps > 0 {
            steps -= 1;
            self.hand = if self.hand + 1 >= self.used { 0 } else { self.hand + 1 };
            let index = self.hand as u32;
            let Some(slot) = self.place(index) else { continue };
            if slot.unit.is_pinned() {
                continue;
            }
            if std::mem::take(slot.is_recent.get_mut()) {
                continue;
            }
            self.remove(index);
        }
    }

    /// All units.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.blocks.iter().flat_map(|block| block.iter().flatten())
    }
}

/// The bits that the table looks at, from those that are kept (Fibonacci hashing).
fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Over several blocks, with slots that are used again.
        #[test]
        fn finds_what_was_inserted_and_not_removed(
            acts in vec((0_u32..1500, prop::bool::weighted(0.7)), 0..4000),
        ) {
            let mut cache = UnitCache::default();
            let mut known: HashMap<u32, u32> = HashMap::new();
            for (key, is_insertion) in acts {
                let bytes: Box<[u8]> = key.to_be_bytes().into();
                match (cache.find(&bytes), is_insertion) {
                    (None, true) => drop(known.insert(key, cache.insert(bytes, Unit::default()))),
                    (Some(slot), false) => {
                        prop_assert_eq!(known.remove(&key), Some(slot));
                        cache.remove(slot);
                    }
                    (found, _) => prop_assert_eq!(found, known.get(&key).copied()),
                }
            }
            prop_assert_eq!(cache.len(), known.len());
            prop_assert_eq!(cache.iter().count(), known.len());
            let keys: Vec<[u8; 4]> = (0..1500_u32).map(u32::to_be_bytes).collect();
            let mut found = vec![Some(0)];
            cache.find_all(keys.iter().map(|key| &key[..]), &mut found);
            prop_assert_eq!(found, (0..1500).map(|key| known.get(&key).copied()).collect::<Vec<_>>());
            for (key, slot) in known {
                prop_assert_eq!(cache.find(&key.to_be_bytes()), Some(slot));
                prop_assert_eq!(&*cache.slot(slot).key, &key.to_be_bytes()[..]);
            }
            cache.evict(0);
            cache.evict(0);
            while !cache.is_empty() {
                cache.evict(0);
            }
            prop_assert_eq!(cache.bytes(), 0);
        }
    }
}
