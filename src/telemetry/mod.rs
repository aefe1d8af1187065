//! Metrics, by name, and log output.

mod metrics;

use std::io::Write as _;

pub use metrics::Metrics;

/// Levels of log lines.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Prints a line for whoever reads standard output. Nobody may.
pub fn print_line(line: &str) {
    // `| head` has seen enough.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Sends log lines to standard error, at the level of `LOG_LEVEL` or `RUST_LOG` (default: info).
pub fn init_logging() {
    use tracing_subscriber::EnvFilter;
    let given = ["LOG_LEVEL", "RUST_LOG"].iter().filter_map(|name| std::env::var(name).ok());
    let level = given.map(|level| level.to_lowercase()).find(|level| !level.is_empty());
    // A word that is no level would be taken for a part of the program, of which nothing is said.
    let is_known = |level: &String| LEVELS.contains(&level.as_str()) || level.contains(['=', ',']);
    let filter = level.clone().filter(is_known).and_then(|level| EnvFilter::try_new(level).ok());
    if let (Some(level), None) = (&level, &filter) {
        eprintln!("LOG_LEVEL={level} is no level; expected one of {}: info is taken", LEVELS.join(", "));
    }
    let filter = filter.unwrap_or_else(|| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call in one process keeps the first one's output.
    let _ = subscriber.try_init();
}
