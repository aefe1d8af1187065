//! How far the log is known to be on disk, said outside of it.
//!
//! A write-ahead log that is damaged looks as if it ended there, and RocksDB goes on from that place. What
//! was acknowledged behind it would be gone without a word, and its offsets would be given out again. So
//! the number of the last synced change is kept beside the log as well: never more than is on disk, since
//! it is written after the sync, and by itself not synced: it only has to be there when a process ends.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rocksdb::{DB, Options};

use super::failed;
use crate::error::{Error, Result};

/// The mark of the log beside it.
pub(super) struct SyncedMark {
    file: File,
    /// What the last process has left.
    before: u64,
}

fn mark_of(log: &Path) -> PathBuf {
    log.with_extension("synced")
}

impl SyncedMark {
    /// # Errors
    /// The file cannot be read or made.
    pub fn open(log: &Path) -> Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(mark_of(log))?;
        let mut words = [0; 16];
        let is_whole = file.read_exact_at(&mut words, 0).is_ok();
        let word = |at: usize| words[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        // A torn one says nothing.
        let before = if is_whole && word(0) == !word(8) { word(0) } else { 0 };
        Ok(Self { file, before })
    }

    /// Everything up to the change of this number is on disk.
    pub fn set(&self, sequence: u64) {
        let words = [sequence.to_le_bytes(), (!sequence).to_le_bytes()].concat();
        if let Err(error) = self.file.write_all_at(&words, 0) {
            tracing::warn!("the mark of what is synced: {error}");
        }
    }

    /// Opens the log, unless it ends before what was synced.
    ///
    /// # Errors
    /// It does; it cannot be opened.
    pub fn open_log(&self, options: &Options, path: &Path) -> Result<DB> {
        // Looked at first: opening for writing cuts off what is behind damage. What was being written when
        // power was lost is no loss, however it looks.
        if self.before > 0 {
            self.check(options, path)?;
        }
        DB::open(options, path).map_err(failed("open the log"))
    }

    fn check(&self, options: &Options, path: &Path) -> Result<()> {
        let synced = self.before;
        let found = if path.join("CURRENT").exists() {
            let log = DB::open_for_read_only(options, path, false).map_err(failed("open the log"))?;
            log.latest_sequence_number()
        } else {
            0
        };
        if found >= synced {
            return Ok(());
        }
        let message = format!(
            "the log in {} is damaged, or older than the rest: it ends with change {found}, and {synced} had \
             been acknowledged",
            path.display()
        );
        Err(Error::corrupted(message)
            .with_hint("put back a copy of the whole data_dir, or start with an empty one; of a copy that was made while the engine ran, remove log.synced"))
    }
}
