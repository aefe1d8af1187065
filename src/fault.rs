//! Crash points: places at which a test lets the process die as if by `kill -9`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Variable of the environment: the name of a point, and after a colon which pass of it is fatal
/// (1 if left out).
pub const CRASH_AT: &str = "THALWEG_CRASH_AT";

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
