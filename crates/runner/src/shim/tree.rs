//! The processes of a run: everything below its shim.
//!
//! The shim is a subreaper, so whatever a program starts, and whatever leaves its session or loses its parent, stays below the
//! shim (PR_SET_CHILD_SUBREAPER(2const)).

use std::io;
use std::os::fd::AsFd as _;

use super::process::{ProcessId, Stat, is_gone};
use super::sys;

/// Most processes that one look at a tree lists; a further look finds the others.
const LOOK: usize = 65_536;

/// The children of a process, of all its threads (proc_tid_children(5)).
fn children(pid: ProcessId, found: &mut Vec<(ProcessId, ProcessId)>) -> io::Result<()> {
    let tasks = match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for task in tasks {
        let text = match task.and_then(|task| std::fs::read(task.path().join("children"))) {
            Ok(text) => text,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let numbers = text.split(u8::is_ascii_whitespace);
        let numbers = numbers.filter_map(|number| std::str::from_utf8(number).ok()?.parse().ok());
        found.extend(numbers.map(|child| (child, pid)));
    }
    Ok(())
}

/// The children of a process.
pub(crate) fn children_of(pid: ProcessId) -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    children(pid, &mut found)?;
    Ok(found.into_iter().map(|(child, _)| child).collect())
}

/// Everything below a process, each with its parent.
pub(crate) fn descendants(root: ProcessId) -> io::Result<Vec<(ProcessId, ProcessId)>> {
    let mut found = Vec::new();
    children(root, &mut found)?;
    let mut looked = 0;
    while looked < found.len().min(LOOK) {
        let (pid, _) = found[looked];
        children(pid, &mut found)?;
        looked += 1;
    }
    Ok(found)
}

/// Sends a signal to everything below this process except for the group that has had it already. A process that ended
/// meanwhile is passed over, and so is a stranger that was given its number.
pub(crate) fn signal_descendants(except_group: ProcessId, signal: i32) {
    let root = std::process::id().cast_signed();
    for (pid, parent) in descendants(root).unwrap_or_default() {
        let Ok(pidfd) = sys::pidfd_open(pid) else {
            continue;
        };
        // A child whose parent died meanwhile is now a child of the subreaper.
        let is_ours = |stat: &Stat| stat.parent == parent || stat.parent == root;
        let stat = Stat::of(pid).ok().flatten().filter(is_ours);
        if stat.is_some_and(|stat| stat.group != except_group && !stat.is_zombie()) {
            // It may have ended just now, which is as good.
            let _ended = sys::pidfd_signal(pidfd.as_fd(), signal, None);
        }
    }
}

/// Whether this machine can list the children of a process.
pub(crate) fn is_listable() -> bool {
    // The main thread of a process has its number.
    let pid = std::process::id();
    std::fs::metadata(format!("/proc/{pid}/task/{pid}/children")).is_ok()
}
