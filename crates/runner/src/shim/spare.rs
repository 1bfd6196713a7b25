//! A spare: a shim that was forked before there is a run for it.
//!
//! What a shim does before it knows its run costs as much as what it does afterwards: the fork, and the pages of which each process
//! needs a copy of its own when it touches them first. A server that has a spare waits for none of that: it writes the path
//! of the run to the spare's socket, and the spare goes on as any other shim.

use std::ffi::OsStr;
use std::hint::black_box;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use runtara_domain::{ExitCause, Usage};

use super::files::{self, ExitRecord, LockFile};
use super::launcher::PATH_BYTES;
use super::parent::{self, NOT_OURS, Ready};

/// A `run.json` as most are, to read one before it matters.
const SAMPLE: &[u8] = br#"{"version":1,"go":true,"program":{"executable":"/srv/image","args":["image"],"env":["PATH=/usr/bin:/bin","LANG=C.UTF-8","HOME=/srv/work"],"work":"/srv/work","stdin":"/srv/input.json","user":[1000,1000],"limits":{"open_files":null,"processes":null,"file_bytes":null},"cgroup":"/sys/fs/cgroup/run","oom_score_adj":500,"nice":null,"timeout_ms":3600000,"log_cap_bytes":1048576}}"#;

/// Waits for a run and parents it. Gives the exit code of the shim.
pub(crate) fn run(socket: OwnedFd, boot: &str) -> i32 {
    let Ok(ready) = Ready::new(boot) else {
        return NOT_OURS;
    };
    rehearse(&ready);
    let path = match wait_for_run(&socket, &ready) {
        Ok(path) if !path.is_empty() => path,
        // The server is gone, or has no use for it.
        _ => return NOT_OURS,
    };
    parent::run(Path::new(OsStr::from_bytes(&path)), Ok(ready), Some(socket))
}

/// Waits for the path of a run; an empty one if none will come. Not inlined: the stack that it takes would stay taken as long as the run
/// lives.
#[inline(never)]
fn wait_for_run(socket: &OwnedFd, ready: &Ready) -> io::Result<Vec<u8>> {
    let mut polled = [
        PollFd::new(socket.as_fd(), PollFlags::POLLIN),
        PollFd::new(ready.signals(), PollFlags::POLLIN),
    ];
    while let Err(errno) = poll(&mut polled, PollTimeout::NONE) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    if !polled[0].any().unwrap_or(true) {
        // It is told to leave. From here on nothing can be sent to it; what was sent before still counts, and finds the signal.
        shutdown(socket.as_raw_fd(), Shutdown::Read)?;
    }
    let mut path = [0; PATH_BYTES];
    let length = recv(socket.as_raw_fd(), &mut path, MsgFlags::MSG_DONTWAIT)?;
    Ok(path[..length].to_vec())
}

/// Does once what each run needs and what has no effect, so that the memory is touched that it takes.
fn rehearse(ready: &Ready) {
    let _run = black_box(files::read_run_file(black_box(SAMPLE)));
    let lock = LockFile::new(ready.identity().clone(), 1, super::sys::monotonic_ms());
    let _lock = black_box(serde_json::to_vec(&lock));
    let record = ExitRecord {
        cause: ExitCause::Code(0),
        ended_by: None,
        limits_met: Vec::new(),
        stdout_is_cut: false,
        memory_limit_bytes: None,
        usage: Usage::default(),
    };
    let _exit = black_box(record.to_json());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_read_as_a_whole() {
        let run = files::read_run_file(SAMPLE).unwrap();
        assert!(run.go && run.program.is_some());
    }
}
