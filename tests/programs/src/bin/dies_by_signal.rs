//! Dies by the signal of the number in the option `signal` (9).

use nix::sys::signal::{Signal, raise};
use runtara_test_programs::Options;

fn main() {
    let number = Options::read().get("signal").unwrap_or(9);
    let signal = Signal::try_from(number).expect("the option is the number of a signal");
    // The standard library handles SIGSEGV and SIGBUS once, to tell a full stack from other faults.
    loop {
        raise(signal).expect("a signal to oneself is always allowed");
    }
}
