//! Says `ready` and lives on, whatever asks it to leave, until SIGKILL.

use nix::sys::signal::{SigSet, Signal};
use runtara_test_programs::sleep_forever;

fn main() {
    // Blocked in the only thread there is, these stay pending for ever.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.thread_block().expect("the set is valid");
    println!("ready");
    sleep_forever()
}
