//! The barrier record of a task (PROTOCOL 2 to 4): where it is, and from where to redo.
//!
//! It is JSON with a version, in the log beside the offsets and, as a copy, in the store beside
//! the rows that it describes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Contained, GroupCounts, SourceProgress};
use crate::error::{Error, Result};
use crate::model::{Millis, Offset};

const VERSION: u32 = 1;

/// Key of the copy in the store.
pub(super) const STORE_KEY: &[u8] = b"m/barrier";

/// A barrier record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Barrier {
    /// Format.
    pub version: u32,
    /// Which takeover of the task made it.
    #[serde(default)]
    pub incarnation: u64,
    /// Counts the commits of the task.
    pub sequence: u64,
    /// C: next offset that is committed.
    pub committed: Offset,
    /// B: first offset whose change may not be in a row yet.
    pub redo_from: Offset,
    /// Stream time of each source just before B.
    pub stream_times_at_redo: BTreeMap<String, Option<Millis>>,
    /// Sources at C.
    pub sources: BTreeMap<String, SourceProgress>,
    /// Groups at C.
    pub groups: BTreeMap<String, GroupCounts>,
    /// Source partitions contained at C, of a repartitioned group.
    pub vector: BTreeMap<u32, Contained>,
    /// What the rows mean: a number per source and group that changes with its definition.
    pub fingerprints: BTreeMap<String, u64>,
}

/// Name of the commit that wrote a barrier record.
///
/// # Errors
/// It is none.
pub fn txn_id_of(record: &[u8]) -> Result<String> {
    Barrier::decode(record).map(|b| b.txn_id())
}

impl Barrier {
    /// The record of a task that has done nothing.
    pub fn initial(fingerprints: BTreeMap<String, u64>) -> Self {
        Self {
            version: VERSION,
            incarnation: 0,
            sequence: 0,
            committed: 0,
            redo_from: 0,
            stream_times_at_redo: BTreeMap::new(),
            sources: BTreeMap::new(),
            groups: BTreeMap::new(),
            vector: BTreeMap::new(),
            fingerprints,
        }
    }

    /// Names the commit: the same as in the metadata of its offsets (PROTOCOL 26).
    pub fn txn_id(&self) -> String {
        format!("{:016x}-{}", self.incarnation, self.sequence)
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps with text keys become JSON")
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// Another version, or no barrier record.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let barrier: Self = serde_json::from_slice(bytes)
            .map_err(|e| Error::corrupted(format!("a barrier record is unreadable: {e}")))?;
        if barrier.version == VERSION {
            return Ok(barrier);
        }
        let message =
            format!("a barrier record of version {}, and this Thalweg knows {VERSION}", barrier.version);
        Err(Error::corrupted(message).with_hint("run the version that wrote it"))
    }
}
