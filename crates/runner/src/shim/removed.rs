//! Ends runs whose files somebody has removed while they lived.
//!
//! The shim of such a run holds its lock still, and nobody finds that by its name any more: a new file of this name is not locked. The kernel
//! tells: the link of an open descriptor whose file was removed ends in ` (deleted)` (proc_pid_fd(5)).

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use runtara_domain::EndedBy;

use super::parent::SHIM_NAME;
use super::process::{self, ProcessId, ends_within, is_gone};
use super::request::{REQUEST_SIGNAL, Request};
use super::sys;
use crate::RunDirectory;

/// How long a shim may take to end its run.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long it may take to die when it is killed, for what it did not do.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// Ends the run whose lock was in this directory, which is there again, and waits until its shim is gone. Nothing to do if there is none, which is
/// the rule. Blocking, bounded by some seconds.
///
/// # Errors
/// What reading `/proc` reported, or that a shim does not end.
pub(super) fn end(directory: &RunDirectory) -> io::Result<()> {
    for pidfd in shims_of(&directory.lock_file())? {
        let request = Request {
            grace: Duration::ZERO,
            ended_by: EndedBy::Host,
        };
        // One that has just ended needs no more of it.
        let _asked = sys::pidfd_signal(pidfd.as_fd(), REQUEST_SIGNAL, Some(request.pack()));
        if ends_within(&pidfd, PATIENCE)? {
            continue;
        }
        // Its program goes with it.
        let _killed = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL, None);
        if !ends_within(&pidfd, LAST_PATIENCE)? {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the files of the run in '{}' were removed, and its shim does not end",
                    directory.path().display()
                ),
            ));
        }
    }
    Ok(())
}

/// Shims that hold a lock of this name whose file is removed.
fn shims_of(lock: &Path) -> io::Result<Vec<OwnedFd>> {
    let (Some(directory), Some(name)) = (lock.parent(), lock.file_name()) else {
        return Ok(Vec::new());
    };
    let mut link = fs::canonicalize(directory)?.join(name).into_os_string();
    link.push(" (deleted)");
    let mut found = Vec::new();
    for pid in process::all()?.into_iter().filter(|pid| is_shim(*pid)) {
        let Ok(pidfd) = sys::pidfd_open(pid) else {
            continue;
        };
        // Looked at behind the descriptor, which cannot pass to another process as the number can.
        if has_open(pid, Path::new(&link))? {
            found.push(pidfd);
        }
    }
    Ok(found)
}

fn is_shim(pid: ProcessId) -> bool {
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_ascii_end() == SHIM_NAME.to_bytes()
}

/// Whether a process has this file open. Those of other users cannot be looked at, and are not of this server.
fn has_open(pid: ProcessId, link: &Path) -> io::Result<bool> {
    let descriptors = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(false);
        }
        descriptors => descriptors?,
    };
    let mut descriptors = descriptors.flatten();
    Ok(descriptors.any(|it| fs::read_link(it.path()).is_ok_and(|found| found == link)))
}
