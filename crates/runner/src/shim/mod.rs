//! The shim: the small process that parents one run, so that the run outlives the server.
//!
//! ```text
//!  server ──executes once──▶ launcher ──forks for each run──▶ shim ──starts──▶ program
//!     │   ◀── pidfd of the shim ──┘                            │ ▲
//!     │                                     writes exit.json ──┘ └── subreaper of all it starts
//!     └── waits for a word of the shim, or on the pidfd; reads exit.json
//! ```
//!
//! - The **launcher** is this very program executed again (or the program `runtara-shim`): one thread, little memory. It forks a
//!   shim for each request and hands its pidfd to the server. It leaves when the server does.
//! - One shim waits beside it as a **spare**: it is forked, and ready, before there is a run for it, and the server tells it its run by a
//!   socket of its own. Runs that find no spare have their shim forked when they begin.
//! - The **shim** holds `flock(lock)` until the exit is recorded. It starts the program only under that lock, and only if `run.json`
//!   still says go; so whoever gets the lock knows that nothing lives and nothing will. It captures the outputs, minds
//!   the deadline, ends what is left when the main process is gone, writes `exit.json`, and leaves.
//! - Where several nodes share a database, a **guard** ([`crate::NodeGuard`]), this very program too, ends the runs of a node whose server
//!   has not kept its lease.
//! - Where the server may make **cgroups** ([`CgroupRoot`]), each run has one: it tells what is of the run even when the shim is dead.
//! - The **server** side is [`Launcher`] to start runs, [`look`] to find out what became of one, and [`Shim`] for a live one.
//!
//! The first line of the server's `main` is [`init`]: before any thread exists, and before `main` does anything that a launcher must
//! not do.
//!
//! Linux only: pidfds (5.3), `close_range` (5.9), `/proc` with `CONFIG_PROC_CHILDREN`.

mod beginning;
mod capture;
mod cgroup;
mod cgroup_root;
mod child;
mod client;
mod containers;
mod files;
pub(crate) mod guard;
mod launcher;
mod leftover;
mod log_writer;
mod logs;
mod look;
mod open_files;
mod opening;
mod orphans;
mod parent;
mod process;
mod recipe;
mod redact;
mod relay;
mod removed;
mod request;
mod spare;
mod sys;
mod tree;
pub(crate) mod watch;
mod wishes;

use std::sync::atomic::{AtomicBool, Ordering};

pub use cgroup_root::CgroupRoot;
pub use client::{Launcher, ShimError, ShimProgram};
pub(crate) use client::{end_helper, spawn_helper};
pub use containers::{Container, Containers, NotStarted, Started, Streams};
pub use files::{ExitRecord, ProcessLimits, Program, write_run_file, write_slept};
pub use log_writer::LogWriter;
pub use logs::{LogChunk, LogExtent, LogReader, LogStream};
pub use look::{Found, Shim, is_locked, lingering, look, read_program};
pub use open_files::raise_open_files;
pub(crate) use opening::EXIT_ASIDE;
pub use orphans::reap_orphans;
pub use recipe::Recipe;
pub use wishes::Wishes;

/// Whether [`init`] ran, so that this program may be executed as launcher.
static INITIALISED: AtomicBool = AtomicBool::new(false);

/// Becomes the launcher, or a guard, if this process was executed to be it, and then does not return. Otherwise returns at once.
///
/// Call it as the first line of `main`, before any thread exists. A program that cannot gives [`Launcher`] the path of
/// `runtara-shim`.
pub fn init() {
    begin();
}

/// As [`init`], in a program whose shims make containers.
pub fn init_with(makers: &'static dyn Containers) {
    containers::register(makers);
    begin();
}

fn begin() {
    runtara_failpoints::begin();
    if let Some(socket) = launcher::socket_of_launcher() {
        launcher::serve(socket);
    }
    if let Some(directory) = guard::directory_of_guard() {
        guard::serve(&directory);
    }
    INITIALISED.store(true, Ordering::Relaxed);
}

/// The `main` of the program `runtara-shim`: a launcher for servers that cannot be executed again.
pub fn main() -> std::process::ExitCode {
    init();
    eprintln!("runtara-shim is started by a server, not by hand");
    std::process::ExitCode::from(2)
}

/// Whether what is made in a directory gets rights that somebody has set for it (acl(5)).
pub(crate) fn has_default_acl(directory: &std::path::Path) -> bool {
    sys::attribute(directory, c"system.posix_acl_default").is_some()
}

pub(crate) fn is_initialised() -> bool {
    INITIALISED.load(Ordering::Relaxed)
}

/// Says what this machine lacks, if it lacks something that a shim needs.
#[must_use]
pub fn missing() -> Option<String> {
    let pid = std::process::id().cast_signed();
    if let Err(error) = sys::pidfd_open(pid) {
        return Some(format!(
            "the kernel has no pidfds ({error}); Linux 5.9 or newer is needed"
        ));
    }
    if !tree::is_listable() {
        return Some(
            "the children of a process cannot be listed; mount /proc, with a kernel that has CONFIG_PROC_CHILDREN"
                .to_owned(),
        );
    }
    None
}
