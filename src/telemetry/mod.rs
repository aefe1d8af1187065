//! Metrics, by name, and log output.

mod metrics;

pub use metrics::Metrics;

/// Sends log lines to standard error, at the level of `LOG_LEVEL` or `RUST_LOG` (default: info).
pub fn init_logging() {
    use tracing_subscriber::EnvFilter;
    let level = std::env::var("LOG_LEVEL").or_else(|_| std::env::var("RUST_LOG"));
    let filter = EnvFilter::try_new(level.as_deref().unwrap_or("info").to_lowercase())
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call in one process keeps the first one's output.
    let _ = subscriber.try_init();
}
