//! How long a node may answer from tasks that others could have taken over (SEMANTICS §10).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The right to answer, which a worker renews as long as it knows that it is in its group. A process
/// that was frozen finds it run out when it wakes, before anything else has told it.
pub struct Lease {
    started: Instant,
    /// Milliseconds since `started`.
    renewed_at: AtomicU64,
    limit: Duration,
}

impl Lease {
    /// A lease that runs out `limit` after each renewal.
    pub fn new(limit: Duration) -> Self {
        Self { started: Instant::now(), renewed_at: AtomicU64::new(0), limit }
    }

    /// Time since it was renewed.
    pub fn age(&self) -> Duration {
        let renewed_at = Duration::from_millis(self.renewed_at.load(Ordering::Acquire));
        self.started.elapsed().saturating_sub(renewed_at)
    }

    /// Whether it is so old that renewing needs proof of membership.
    pub fn needs_proof(&self) -> bool {
        self.age() > self.limit / 2
    }

    /// Membership is known.
    pub fn renew(&self) {
        self.renew_from(Instant::now());
    }

    /// Membership was known at that moment.
    pub fn renew_from(&self, known_at: Instant) {
        let at = known_at.saturating_duration_since(self.started);
        self.renewed_at.store(at.as_millis() as u64, Ordering::Release);
    }

    /// Whether answers may be given.
    pub fn is_valid(&self) -> bool {
        self.age() < self.limit
    }
}
