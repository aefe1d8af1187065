//! How far a standby lies behind its owner (SEMANTICS §10, PROTOCOL 33 and 34).

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::model::Millis;

/// A bound of how far a standby's answers lie behind. Kept by the thread that follows.
#[derive(Default)]
pub struct Follower {
    state: Mutex<Option<Known>>,
}

#[derive(Clone, Copy)]
struct Known {
    /// Stream time of what is applied, and of all that was read.
    applied: Option<Millis>,
    read: Option<Millis>,
    /// When everything in the log had been read.
    at: Instant,
}

impl Follower {
    /// At `at` everything in the log had been read, whose stream time is `read`; applied is what has
    /// the stream time `applied`.
    pub fn note(&self, applied: Option<Millis>, read: Option<Millis>, at: Instant) {
        *self.state.lock() = Some(Known { applied, read, at });
    }

    /// How far answers may lie behind: the stream time that was read beyond what is applied, and
    /// whatever may have come since.
    pub fn behind(&self) -> Option<Duration> {
        let known = (*self.state.lock())?;
        let unread = known.at.elapsed();
        let unapplied = match (known.read, known.applied) {
            (None, _) => 0,
            // Nothing is applied of a log that has something.
            (Some(_), None) => return None,
            (Some(read), Some(applied)) => read.saturating_sub(applied).max(0),
        };
        Some(unread + Duration::from_millis(unapplied.unsigned_abs()))
    }
}
