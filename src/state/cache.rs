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

/// All cached units of a task.
#[derive(Debug, Default)]
pub struct UnitCache {
    index: HashTable<u32>,
    slots: Vec<Option<Slot>>,
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

    /// The slot of `key`.
    pub fn find(&self, key: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.index.find(hash, |i| self.slots[*i as usize].as_ref().is_some_and(|s| *s.key == *key)).copied()
    }

    /// The unit of `key`, marked as used.
    pub fn get(&self, key: &[u8]) -> Option<&Unit> {
        let slot = self.slot(self.find(key)?);
        slot.is_recent.store(true, Ordering::Relaxed);
        Some(&slot.unit)
    }

    /// Slot `index`, which must be taken.
    pub fn slot(&self, index: u32) -> &Slot {
        self.slots[index as usize].as_ref().expect("a taken slot")
    }

    /// The unit in slot `index`, to be changed; tell [`UnitCache::measure`] afterwards.
    pub fn unit_mut(&mut self, index: u32) -> &mut Unit {
        let slot = self.slots[index as usize].as_mut().expect("a taken slot");
        *slot.is_recent.get_mut() = true;
        &mut slot.unit
    }

    /// Takes the size of a changed unit into account.
    pub fn measure(&mut self, index: u32) {
        let slot = self.slots[index as usize].as_mut().expect("a taken slot");
        let bytes = slot.unit.bytes() + slot.key.len() + SLOT_BYTES;
        self.bytes = self.bytes + bytes - slot.bytes;
        slot.bytes = bytes;
    }

    /// Adds a unit that is not there; returns its slot.
    pub fn insert(&mut self, key: Box<[u8]>, unit: Unit) -> u32 {
        let hash = self.hasher.hash_one(&*key);
        let slot = Slot { key, unit, bytes: 0, is_recent: AtomicBool::new(true) };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = Some(slot);
                index
            }
            None => {
                self.slots.push(Some(slot));
                (self.slots.len() - 1) as u32
            }
        };
        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hash, index, |i| {
            slots[*i as usize].as_ref().map_or(0, |s| hasher.hash_one(&*s.key))
        });
        self.measure(index);
        index
    }

    /// Removes a unit.
    pub fn remove(&mut self, index: u32) {
        let Some(slot) = self.slots[index as usize].take() else { return };
        let hash = self.hasher.hash_one(&*slot.key);
        if let Ok(entry) = self.index.find_entry(hash, |i| *i == index) {
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
            self.hand = if self.hand + 1 >= self.slots.len() { 0 } else { self.hand + 1 };
            let index = self.hand as u32;
            let Some(slot) = &mut self.slots[self.hand] else { continue };
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
        self.slots.iter().flatten()
    }
}
