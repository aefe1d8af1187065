//! The barrier record of a task (PROTOCOL 2 to 4): where it is, and from where to redo.
//!
//! It is JSON with a version, in the log beside the offsets and, as a copy, in the store beside
//! the rows that it describes.

use std::collections::BTreeMap;
use std::hash::Hasher as _;

use serde::{Deserialize, Serialize};

use super::{Contained, GroupCounts, SourceProgress};
use crate::error::{Error, Result};
use crate::log::RecordView;
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
    /// The first offset of the input that there was when the task began.
    #[serde(default)]
    pub begun_at: Offset,
    /// The last record before C: another one there means another topic of the same name.
    #[serde(default)]
    pub last: Option<LastRecord>,
    /// What tells the topic from another of the same name, where the log says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<String>,
    /// What the rows mean: a number per source and group that changes with its definition.
    pub fingerprints: BTreeMap<String, u64>,
}

/// A record, as it is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRecord {
    /// Its offset.
    pub offset: Offset,
    /// Hash of its key and value.
    pub hash: u64,
}

impl LastRecord {
    /// How `record` is recognised.
    pub fn of(record: RecordView<'_>) -> Self {
        let mut hasher = twox_hash::XxHash64::with_seed(3);
        for part in [record.key, record.value] {
            hasher.write(&part.map_or(u64::MAX, |bytes| bytes.len() as u64).to_le_bytes());
            hasher.write(part.unwrap_or_default());
        }
        Self { offset: record.offset, hash: hasher.finish() }
    }
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
            begun_at: 0,
            last: None,
            topic_id: None,
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
