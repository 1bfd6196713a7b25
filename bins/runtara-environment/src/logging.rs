//! Where the server's log goes: standard error.

use std::io::{self, IsTerminal as _};

use runtara_environment::Config;
use runtara_environment::config::LogFormat;
use tracing_subscriber::EnvFilter;

/// Programs in WebAssembly could fill the log with what is warned of here; they are told of it themselves.
const QUIET: &str = "wasmtime_wasi_http=error";

/// Starts logging as configured.
pub(crate) fn start(config: &Config) {
    // It was read before, when the configuration was: nothing of it is ignored here.
    let filter = EnvFilter::new(format!("{QUIET},{}", config.log_filter));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match config.log_format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
    }
}

/// Starts logging for a command whose answer is what counts: what goes wrong, unless `RUST_LOG` asks for more.
pub(crate) fn start_for_a_command() {
    let asked = std::env::var("RUST_LOG").ok();
    let asked = asked.and_then(|asked| EnvFilter::try_new(asked).ok());
    tracing_subscriber::fmt()
        .with_env_filter(asked.unwrap_or_else(|| EnvFilter::new("warn")))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}
