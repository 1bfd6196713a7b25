//! Takes memory, 1 MiB at a time, until it is killed. Exits with 3 when it has got the MiB of the option `limit` (2048): then
//! nobody limited it, and the machine is not to suffer for that.

use std::process::ExitCode;

use runtara_test_programs::Options;

fn main() -> ExitCode {
    let limit: usize = Options::read().get("limit").unwrap_or(2_048);
    let mut taken = Vec::new();
    while taken.len() < limit {
        // Written to, so that it is not only promised; not zero, so that it cannot be shared.
        taken.push(std::hint::black_box(vec![0xa5_u8; 1024 * 1024]));
    }
    eprintln!("got {limit} MiB and was not killed");
    ExitCode::from(3)
}
