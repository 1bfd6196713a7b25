//! The OCI runtime: the program that makes containers, runc or another that takes the same commands.
//!
//! Everything here blocks. Each call is one process of the runtime, with an empty environment, the standard streams and nothing else open, and
//! a deadline.

mod command;
mod handover;
mod log;
mod state;
mod version;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtara_runner::shim::Wishes;

use command::{Begun, Finished, Invocation};

pub(crate) use handover::path_of;
pub use handover::{ConfigurationPipe, Handover};
pub use log::is_fault_of_image;
pub use state::{ContainerState, ContainerStatus};
pub use version::{RuntimeVersion, assess};

/// The runtime unless the operator names another.
pub const DEFAULT_PROGRAM: &str = "runc";
/// How long the runtime may take to tell its version.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// A runtime and the directory in which it keeps the state of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    program: PathBuf,
    root: PathBuf,
}

/// A container that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewContainer<'a> {
    /// Its id, unique in the runtime's state directory: letters, digits, `_`, `+`, `-` and `.`.
    pub id: &'a str,
    /// The directory with its `config.json`.
    pub bundle: &'a Path,
    /// Where the runtime writes the process id of its first process.
    pub pid_file: &'a Path,
    /// Where the runtime writes what went wrong. The standard streams are the container's.
    pub log_file: &'a Path,
}

/// The standard streams of a container. The runtime hands on to it what it has itself.
#[derive(Debug)]
pub struct Streams {
    /// Its standard input.
    pub stdin: OwnedFd,
    /// Its standard output.
    pub stdout: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
}

/// Says what a runtime could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// There is no such program.
    #[error(
        "the OCI runtime '{program}' was not found {place}; install it (Debian: apt install runc), or name another with RUNTARA_OCI_RUNTIME"
    )]
    Missing {
        /// What was looked for.
        program: String,
        /// Where.
        place: &'static str,
    },
    /// It could not be executed, or waited for.
    #[error("the OCI runtime '{program}' could not be executed")]
    NotExecuted {
        /// The program.
        program: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long, and was killed. What it was about may be half done: delete the container.
    #[error("'{program} {verb}' took longer than {} s, and was killed", deadline.as_secs_f32())]
    TimedOut {
        /// The program.
        program: PathBuf,
        /// What it was about.
        verb: &'static str,
        /// How long it was given.
        deadline: Duration,
    },
    /// It was killed, because its run was to end, or its container late. What it was about may be half done: delete the container.
    #[error("'{program} {verb}' was killed, because the container was given up")]
    Unwanted {
        /// The program.
        program: PathBuf,
        /// What it was about.
        verb: &'static str,
    },
    /// It said that it failed.
    #[error("'{program} {verb}' failed: {reason}")]
    Failed {
        /// The program.
        program: PathBuf,
        /// What it was about.
        verb: &'static str,
        /// Its own words, or its exit status.
        reason: String,
    },
    /// It answered something that is not understood.
    #[error("'{program} {verb}' answered what is not understood: {reason}")]
    Unreadable {
        /// The program.
        program: PathBuf,
        /// What it was about.
        verb: &'static str,
        /// What is wrong with the answer.
        reason: String,
    },
}

impl Runtime {
    /// A runtime by the path of its program ([`find`]) and its state directory, an absolute path. The directory is made by the runtime; one
    /// in `/run` is gone when the machine starts anew, as the containers are.
    #[must_use]
    pub fn new(program: PathBuf, root: PathBuf) -> Self {
        Self { program, root }
    }

    /// The path of its program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Makes a container, and everything of it but its program, which [`Runtime::start`] starts.
    ///
    /// # Errors
    /// [`RuntimeError`]; there may be parts of the container, until [`Runtime::delete`].
    pub fn create(
        &self,
        container: &NewContainer<'_>,
        streams: Streams,
        deadline: Duration,
    ) -> Result<(), RuntimeError> {
        self.begin(("create", &[]), container, streams)?
            .finish(None, deadline, None)
    }

    /// Makes a container and starts its program, which runs on as a child of the nearest subreaper (prctl(2)) or of process 1. It is given
    /// up when the wishes, if there are any, say so.
    ///
    /// # Errors
    /// As [`Runtime::create`].
    pub fn run_detached(
        &self,
        container: &NewContainer<'_>,
        streams: Streams,
        deadline: Duration,
        wishes: Option<&Wishes<'_>>,
    ) -> Result<(), RuntimeError> {
        self.begin_detached(container, streams)?
            .finish(None, deadline, wishes)
    }

    /// Begins what [`Runtime::run_detached`] does, of a bundle whose configuration may come later.
    ///
    /// # Errors
    /// [`RuntimeError::NotExecuted`].
    pub fn begin_detached(
        &self,
        container: &NewContainer<'_>,
        streams: Streams,
    ) -> Result<Making, RuntimeError> {
        self.begin(("run", &["--detach"]), container, streams)
    }

    /// Starts the program of a container that was created.
    ///
    /// # Errors
    /// [`RuntimeError`]: there is no such container, or its program is not there.
    pub fn start(&self, id: &str, deadline: Duration) -> Result<(), RuntimeError> {
        self.ask("start", &["start", id], deadline).map(drop)
    }

    /// Sends a signal to the first process of a container. Says whether there was one that runs.
    ///
    /// # Errors
    /// [`RuntimeError`] if that cannot be told.
    pub fn kill(&self, id: &str, signal: i32, deadline: Duration) -> Result<bool, RuntimeError> {
        let signal = signal.to_string();
        match self.ask("kill", &["kill", id, &signal], deadline) {
            Err(RuntimeError::Failed { reason, .. }) if log::says_gone(&reason) => Ok(false),
            answered => answered.map(|_| true),
        }
    }

    /// Removes a container and its cgroup; kills what runs in it. One that is not there is removed.
    ///
    /// # Errors
    /// [`RuntimeError`]; a later call tries again.
    pub fn delete(&self, id: &str, deadline: Duration) -> Result<(), RuntimeError> {
        match self.ask("delete", &["delete", "--force", id], deadline) {
            Err(RuntimeError::Failed { reason, .. }) if log::says_missing(&reason) => Ok(()),
            answered => answered.map(drop),
        }
    }

    /// How it is with a container; `None` if there is none of this id.
    ///
    /// # Errors
    /// [`RuntimeError`] if that cannot be told.
    pub fn state(
        &self,
        id: &str,
        deadline: Duration,
    ) -> Result<Option<ContainerState>, RuntimeError> {
        let answer = match self.ask("state", &["state", id], deadline) {
            Err(RuntimeError::Failed { reason, .. }) if log::says_missing(&reason) => {
                return Ok(None);
            }
            answered => answered?,
        };
        let state = state::read(&answer.stdout).map_err(|error| RuntimeError::Unreadable {
            program: self.program.clone(),
            verb: "state",
            reason: error.to_string(),
        })?;
        Ok(Some(state))
    }

    fn begin(
        &self,
        (verb, options): (&'static str, &[&str]),
        container: &NewContainer<'_>,
        streams: Streams,
    ) -> Result<Making, RuntimeError> {
        let mut invocation = self.invocation(verb);
        invocation.options([OsStr::new("--log"), container.log_file.as_os_str()]);
        invocation.options([verb]);
        invocation.options(options);
        invocation.options([OsStr::new("--bundle"), container.bundle.as_os_str()]);
        invocation.options([OsStr::new("--pid-file"), container.pid_file.as_os_str()]);
        invocation.options([container.id]);
        Ok(Making {
            runtime: self.clone(),
            verb,
            log_file: container.log_file.to_owned(),
            begun: invocation.begin(&streams)?,
        })
    }

    fn ask(
        &self,
        verb: &'static str,
        args: &[&str],
        deadline: Duration,
    ) -> Result<Finished, RuntimeError> {
        let mut invocation = self.invocation(verb);
        invocation.options(args);
        let finished = invocation.captured(deadline)?;
        self.check(verb, &finished, || log::reason(&finished.stderr))?;
        Ok(finished)
    }

    fn invocation(&self, verb: &'static str) -> Invocation {
        let mut invocation = Invocation::new(&self.program, verb);
        invocation.options([OsStr::new("--root"), self.root.as_os_str()]);
        invocation.options(["--log-format", "json"]);
        invocation
    }

    fn check(
        &self,
        verb: &'static str,
        finished: &Finished,
        reason: impl FnOnce() -> Option<String>,
    ) -> Result<(), RuntimeError> {
        if finished.status.success() {
            return Ok(());
        }
        Err(RuntimeError::Failed {
            program: self.program.clone(),
            verb,
            reason: reason().unwrap_or_else(|| finished.status.to_string()),
        })
    }
}

/// A runtime that is making a container. Dropped, it is killed; there may be parts of the container.
#[must_use]
pub struct Making {
    runtime: Runtime,
    verb: &'static str,
    log_file: PathBuf,
    begun: Begun,
}

impl Making {
    /// Waits until it is done, and hands it its configuration if the bundle has a [`ConfigurationPipe`]. It is given up when the wishes, if
    /// there are any, say so.
    ///
    /// # Errors
    /// As [`Runtime::create`].
    pub fn finish(
        self,
        configuration: Option<Handover>,
        deadline: Duration,
        wishes: Option<&Wishes<'_>>,
    ) -> Result<(), RuntimeError> {
        let finished = self.begun.finish(configuration, deadline, wishes)?;
        let reason = || log::reason_in_file(&self.log_file);
        self.runtime.check(self.verb, &finished, reason)
    }
}

/// Finds the program of a runtime: an absolute path, or a name that is looked for in the directories of `PATH`.
///
/// # Errors
/// [`RuntimeError::Missing`] if there is no such file that may be executed.
pub fn find(program: &str, search_path: Option<OsString>) -> Result<PathBuf, RuntimeError> {
    let place = if program.contains('/') {
        "as an absolute path"
    } else {
        "in the directories of PATH"
    };
    find_program(program, search_path).ok_or_else(|| RuntimeError::Missing {
        program: program.to_owned(),
        place,
    })
}

/// The path of a program that may be executed.
pub(crate) fn find_program(program: &str, search_path: Option<OsString>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let is_executable = |path: &PathBuf| {
        let metadata = path.metadata();
        metadata.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(PathBuf::from(program))
            .filter(|path| path.is_absolute() && is_executable(path));
    }
    // A directory that is not absolute would be another wherever the server is started.
    std::env::split_paths(&search_path?)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(is_executable)
}

/// Asks a runtime what it is and, if it knows that question, what it can do.
///
/// # Errors
/// [`RuntimeError`] if it cannot be executed, fails, takes longer than 10 s, or says nothing that tells its name and version.
pub fn probe(program: &Path) -> Result<RuntimeVersion, RuntimeError> {
    const VERB: &str = "--version";
    let answer = question(program, VERB)?;
    if !answer.status.success() {
        return Err(RuntimeError::Failed {
            program: program.to_owned(),
            verb: VERB,
            reason: answer.status.to_string(),
        });
    }
    let text = String::from_utf8_lossy(&answer.stdout);
    let read = RuntimeVersion::read(&text).ok_or_else(|| RuntimeError::Unreadable {
        program: program.to_owned(),
        verb: VERB,
        reason: format!(
            "it should begin with a name and a version, and begins with '{}'",
            text.chars().take(100).collect::<String>()
        ),
    });
    let mut version = read?;
    // Older runtimes do not know it.
    if let Ok(answer) = question(program, "features")
        && answer.status.success()
    {
        version.take_features(&answer.stdout);
    }
    Ok(version)
}

fn question(program: &Path, verb: &'static str) -> Result<Finished, RuntimeError> {
    let mut invocation = Invocation::new(program, verb);
    invocation.options([verb]);
    invocation.captured(PROBE_DEADLINE)
}

#[cfg(test)]
mod tests;
