//! What a store knows about the changelog that it follows (PROTOCOL 4).

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Change, Millis, Offset};
use crate::state::StateStore;

const VERSION: u32 = 1;
const KEY: &[u8] = b"m/changelog";

/// Where a store stands in its changelog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMeta {
    version: u32,
    /// Every committed record of the changelog below is in the store, or superseded there.
    pub position: Offset,
    /// Whether its rows belong together. Otherwise it was being restored.
    pub is_consistent: bool,
    /// When it was written.
    pub time: Millis,
}

/// Key of the name of the application whose changelog a store follows: another's has other offsets.
const APP_KEY: &[u8] = b"m/app";

impl StoreMeta {
    /// Makes an empty store one of `app`.
    pub fn belonging_to(app: &str) -> Change {
        (APP_KEY.to_vec(), Some(app.as_bytes().to_vec()))
    }

    /// Whether `store` is one of `app`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn is_of(store: &dyn StateStore, app: &str) -> Result<bool> {
        Ok(store.get(APP_KEY)?.as_deref() == Some(app.as_bytes()))
    }

    /// Makes a store one that knows of no changelog.
    pub fn removal() -> Change {
        (KEY.to_vec(), None)
    }

    /// A store whose rows belong together.
    pub fn consistent_at(position: Offset, time: Millis) -> Self {
        Self { version: VERSION, position, is_consistent: true, time }
    }

    /// A store in the middle of a restore.
    pub fn restoring_at(position: Offset, time: Millis) -> Self {
        Self { is_consistent: false, ..Self::consistent_at(position, time) }
    }

    /// What `store` knows; none: it is new.
    ///
    /// # Errors
    /// The store cannot be read, or is of a newer format.
    pub fn read(store: &dyn StateStore) -> Result<Option<Self>> {
        let Some(bytes) = store.get(KEY)? else { return Ok(None) };
        let meta: Self = serde_json::from_slice(&bytes)
            .map_err(|e| Error::corrupted(format!("the position of a store is unreadable: {e}")))?;
        if meta.version != VERSION {
            let message = format!("a store of format {}, and this Thalweg knows {VERSION}", meta.version);
            return Err(Error::corrupted(message).with_hint("run the version that wrote it"));
        }
        Ok(Some(meta))
    }

    /// The row that says so.
    pub fn row(&self) -> Change {
        let value = serde_json::to_vec(self).expect("numbers become JSON");
        (KEY.to_vec(), Some(value))
    }

    /// Writes it.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn write(&self, store: &dyn StateStore) -> Result<()> {
        store.write(&[self.row()])
    }
}
