//! Which process is which: an id alone is used again, an id with its start time and the boot is not.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::files::read_bounded;
use super::sys;

/// Largest `/proc/<pid>/status` that is read: it has some 60 lines.
const STATUS_BYTES: u64 = 16 * 1024;
/// Most threads that are looked at. Whoever has a thread of its own for signals begins it early.
const MOST_THREADS: usize = 1024;

/// The number of a process.
pub(crate) type ProcessId = i32;

/// A process, for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: ProcessId,
    /// In clock ticks since boot: field 22 of proc_pid_stat(5).
    pub(crate) start_time: u64,
    /// The boot it belongs to (random(4)).
    pub(crate) boot_id: String,
}

impl Identity {
    /// A descriptor of the process, if it is still there.
    pub(crate) fn open(&self) -> io::Result<Option<OwnedFd>> {
        if boot_id()? != self.boot_id {
            return Ok(None);
        }
        let pidfd = match sys::pidfd_open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Read after the descriptor was opened: if it is still the same process, the descriptor is its.
        let stat = Stat::of(self.pid)?;
        Ok(stat
            .is_some_and(|stat| stat.start_time == self.start_time && !stat.is_zombie())
            .then_some(pidfd))
    }
}

/// All processes that there are. Some may end before they are looked at, and others begin.
pub(crate) fn all() -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        found.extend(
            name.to_str()
                .and_then(|name| name.parse::<ProcessId>().ok()),
        );
    }
    Ok(found)
}

/// Whether a process ends within this time: its descriptor becomes readable then, and stays it (pidfd_open(2)).
pub(crate) fn ends_within(pidfd: &OwnedFd, time: Duration) -> io::Result<bool> {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut waited = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut waited, timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The id of this boot.
pub(crate) fn boot_id() -> io::Result<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim_end().to_owned())
}

/// What `/proc/<pid>/stat` says (proc_pid_stat(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) parent: ProcessId,
    pub(crate) group: ProcessId,
    /// CPU time of the process, in clock ticks.
    pub(crate) cpu_ticks: u64,
    /// CPU time of its children that it has waited for, in clock ticks.
    pub(crate) children_cpu_ticks: u64,
    pub(crate) start_time: u64,
    /// Resident memory, in pages.
    pub(crate) resident_pages: u64,
}

impl Stat {
    /// Reads that of a process; `None` if there is no such process.
    pub(crate) fn of(pid: ProcessId) -> io::Result<Option<Self>> {
        Self::read(&format!("/proc/{pid}/stat"))
    }

    /// Reads that of this process.
    pub(crate) fn of_self() -> io::Result<Option<Self>> {
        Self::read("/proc/self/stat")
    }

    fn read(path: &str) -> io::Result<Option<Self>> {
        // One read: the text is some 300 bytes, and made anew for each.
        let mut text = [0; 1024];
        let read = File::open(path).and_then(|mut file| file.read(&mut text));
        match read {
            Ok(length) => Ok(Self::parse(&text[..length])),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // The second field is the program's name in parentheses, and may hold anything, parentheses and spaces included.
        let after_name = text.iter().rposition(|byte| *byte == b')')? + 1;
        let rest = std::str::from_utf8(text.get(after_name..)?).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first of these is field 3.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let id = |field: usize| fields.get(field - 3)?.parse::<ProcessId>().ok();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            parent: id(4)?,
            group: id(5)?,
            cpu_ticks: number(14)?.saturating_add(number(15)?),
            children_cpu_ticks: number(16)?.saturating_add(number(17)?),
            start_time: number(22)?,
            resident_pages: number(24)?,
        })
    }

    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// Whether an error of a file under `/proc` means that its process is gone.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Whether a signal would end this process if it were not the first of its namespace: it neither handles, ignores nor blocks it, and by default it ends
/// a process (signal(7)). Of one that cannot be looked at that is not said.
pub(crate) fn ends_others(pid: ProcessId, signal: i32) -> bool {
    // Before and after: a wait that ends in between would not be seen in the one place, and be told as blocked in the other.
    if waits_for_signals(pid) {
        return false;
    }
    let path = format!("/proc/{pid}/status");
    let text = match read_bounded(Path::new(&path), STATUS_BYTES) {
        Ok(Some(bytes)) => String::from_utf8(bytes).unwrap_or_default(),
        _ => return false,
    };
    let spares = [
        libc::SIGCHLD,
        libc::SIGURG,
        libc::SIGWINCH,
        libc::SIGCONT,
        libc::SIGSTOP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ];
    !spares.contains(&signal) && says_nothing_about(&text, signal) && !waits_for_signals(pid)
}

/// Whether a thread of a process waits for signals (sigwaitinfo(2)): while it does, those that it waits for are told as not blocked. Of one
/// that cannot be looked at that is assumed.
fn waits_for_signals(pid: ProcessId) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return true;
    };
    let waits = libc::SYS_rt_sigtimedwait.to_string();
    threads.flatten().take(MOST_THREADS).any(|thread| {
        // The number of the call and its arguments (proc_pid_syscall(5)).
        match read_bounded(&thread.path().join("syscall"), STATUS_BYTES) {
            Ok(Some(bytes)) => {
                String::from_utf8_lossy(&bytes).split_whitespace().next() == Some(&waits)
            }
            Ok(None) => false,
            Err(_) => true,
        }
    })
}

/// Whether the signal is in none of the sets that proc_pid_status(5) tells: of those ignored, of those handled, and of those blocked, which
/// programs take by sigwait(3) or signalfd(2), and which the kernel keeps for process 1, too.
fn says_nothing_about(status: &str, signal: i32) -> bool {
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok())
    };
    let bit = u32::try_from(signal - 1)
        .ok()
        .and_then(|shift| 1_u64.checked_shl(shift));
    let sets = ["SigBlk:", "SigIgn:", "SigCgt:"].map(set);
    match (sets, bit) {
        ([Some(blocked), Some(ignored), Some(handled)], Some(bit)) => {
            (blocked | ignored | handled) & bit == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_about_a_signal_is_told() {
        let status =
            "SigBlk:\t0000000000000001\nSigIgn:\t0000000000001000\nSigCgt:\t0000000000004000\n";
        assert!(!says_nothing_about(status, 15), "it is handled");
        assert!(!says_nothing_about(status, 13), "it is ignored");
        assert!(!says_nothing_about(status, 1), "it is blocked");
        assert!(says_nothing_about(status, 2));
        assert!(says_nothing_about(status, 64));
        assert!(!says_nothing_about(status, 65) && !says_nothing_about("", 2));
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_is_no_trap() {
        let text = b"7 (a) R 1 (b) S 3 7 7 0 -1 0 0 0 0 0 11 5 2 1 20 0 1 0 9000 4096 12 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.state, stat.parent, stat.group), (b'S', 3, 7));
        assert_eq!((stat.cpu_ticks, stat.children_cpu_ticks), (16, 3));
        assert_eq!((stat.start_time, stat.resident_pages), (9000, 12));
    }

    #[test]
    fn this_process_is_found_and_an_older_one_of_its_number_is_not() {
        let mut identity = Identity {
            pid: std::process::id().cast_signed(),
            start_time: Stat::of_self().unwrap().unwrap().start_time,
            boot_id: boot_id().unwrap(),
        };
        assert!(identity.open().unwrap().is_some());
        identity.start_time -= 1;
        assert!(identity.open().unwrap().is_none());
    }
}
