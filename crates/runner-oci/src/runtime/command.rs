//! One process of the runtime, from its start to its end.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use runtara_runner::shim::Wishes;
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{RuntimeError, Streams};
use crate::sys;

/// How much of each stream is kept; what is beyond it is read and forgotten.
const OUTPUT_BYTES: usize = 64 * 1024;

/// A process that is to be started.
pub(super) struct Invocation {
    program: PathBuf,
    verb: &'static str,
    command: Command,
}

/// A process that has ended.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Invocation {
    pub(super) fn new(program: &Path, verb: &'static str) -> Self {
        let mut command = Command::new(program);
        // The environment of the server holds its secrets. runc needs none of it, but hooks and helpers of other runtimes are looked for.
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .current_dir("/");
        sys::begin_clean(&mut command);
        Self {
            program: program.to_owned(),
            verb,
            command,
        }
    }

    pub(super) fn options(&mut self, options: impl IntoIterator<Item = impl AsRef<OsStr>>) {
        self.command.args(options);
    }

    /// Runs it with the streams of a container, which others may hold open after it has ended.
    pub(super) fn with_streams(
        mut self,
        streams: Streams,
        deadline: Duration,
        wishes: Option<&Wishes<'_>>,
    ) -> Result<Finished, RuntimeError> {
        self.command
            .stdin(streams.stdin)
            .stdout(streams.stdout)
            .stderr(streams.stderr);
        self.run([false, false], deadline, wishes)
    }

    /// Runs it with nothing to read, and keeps what it writes.
    pub(super) fn captured(mut self, deadline: Duration) -> Result<Finished, RuntimeError> {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.run([true, true], deadline, None)
    }

    fn run(
        mut self,
        captured: [bool; 2],
        deadline: Duration,
        wishes: Option<&Wishes<'_>>,
    ) -> Result<Finished, RuntimeError> {
        let mut child = self
            .command
            .spawn()
            .map_err(|error| self.not_executed(error))?;
        let ended = follow(&mut child, captured, deadline, wishes);
        if !matches!(ended, Ok(Some(_))) {
            // It may be in any state; nothing of it may go on.
            let _killed = child.kill();
        }
        let status = child.wait().map_err(|error| self.not_executed(error))?;
        match ended.map_err(|error| self.not_executed(error))? {
            Some([stdout, stderr]) => Ok(Finished {
                status,
                stdout,
                stderr,
            }),
            None if wishes.is_some_and(is_over) => Err(RuntimeError::Unwanted {
                program: self.program,
                verb: self.verb,
            }),
            None => Err(RuntimeError::TimedOut {
                program: self.program,
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

/// Whether a run is to be over by now.
fn is_over(wishes: &Wishes<'_>) -> bool {
    wishes.bound(Duration::MAX).is_zero()
}

/// Reads what a process writes until it has ended; `None` if that takes too long, or longer than is wished.
fn follow(
    child: &mut Child,
    captured: [bool; 2],
    deadline: Duration,
    wishes: Option<&Wishes<'_>>,
) -> io::Result<Option<[Vec<u8>; 2]>> {
    let end = Instant::now() + deadline;
    let exit = exit_of(child)?;
    let [of_stdout, of_stderr] = captured;
    let mut streams = [
        Stream::new(child.stdout.take().filter(|_| of_stdout))?,
        Stream::new(child.stderr.take().filter(|_| of_stderr))?,
    ];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = wishes.map_or(left, |wishes| wishes.bound(left));
        let mut polled = vec![PollFd::new(exit.as_fd(), PollFlags::POLLIN)];
        let open = streams.iter().filter_map(Stream::descriptor);
        polled.extend(open.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN)));
        polled.extend(wishes.map(|wishes| PollFd::new(wishes.descriptor(), PollFlags::POLLIN)));
        // Rounded up, so that it does not wake just before the moment.
        let wait =
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, wait) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended = polled.first().and_then(PollFd::any).unwrap_or(false);
        for stream in &mut streams {
            stream.read();
        }
        if ended {
            return Ok(Some(streams.map(|stream| stream.kept)));
        }
        if left.is_zero() {
            return Ok(None);
        }
    }
}

/// A descriptor that becomes readable when a process has ended.
fn exit_of(child: &Child) -> io::Result<OwnedFd> {
    Ok(pidfd_open(Pid::from_child(child), PidfdFlags::empty())?)
}

/// What a process writes into a pipe.
struct Stream {
    pipe: Option<Box<dyn Pipe>>,
    kept: Vec<u8>,
}

trait Pipe: Read + AsFd {}
impl<T: Read + AsFd> Pipe for T {}

impl Stream {
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
