//! One process of the runtime, from its start to its end.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use runtara_runner::shim::Wishes;
use rustix::fs::OFlags;
use rustix::process::{PidfdFlags, pidfd_open};

use super::handover::Handover;
use super::{RuntimeError, Streams};
use crate::sys;

/// How much of each stream is kept; what is beyond it is read and forgotten.
const OUTPUT_BYTES: usize = 64 * 1024;

/// All that a runtime finds in its environment: what it may look for hooks and helpers by. That of the server holds its secrets.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process that is to be started.
pub(super) struct Invocation {
    program: PathBuf,
    verb: &'static str,
    options: Vec<OsString>,
}

/// A process that has ended.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Invocation {
    pub(super) fn new(program: &Path, verb: &'static str) -> Self {
        Self {
            program: program.to_owned(),
            verb,
            options: Vec::new(),
        }
    }

    pub(super) fn options(&mut self, options: impl IntoIterator<Item = impl AsRef<OsStr>>) {
        let options = options.into_iter();
        self.options
            .extend(options.map(|option| option.as_ref().to_owned()));
    }

    /// Starts it with the streams of a container, which others may hold open after it has ended. From a process whose working directory
    /// is `/`, and in which every descriptor is closed when another program is executed.
    pub(super) fn begin(self, streams: &Streams) -> Result<Begun, RuntimeError> {
        match self.spawn(streams) {
            Ok(pid) => Ok(Begun {
                invocation: self,
                pid,
                waited_for: false,
            }),
            Err(error) => Err(self.not_executed(error)),
        }
    }

    /// Runs it with nothing to read, and keeps what it writes.
    pub(super) fn captured(self, deadline: Duration) -> Result<Finished, RuntimeError> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.options)
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        sys::begin_clean(&mut command).map_err(|error| self.not_executed(error))?;
        let mut child = command.spawn().map_err(|error| self.not_executed(error))?;
        let pid = Pid::from_raw(child.id().cast_signed());
        let streams = Stream::new(child.stdout.take())
            .and_then(|stdout| Ok([stdout, Stream::new(child.stderr.take())?]));
        let ended = streams.and_then(|streams| {
            let waited = Waited {
                pid,
                streams,
                configuration: None,
            };
            waited.follow(deadline, None)
        });
        if !matches!(ended, Ok(Some(_))) {
            let _killed = child.kill();
        }
        let status = child.wait().map_err(|error| self.not_executed(error))?;
        self.finished(status, ended, deadline, None)
    }

    /// Starts it as no copy of this process, which would cost more than all else that is done here for a container.
    fn spawn(&self, streams: &Streams) -> io::Result<Pid> {
        let mut actions = PosixSpawnFileActions::init()?;
        for (stream, number) in [
            (&streams.stdin, 0),
            (&streams.stdout, 1),
            (&streams.stderr, 2),
        ] {
            actions.add_dup2(stream.as_raw_fd(), number)?;
        }
        let mut attributes = PosixSpawnAttr::init()?;
        // Signals that are blocked stay so through runtime and exec, so that a container of a shim would never be asked to leave.
        attributes.set_sigmask(&SigSet::empty())?;
        attributes.set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
        // Whatever else is open here, on purpose or not, is no concern of a runtime, and what leaked into one has let containers out
        // (CVE-2024-21626).
        sys::close_all_on_exec()?;
        let name = CString::new(self.program.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        let mut args = vec![name];
        for option in &self.options {
            args.push(CString::new(option.as_bytes()).map_err(|_| Errno::EINVAL)?);
        }
        let path = CString::new(format!("PATH={PATH}")).map_err(|_| Errno::EINVAL)?;
        Ok(posix_spawn(
            &self.program,
            &actions,
            &attributes,
            &args,
            &[path],
        )?)
    }

    fn finished(
        &self,
        status: ExitStatus,
        ended: io::Result<Option<[Vec<u8>; 2]>>,
        deadline: Duration,
        wishes: Option<&Wishes<'_>>,
    ) -> Result<Finished, RuntimeError> {
        match ended.map_err(|error| self.not_executed(error))? {
            Some([stdout, stderr]) => Ok(Finished {
                status,
                stdout,
                stderr,
            }),
            None if wishes.is_some_and(Wishes::is_over) => Err(RuntimeError::Unwanted {
                program: self.program.clone(),
                verb: self.verb,
            }),
            None => Err(RuntimeError::TimedOut {
                program: self.program.clone(),
                verb: self.verb,
                deadline,
            }),
        }
    }

    fn not_executed(&self, source: io::Error) -> RuntimeError {
        RuntimeError::NotExecuted {
            program: self.program.clone(),
            source,
        }
    }
}

/// A process that was started with the streams of a container. Dropped, it is killed.
pub(super) struct Begun {
    invocation: Invocation,
    pid: Pid,
    waited_for: bool,
}

impl Begun {
    /// Waits for its end, and hands it its configuration if it still waits for that.
    pub(super) fn finish(
        mut self,
        configuration: Option<Handover>,
        deadline: Duration,
        wishes: Option<&Wishes<'_>>,
    ) -> Result<Finished, RuntimeError> {
        let waited = Waited {
            pid: self.pid,
            streams: [Stream::none(), Stream::none()],
            configuration,
        };
        let ended = waited.follow(deadline, wishes);
        if !matches!(ended, Ok(Some(_))) {
            // It may be in any state; nothing of it may go on.
            let _killed = kill(self.pid, Signal::SIGKILL);
        }
        self.waited_for = true;
        let status = wait_for(self.pid).map_err(|error| self.invocation.not_executed(error))?;
        self.invocation.finished(status, ended, deadline, wishes)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.waited_for {
            let _killed = kill(self.pid, Signal::SIGKILL);
            let _ended = wait_for(self.pid);
        }
    }
}

/// Waits for a child.
fn wait_for(pid: Pid) -> io::Result<ExitStatus> {
    loop {
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A process whose end is waited for.
struct Waited {
    pid: Pid,
    streams: [Stream; 2],
    configuration: Option<Handover>,
}

impl Waited {
    /// Reads what it writes until it has ended, and hands it its configuration; `None` if that takes too long, or longer than is wished.
    fn follow(
        mut self,
        deadline: Duration,
        wishes: Option<&Wishes<'_>>,
    ) -> io::Result<Option<[Vec<u8>; 2]>> {
        let end = Instant::now() + deadline;
        let exit = exit_of(self.pid)?;
        loop {
            if let Some(configuration) = &mut self.configuration {
                configuration.write()?;
            }
            let left = end.saturating_duration_since(Instant::now());
            let left = wishes.map_or(left, |wishes| wishes.bound(left));
            let mut polled = vec![PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
            let open = self.streams.iter().filter_map(Stream::descriptor);
            polled.extend(open.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)));
            polled.extend(wishes.map(|wishes| PollFd::new(wishes.descriptor(), PollFlags::POLLIN)));
            let unwritten = self.configuration.as_ref().and_then(Handover::unwritten);
            polled.extend(unwritten.map(|pipe| PollFd::new(pipe, PollFlags::POLLOUT)));
            // Rounded up, so that it does not wake just before the moment.
            let wait =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut polled, wait) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ended = polled.first().and_then(PollFd::any).unwrap_or(false);
            for stream in &mut self.streams {
                stream.read();
            }
            if ended {
                return Ok(Some(self.streams.map(|stream| stream.kept)));
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }
}

/// A descriptor that becomes readable when a process has ended.
fn exit_of(pid: Pid) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw());
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// What a process writes into a pipe.
struct Stream {
    pipe: Option<Box<dyn Pipe>>,
    kept: Vec<u8>,
}

trait Pipe: Read + AsFd {}
impl<T: Read + AsFd> Pipe for T {}

impl Stream {
    fn none() -> Self {
        Self {
            pipe: None,
            kept: Vec::new(),
        }
    }

    fn new(pipe: Option<impl Pipe + 'static>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            // Somebody else may hold the other end open for ever.
            rustix::fs::fcntl_setfl(pipe, OFlags::NONBLOCK)?;
        }
        Ok(Self {
            pipe: pipe.map(|pipe| Box::new(pipe) as Box<dyn Pipe>),
            kept: Vec::new(),
        })
    }

    fn descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.pipe.as_ref().map(|pipe| pipe.as_fd())
    }

    /// Reads what there is, and closes a pipe that has come to its end.
    fn read(&mut self) {
        let mut buffer = [0_u8; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(length) => {
                    let room = OUTPUT_BYTES - self.kept.len();
                    self.kept.extend(buffer.iter().take(length.min(room)));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }
}
