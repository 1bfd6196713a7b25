//! Ends what a killed shim has left alive.
//!
//! A shim that ends in order ends everything below it first. One that is killed takes its program along
//! (`PR_SET_PDEATHSIG`), but not what the program has started. Such processes are known by the cgroup of the run, and where it has none
//! by the run's directory in their environment, which no other run has.

use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::files::Program;
use super::process::{self, ProcessId};
use super::{cgroup, sys};

/// How long they may take to die.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The variable that tells a run by its private directory.
const MARK: &str = "RUNTARA_RUN_DIR=";

/// Kills every process in the run's cgroup or with its mark until there is none.
pub(crate) fn end(program: &Program) -> io::Result<()> {
    // In containers it is the same for all; what they started is in their cgroup.
    let of_host = Some(program).filter(|program| program.container.is_none());
    let mark = of_host.and_then(|program| {
        let mut variables = program.env.iter();
        variables.find(|entry| entry.starts_with(MARK))
    });
    let until = Instant::now() + PATIENCE;
    loop {
        let in_cgroup = match &program.cgroup {
            Some(path) => cgroup::kill(path)?,
            None => false,
        };
        let marked = match mark {
            Some(mark) => kill_all(mark.as_bytes())?,
            None => false,
        };
        if !in_cgroup && !marked {
            break;
        }
        if Instant::now() >= until {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "processes of the run do not die",
            ));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    if let Some(path) = &program.cgroup {
        // An empty one that stays is swept at the next start.
        let _stays = cgroup::remove(path);
    }
    Ok(())
}

/// Kills those that are there now, and says whether there were any.
fn kill_all(mark: &[u8]) -> io::Result<bool> {
    let mut found = false;
    for pid in process::all()? {
        if !has_mark(pid, mark) {
            continue;
        }
        // Looked at again behind the descriptor, which cannot pass to another process as the number can.
        let Ok(pidfd) = sys::pidfd_open(pid) else {
            continue;
        };
        if has_mark(pid, mark) {
            found = true;
            let _ended = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL, None);
        }
    }
    Ok(found)
}

/// Whether a process has the mark in its environment. Those of other users cannot be read, and are not of this run.
fn has_mark(pid: ProcessId, mark: &[u8]) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|entry| entry == mark)
}
