//! How a shim begins a run: as a process of its own, or in a container.

use std::os::fd::{AsFd as _, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use runtara_domain::{EndedBy, ExitCause, Usage};

use super::cgroup::Cgroup;
use super::containers::{Container, Streams};
use super::files::{ExitRecord, Program};
use super::opening::NotStarted;
use super::parent::Ready;
use super::process::ProcessId;
use super::recipe::Recipe;
use super::relay::Relay;
use super::sys::{self, Child, Waited};
use super::wishes::{GivenUp, Wishes};
use super::{containers, opening, tree};

/// A program in a container.
pub(super) struct Contained {
    pub(super) stop_signal: i32,
    pub(super) relay: Option<Relay>,
    pub(super) container: Box<dyn Container>,
}

/// A program that runs, and its container if it is in one.
pub(super) type Begun = (ProcessId, Option<Contained>);

/// Starts the program of a run.
pub(super) fn start_process(
    program: &Program,
    cgroup: Option<&Cgroup>,
    ready: &Ready,
) -> Result<Begun, NotStarted> {
    let opened = opening::open(program)?;
    let child = opened.start(program, cgroup, &ready.outputs, &ready.room)?;
    Ok((child, None))
}

/// Has the container of a run made, and its program started.
pub(super) fn start_container(
    program: &Program,
    container: &Recipe,
    cgroup: Option<&Cgroup>,
    ready: &Ready,
    wishes: &Wishes<'_>,
) -> Result<Begun, NotStarted> {
    // Without it nobody could end what a killed shim has left.
    let cgroup = cgroup.ok_or_else(|| {
        NotStarted::for_now("the cgroup of the container cannot be made".to_owned())
    })?;
    let stdin = opening::open_stdin(program)?;
    let [stdout, stderr] = &ready.outputs;
    let streams = Streams {
        stdin: stdin.as_fd(),
        stdout: stdout.writer.as_fd(),
        stderr: stderr.writer.as_fd(),
    };
    let started = containers::makers()?.start(container, streams, wishes);
    if started.is_err() {
        // Whatever was made of it must be gone before anybody is told that there is none.
        end_all(Some(cgroup), wishes.descriptor());
    }
    let started = started?;
    let relay = started.network.and_then(|(listener, core)| {
        // Fails for a descriptor that is none; then the program reaches nothing, and says so.
        Relay::new(listener, &core).ok()
    });
    let contained = Contained {
        stop_signal: started.stop_signal,
        relay,
        container: started.container,
    };
    Ok((started.process, Some(contained)))
}

/// The end of a run that was killed before its program was there, or while nobody could tell whether it was.
fn killed_early(by: EndedBy) -> ExitRecord {
    ExitRecord {
        cause: ExitCause::Signal(libc::SIGKILL),
        ended_by: Some(by),
        limits_met: Vec::new(),
        stdout_is_cut: false,
        memory_limit_bytes: None,
        usage: Usage::default(),
    }
}

/// The end of a run whose container was not made.
pub(super) fn not_made(error: NotStarted, program: &Program, wishes: &Wishes<'_>) -> ExitRecord {
    match wishes.given_up() {
        Some(GivenUp::Wished(by)) => killed_early(by),
        Some(GivenUp::Late) => error.late(program.made_within()).record(),
        None => error.record(),
    }
}

/// Kills all that this process or its children have started, and reaps it.
pub(super) fn end_all(cgroup: Option<&Cgroup>, signals: BorrowedFd<'_>) {
    loop {
        match sys::wait(Child::Any, true) {
            Waited::Ended(..) => {}
            Waited::NoChild => return,
            Waited::Alive => {
                if let Some(cgroup) = cgroup {
                    cgroup.kill();
                }
                tree::signal_descendants(0, libc::SIGKILL);
                wait_for_child(signals);
            }
        }
    }
}

fn wait_for_child(signals: BorrowedFd<'_>) {
    let mut polled = [PollFd::new(signals, PollFlags::POLLIN)];
    // Bounded: what was forked while the tree was listed is found by the next look.
    let _looked = poll(&mut polled, PollTimeout::from(20_u8));
    while sys::read_signal(signals).is_some() {}
}
