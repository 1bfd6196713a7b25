//! Where the files of a run are.

use std::path::{Path, PathBuf};

use crate::RunKey;

/// The directory of one run: `<data>/runs/<26 letters of the instance id>/<run number>/`.
///
/// | file | what |
/// |---|---|
/// | `run.json` | what is to be launched, and whether it still may be |
/// | `lock` | held by the shim until the exit is recorded (`flock`); whoever has it knows that nothing of the run lives |
/// | `exit.json` | how it ended |
/// | `stdout.<n>`, `stderr.<n>` | what it wrote, the newest part: segments, each named by the offset of its first byte |
/// | `slept` | how long it slept in held calls, which its deadline does not count |
/// | `input.json` | its input |
/// | `work/` | its private directory |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDirectory(PathBuf);

impl RunDirectory {
    /// The directory of a run under the server's data directory.
    #[must_use]
    pub fn of(data_dir: &Path, key: &RunKey) -> Self {
        Self(
            data_dir
                .join("runs")
                .join(key.instance_id.letters())
                .join(key.run_number.to_string()),
        )
    }

    /// Takes an existing directory for that of a run.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What is to be launched.
    #[must_use]
    pub fn run_file(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// The shim's lock, which also says which process it is.
    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// How the run ended.
    #[must_use]
    pub fn exit_file(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// What a shim makes if it is not there yet: its lock, and the file that will tell how the run ended.
    #[must_use]
    pub fn files_of_shim(&self) -> [PathBuf; 2] {
        [self.lock_file(), self.0.join(crate::shim::EXIT_ASIDE)]
    }

    /// How long it slept in held calls.
    #[must_use]
    pub fn slept_file(&self) -> PathBuf {
        self.0.join("slept")
    }

    /// The program's private directory, fresh each run.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }
}
