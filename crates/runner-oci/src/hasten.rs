//! Begins what the runtime would wait for, while there is other work to do.
//!
//! The runtime moves the first process of a container into its cgroups. The kernel lets nobody fork or end meanwhile, and to get there it
//! waits for a grace period of RCU, some 10 ms, unless somebody else has just moved a process: then it is still there
//! (`cgroup_threadgroup_rwsem` and `rcu_sync_enter`, kernel/cgroup/cgroup.c and kernel/rcu/sync.c). So somebody else does so, a few
//! milliseconds ahead.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::thread;

/// No process has this number: it is the largest that can be written there, and far beyond the largest that there can be
/// (`PID_MAX_LIMIT`, 4,194,304; proc_sys_kernel(5)). It is looked for only after the wait, and that it is not found ends the move.
const NOBODY: &str = "2147483647";
/// It makes one system call.
const STACK_BYTES: usize = 64 * 1024;

/// Begins to move nobody into a cgroup that is there. Nothing comes of it but that the next move needs no wait.
pub(crate) fn hasten_moves(cgroup: &Path) {
    let door = OpenOptions::new()
        .write(true)
        .open(cgroup.join("cgroup.procs"));
    if let Ok(door) = door {
        // Without it the runtime waits itself.
        let _begun = thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(|| move_nobody(door));
    }
}

fn move_nobody(mut door: File) {
    let _always_refused = door.write_all(NOBODY.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_moved() {
        let root = Path::new("/sys/fs/cgroup");
        let memory = root.join("memory");
        let place = if memory.exists() { &memory } else { root };
        let before = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let door = OpenOptions::new()
            .write(true)
            .open(place.join("cgroup.procs"));
        // Others than root may not open it.
        if let Ok(mut door) = door {
            let refused = door.write_all(NOBODY.as_bytes()).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ESRCH));
        }
        hasten_moves(place);
        assert_eq!(
            std::fs::read_to_string("/proc/self/cgroup").unwrap(),
            before
        );
    }
}
