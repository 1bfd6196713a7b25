//! Exits with the option `code` (0), at once.

use std::process::ExitCode;

use runtara_test_programs::Options;

fn main() -> ExitCode {
    ExitCode::from(Options::read().get("code").unwrap_or(0))
}
