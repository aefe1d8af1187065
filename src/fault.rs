//! Faults that a test asks for: places at which the process dies as if by `kill -9`, and transactions
//! that are aborted.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Variable of the environment: the name of a point, and after a colon which pass of it is fatal
/// (1 if left out).
pub const CRASH_AT: &str = "THALWEG_CRASH_AT";

/// Variable of the environment: every how manieth transaction is aborted rather than committed.
pub const ABORT_EVERY: &str = "THALWEG_ABORT_EVERY";

/// All of them: no keys of the configuration.
pub const VARIABLES: [&str; 2] = [CRASH_AT, ABORT_EVERY];

struct Planned {
    point: String,
    left: AtomicU64,
}

fn planned() -> Option<&'static Planned> {
    static PLANNED: OnceLock<Option<Planned>> = OnceLock::new();
    let read = || {
        let text = std::env::var(CRASH_AT).ok()?;
        let (point, pass) = text.split_once(':').unwrap_or((&text, "1"));
        Some(Planned { point: point.to_owned(), left: AtomicU64::new(pass.parse().ok()?) })
    };
    PLANNED.get_or_init(read).as_ref()
}

/// Ends the process if its environment says so. Nothing is flushed or dropped.
pub fn crash_point(point: &str) {
    let Some(planned) = planned().filter(|p| p.point == point) else { return };
    if planned.left.fetch_sub(1, Ordering::SeqCst) == 1 {
        eprintln!("{CRASH_AT}: dies at {point}");
        std::process::abort();
    }
}

/// Whether the transaction under way is one of those that a test wants aborted.
pub fn is_to_abort() -> bool {
    static EVERY: OnceLock<Option<u64>> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let read = || std::env::var(ABORT_EVERY).ok()?.parse().ok().filter(|every| *every > 0);
    EVERY.get_or_init(read).is_some_and(|every| COUNT.fetch_add(1, Ordering::Relaxed) % every == every - 1)
}
