//! The files by which server and shim speak across time: `run.json`, `lock`, `exit.json` and `slept`.
//!
//! Each carries a version. A reader takes its own and the one before, so that a new server understands the runs of the old one. What a
//! file may lack, and a reader may pass over, is no new version.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtara_domain::{EndedBy, ExitCause, Usage};
use serde::{Deserialize, Serialize};

use super::process::{Identity, ProcessId};
use super::recipe::Recipe;
use crate::Spares;

/// The version that is written.
const VERSION: u32 = 1;
/// Largest `run.json`: the variables and arguments of a start, escaped at their worst, and room for the rest.
const RUN_FILE_BYTES: u64 = 8 * 1024 * 1024;
/// What `exit.json` is given beforehand, so that a full disk cannot keep it from being written.
pub(crate) const EXIT_FILE_BYTES: usize = 4096;
/// Longest error text in `exit.json`; six times as long when escaped at its worst, it would not fit, so it is cut further then.
const ERROR_BYTES: usize = 1024;

/// What a shim is to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The executable: an absolute path, by which the program's user can reach it.
    pub executable: PathBuf,
    /// Its arguments, its own name first.
    pub args: Vec<String>,
    /// Its whole environment, as `NAME=value`. Secrets.
    pub env: Vec<String>,
    /// The directory it starts in.
    pub work: PathBuf,
    /// What it finds on its standard input; nothing if there is none.
    pub stdin: Option<PathBuf>,
    /// User and group it runs as; those of the server if there is none.
    pub user: Option<(u32, u32)>,
    /// What its processes may take.
    #[serde(default)]
    pub limits: ProcessLimits,
    /// The cgroup that is made for it, if it is to have one of its own.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// What its container is made of, for what [`init_with`](super::init_with) was given. Then its executable, arguments, environment and
    /// directory are those of the container, and only `cgroup`, `stdin`, time and output are read here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Recipe>,
    /// How willingly the kernel ends it when memory runs out (proc_pid_oom_score_adj(5)).
    pub oom_score_adj: Option<i32>,
    /// Its niceness.
    pub nice: Option<i32>,
    /// How long it may run, in milliseconds, from the moment at which it was started: executed, or said to be started by whoever makes its
    /// container. Time slept in held calls and time the machine was suspended are not counted.
    pub timeout_ms: u64,
    /// How long it may live at most from the moment at which its shim began with it, in milliseconds, held sleeps counted: the overall
    /// deadline of its instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
    /// How long its container may take to be made, in milliseconds, if not as long as usual (300 s). Beyond it the run was not launched,
    /// through the host's fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_within_ms: Option<u64>,
    /// How much of each of its two outputs is kept, in bytes.
    pub log_cap_bytes: u64,
}

/// How long a container may take to be made unless somebody says otherwise: far longer than a busy machine needs, for it is better late than
/// begun anew.
const MADE_WITHIN: Duration = Duration::from_secs(300);

impl Program {
    /// How long its container may take to be made.
    pub(crate) fn made_within(&self) -> Duration {
        self.made_within_ms
            .map_or(MADE_WITHIN, Duration::from_millis)
    }
}

/// Limits of each process of a run (getrlimit(2)); soft and hard alike. What is not set is as it is for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Open descriptors.
    pub open_files: Option<u64>,
    /// Processes and threads of the user, of all its runs together.
    pub processes: Option<u64>,
    /// Size of a file, in bytes.
    pub file_bytes: Option<u64>,
}

/// `run.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunFile {
    version: u32,
    /// Whether the run may still be started.
    pub(crate) go: bool,
    pub(crate) program: Option<Program>,
}

/// `lock`: which processes the run has.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LockFile {
    version: u32,
    #[serde(flatten)]
    pub(crate) shim: Identity,
    pub(crate) child_pid: ProcessId,
    /// When the program began: milliseconds of CLOCK_MONOTONIC (clock_gettime(2)), which begins anew with each boot. Shims of earlier servers
    /// did not say it.
    #[serde(default)]
    pub(crate) began_ms: Option<u64>,
}

impl LockFile {
    pub(crate) fn new(shim: Identity, child_pid: ProcessId, began_ms: u64) -> Self {
        Self {
            version: VERSION,
            shim,
            child_pid,
            began_ms: Some(began_ms),
        }
    }
}

/// How a run ended, as its shim wrote it down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitRecord {
    /// How the main process came to its end.
    pub cause: ExitCause,
    /// What had a hand in it.
    pub ended_by: Option<EndedBy>,
    /// Limits that were met beside it.
    pub limits_met: Vec<String>,
    /// Whether some of what it wrote to its standard output could not be stored.
    pub stdout_is_cut: bool,
    /// The memory that its processes could have together, if that was limited for them alone.
    pub memory_limit_bytes: Option<u64>,
    /// What all its processes used.
    pub usage: Usage,
}

/// What every version of each file has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// `exit.json`.
#[derive(Debug, Serialize, Deserialize)]
struct ExitFile {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_launched: Option<NotLaunched>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_by: Option<EndedByWord>,
    limits_met: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stdout_is_cut: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_limit_bytes: Option<u64>,
    cpu_usec: u64,
    memory_peak_bytes: u64,
    running_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct NotLaunched {
    permanent: bool,
    error: String,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EndedByWord {
    Deadline,
    Stop,
    Leaving,
    Host,
    OutOfMemory,
}

impl From<EndedBy> for EndedByWord {
    fn from(ended_by: EndedBy) -> Self {
        match ended_by {
            EndedBy::Deadline => Self::Deadline,
            EndedBy::Stop => Self::Stop,
            EndedBy::Leaving => Self::Leaving,
            EndedBy::Host => Self::Host,
            EndedBy::OutOfMemory => Self::OutOfMemory,
        }
    }
}

impl From<EndedByWord> for EndedBy {
    fn from(word: EndedByWord) -> Self {
        match word {
            EndedByWord::Deadline => Self::Deadline,
            EndedByWord::Stop => Self::Stop,
            EndedByWord::Leaving => Self::Leaving,
            EndedByWord::Host => Self::Host,
            EndedByWord::OutOfMemory => Self::OutOfMemory,
        }
    }
}

impl ExitRecord {
    /// The bytes of `exit.json`, at most [`EXIT_FILE_BYTES`].
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut keep = ERROR_BYTES;
        loop {
            let bytes = serde_json::to_vec(&self.as_file(keep)).unwrap_or_default();
            if bytes.len() <= EXIT_FILE_BYTES || keep == 0 {
                return bytes;
            }
            keep /= 2;
        }
    }

    fn as_file(&self, keep: usize) -> ExitFile {
        let mut file = ExitFile {
            version: VERSION,
            code: None,
            signal: None,
            not_launched: None,
            ended_by: self.ended_by.map(Into::into),
            limits_met: self.limits_met.clone(),
            stdout_is_cut: self.stdout_is_cut,
            memory_limit_bytes: self.memory_limit_bytes,
            cpu_usec: self.usage.cpu_usec,
            memory_peak_bytes: self.usage.memory_peak_bytes,
            running_ms: self.usage.running_ms,
        };
        match &self.cause {
            ExitCause::Code(code) => file.code = Some(*code),
            ExitCause::Signal(signal) => file.signal = Some(*signal),
            // No program of a shim is a guest.
            ExitCause::Lost | ExitCause::Trap(_) | ExitCause::Dropped | ExitCause::OutputLost => {}
            ExitCause::NotLaunched { permanent, error } => {
                file.not_launched = Some(NotLaunched {
                    permanent: *permanent,
                    error: runtara_domain::tail(error, keep),
                });
            }
        }
        file
    }

    /// Reads `exit.json`; `None` if there is none, or only the beginning of one: a machine that lost its power may have kept the name
    /// and not the content.
    ///
    /// # Errors
    /// What reading reported, and a version that is not known.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let Some(bytes) = read_bounded(path, EXIT_FILE_BYTES as u64)? else {
            return Ok(None);
        };
        // First: a word of a later version must not make an exit none.
        let Ok(Versioned { version }) = serde_json::from_slice(&bytes) else {
            return Ok(None);
        };
        check_version(version, path)?;
        let Ok(file) = serde_json::from_slice::<ExitFile>(&bytes) else {
            return Ok(None);
        };
        let cause = match (file.code, file.signal, file.not_launched) {
            (Some(code), _, _) => ExitCause::Code(code),
            (_, Some(signal), _) => ExitCause::Signal(signal),
            (_, _, Some(NotLaunched { permanent, error })) => {
                ExitCause::NotLaunched { permanent, error }
            }
            _ => ExitCause::Lost,
        };
        Ok(Some(Self {
            cause,
            ended_by: file.ended_by.map(Into::into),
            limits_met: file.limits_met,
            stdout_is_cut: file.stdout_is_cut,
            memory_limit_bytes: file.memory_limit_bytes,
            usage: Usage {
                cpu_usec: file.cpu_usec,
                memory_peak_bytes: file.memory_peak_bytes,
                running_ms: file.running_ms,
            },
        }))
    }
}

/// Writes `run.json` for a launch. A file that is there already is left alone: it says that this run must not be started.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if there is one, or what writing reported.
pub fn write_run_file(spares: &Spares, path: &Path, program: Program) -> io::Result<()> {
    let file = RunFile {
        version: VERSION,
        go: true,
        program: Some(program),
    };
    spares.file(path, &serde_json::to_vec(&file)?)
}

/// Puts a `run.json` into place that forbids the start, and still says what it was. To be done under the lock.
pub(crate) fn forbid_start(path: &Path, program: Option<Program>) -> io::Result<()> {
    let file = RunFile {
        version: VERSION,
        go: false,
        program,
    };
    replace(path, &serde_json::to_vec(&file)?)
}

pub(crate) fn read_run_file(bytes: &[u8]) -> io::Result<RunFile> {
    let file: RunFile = serde_json::from_slice(bytes)?;
    check_version(file.version, Path::new("run.json"))?;
    Ok(file)
}

pub(crate) fn read_run_bytes(file: std::fs::File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(
        usize::try_from(file.metadata()?.size())
            .unwrap_or(0)
            .min(RUN_FILE_BYTES as usize),
    );
    file.take(RUN_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads `lock`; `None` if the shim has not written it yet.
pub(crate) fn read_lock_file(path: &Path) -> io::Result<Option<LockFile>> {
    let Some(bytes) = read_bounded(path, 4096)? else {
        return Ok(None);
    };
    let Ok(file) = serde_json::from_slice::<LockFile>(&bytes) else {
        return Ok(None);
    };
    check_version(file.version, path)?;
    Ok(Some(file))
}

/// Writes down how long a run slept in held calls; its shim reads it when the deadline comes.
///
/// # Errors
/// What writing reported.
pub fn write_slept(path: &Path, slept: Duration) -> io::Result<()> {
    let ms = u64::try_from(slept.as_millis()).unwrap_or(u64::MAX);
    replace(path, ms.to_string().as_bytes())
}

/// Reads what [`write_slept`] wrote.
pub(crate) fn read_slept(bytes: &[u8]) -> Duration {
    let ms = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    Duration::from_millis(ms.unwrap_or(0))
}

fn check_version(found: u32, path: &Path) -> io::Result<()> {
    if (VERSION.saturating_sub(1).max(1)..=VERSION).contains(&found) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "'{}' is of version {found}, and this server reads up to {VERSION}; run the server that wrote it",
        path.display()
    )))
}

pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    match std::fs::File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(limit).read_to_end(&mut bytes)?;
            Ok(Some(bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn new_file(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Replaces a file by rename, so that a reader sees the old text or the new. Not synced: a machine that loses its power loses the
/// run as well.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    new_file(&temporary)?.write_all(bytes)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_reads_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.json");
        assert_eq!(ExitRecord::read(&path).unwrap(), None);
        for cause in [
            ExitCause::Code(3),
            ExitCause::Signal(34),
            ExitCause::NotLaunched {
                permanent: true,
                error: "no loader".to_owned(),
            },
        ] {
            let exit = ExitRecord {
                cause,
                ended_by: Some(EndedBy::Leaving),
                limits_met: vec!["disk".to_owned()],
                stdout_is_cut: true,
                memory_limit_bytes: Some(4),
                usage: Usage {
                    cpu_usec: 1,
                    memory_peak_bytes: 2,
                    running_ms: 3,
                },
            };
            std::fs::write(&path, exit.to_json()).unwrap();
            assert_eq!(ExitRecord::read(&path).unwrap(), Some(exit));
        }
    }

    #[test]
    fn a_file_that_lost_its_content_is_no_exit_and_a_newer_one_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit.json");
        for torn in ["", "\0\0\0\0", "{\"version\":1,\"co"] {
            std::fs::write(&path, torn).unwrap();
            assert_eq!(ExitRecord::read(&path).unwrap(), None, "{torn:?}");
        }
        let newer = r#"{"version":2,"ended_by":"a_later_word","usage":{}}"#;
        std::fs::write(&path, newer).unwrap();
        let error = ExitRecord::read(&path).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
    }

    #[test]
    fn files_of_before_are_read_that_did_not_tell_when_a_program_began() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let before = r#"{"version":1,"pid":7,"start_time":8,"boot_id":"b","child_pid":9}"#;
        std::fs::write(&path, before).unwrap();
        let lock = read_lock_file(&path).unwrap().unwrap();
        assert_eq!((lock.child_pid, lock.began_ms), (9, None));
        let lock = LockFile::new(lock.shim, 9, 5);
        std::fs::write(&path, serde_json::to_vec(&lock).unwrap()).unwrap();
        let lock = read_lock_file(&path).unwrap().unwrap();
        assert_eq!((lock.child_pid, lock.began_ms), (9, Some(5)));
        let before = br#"{"version":1,"go":true,"program":{"executable":"/x","args":[],"env":[],"work":"/","stdin":null,"user":null,"oom_score_adj":null,"nice":null,"timeout_ms":1,"log_cap_bytes":1}}"#;
        let program = read_run_file(before).unwrap().program.unwrap();
        assert_eq!(program.made_within(), MADE_WITHIN);
    }

    #[test]
    fn the_longest_error_fits_into_what_was_set_aside() {
        for error in ["\0".repeat(100_000), "ä".repeat(100_000)] {
            let exit = ExitRecord {
                cause: ExitCause::NotLaunched {
                    permanent: false,
                    error,
                },
                ended_by: None,
                limits_met: Vec::new(),
                stdout_is_cut: false,
                memory_limit_bytes: None,
                usage: Usage::default(),
            };
            assert!(exit.to_json().len() <= EXIT_FILE_BYTES);
        }
    }

    #[test]
    fn a_start_that_was_forbidden_is_not_allowed_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.json");
        forbid_start(&path, None).unwrap();
        let program = Program {
            executable: "/bin/true".into(),
            args: vec![],
            env: vec![],
            work: "/".into(),
            stdin: None,
            user: None,
            limits: ProcessLimits::default(),
            cgroup: None,
            container: None,
            oom_score_adj: None,
            nice: None,
            timeout_ms: 1,
            expires_in_ms: None,
            made_within_ms: None,
            log_cap_bytes: 1,
        };
        let spares = Spares::open(directory.path().join("spares")).unwrap();
        let error = write_run_file(&spares, &path, program).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(!read_run_file(&std::fs::read(&path).unwrap()).unwrap().go);
    }
}
