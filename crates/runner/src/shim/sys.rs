//! System calls that have no safe wrapper.
//!
//! `nix` knows no real-time signals (its `Signal` ends at 31, and its `waitpid` fails for a process that one has killed), no
//! pidfds and no queued signals, so signals and waiting are done here for all.

#![expect(
    unsafe_code,
    reason = "these calls have no safe wrapper; each block says why it is sound"
)]

use std::ffi::{CStr, CString, c_int};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Turns the answer of a system call into a result.
fn checked(answer: libc::c_long) -> io::Result<libc::c_long> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer)
}

fn new_descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(checked(answer)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a descriptor that stands for a process, closed at exec (pidfd_open(2)).
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes and gives numbers only.
    new_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// The beginning of `siginfo_t` for a queued signal (sigaction(2), `asm-generic/siginfo.h`).
#[repr(C)]
struct Queued {
    signo: c_int,
    errno: c_int,
    code: c_int,
    #[cfg(target_pointer_width = "64")]
    padding: c_int,
    pid: i32,
    uid: u32,
    value: c_int,
    rest: [c_int; REST],
}

const REST: usize = size_of::<libc::siginfo_t>() / size_of::<c_int>()
    - if cfg!(target_pointer_width = "64") {
        7
    } else {
        6
    };
const _: () = assert!(size_of::<Queued>() == size_of::<libc::siginfo_t>());

/// Sends a signal to the process that a descriptor stands for, with a value if one is given (pidfd_send_signal(2)).
pub(crate) fn pidfd_signal(
    pidfd: BorrowedFd<'_>,
    signal: c_int,
    value: Option<i32>,
) -> io::Result<()> {
    let queued = value.map(|value| Queued {
        signo: signal,
        errno: 0,
        code: libc::SI_QUEUE,
        #[cfg(target_pointer_width = "64")]
        padding: 0,
        pid: std::process::id().cast_signed(),
        // SAFETY: takes nothing and always succeeds.
        uid: unsafe { libc::getuid() },
        value,
        rest: [0; REST],
    });
    let info = queued.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `info` is null or points to a value of the size of `siginfo_t` that lives until after the call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            info,
            0,
        )
    })?;
    Ok(())
}

/// Sends a signal to one process, whose number must still be its own.
pub(crate) fn signal_process(pid: i32, signal: c_int) -> io::Result<()> {
    // SAFETY: takes and gives numbers only.
    checked(unsafe { libc::kill(pid, signal) }.into())?;
    Ok(())
}

/// Sends a signal to a whole process group.
pub(crate) fn signal_group(group: i32, signal: c_int) -> io::Result<()> {
    // SAFETY: takes and gives numbers only.
    checked(unsafe { libc::kill(-group, signal) }.into())?;
    Ok(())
}

/// Forks. Gives the child's id in the parent and `None` in the child. Only for a process of one thread: in a child of several,
/// locks may be held by threads that do not exist.
pub(crate) fn fork() -> io::Result<Option<i32>> {
    // SAFETY: the callers have a single thread, so that the child may do whatever its parent could.
    let pid = checked(unsafe { libc::fork() }.into())?;
    Ok((pid > 0).then_some(i32::try_from(pid).map_err(io::Error::other)?))
}

/// Ends this process at once, without unwinding and without the exit handlers of the process it was forked from.
pub(crate) fn exit_now(code: c_int) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(code) }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Signals are numbered from 1 to 64 (signal(7)); on MIPS to 128, of which the rest is not in use.
const SIGNALS: c_int = 64;
/// At least as large as `struct sigaction` of the kernel on any processor.
const KERNEL_SIGACTION_WORDS: usize = 8;

/// Blocks all signals and gives every signal its default disposition. Blocked signals wait and are read with
/// [`signal_descriptor`]; what an exec inherits is clean.
pub(crate) fn quiet_signals() -> io::Result<()> {
    let mut all = empty_set();
    // SAFETY: the set is valid; the mask of the only thread is changed.
    unsafe {
        libc::sigfillset(&raw mut all);
        checked(libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut()).into())?;
    }
    // The raw call: the C library keeps 32 and 33 for itself, and they may have been inherited ignored like any other.
    let default = [0_u64; KERNEL_SIGACTION_WORDS];
    for signal in 1..=SIGNALS {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: all zero is SIG_DFL without flags, whatever the order of the fields. KILL and STOP are refused, as wanted.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, 8) };
    }
    Ok(())
}

/// Opens a descriptor from which pending signals of these numbers are read (signalfd(2)); it never waits.
pub(crate) fn signal_descriptor(signals: &[c_int]) -> io::Result<OwnedFd> {
    let mut set = empty_set();
    for signal in signals {
        // SAFETY: the set is valid, and an unknown number is refused.
        checked(unsafe { libc::sigaddset(&raw mut set, *signal) }.into())?;
    }
    // SAFETY: the set is valid and is copied.
    new_descriptor(
        unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) }
            .into(),
    )
}

/// A signal that was read.
pub(crate) struct Signal {
    /// Its number.
    pub(crate) number: c_int,
    /// The value it was queued with, if it was.
    pub(crate) value: Option<i32>,
}

/// Reads one pending signal, if there is one.
pub(crate) fn read_signal(descriptor: BorrowedFd<'_>) -> Option<Signal> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer has the size that is given.
    let read = unsafe { libc::read(descriptor.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if usize::try_from(read) != Ok(size) {
        return None;
    }
    // SAFETY: the kernel has filled it, and any bits are a valid value of this struct of numbers.
    let info = unsafe { info.assume_init() };
    Some(Signal {
        number: info.ssi_signo.cast_signed(),
        value: (info.ssi_code == libc::SI_QUEUE).then_some(info.ssi_int),
    })
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It left with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// Which child is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Child {
    Any,
    Only(i32),
}

/// What [`wait`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    /// This child has ended.
    Ended(i32, Ended),
    /// There are children, and none has ended.
    Alive,
    /// There is no such child.
    NoChild,
}

/// Looks for a child that has ended, without waiting (waitid(2)). It stays a zombie, and its id stays taken, unless it is to
/// be reaped.
pub(crate) fn wait(child: Child, reap: bool) -> Waited {
    let (kind, id) = match child {
        Child::Any => (libc::P_ALL, 0),
        Child::Only(pid) => (libc::P_PID, pid.cast_unsigned()),
    };
    let keep = if reap { 0 } else { libc::WNOWAIT };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the buffer is a siginfo_t; zeroed, it is one, too.
    let (answer, info) = unsafe {
        let answer = libc::waitid(
            kind,
            id,
            info.as_mut_ptr(),
            libc::WEXITED | libc::WNOHANG | keep,
        );
        (answer, info.assume_init())
    };
    if answer < 0 {
        // ECHILD is the only error that these arguments leave.
        return Waited::NoChild;
    }
    // SAFETY: waitid has filled these fields, or left them zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Waited::Alive;
    }
    let ended = match info.si_code {
        libc::CLD_EXITED => Ended::Code(status),
        _ => Ended::Signal(status),
    };
    Waited::Ended(pid, ended)
}

/// Milliseconds by the clock that stands still while the machine is suspended, and begins anew when it is booted (CLOCK_MONOTONIC,
/// clock_gettime(2)). The same for all processes.
pub(crate) fn monotonic_ms() -> u64 {
    // Every kernel has this clock.
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| {
        u64::try_from(Duration::from(now).as_millis()).unwrap_or(u64::MAX)
    })
}

/// Reads a small extended attribute of a file (xattr(7)); `None` if it has no such attribute.
pub(crate) fn attribute(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
    let mut value = vec![0_u8; 256];
    // SAFETY: both names are terminated, and the buffer has the size that is given.
    let length = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

/// Closes every descriptor from this number on.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    close_range(first, u32::MAX)
}

/// Closes every descriptor from this number on but one.
pub(crate) fn close_from_but(first: u32, kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd().cast_unsigned();
    if kept > first {
        close_range(first, kept - 1)?;
    }
    close_range(first.max(kept + 1), u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the callers own none of these: they have just been executed or forked, and go on with what they keep only.
    checked(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// Duplicates an inherited descriptor to a number of at least 3, closed at exec.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes and gives numbers only; a number that is not open is refused.
    new_descriptor(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) }.into())
}

/// Gives freed memory back to the system.
pub(crate) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number; the allocator locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
