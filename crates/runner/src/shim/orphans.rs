//! Orphans of a server that is process 1, as it is in most containers.
//!
//! Whoever is process 1 becomes the parent of every process whose own parent, and every subreaper above it, has died
//! (pid_namespaces(7)). If nobody waits for them they stay zombies, and take up numbers until there are none.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::process::{ProcessId, Stat};
use super::sys::{self, Child};
use super::tree;

/// Children that somebody here waits for.
static OURS: Mutex<Vec<ProcessId>> = Mutex::new(Vec::new());

/// Children that are waited for elsewhere. While this is held nobody is taken for an orphan, so a child is started and noted under it.
pub(crate) fn ours() -> MutexGuard<'static, Vec<ProcessId>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps the orphans that have ended, if this process is process 1; to be called whenever a child has ended (`SIGCHLD`). Children of the
/// launcher's kind are left alone; a program that has other children of its own must not call this.
///
/// # Errors
/// What reading `/proc` reported.
pub fn reap_orphans() -> io::Result<()> {
    let me = std::process::id().cast_signed();
    if me != 1 {
        return Ok(());
    }
    let ours = ours();
    for child in tree::children_of(me)? {
        let has_ended = Stat::of(child)?.is_some_and(|stat| stat.is_zombie());
        if has_ended && !ours.contains(&child) {
            sys::wait(Child::Only(child), true);
        }
    }
    Ok(())
}
