//! Counts of results that became null for a cause (SEMANTICS §6), for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a result is null although no operand was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullCause {
    /// `x / 0` or `x % 0`.
    DivisionByZero,
    /// An integer outside int64.
    Overflow,
    /// `log` of a number ≤ 0, `sqrt` of a negative number, text that is not a number.
    Domain,
    /// A float that is infinite or not a number.
    NonFinite,
}

static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// All causes with their label values.
pub const CAUSES: [(NullCause, &str); 4] = [
    (NullCause::DivisionByZero, "division_by_zero"),
    (NullCause::Overflow, "overflow"),
    (NullCause::Domain, "domain"),
    (NullCause::NonFinite, "non_finite"),
];

pub(super) fn note(cause: NullCause) {
    COUNTS[cause as usize].fetch_add(1, Ordering::Relaxed);
}

/// How often `cause` has made a result null in this process.
pub fn count(cause: NullCause) -> u64 {
    COUNTS[cause as usize].load(Ordering::Relaxed)
}
