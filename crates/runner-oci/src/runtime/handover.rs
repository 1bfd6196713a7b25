//! A configuration that a runtime waits for.
//!
//! A runtime needs some milliseconds until it reads its configuration. If it is started first, the rest of the container is made
//! meanwhile.

use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::OFlags;

use crate::spec::CONFIGURATION_FILE;

/// The path by which other processes find what a descriptor of this one leads to, as long as it is open here.
pub(crate) fn path_of(descriptor: BorrowedFd<'_>) -> PathBuf {
    let (process, number) = (std::process::id(), descriptor.as_raw_fd());
    PathBuf::from(format!("/proc/{process}/fd/{number}"))
}

/// A pipe in the place of a bundle's configuration file.
///
/// It is found there by a link to a descriptor of this process. Whoever opens that has the pipe as long as this process lives; when it
/// ends, however it does, the link leads nowhere, and who has opened it before comes to the pipe's end. So nobody waits for what never comes.
#[derive(Debug)]
pub struct ConfigurationPipe {
    /// Kept open, so that what is written stays until it is read.
    reader: PipeReader,
    writer: PipeWriter,
}

impl ConfigurationPipe {
    /// Puts a pipe into a bundle that has no configuration yet.
    ///
    /// # Errors
    /// What the system said.
    pub fn put(bundle: &Path) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        rustix::fs::fcntl_setfl(&writer, OFlags::NONBLOCK)?;
        symlink(path_of(reader.as_fd()), bundle.join(CONFIGURATION_FILE))?;
        Ok(Self { reader, writer })
    }

    /// What is to be written into it.
    ///
    /// # Errors
    /// Of [`serde_json`].
    pub fn hand_over(self, configuration: &Spec) -> io::Result<Handover> {
        Ok(Handover {
            _reader: self.reader,
            writer: Some(self.writer),
            configuration: serde_json::to_vec(configuration)?,
            written: 0,
        })
    }
}

/// A configuration on its way to a runtime.
#[derive(Debug)]
pub struct Handover {
    _reader: PipeReader,
    writer: Option<PipeWriter>,
    configuration: Vec<u8>,
    written: usize,
}

impl Handover {
    /// Writes as much as there is room for, and ends the pipe after the last byte.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while let Some(writer) = &mut self.writer {
            let rest = self.configuration.get(self.written..).unwrap_or_default();
            if rest.is_empty() {
                self.writer = None;
                return Ok(());
            }
            match writer.write(rest) {
                Ok(length) => self.written += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What becomes writable when there is room for more, if there is more.
    pub(super) fn unwritten(&self) -> Option<BorrowedFd<'_>> {
        self.writer.as_ref().map(|writer| writer.as_fd())
    }
}
