//! Writes numbered lines without end to the option `stream`: `stdout` (unless set), `stderr`, or `both`.

use std::io::{self, BufWriter, Write as _};

use runtara_test_programs::Options;

fn main() -> io::Result<()> {
    let stream = Options::read().text("stream");
    let stream = stream.as_deref().unwrap_or("stdout");
    let mut stdout = BufWriter::new(io::stdout());
    let mut stderr = BufWriter::new(io::stderr());
    for line in 1_u64.. {
        if stream != "stderr" {
            writeln!(
                stdout,
                "line {line} of what nobody will ever read to its end"
            )?;
        }
        if stream != "stdout" {
            writeln!(stderr, "line {line} of complaints without a reason")?;
        }
    }
    Ok(())
}
