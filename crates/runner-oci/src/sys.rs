//! System calls that have no safe wrapper.

#![expect(
    unsafe_code,
    reason = "these calls have no safe wrapper; each block says why it is sound"
)]

use std::ffi::c_int;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sched::CloneFlags;

/// Makes a process keep nothing but its standard streams when it is executed, and no blocked signal.
///
/// Whatever else is open here, on purpose or not, is no concern of a runtime, and what leaked into one has let containers out
/// (CVE-2024-21626). Signals that are blocked stay so through runtime and exec, so that a container of a shim would never be
/// asked to leave.
///
/// # Errors
/// On a kernel before 5.11, what closing open descriptors one by one reported.
pub(crate) fn begin_clean(command: &mut Command) -> io::Result<()> {
    // On older kernels this has to be done before the fork, because it is more than a system call.
    let at_once = marks_ranges();
    if !at_once {
        close_each_on_exec()?;
    }
    let clean = move || {
        let mut none = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set that it is given. The rest takes numbers only. Nothing is closed before the exec, so the
        // descriptor by which the standard library tells of a failed exec goes on to work.
        let masked = unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
        };
        if masked < 0 {
            return Err(io::Error::last_os_error());
        }
        if at_once {
            mark_from(3)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(clean) };
    Ok(())
}

/// Has every descriptor of this process but its standard streams closed when another program is executed.
pub(crate) fn close_all_on_exec() -> io::Result<()> {
    if marks_ranges() {
        mark_from(3)
    } else {
        close_each_on_exec()
    }
}

/// Whether the kernel marks many descriptors at once, as it does since 5.11. Marks none.
fn marks_ranges() -> bool {
    mark_from(u32::MAX).is_ok()
}

/// Has all descriptors from this number on closed when another program is executed.
fn mark_from(first: u32) -> io::Result<()> {
    // SAFETY: takes numbers only, and closes nothing.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Does the same, one by one, to those that are open now.
fn close_each_on_exec() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number: Option<c_int> = name.to_str().and_then(|name| name.parse().ok());
        if let Some(number) = number.filter(|number| *number > 2) {
            // SAFETY: takes numbers only. One that is closed by now, as that of the list itself may be, is refused.
            let _closed = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Makes a process the root of a user namespace when it is executed, which it outlives this one no longer than it takes to kill it. Its
/// other namespaces are those of this process.
pub(crate) fn become_root_of(command: &mut Command, user_namespace: BorrowedFd<'_>) {
    let namespace = user_namespace.as_raw_fd();
    let parent = std::process::id().cast_signed();
    let become_root = move || {
        // SAFETY: takes numbers and a null pointer for a list of length 0. The caller's descriptor is open in this copy of its process.
        let refused = unsafe {
            libc::setns(namespace, libc::CLONE_NEWUSER) < 0
                || libc::setgroups(0, std::ptr::null()) < 0
                || libc::setresgid(0, 0, 0) < 0
                || libc::setresuid(0, 0, 0) < 0
                // Last: a change of ids takes it back (prctl(2)).
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0
        };
        if refused {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: takes nothing.
        if unsafe { libc::getppid() } != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls, and allocates nothing.
    unsafe { command.pre_exec(become_root) };
}

/// Gives a mount that is not attached yet attributes and, if there is a user namespace, that namespace's mapping of owners
/// (mount_setattr(2)).
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    attributes: u64,
    owners: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let (idmap, userns_fd) = match owners {
        Some(namespace) => (libc::MOUNT_ATTR_IDMAP, namespace.as_raw_fd()),
        None => (0, 0),
    };
    let attributes = libc::mount_attr {
        attr_set: attributes | idmap,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: u64::from(userns_fd.cast_unsigned()),
    };
    // SAFETY: the path is terminated, and the structure is as long as is said; both live until after the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Does something in a process of its own with new namespaces (clone(2)), and gives its error. What it does must not allocate or lock: its
/// process is a copy of one that may have had other threads.
pub(crate) fn try_in_namespaces(
    namespaces: c_int,
    attempt: fn() -> Result<(), rustix::io::Errno>,
) -> io::Result<()> {
    // SAFETY: as for `NamespaceHolder`; the callers' attempts are system calls only.
    let pid = unsafe { libc::syscall(libc::SYS_clone, namespaces, 0, 0, 0, 0) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        let code = attempt().map_or_else(rustix::io::Errno::raw_os_error, |()| 0);
        // SAFETY: takes a number and does not return.
        unsafe { libc::_exit(code) };
    }
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    match wait_for(pid) {
        0 => Ok(()),
        // Error numbers end at 133, and a code has room for 255.
        status if libc::WIFEXITED(status) => {
            Err(io::Error::from_raw_os_error(libc::WEXITSTATUS(status)))
        }
        _ => Err(io::Error::other("the process that tried it was killed")),
    }
}

/// Waits for a child that sends no signal when it ends, and gives its status.
fn wait_for(pid: libc::pid_t) -> c_int {
    let mut status = 0;
    // SAFETY: the status is this function's own. The child is ours alone, so its number is not another's.
    while unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    status
}

/// A process that does nothing but live in a user namespace of its own, until this value is dropped, or this process ends.
#[derive(Debug)]
pub(crate) struct NamespaceHolder {
    pid: libc::pid_t,
    alive: Option<PipeWriter>,
}

impl NamespaceHolder {
    /// Starts it (clone(2)), with other new namespaces that belong to that user namespace. It sends no SIGCHLD when it ends, and nobody but
    /// its parent's [`Drop`] waits for it. With the `cgroup.procs` of a cgroup, it first moves itself there.
    pub(crate) fn start(others: CloneFlags, cgroup: Option<&File>) -> io::Result<Self> {
        let (ended, alive) = io::pipe()?;
        let flags = (CloneFlags::CLONE_NEWUSER | others).bits();
        // SAFETY: without CLONE_VM this is fork(2). The child makes only system calls, whatever threads and locks there are here.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        match pid {
            0 => hold(&ended, &alive, cgroup),
            1.. => Ok(Self {
                pid: i32::try_from(pid).map_err(io::Error::other)?,
                alive: Some(alive),
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Has it end, without waiting for that.
    pub(crate) fn let_go(&mut self) {
        self.alive = None;
    }
}

/// Waits until nobody has the other end of the pipe any more.
fn hold(ended: &PipeReader, alive: &PipeWriter, cgroup: Option<&File>) -> ! {
    let (ended, alive) = (ended.as_fd().as_raw_fd(), alive.as_fd().as_raw_fd());
    let cgroup = cgroup.map_or(-1, File::as_raw_fd);
    let mut byte = 0_u8;
    // SAFETY: these are this process's own copies of the descriptors, or none; the buffers hold the one byte that is read or written.
    unsafe {
        libc::close(alive);
        // Whether it may move there makes no difference.
        libc::write(cgroup, c"0".as_ptr().cast(), 1);
        while libc::read(ended, (&raw mut byte).cast(), 1) < 0 {}
        libc::_exit(0)
    }
}

impl Drop for NamespaceHolder {
    fn drop(&mut self) {
        self.let_go();
        let _always_0 = wait_for(self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_marked_at_once_and_one_by_one() {
        type Mark = fn() -> io::Result<()>;
        let ways: [Mark; 2] = [close_all_on_exec, close_each_on_exec];
        for mark in ways {
            let open = File::open("/").unwrap();
            rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
            mark().unwrap();
            let flags = rustix::io::fcntl_getfd(&open).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }
}
