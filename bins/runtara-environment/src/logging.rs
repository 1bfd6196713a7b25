//! Where the server's log goes: standard error.

use std::io::{self, IsTerminal as _};

use runtara_environment::Config;
use runtara_environment::config::LogFormat;
use tracing_subscriber::EnvFilter;

/// Starts logging as configured. A filter that cannot be read is said so, and `info` is taken.
pub(crate) fn start(config: &Config) {
    let filter = EnvFilter::try_new(&config.log_filter).unwrap_or_else(|error| {
        eprintln!(
            "warning: RUST_LOG {:?}: {error}; using info",
            config.log_filter
        );
        EnvFilter::new("info")
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match config.log_format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
    }
}
