//! The files of a run that every launch through a shim makes.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::shim::{Program, write_run_file};
use crate::spares::new_file;
use crate::{Input, RunDirectories, RunDirectory};

/// An error of the system that says what was being done, and to what.
#[must_use]
pub fn naming(what: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("could not {what} '{}': {error}", path.display()),
    )
}

impl RunDirectories {
    /// Writes the input of a run where its shim or its program finds it. A file that is given is copied: what the program has is its own.
    ///
    /// # Errors
    /// What the system said, with the path. Never [`io::ErrorKind::AlreadyExists`], which [`Self::put_program`] alone means.
    pub fn put_input(&self, path: &Path, input: &Input) -> io::Result<()> {
        let put = match input {
            Input::Inline(bytes) => self.spares().file(path, bytes),
            Input::File(from) => copy(from, path),
        };
        put.map_err(|error| naming("write the input", path, unexpected(error)))
    }

    /// Writes what a run's shim needs: the files that it would make, and last `run.json`, from which on the run may be started.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if somebody has forbidden the start meanwhile: then the directory is theirs. Else what the system
    /// said, with the path.
    pub fn put_program(&self, run: &RunDirectory, program: Program) -> io::Result<()> {
        for file in run.files_of_shim() {
            let made = self.spares().file(&file, &[]);
            made.map_err(|error| naming("write", &file, unexpected(error)))?;
        }
        let run_file = run.run_file();
        write_run_file(self.spares(), &run_file, program).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                io::Error::new(error.kind(), "it was given up before it began")
            }
            _ => naming("write", &run_file, error),
        })
    }
}

/// The error of making a file of a run that is not `run.json`, which alone is somebody else's to make: that it exists says nothing more.
#[must_use]
pub fn unexpected(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::other(error.to_string()),
        _ => error,
    }
}

/// Within a file system that shares blocks it costs nothing.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    io::copy(&mut File::open(from)?, &mut new_file(to)?).map(drop)
}
