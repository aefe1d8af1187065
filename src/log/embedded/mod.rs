//! The log on RocksDB, for one process and no other parts.
//!
//! Rows: `t` + topic → id, partitions; `i` + topic id, partition, base offset → count, bytes, log
//! timestamp; `b` + the same → the batch (in blob files, so that compaction does not copy it);
//! `c` + task → barrier record. One writer thread takes everything that waits into one write
//! batch: that is the group commit.

mod synced;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex, RwLock};
use rocksdb::{DB, DBCompressionType, DBRecoveryMode, Options, WriteBatch, WriteOptions};
use synced::SyncedMark;
use writer::Writer;

use super::batch::LogBatch;
use super::{Append, LocalLog, Log, TaskCommit, Ticket};
use crate::clock::Clock;
use crate::codec::bytes::Reader;
use crate::error::{Error, Result};
use crate::model::{Millis, Offset};

/// Requests that may wait for the writer.
const QUEUE: usize = 1024;
/// Bytes that one group commit aims to stay below.
const GROUP_BYTES: usize = 32 << 20;

/// When appended bytes are forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// Before an append is acknowledged.
    Commit,
    /// At least this often.
    Interval(Duration),
    /// When the operating system sees fit.
    Never,
}

/// Settings of the log.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// See [`FsyncPolicy`].
    pub fsync: FsyncPolicy,
    /// Bytes of recent batches kept in memory for readers.
    pub recent_bytes: usize,
    /// Bytes of write buffers.
    pub buffer_bytes: usize,
}

/// A file of batches; what was cut off goes with the next, about.
const BLOB_FILE_BYTES: u64 = if cfg!(test) { 8 << 20 } else { 256 << 20 };

/// What the process that holds a data folder has locked; it holds its id.
const LOCK: &str = "LOCK";

/// Takes hold of a data folder for this process.
///
/// # Errors
/// Another process holds it; the message names its id.
pub fn hold_folder(folder: &Path) -> Result<File> {
    create_folder(folder)?;
    let path = folder.join(LOCK);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
    if file.try_lock().is_err() {
        return Err(held(folder, file));
    }
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{}", std::process::id())?;
    file.flush()?;
    Ok(file)
}

/// Refuses a data folder that a process holds. Nothing is written.
///
/// # Errors
/// Another process holds it; the message names its id.
pub fn check_not_held(folder: &Path) -> Result<()> {
    // Without the file no process has ever held it.
    let Ok(file) = File::open(folder.join(LOCK)) else { return Ok(()) };
    if file.try_lock_shared().is_err() { Err(held(folder, file)) } else { Ok(()) }
}

/// Makes a folder, and makes sure of it: what is durable in it must not go with it.
fn create_folder(folder: &Path) -> Result<()> {
    let made: Vec<&Path> =
        folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).collect();
    std::fs::create_dir_all(folder)?;
    for folder in made {
        let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn held(folder: &Path, mut lock: File) -> Error {
    let mut holder = String::new();
    // Whoever holds it may be about to write its id.
    let _ = lock.read_to_string(&mut holder);
    let message = format!("{} is held by process {}", folder.display(), holder.trim());
    Error::unavailable(message).with_hint("stop that process, or use another data_dir")
}

struct Topic {
    id: u32,
    partitions: Vec<Mutex<Partition>>,
}

#[derive(Default)]
struct Partition {
    start: Offset,
    /// Next offset that readers may see.
    end: Offset,
    recent: VecDeque<Arc<LogBatch>>,
    recent_bytes: usize,
}

struct Shared {
    db: DB,
    topics: RwLock<HashMap<String, Arc<Topic>>>,
    clock: Arc<dyn Clock>,
    options: LogOptions,
    version: Mutex<u64>,
    appended: Condvar,
    /// Bytes cut off since files were last let go.
    cut: AtomicU64,
}

enum Request {
    Append(Append, Sender<Result<BTreeMap<u32, Offset>>>),
    Commit(Vec<TaskCommit>, Sender<Result<()>>),
}

/// The embedded log.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    queue: Option<Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

fn failed(what: &str) -> impl FnOnce(rocksdb::Error) -> Error + '_ {
    move |e| Error::of_storage(what, &e)
}

fn topic_key(topic: &str) -> Vec<u8> {
    [b"t", topic.as_bytes()].concat()
}

fn task_key(task: &str) -> Vec<u8> {
    [b"c", task.as_bytes()].concat()
}

fn batch_key(kind: u8, topic: u32, partition: u32, base: Offset) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend(topic.to_be_bytes());
    key.extend(partition.to_be_bytes());
    key.extend(base.to_be_bytes());
    key
}

fn base_of(key: &[u8]) -> Option<Offset> {
    key.last_chunk::<8>().map(|b| u64::from_be_bytes(*b))
}

fn db_options(options: &LogOptions) -> Options {
    let mut db = Options::default();
    db.create_if_missing(true);
    db.set_enable_blob_files(true);
    db.set_min_blob_size(512);
    db.set_blob_file_size(BLOB_FILE_BYTES);
    // Files go whole, once nothing of them is left: to collect garbage would copy what is kept, again
    // and again.
    db.set_enable_blob_gc(false);
    // What is lost behind damage is noticed by the mark beside the log.
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    db.set_blob_compression_type(DBCompressionType::Lz4);
    db.set_write_buffer_size((options.buffer_bytes / 2).max(4 << 20));
    db.set_max_write_buffer_number(2);
    db.set_max_background_jobs(2);
    db.set_keep_log_file_num(2);
    db.set_stats_dump_period_sec(0);
    db.set_max_total_wal_size((options.buffer_bytes as u64 * 2).max(64 << 20));
    db
}

impl EmbeddedLog {
    /// Opens or creates the log at `path`.
    ///
    /// # Errors
    /// It cannot be opened, or what it holds is unreadable.
    pub fn open(path: &Path, options: LogOptions, clock: Arc<dyn Clock>) -> Result<Self> {
        create_folder(path)?;
        let synced = SyncedMark::open(path)?;
        let db = synced.open_log(&db_options(&options), path)?;
        let shared = Self::shared(db, options, clock)?;
        let (queue, requests) = bounded(QUEUE);
        let writer = std::thread::Builder::new().name("log-writer".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || Writer::new(shared, synced).run(&requests)
        })?;
        Ok(Self { shared, queue: Some(queue), writer: Some(writer) })
    }

    /// Opens a log that no process holds, to look inside. Appends are refused.
    ///
    /// # Errors
    /// As [`EmbeddedLog::open`].
    pub fn open_read_only(path: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let options = LogOptions { fsync: FsyncPolicy::Never, recent_bytes: 0, buffer_bytes: 8 << 20 };
        let mut db = db_options(&options);
        db.create_if_missing(false);
        let db = DB::open_for_read_only(&db, path, false).map_err(failed("open the log"))?;
        Ok(Self { shared: Self::shared(db, options, clock)?, queue: None, writer: None })
    }

    fn shared(db: DB, options: LogOptions, clock: Arc<dyn Clock>) -> Result<Arc<Shared>> {
        let mut topics = HashMap::new();
        for row in db.iterator(rocksdb::IteratorMode::From(b"t", rocksdb::Direction::Forward)) {
            let (key, value) = row.map_err(failed("read topics"))?;
            let Some(name) = key.strip_prefix(b"t") else { break };
            let mut reader = Reader(&value);
            let (Some(id), Some(count)) = (reader.u32(), reader.u32()) else {
                return Err(Error::corrupted("a topic of the log is unreadable"));
            };
            let partitions = (0..count)
                .map(|p| Ok(Mutex::new(load_partition(&db, id, p)?)))
                .collect::<Result<Vec<_>>>()?;
            let name = String::from_utf8_lossy(name).into_owned();
            topics.insert(name, Arc::new(Topic { id, partitions }));
        }
        Ok(Arc::new(Shared {
            db,
            topics: RwLock::new(topics),
            clock,
            options,
            version: Mutex::new(0),
            appended: Condvar::new(),
            cut: AtomicU64::new(0),
        }))
    }

    /// All topics with their numbers of partitions.
    pub fn topics(&self) -> Vec<(String, u32)> {
        let topics = self.shared.topics.read();
        let mut all: Vec<(String, u32)> =
            topics.iter().map(|(name, t)| (name.clone(), t.partitions.len() as u32)).collect();
        all.sort();
        all
    }

    /// Where the answer will come; where none will, when the log is closed.
    fn send<T>(&self, make: impl FnOnce(Sender<Result<T>>) -> Request) -> Receiver<Result<T>> {
        let (answer, answered) = bounded(1);
        if let Some(queue) = &self.queue {
            // A request that is not taken takes its answer with it.
            let _ = queue.send(make(answer));
        }
        answered
    }

    /// Offset below which batches are older than `before` or beyond `bytes_max`, counted from the
    /// end: what retention may cut.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn expired(
        &self,
        topic: &str,
        partition: u32,
        before: Option<Millis>,
        bytes_max: Option<u64>,
    ) -> Result<Offset> {
        let Some(found) = self.shared.topic(topic) else { return Ok(0) };
        let mut kept_bytes = 0_u64;
        let mut iterator = self.shared.db.raw_iterator();
        iterator.seek_for_prev(batch_key(b'i', found.id, partition, u64::MAX));
        let prefix = &batch_key(b'i', found.id, partition, 0)[..9];
        while let (Some(key), Some(value)) = (iterator.key(), iterator.value()) {
            if !key.starts_with(prefix) {
                break;
            }
            let mut reader = Reader(value);
            let (Some(count), Some(bytes), Some(time)) = (reader.u32(), reader.u64(), reader.i64()) else {
                return Err(Error::corrupted("the index of the log is unreadable"));
            };
            kept_bytes += bytes;
            let is_old = before.is_some_and(|limit| time < limit);
            if is_old || bytes_max.is_some_and(|most| kept_bytes > most) {
                return Ok(base_of(key).unwrap_or(0) + u64::from(count));
            }
            iterator.prev();
        }
        Ok(0)
    }
}

/// Bytes of the batches from `start` to `end`.
fn bytes_between(db: &DB, topic: u32, partition: u32, (start, end): (Offset, Offset)) -> Result<u64> {
    let (mut iterator, mut bytes) = (db.raw_iterator(), 0);
    iterator.seek(batch_key(b'i', topic, partition, start));
    let end = batch_key(b'i', topic, partition, end);
    while let Some((_, value)) = iterator.item().filter(|(key, _)| **key < *end) {
        let mut reader = Reader(value);
        bytes += reader.u32().and_then(|_| reader.u64()).unwrap_or(0);
        iterator.next();
    }
    iterator.status().map_err(failed("read the log"))?;
    Ok(bytes)
}

fn load_partition(db: &DB, topic: u32, partition: u32) -> Result<Partition> {
    let prefix = &batch_key(b'i', topic, partition, 0)[..9];
    let mut iterator = db.raw_iterator();
    iterator.seek(batch_key(b'i', topic, partition, 0));
    let start = iterator.key().filter(|k| k.starts_with(prefix)).and_then(base_of);
    iterator.seek_for_prev(batch_key(b'i', topic, partition, u64::MAX));
    let end = iterator
        .item()
        .filter(|(k, _)| k.starts_with(prefix))
        .and_then(|(key, value)| Some(base_of(key)? + u64::from(Reader(value).u32()?)));
    iterator.status().map_err(failed("read the log"))?;
    // A partition that was purged whole keeps its end.
    let kept = db.get(batch_key(b'e', topic, partition, 0)).map_err(failed("read the log"))?;
    let kept = kept.and_then(|v| Reader(&v).u64()).unwrap_or(0);
    let end = end.unwrap_or(kept).max(kept);
    Ok(Partition { start: start.unwrap_or(end), end, ..Partition::default() })
}

impl Shared {
    fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().get(name).cloned()
    }
}

impl Log for EmbeddedLog {
    fn create_topic(&self, topic: &str, partitions: u32) -> Result<()> {
        let mut topics = self.shared.topics.write();
        if let Some(known) = topics.get(topic) {
            let found = known.partitions.len();
            if found == partitions as usize {
                return Ok(());
            }
            let message = format!("topic `{topic}` has {found} partitions, and {partitions} are asked for");
            return Err(Error::invalid(message)
                .with_hint(format!("set log.embedded.partitions to {found}, or use another data_dir")));
        }
        let id = topics.values().map(|t| t.id + 1).max().unwrap_or(1);
        let mut value = id.to_le_bytes().to_vec();
        value.extend(partitions.to_le_bytes());
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.shared.db.put_opt(topic_key(topic), value, &options).map_err(failed("create a topic"))?;
        let partitions = (0..partitions).map(|_| Mutex::default()).collect();
        topics.insert(topic.to_owned(), Arc::new(Topic { id, partitions }));
        Ok(())
    }

    fn partitions(&self, topic: &str) -> Option<u32> {
        self.shared.topic(topic).map(|t| t.partitions.len() as u32)
    }

    fn append(&self, append: Append) -> Result<BTreeMap<u32, Offset>> {
        let answered = self.send(|answer| Request::Append(append, answer));
        answered.recv().map_err(|_| Error::unavailable("the log is closed"))?
    }

    fn read(
        &self,
        topic: &str,
        partition: u32,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Arc<LogBatch>>> {
        let Some(found) = self.shared.topic(topic) else { return Ok(Vec::new()) };
        let end = {
            let log = found.partitions[partition as usize].lock();
            if from < log.start {
                let message = format!(
                    "offset {from} of {topic}/{partition} is cut off; the log starts at {}",
                    log.start
                );
                return Err(Error::corrupted(message));
            }
            if from >= log.end {
                return Ok(Vec::new());
            }
            if log.recent.front().is_some_and(|first| first.base <= from) {
                let first = log.recent.partition_point(|b| b.next_offset() <= from);
                let mut bytes = 0;
                let take = log.recent.iter().skip(first).take_while(|b| {
                    let fits = bytes < bytes_max;
                    bytes += b.size();
                    fits
                });
                return Ok(take.cloned().collect());
            }
            log.end
        };
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut iterator = self.shared.db.raw_iterator();
        iterator.seek_for_prev(batch_key(b'b', found.id, partition, from));
        let prefix = &batch_key(b'b', found.id, partition, 0)[..9];
        while let Some((key, value)) = iterator.item() {
            let base = base_of(key).unwrap_or(0);
            // Batches at or above the end were written but are not acknowledged yet.
            if !key.starts_with(prefix) || base >= end || bytes >= bytes_max {
                break;
            }
            bytes += value.len();
            let batch = LogBatch::decode(base, value.to_vec())?;
            if batch.next_offset() > from {
                out.push(Arc::new(batch));
            }
            iterator.next();
        }
        iterator.status().map_err(failed("read the log"))?;
        Ok(out)
    }

    fn start_offset(&self, topic: &str, partition: u32) -> Offset {
        self.shared.topic(topic).map_or(0, |t| t.partitions[partition as usize].lock().start)
    }

    fn end_offset(&self, topic: &str, partition: u32) -> Offset {
        self.shared.topic(topic).map_or(0, |t| t.partitions[partition as usize].lock().end)
    }

    fn purge(&self, topic: &str, partition: u32, offset: Offset) -> Result<()> {
        let Some(found) = self.shared.topic(topic) else { return Ok(()) };
        let mut log = found.partitions[partition as usize].lock();
        // Whole batches only: the one that holds `offset` stays.
        let mut iterator = self.shared.db.raw_iterator();
        let prefix = batch_key(b'i', found.id, partition, 0);
        let limit = offset.min(log.end);
        iterator.seek_for_prev(batch_key(b'i', found.id, partition, limit));
        let holding = iterator.item().filter(|(k, _)| k.starts_with(&prefix[..9]));
        let Some(mut start) = holding.and_then(|(key, value)| {
            let base = base_of(key)?;
            let next = base + u64::from(Reader(value).u32()?);
            Some(if next <= limit { next } else { base })
        }) else {
            return Ok(());
        };
        start = start.max(log.start);
        if start == log.start {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        let cut = bytes_between(&self.shared.db, found.id, partition, (log.start, start))?;
        for kind in [b'b', b'i'] {
            let first = batch_key(kind, found.id, partition, 0);
            batch.delete_range(first, batch_key(kind, found.id, partition, start));
        }
        batch.put(batch_key(b'e', found.id, partition, 0), log.end.to_le_bytes());
        self.shared.db.write(batch).map_err(failed("purge the log"))?;
        // The end of this range belongs to it.
        let last = batch_key(b'b', found.id, partition, start - 1);
        let range = (batch_key(b'b', found.id, partition, 0), last);
        self.shared.db.delete_file_in_range(range.0, range.1).map_err(failed("purge the log"))?;
        log.start = start;
        while log.recent.front().is_some_and(|b| b.next_offset() <= start) {
            let gone = log.recent.pop_front();
            log.recent_bytes -= gone.map_or(0, |b| b.size());
        }
        drop(log);
        let cut = self.shared.cut.fetch_add(cut, Ordering::Relaxed) + cut;
        if cut > BLOB_FILE_BYTES {
            // Files of batches go with the last row that names them, which would be written anew only when
            // much else is.
            self.shared.cut.store(0, Ordering::Relaxed);
            self.shared.db.compact_range(Some(b"b"), Some(b"c"));
        }
        Ok(())
    }
}

impl LocalLog for EmbeddedLog {
    fn commit(&self, commits: Vec<TaskCommit>) -> Ticket {
        self.send(|answer| Request::Commit(commits, answer))
    }

    fn committed(&self, task: &str) -> Result<Option<Vec<u8>>> {
        // A database that is open for reading only finds no value in a blob file by its key (RocksDB 11.8),
        // but comes across it.
        let mut rows = self.shared.db.raw_iterator();
        let wanted = task_key(task);
        rows.seek(&wanted);
        let found = rows.item().filter(|(key, _)| **key == *wanted).map(|(_, value)| value.to_vec());
        rows.status().map_err(failed("read a commit"))?;
        Ok(found)
    }

    fn wait(&self, seen: u64, timeout: Duration) -> u64 {
        let mut version = self.shared.version.lock();
        if *version == seen {
            self.shared.appended.wait_for(&mut version, timeout);
        }
        *version
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has been printed; there is nothing to add here.
            let _ = writer.join();
        }
    }
}
