//! Writes the options `stdout` and `stderr` where their names say, as they are, and exits with `code` (0).

use std::io::{self, Write as _};
use std::process::ExitCode;

use runtara_test_programs::Options;

fn main() -> io::Result<ExitCode> {
    let options = Options::read();
    let text = |name| options.text(name).unwrap_or_default();
    io::stdout().write_all(text("stdout").as_bytes())?;
    io::stdout().flush()?;
    io::stderr().write_all(text("stderr").as_bytes())?;
    Ok(ExitCode::from(options.get("code").unwrap_or(0)))
}
