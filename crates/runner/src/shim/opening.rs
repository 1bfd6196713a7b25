//! What a shim opens before it starts the program: the files of the run, and those of the program.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{
    FallocateFlags, FcntlArg, Flock, FlockArg, OFlag, fallocate, fcntl, openat, renameat,
};
use nix::sys::stat::Mode;
use runtara_domain::{ExitCause, Usage};

use super::cgroup::Cgroup;
use super::child::{self, Descriptors, Room, StartError, Step};
use super::files::{EXIT_FILE_BYTES, ExitRecord, LockFile, Program};
use super::process::{Identity, ProcessId};

/// How often, and how long apart, a program is tried that somebody still holds open for writing. A program that was just written
/// is held open by every process that a thread of the server happened to fork meanwhile, until that executes.
const BUSY_TRIES: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// How often, and how long apart, a lock is tried that somebody has.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Under this name `exit.json` waits to be filled.
pub(crate) const EXIT_ASIDE: &str = "exit.new";

/// The files of a run, by a descriptor of their directory: it may be moved or removed under us.
pub(crate) struct RunFiles {
    directory: OwnedFd,
    /// Held until this is dropped.
    lock: Flock<File>,
    /// What `exit.json` will be, once it is set aside.
    aside: OnceCell<File>,
}

impl RunFiles {
    /// Opens the directory and takes the lock. Whoever has it already has the run.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(path, flags, Mode::empty())?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
        let lock = openat(&directory, "lock", flags, owner_only())?;
        let lock = take_lock(File::from(lock))?;
        Ok(Self {
            directory,
            lock,
            aside: OnceCell::new(),
        })
    }

    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens a file for reading.
    pub(crate) fn read(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(openat(&self.directory, name, flags, Mode::empty())?.into())
    }

    /// Takes the room that `exit.json` will need, while there is room. The file stays open: to open it again would be done while
    /// somebody waits for the exit.
    pub(crate) fn set_exit_aside(&self) -> io::Result<()> {
        let file = self.exit_aside()?;
        // Without a size: the file is as long as what will be written.
        let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&file, flags, 0, EXIT_FILE_BYTES as i64) {
            // A file system that cannot promise room still may have it.
            Ok(()) | Err(Errno::EOPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
        let _first = self.aside.set(file);
        Ok(())
    }

    fn exit_aside(&self) -> io::Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC;
        Ok(openat(&self.directory, EXIT_ASIDE, flags, owner_only())?.into())
    }

    /// Writes `exit.json`. Not synced: a machine that loses its power loses the run as well, and what it kept of the file is
    /// either whole or no record.
    pub(crate) fn write_exit(&self, record: &ExitRecord) -> io::Result<()> {
        let bytes = record.to_json();
        if let Some(file) = self.aside.get() {
            file.write_all_at(&bytes, 0)?;
            if self.put_exit_in_place().is_ok() {
                return Ok(());
            }
            // Somebody has removed it.
        }
        self.exit_aside()?.write_all_at(&bytes, 0)?;
        Ok(self.put_exit_in_place()?)
    }

    fn put_exit_in_place(&self) -> nix::Result<()> {
        runtara_failpoints::pass(runtara_failpoints::Point::ShimExitAside);
        renameat(&self.directory, EXIT_ASIDE, &self.directory, "exit.json")
    }

    /// Says in the lock which processes hold it.
    pub(crate) fn write_lock(
        &self,
        shim: Identity,
        child: ProcessId,
        began_ms: u64,
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(&LockFile::new(shim, child, began_ms))?;
        self.lock.write_all_at(&bytes, 0)
    }
}

/// Takes the lock of a run. Whoever only asks whether it is taken has it for a moment, and is waited for.
fn take_lock(mut lock: File) -> io::Result<Flock<File>> {
    for _ in 0..LOCK_TRIES {
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(taken) => return Ok(taken),
            Err((free, Errno::EWOULDBLOCK)) => lock = free,
            Err((_, errno)) => return Err(errno.into()),
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(io::ErrorKind::WouldBlock.into())
}

fn owner_only() -> Mode {
    Mode::S_IRUSR | Mode::S_IWUSR
}

/// Why there is no program.
#[derive(Debug)]
pub struct NotStarted {
    permanent: bool,
    error: String,
}

impl NotStarted {
    /// For a reason that may go away.
    #[must_use]
    pub fn for_now(error: String) -> Self {
        Self {
            permanent: false,
            error,
        }
    }

    /// For a reason in the image or the start: a later attempt fails as well.
    #[must_use]
    pub fn for_good(error: String) -> Self {
        Self {
            permanent: true,
            error,
        }
    }

    /// The same in other words: what people are told must not hold what is the host's.
    #[must_use]
    pub fn reworded(self, reword: impl FnOnce(&str) -> String) -> Self {
        Self {
            error: reword(&self.error),
            ..self
        }
    }

    /// The same, if it may have come of the time being over that there was for it.
    pub(crate) fn late(self, within: Duration) -> Self {
        if self.permanent {
            return self;
        }
        let seconds = within.as_secs_f32();
        Self::for_now(format!(
            "the host did not make its container within {seconds} s: {}",
            self.error
        ))
    }

    /// What is written down.
    pub(crate) fn record(self) -> ExitRecord {
        ExitRecord {
            cause: ExitCause::NotLaunched {
                permanent: self.permanent,
                error: self.error,
            },
            ended_by: None,
            limits_met: Vec::new(),
            stdout_is_cut: false,
            memory_limit_bytes: None,
            usage: Usage::default(),
        }
    }
}

/// What the program needs, open.
pub(crate) struct Opened {
    work: OwnedFd,
    stdin: File,
}

/// Opens what the program needs, with the rights of the server.
pub(crate) fn open(program: &Program) -> Result<Opened, NotStarted> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let work = nix::fcntl::open(&program.work, flags, Mode::empty())
        .map_err(|errno| not_opened("the work directory", &program.work, &errno.into()))?;
    let stdin = open_stdin(program)?;
    Ok(Opened { work, stdin })
}

/// Opens what the program finds on its standard input.
pub(crate) fn open_stdin(program: &Program) -> Result<File, NotStarted> {
    let stdin = program.stdin.as_deref().unwrap_or(Path::new("/dev/null"));
    File::open(stdin).map_err(|error| not_opened("the input", stdin, &error))
}

fn not_opened(what: &str, path: &Path, error: &io::Error) -> NotStarted {
    NotStarted::for_now(format!(
        "could not open {what} '{}': {error}",
        path.display()
    ))
}

/// One output of the program.
///
/// The shim keeps the end to which the program writes, too: then the pipe is never closed, and a shim is not woken for each output of a
/// program that is just ending, in the middle of that. What is in a pipe is read when there is something, and once more when
/// all processes are gone.
pub(crate) struct Pipe {
    pub(crate) reader: OwnedFd,
    pub(crate) writer: OwnedFd,
}

impl Pipe {
    pub(crate) fn new() -> io::Result<Self> {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // A program may read its own output, too; whoever was told that there is something must not wait for more.
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { reader, writer })
    }
}

impl Opened {
    /// Starts the program; gives its process.
    pub(crate) fn start(
        &self,
        program: &Program,
        cgroup: Option<&Cgroup>,
        [stdout, stderr]: &[Pipe; 2],
        room: &Room,
    ) -> Result<ProcessId, NotStarted> {
        let given = Descriptors {
            stdin: self.stdin.as_fd(),
            stdout: stdout.writer.as_fd(),
            stderr: stderr.writer.as_fd(),
            work: self.work.as_fd(),
            cgroup: cgroup.map(Cgroup::door),
        };
        let mut tries = 1;
        loop {
            match child::start(program, &given, room) {
                Ok(pid) => return Ok(pid),
                Err(StartError { step, error }) => {
                    reap_failed();
                    if is_busy(&error) && tries < BUSY_TRIES {
                        tries += 1;
                        std::thread::sleep(BUSY_PAUSE);
                        continue;
                    }
                    return Err(explain(program, step, &error));
                }
            }
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETXTBSY)
}

/// The process that could not become the program.
fn reap_failed() {
    use super::sys::{Child, Waited, wait};
    while let Waited::Ended(..) = wait(Child::Any, true) {}
}

/// Whether it is the image's fault that it was not started, and how to say that.
fn explain(program: &Program, step: Step, error: &io::Error) -> NotStarted {
    let path = program.executable.display();
    let is_there = program.executable.exists();
    let (permanent, why) = match (step, error.raw_os_error()) {
        (Step::Execute, Some(libc::ENOENT)) if is_there => (
            true,
            ": the loader or interpreter that it names does not exist",
        ),
        (Step::Execute, Some(libc::ENOEXEC)) => (true, ": this machine does not know its format"),
        (Step::Execute, Some(libc::EACCES)) => (
            true,
            ": it, or the interpreter that it names, may not be executed, or lies on a file system that is mounted `noexec`",
        ),
        (
            Step::Execute,
            Some(
                libc::EINVAL
                | libc::ELIBBAD
                | libc::E2BIG
                | libc::EISDIR
                | libc::ENOTDIR
                | libc::ELOOP
                | libc::EPERM,
            ),
        ) => (true, ""),
        _ => (false, ""),
    };
    NotStarted {
        permanent,
        error: format!("could not {} ('{path}'): {error}{why}", step.describe()),
    }
}
