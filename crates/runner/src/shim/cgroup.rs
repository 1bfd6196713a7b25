//! The cgroup of a run: in it is all that the run ever started, whoever its parent is by now.
//!
//! It is the kernel's, so it outlives server and shim, and no process leaves it that was not given the right to. Of the old version of
//! cgroups one hierarchy is used, that of memory; each further one would cost a launch as much again. A program must not be moved into
//! its cgroup from outside: that waits for a grace period of RCU, some 10 ms (measured). In version 2 it is born in its cgroup
//! (`CLONE_INTO_CGROUP`, clone(2)); in version 1 it moves itself, by the file `tasks`, which needs no such wait.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::files::read_bounded;
use super::process::ProcessId;
use super::sys;

/// Largest beginning of a file of figures that is read.
const FIGURES_BYTES: usize = 1024;
/// What no limit is in version 1: the largest number of pages, in bytes. In version 2 it is a word.
const NO_LIMIT_BYTES: u64 = 1 << 62;
/// Where memory and processes are counted in version 1.
const MEMORY_HIERARCHY: &str = "/sys/fs/cgroup/memory";
const PIDS_HIERARCHY: &str = "/sys/fs/cgroup/pids";
/// Most members that one look at a cgroup lists, as text; a further look finds the others.
const MEMBERS_BYTES: u64 = 1024 * 1024;
/// How often, and how long apart, a cgroup is removed in which the last process is just ending.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(1);

/// The cgroup of a run that is about to begin, or lives.
pub(crate) struct Cgroup {
    path: PathBuf,
    entrance: Entrance,
    figures: Figures,
}

/// The files in which the kernel keeps what it counts, open.
#[derive(Default)]
struct Figures {
    cpu: Option<File>,
    memory_peak: Option<File>,
    memory_limit: Option<File>,
    events: Option<File>,
    pids_events: Option<File>,
}

enum Entrance {
    Tasks(File),
    Directory(OwnedFd),
}

/// How a process gets into a cgroup.
#[derive(Clone, Copy)]
pub(crate) enum Door<'a> {
    /// It writes `0` into this file (version 1).
    Tasks(BorrowedFd<'a>),
    /// It is born in this directory (version 2).
    Directory(BorrowedFd<'a>),
}

/// What a cgroup counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) cpu_usec: Option<u64>,
    /// With what the kernel cached of files for it.
    pub(crate) memory_peak_bytes: Option<u64>,
    /// What it may have at most, if it has a limit of its own.
    pub(crate) memory_limit_bytes: Option<u64>,
    /// Processes of it that the kernel ended for want of memory.
    pub(crate) oom_kills: u64,
    /// Processes and threads that it was refused because there were too many.
    pub(crate) refused_pids: u64,
}

impl Cgroup {
    /// Makes the cgroup, and opens the way into it.
    pub(crate) fn make(path: PathBuf) -> io::Result<Self> {
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let tasks = OpenOptions::new().write(true).open(path.join("tasks"));
        let entrance = match tasks {
            Ok(tasks) => Entrance::Tasks(tasks),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                Entrance::Directory(nix::fcntl::open(&path, flags, Mode::empty())?)
            }
            Err(error) => return Err(error),
        };
        Ok(Self {
            path,
            entrance,
            figures: Figures::default(),
        })
    }

    /// Opens what [`Self::counted`] will read. To be done when the program runs, and nobody waits for what is done here. In version 1 the
    /// processes of a container are counted in another cgroup, which its runtime has made.
    pub(crate) fn open_figures(&mut self, contained: bool) {
        let file = |name: &str| File::open(self.path.join(name)).ok();
        self.figures = match self.entrance {
            Entrance::Tasks(_) => Figures {
                cpu: None,
                memory_peak: file("memory.max_usage_in_bytes"),
                memory_limit: file("memory.limit_in_bytes"),
                events: file("memory.oom_control"),
                pids_events: contained.then(|| pids_events_beside(&self.path)).flatten(),
            },
            Entrance::Directory(_) => Figures {
                cpu: file("cpu.stat"),
                memory_peak: file("memory.peak"),
                memory_limit: file("memory.max"),
                events: file("memory.events"),
                pids_events: file("pids.events"),
            },
        };
    }

    pub(crate) fn door(&self) -> Door<'_> {
        match &self.entrance {
            Entrance::Tasks(file) => Door::Tasks(file.as_fd()),
            Entrance::Directory(directory) => Door::Directory(directory.as_fd()),
        }
    }

    /// Kills all that is in it.
    pub(crate) fn kill(&self) {
        // What cannot be killed this way is killed as a descendant.
        let _tried = kill(&self.path);
    }

    /// What it counted. A figure that this kernel does not keep is left out.
    pub(crate) fn counted(&self) -> Counted {
        // What is wanted stands within the first few lines.
        let mut buffer = [0; FIGURES_BYTES];
        let mut number = |file: &Option<File>, name: Option<&str>| -> Option<u64> {
            let length = file.as_ref()?.read_at(&mut buffer, 0).ok()?;
            let text = std::str::from_utf8(&buffer[..length]).ok()?;
            match name {
                Some(name) => field(text, name),
                None => text.trim().parse().ok(),
            }
        };
        Counted {
            cpu_usec: number(&self.figures.cpu, Some("usage_usec")),
            memory_peak_bytes: number(&self.figures.memory_peak, None),
            memory_limit_bytes: number(&self.figures.memory_limit, None)
                .filter(|limit| *limit < NO_LIMIT_BYTES),
            oom_kills: number(&self.figures.events, Some("oom_kill")).unwrap_or(0),
            refused_pids: number(&self.figures.pids_events, Some("max")).unwrap_or(0),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What stays because something is in it is found by whoever cleans up behind the run.
        let _stays = remove(&self.path);
    }
}

/// The file in which it is counted, in version 1, how often the processes of a container were too many: its runtime gives its cgroups
/// the same path in all hierarchies.
fn pids_events_beside(path: &Path) -> Option<File> {
    let path = path.strip_prefix(MEMORY_HIERARCHY).ok()?;
    File::open(Path::new(PIDS_HIERARCHY).join(path).join("pids.events")).ok()
}

/// The value behind a word at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

/// Kills all that is in a cgroup now, and says whether there was anything. One that is not there is empty.
pub(crate) fn kill(path: &Path) -> io::Result<bool> {
    let found = members(path)?;
    if found.is_empty() {
        return Ok(false);
    }
    match OpenOptions::new()
        .write(true)
        .open(path.join("cgroup.kill"))
    {
        Ok(mut file) => {
            io::Write::write_all(&mut file, b"1")?;
            return Ok(true);
        }
        // Of version 1, or of a kernel before 5.14.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let opened: Vec<_> = found
        .into_iter()
        .filter_map(|pid| Some((pid, sys::pidfd_open(pid).ok()?)))
        .collect();
    // A number that is in it still, behind the descriptor, has not passed to a stranger.
    let still = members(path)?;
    for (pid, pidfd) in opened {
        if still.contains(&pid) {
            let _ended = sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL, None);
        }
    }
    Ok(true)
}

/// Processes that run code in a cgroup.
fn members(path: &Path) -> io::Result<Vec<ProcessId>> {
    let bytes = match read_bounded(&path.join("cgroup.procs"), MEMBERS_BYTES) {
        // It was removed while it was read.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => None,
        read => read?,
    };
    let text = String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default();
    // 0 stands for a process that has no number here.
    let numbers = text.lines().filter_map(|line| line.parse().ok());
    Ok(numbers.filter(|pid| *pid > 0).collect())
}

/// Removes a cgroup in which nothing is left.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let mut tries = 1;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVE_TRIES => {
                tries += 1;
                std::thread::sleep(REMOVE_PAUSE);
            }
            removed => return removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_by_their_whole_names() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), Some(3));
        assert_eq!(field(text, "oom"), None);
        assert_eq!(field("", "oom_kill"), None);
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_empty_and_removed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("none");
        assert!(!kill(&path).unwrap());
        remove(&path).unwrap();
    }
}
