//! Keyed state of a task: units, their rows, the write-back cache, the store below it.
//!
//! A *unit* is all rows of one entity in one group. Its HEAD row holds the clocks, the newest
//! events and a directory of older ones; sealed rows below it hold events (pages), directories
//! (nodes) and event ids. A changed sealed row is a new row with a new id.

mod cache;
pub mod ids;
mod insert;
mod memory;
#[cfg(feature = "rocksdb")]
mod rocks;
mod rows;
#[cfg(test)]
mod sketch_tests;
mod sketches;
#[cfg(test)]
mod tile_tests;
mod tiles;
mod unit;
mod view;

use std::sync::Arc;

use crate::error::Result;
use crate::model::Change;

pub use cache::{Slot, UnitCache};
pub use insert::{Arrival, Outcome};
pub use memory::MemoryStore;
#[cfg(feature = "rocksdb")]
pub use rocks::{RocksStore, SharedMemory};
pub use rows::{RowKind, head_key, is_head, put_unit_prefix, row_key, split_key, unit_prefix};
pub use unit::{Entry, Unit, UnitRules};
pub use view::{RowSource, StoredRows, UnitView, decode_node, decode_page};

/// Changes that become visible together.
#[derive(Debug, Default)]
pub struct Batch {
    /// Rows in the order in which they were added.
    pub changes: Vec<Change>,
    bytes: usize,
}

impl Batch {
    /// Writes a row.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.changes.push((key, Some(value)));
    }

    /// Deletes a row.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.bytes += key.len();
        self.changes.push((key, None));
    }

    /// Bytes of all changes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A durable ordered map. A crash loses a suffix of the batches, never a part of one.
pub trait StateStore: Send + Sync {
    /// The value of `key`.
    ///
    /// # Errors
    /// The store cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Values of several keys.
    ///
    /// # Errors
    /// As [`StateStore::get`].
    fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    /// Applies changes in their order, all or none: of several of one row the last counts.
    ///
    /// # Errors
    /// The store cannot be written.
    fn write(&self, changes: &[Change]) -> Result<()>;

    /// As [`StateStore::write`], for changes of different rows that are so many that they are worth a
    /// file of their own.
    ///
    /// # Errors
    /// As [`StateStore::write`].
    fn ingest(&self, changes: &[Change]) -> Result<()> {
        self.write(changes)
    }

    /// Makes every batch so far durable.
    ///
    /// # Errors
    /// The store cannot be written.
    fn flush(&self) -> Result<()>;

    /// Visits keys from `from` on, in order, until `visit` returns false.
    ///
    /// # Errors
    /// The store cannot be read.
    fn scan(&self, from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()>;

    /// Bytes on disk, roughly.
    fn disk_bytes(&self) -> u64;
}

/// A store that can be shared with readers.
pub type SharedStore = Arc<dyn StateStore>;
