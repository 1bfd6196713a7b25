//! Finds out what became of a run, from its files and the kernel alone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{MsgFlags, recv, send};
use runtara_domain::{EndedBy, Usage};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::files::{
    ExitRecord, LockFile, Program, RunFile, forbid_start, read_bounded, read_lock_file,
    read_run_bytes, read_run_file,
};
use super::launcher::PATH_BYTES;
use super::process::{ProcessId, Stat, boot_id};
use super::request::{REQUEST_SIGNAL, Request};
use super::watch::watch;
use super::{leftover, removed, sys, tree};
use crate::RunDirectory;

/// How long a run may be in between: its shim holds the lock and has not yet said who it is, or has just let it go.
const BETWEEN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What [`look`] found.
#[derive(Debug)]
pub enum Found {
    /// Its shim lives.
    Alive(Shim),
    /// It ended, and this is its record.
    Exited(ExitRecord),
    /// There is no record, nothing of it lives, and nothing of it will: it can no longer be started.
    Gone,
}

/// What [`see`] found.
pub(super) enum Seen {
    /// Its shim lives.
    Alive(OwnedFd),
    /// It ended, and this is its record.
    Exited(ExitRecord),
    /// As [`Found::Gone`].
    Gone,
}

/// Finds out what became of the run of a directory. Blocking, bounded by some seconds; within a tokio runtime, on its blocking pool.
///
/// A record says how it ended. Without one, the lock decides: if a shim holds it, and is the process that it says it is, the run lives. If
/// the lock can be had, nothing lives, but for a run whose files somebody has removed, which is ended; then `run.json` is made to forbid
/// the start, *under* the lock, so that a launch that is caught in its middle does not go on. The directory of a run that has none is made for that purpose.
///
/// # Errors
/// Whatever leaves the question open. Nothing may be concluded from it.
pub fn look(directory: &RunDirectory) -> io::Result<Found> {
    Ok(match see(directory)? {
        Seen::Alive(pidfd) => Found::Alive(Shim::new(pidfd)?),
        Seen::Exited(exit) => Found::Exited(exit),
        Seen::Gone => Found::Gone,
    })
}

/// The same for a process that has no runtime.
pub(super) fn see(directory: &RunDirectory) -> io::Result<Seen> {
    let until = Instant::now() + BETWEEN;
    loop {
        if let Some(exit) = ExitRecord::read(&directory.exit_file())? {
            return Ok(Seen::Exited(exit));
        }
        make_directory(directory.path())?;
        let lock = match open_lock(&directory.lock_file()) {
            // A launch that failed has just taken the directory away again.
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < until => {
                std::thread::sleep(LOOK_AGAIN);
                continue;
            }
            opened => opened?,
        };
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return under_lock(directory, &lock),
            Err((_, Errno::EWOULDBLOCK)) => {}
            Err((_, errno)) => return Err(errno.into()),
        }
        let holder = read_lock_file(&directory.lock_file())?;
        let shim = holder.map(|holder| holder.shim.open()).transpose()?;
        if let Some(pidfd) = shim.flatten() {
            return Ok(Seen::Alive(pidfd));
        }
        if Instant::now() >= until {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "somebody holds the lock '{}' and does not say who it is",
                    directory.lock_file().display()
                ),
            ));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Whether a process has the lock of a run: its shim, or somebody who looks. A run that is just being launched may be prevented by the
/// question, as by [`look`].
///
/// # Errors
/// What opening the lock reported.
pub fn is_locked(directory: &RunDirectory) -> io::Result<bool> {
    let lock = match File::open(directory.lock_file()) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match Flock::lock(lock, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// The shim of a run that has recorded its exit, as long as it has not ended itself: it may still be taking a container apart. `None` if
/// it has ended, or was killed. Blocking; within a tokio runtime.
///
/// # Errors
/// What reading the lock file reported.
pub fn lingering(directory: &RunDirectory) -> io::Result<Option<Shim>> {
    let holder = read_lock_file(&directory.lock_file())?;
    let shim = holder.map(|holder| holder.shim.open()).transpose()?;
    shim.flatten().map(Shim::new).transpose()
}

fn under_lock(directory: &RunDirectory, _lock: &Flock<File>) -> io::Result<Seen> {
    // It may have been written between the first look and the lock.
    if let Some(exit) = ExitRecord::read(&directory.exit_file())? {
        return Ok(Seen::Exited(exit));
    }
    // If the run was not forbidden to start, a shim may have been killed that had started the program, and may not have come to say
    // who it is. The program went with it; what the program had started may not have.
    let run = read_run(directory)?;
    if run.is_none() {
        // It was never launched, or its files are removed. Under the lock: nobody begins it meanwhile.
        removed::end(directory)?;
    }
    let (may_have_begun, program) = run.map_or((false, None), |run| (run.go, run.program));
    let holder = read_lock_file(&directory.lock_file())?;
    let is_of_this_boot = match holder {
        Some(holder) => holder.shim.boot_id == boot_id()?,
        None => true,
    };
    if let Some(program) = &program
        && may_have_begun
        && is_of_this_boot
    {
        leftover::end(program)?;
    }
    forbid_start(&directory.run_file(), program)?;
    Ok(Seen::Gone)
}

/// What the run of a directory was to start, as its `run.json` says; `None` if that is not there or says nothing.
///
/// # Errors
/// What reading reported.
pub fn read_program(directory: &RunDirectory) -> io::Result<Option<Program>> {
    Ok(read_run(directory)?.and_then(|run| run.program))
}

fn read_run(directory: &RunDirectory) -> io::Result<Option<RunFile>> {
    match File::open(directory.run_file()) {
        Ok(file) => Ok(read_run_file(&read_run_bytes(file)?).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn open_lock(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// A shim that lives, or has just ended.
#[derive(Debug)]
pub struct Shim {
    pidfd: AsyncFd<OwnedFd>,
    /// By this one that was a spare was told its run, and tells when the exit is recorded.
    socket: Option<AsyncFd<OwnedFd>>,
}

impl Shim {
    pub(crate) fn new(pidfd: OwnedFd) -> io::Result<Self> {
        Self::with_socket(pidfd, None)
    }

    pub(crate) fn with_socket(pidfd: OwnedFd, socket: Option<OwnedFd>) -> io::Result<Self> {
        let pidfd = watch(pidfd, Interest::READABLE)?;
        let socket = socket.map(|socket| watch(socket, Interest::READABLE));
        Ok(Self {
            pidfd,
            socket: socket.transpose()?,
        })
    }

    /// Tells a spare its run. With an error, nobody has got it.
    pub(crate) fn begin(&self, path: &[u8]) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if path.len() > PATH_BYTES {
            return Err(Errno::ENAMETOOLONG.into());
        }
        // Its only packet, so there is room. A spare that was killed has closed its end.
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        send(socket.as_raw_fd(), path, flags)?;
        Ok(())
    }

    /// Waits until the exit of the run is recorded and the shim has let go of it, or the shim has ended: a pidfd becomes
    /// readable then, and stays it (pidfd_open(2)).
    ///
    /// # Errors
    /// What the reactor reported.
    pub async fn ended(&self) -> io::Result<()> {
        let process = async {
            let guard = self.pidfd.readable().await;
            guard.map(|mut guard| guard.retain_ready())
        };
        let Some(socket) = &self.socket else {
            return process.await;
        };
        tokio::pin!(process);
        tokio::select! {
            ended = &mut process => ended,
            is_recorded = hear(socket) => if is_recorded { Ok(()) } else { process.await },
        }
    }

    /// Asks the shim to end its run: SIGTERM to all of its processes, SIGKILL to what is left after the grace period. Of several
    /// wishes the one that is over first counts. One that has ended is left alone.
    ///
    /// # Errors
    /// What the system said, if the wish could not be delivered.
    pub fn terminate(&self, grace: Duration, ended_by: EndedBy) -> io::Result<()> {
        let request = Request { grace, ended_by };
        match sys::pidfd_signal(self.pidfd.as_fd(), REQUEST_SIGNAL, Some(request.pack())) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            sent => sent,
        }
    }

    /// What the processes of the run of this directory have used so far; `None` if there is none any more. Its running time is counted as
    /// its record will: from the moment at which its program was there.
    ///
    /// # Errors
    /// What reading `/proc` or the run's lock file reported.
    pub fn usage(&self, directory: &RunDirectory) -> io::Result<Option<Usage>> {
        let Some(pid) = self.pid()? else {
            return Ok(None);
        };
        let mut usage = Usage::default();
        // Its number stays taken until somebody has reaped it.
        let Some(shim) = Stat::of(pid)?.filter(|shim| !shim.is_zombie()) else {
            return Ok(None);
        };
        let mut ticks = shim.children_cpu_ticks;
        let mut resident_pages = 0;
        for (process, _) in tree::descendants(pid)? {
            if let Some(stat) = Stat::of(process)? {
                ticks += stat.cpu_ticks + stat.children_cpu_ticks;
                resident_pages += stat.resident_pages;
            }
            let peak = peak_bytes(process)?;
            usage.memory_peak_bytes = usage.memory_peak_bytes.max(peak);
        }
        usage.running_ms = match read_lock_file(&directory.lock_file())? {
            Some(lock) => running_ms(&lock)?,
            // Its program is not there yet.
            None => 0,
        };
        // If the shim has ended meanwhile, its number may have been another process.
        if self.pid()? != Some(pid) {
            return Ok(None);
        }
        usage.cpu_usec = ticks.saturating_mul(1_000_000 / ticks_per_second()?);
        usage.memory_peak_bytes = usage.memory_peak_bytes.max(resident_pages * page_bytes()?);
        Ok(Some(usage))
    }

    /// Its number, as long as it lives (proc_pid_fdinfo(5)).
    fn pid(&self) -> io::Result<Option<ProcessId>> {
        let path = format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd());
        let text = std::fs::read_to_string(path)?;
        let number = text.lines().find_map(|line| line.strip_prefix("Pid:"));
        let number = number.and_then(|number| number.trim().parse::<ProcessId>().ok());
        Ok(number.filter(|number| *number > 0))
    }
}

/// How long the program has run by now that the lock of its run names.
fn running_ms(lock: &LockFile) -> io::Result<u64> {
    if let Some(began_ms) = lock.began_ms {
        return Ok(sys::monotonic_ms().saturating_sub(began_ms));
    }
    // Of a shim that did not say when: then its process tells, with the time that the machine was suspended.
    let Some(program) = Stat::of(lock.child_pid)? else {
        return Ok(0);
    };
    let began_ms = program.start_time * 1000 / ticks_per_second()?;
    Ok(ms_since_boot()?.saturating_sub(began_ms))
}

/// Whether a shim says that it has recorded the exit. It stays said. Without that word it was killed, or had nothing to record.
async fn hear(socket: &AsyncFd<OwnedFd>) -> bool {
    let heard = socket.async_io(Interest::READABLE, |socket| {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        Ok(recv(socket.as_raw_fd(), &mut [0], flags)?)
    });
    heard.await.is_ok_and(|length| length > 0)
}

/// The largest memory that a process had (VmHWM of proc_pid_status(5)); 0 if it is gone.
fn peak_bytes(pid: ProcessId) -> io::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = match read_bounded(Path::new(&path), 16 * 1024) {
        Ok(text) => text.unwrap_or_default(),
        Err(error) if super::process::is_gone(&error) => return Ok(0),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(&text);
    let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(peak.unwrap_or(0) * 1024)
}

/// The first field of proc_uptime(5), which is on the same clock as the start time of a process.
fn ms_since_boot() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    let (seconds, rest) = text.split_once('.').unwrap_or((&text, ""));
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    // Two digits follow the point.
    Ok(number(seconds) * 1000 + number(rest.get(..2).unwrap_or_default()) * 10)
}

fn ticks_per_second() -> io::Result<u64> {
    system_value(nix::unistd::SysconfVar::CLK_TCK)
}

fn page_bytes() -> io::Result<u64> {
    system_value(nix::unistd::SysconfVar::PAGE_SIZE)
}

fn system_value(variable: nix::unistd::SysconfVar) -> io::Result<u64> {
    let value = nix::unistd::sysconf(variable)?.and_then(|value| u64::try_from(value).ok());
    value
        .filter(|value| *value > 0)
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}
