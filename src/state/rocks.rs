//! The store on RocksDB: one column family, no write-ahead log. The log is the redo log; a flush
//! keeps a prefix of the batches (`notes` of RocksDB: a memtable flush is a prefix of the write
//! sequence).

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, IngestExternalFileOptions, IteratorMode, Options,
    SstFileWriter, WriteBatch, WriteBufferManager, WriteOptions,
};

use super::StateStore;
use crate::error::{Error, Result};
use crate::model::Change;

/// Memory that all stores of a process share.
#[derive(Clone)]
pub struct SharedMemory {
    cache: Cache,
    buffers: WriteBufferManager,
    buffer_bytes: usize,
}

impl SharedMemory {
    /// Divides `bytes` for blocks and `buffer_bytes` for write buffers, which count as part of it.
    pub fn new(bytes: usize, buffer_bytes: usize) -> Self {
        let cache = Cache::new_lru_cache(bytes);
        let buffers =
            WriteBufferManager::new_write_buffer_manager_with_cache(buffer_bytes, false, cache.clone());
        Self { cache, buffers, buffer_bytes }
    }
}

/// A store on RocksDB.
pub struct RocksStore {
    db: DB,
    options: Options,
}

fn failed(what: &str) -> impl FnOnce(rocksdb::Error) -> Error + '_ {
    move |e| Error::of_storage(what, &e)
}

fn not_opened(error: rocksdb::Error) -> Error {
    let text = error.to_string();
    let message = format!("open state: {text}");
    // A file that another names and that is gone is an error of input and output to RocksDB.
    if error.kind() == rocksdb::ErrorKind::Corruption || text.contains("No such file") {
        Error::corrupted(message)
    } else if text.contains("lock") {
        Error::unavailable(message)
    } else {
        Error::internal(message)
    }
}

impl RocksStore {
    /// Opens or creates the store at `path`.
    ///
    /// # Errors
    /// `Unavailable`: somebody holds it; `Corrupted`: its files do not fit together; or the folder cannot
    /// be used.
    pub fn open(path: &Path, memory: &SharedMemory) -> Result<Self> {
        let mut options = options(memory);
        options.create_if_missing(true);
        let db = DB::open(&options, path).map_err(not_opened)?;
        Ok(Self { db, options })
    }

    /// Opens a store that no process holds, to look inside.
    ///
    /// # Errors
    /// As [`RocksStore::open`].
    pub fn open_read_only(path: &Path) -> Result<Self> {
        let options = options(&SharedMemory::new(32 << 20, 8 << 20));
        let db = DB::open_for_read_only(&options, path, false).map_err(failed("open state"))?;
        Ok(Self { db, options })
    }
}

fn options(memory: &SharedMemory) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&memory.cache);
    blocks.set_block_size(8 << 10);
    blocks.set_bloom_filter(10.0, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_manager(&memory.buffers);
    options.set_write_buffer_size((memory.buffer_bytes / 4).clamp(4 << 20, 256 << 20));
    options.set_max_write_buffer_number(4);
    // Most first reads of an entity are of one that is not there: without these filters each
    // would search the skip list of the write buffer (a seventh of all time with new keys).
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(0.1);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    // Flushes follow a clock and are small: with the usual four of them most of the store would be
    // rewritten every minute.
    options.set_level_zero_file_num_compaction_trigger(10);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_open_files(512);
    options.set_stats_dump_period_sec(0);
    options
}

/// By key; changes of one key stay in their order.
fn sorted(changes: &[Change]) -> Vec<&Change> {
    let mut sorted: Vec<&Change> = changes.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    sorted
}

/// Bytes of a batch of `changes`, at most: one that grows is copied again and again.
fn batch_bytes(changes: &[Change]) -> usize {
    let of = |(key, value): &Change| 16 + key.len() + value.as_ref().map_or(0, Vec::len);
    changes.iter().map(of).sum::<usize>() + 64
}

impl StateStore for RocksStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.db.get(key).map_err(failed("read state"))
    }

    fn multi_get(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>> {
        self.db.multi_get(keys).into_iter().map(|r| r.map_err(failed("read state"))).collect()
    }

    fn write(&self, changes: &[Change]) -> Result<()> {
        // Neighbours in the skip list then follow each other in time.
        let mut writes = WriteBatch::with_capacity_bytes(batch_bytes(changes));
        for (key, value) in sorted(changes) {
            match value {
                Some(value) => writes.put(key, value),
                None => writes.delete(key),
            }
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(writes, &options).map_err(failed("write state"))
    }

    /// All of them are in one sorted file, which the database takes over whole or not at all.
    fn ingest(&self, changes: &[Change]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let path = self.db.path().join("ingest");
        // One of a process that died.
        let _ = std::fs::remove_file(&path);
        let mut file = SstFileWriter::create(&self.options);
        file.open(&path).map_err(failed("write state"))?;
        for (key, value) in sorted(changes) {
            let added = match value {
                Some(value) => file.put(key, value),
                None => file.delete(key),
            };
            added.map_err(failed("write state"))?;
        }
        file.finish().map_err(failed("write state"))?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db.ingest_external_file_opts(&options, vec![path]).map_err(failed("write state"))
    }

    fn flush(&self) -> Result<()> {
        self.db.flush().map_err(failed("flush state"))
    }

    fn scan(&self, from: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<()> {
        let mode = IteratorMode::From(from, rocksdb::Direction::Forward);
        for row in self.db.iterator(mode) {
            let (key, value) = row.map_err(failed("scan state"))?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        let of = |name| self.db.property_int_value(name).ok().flatten().unwrap_or(0);
        of("rocksdb.total-sst-files-size") + of("rocksdb.cur-size-all-mem-tables")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(store: &RocksStore) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        };
        store.scan(&[], visit).expect("it is read");
        rows
    }

    #[test]
    fn what_is_ingested_replaces_what_was_there_and_survives() {
        let folder = tempfile::tempdir().expect("a folder");
        let memory = SharedMemory::new(8 << 20, 2 << 20);
        let put = |key: &str, value: &str| (key.as_bytes().to_vec(), Some(value.as_bytes().to_vec()));
        let store = RocksStore::open(folder.path(), &memory).expect("it opens");
        store.write(&[put("a", "old"), put("b", "old"), put("d", "old")]).expect("written");
        // Left behind by a process that died while it wrote.
        std::fs::write(folder.path().join("ingest"), "half a file").expect("written");
        let changes = [put("c", "new"), (b"b".to_vec(), None), put("a", "new")];
        store.ingest(&changes).expect("ingested");
        store.ingest(&[put("c", "newer"), (b"d".to_vec(), None)]).expect("ingested");
        let expected: Vec<_> = [("a", "new"), ("c", "newer")]
            .map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec()))
            .into();
        assert_eq!(rows_of(&store), expected);
        store.write(&[put("e", "later")]).expect("written");
        assert_eq!(store.get(b"e").expect("read").as_deref(), Some(&b"later"[..]));
        drop(store);
        // Without a flush: only what was written beside is lost.
        let store = RocksStore::open(folder.path(), &memory).expect("it opens");
        assert_eq!(rows_of(&store)[..2], expected);
    }

    #[test]
    fn of_several_changes_of_a_row_the_last_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = RocksStore::open(folder.path(), &SharedMemory::new(8 << 20, 2 << 20)).expect("it opens");
        // As a standby adopts the rows of several commits: some rows are in each.
        let row = |commit: u32, row: u32| (vec![row as u8], Some(commit.to_be_bytes().to_vec()));
        let changes: Vec<Change> = (0..40).flat_map(|commit| (0..3).map(move |r| row(commit, r))).collect();
        store.write(&changes).expect("written");
        let last = |row: u8| (vec![row], 39_u32.to_be_bytes().to_vec());
        assert_eq!(rows_of(&store), [last(0), last(1), last(2)]);
    }
}
