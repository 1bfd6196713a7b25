//! What a shim needs of whoever makes containers.
//!
//! The shim knows processes, cgroups and files. What a container is made of is written into `run.json` by a runner, and read by
//! the same runner's half in the shim, which [`init_with`](super::init_with) is given.

use std::net::TcpListener;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use super::process::ProcessId;
use super::recipe::Recipe;
use super::wishes::Wishes;

pub use super::opening::NotStarted;

/// Makes containers, in a shim: a process of one thread, with all signals blocked, which is a subreaper (prctl(2)) and has mounts of
/// its own only if this makes it so.
pub trait Containers: Sync {
    /// Makes the container of a run and starts its program. The container is what the runner wrote as
    /// [`Program::container`](super::Program::container). Its running time begins when this answers; what is done until then is the host's
    /// affair, and has a deadline of its own: it is to give up when the wishes say that it is over.
    ///
    /// # Errors
    /// [`NotStarted`]; then nothing of the container is left.
    fn start(
        &self,
        container: &Recipe,
        streams: Streams<'_>,
        wishes: &Wishes<'_>,
    ) -> Result<Started, NotStarted>;
}

/// The standard streams of a program.
#[derive(Debug, Clone, Copy)]
pub struct Streams<'a> {
    /// Its input.
    pub stdin: BorrowedFd<'a>,
    /// Its output, a pipe.
    pub stdout: BorrowedFd<'a>,
    /// Its errors, another.
    pub stderr: BorrowedFd<'a>,
}

/// A container whose program was started.
pub struct Started {
    /// The program's process: a child of the shim.
    pub process: ProcessId,
    /// The signal that asks it to leave.
    pub stop_signal: i32,
    /// Where the program is heard that has no network, and the core's socket, to which it is carried.
    pub network: Option<(TcpListener, PathBuf)>,
    /// The container.
    pub container: Box<dyn Container>,
}

/// A container whose program was started. Holds little: it waits as long as the program runs.
pub trait Container {
    /// Names limits of its own that the program has met, such as `disk`. All its processes are gone.
    fn limits_met(&self) -> Vec<&'static str>;

    /// Keeps what the program has left and the run directory (the one of the server's) does not have. All its processes are gone, and
    /// their exit is recorded next.
    fn keep(&mut self, run_directory: BorrowedFd<'_>);

    /// Removes what is left of the container. The exit is recorded, and nobody waits.
    fn remove(&mut self);
}

static CONTAINERS: OnceLock<&'static dyn Containers> = OnceLock::new();

/// Has shims make containers this way.
pub(super) fn register(containers: &'static dyn Containers) {
    // The first one stays: `main` says it once.
    let _first = CONTAINERS.set(containers);
}

/// What makes containers in this program.
pub(super) fn makers() -> Result<&'static dyn Containers, NotStarted> {
    let makers = CONTAINERS.get().copied();
    makers.ok_or_else(|| {
        NotStarted::for_now(
            "the server's program makes no containers; run one that is built with them".to_owned(),
        )
    })
}
