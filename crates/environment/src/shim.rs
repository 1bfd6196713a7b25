//! The processes that parent runs: what the program of a server has to do with them.

pub use runtara_runner::shim::reap_orphans;

/// To be called first in `main`, before any thread is started: the processes that parent runs are made from the program's own
/// executable, and must not run its `main`. In such a process this does not return.
pub fn init() {
    runtara_runner::shim::init_with(&runtara_runner_oci::shim::CONTAINERS);
}
