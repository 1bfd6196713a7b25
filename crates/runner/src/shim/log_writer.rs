//! Writes what a program says into files of bounded size.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::logs::LogStream;
use super::redact::Redactor;

/// Writes one output of a program, with its tokens hidden.
///
/// It is kept in segments `<stream>.<offset of the first byte>`, of half the cap each. When one is full the next begins, and the one
/// before the full one goes: at least the newest half of the cap is always there. A stream without output has no file.
#[derive(Debug)]
pub struct LogWriter {
    stream: LogStream,
    redactor: Redactor,
    segment_bytes: u64,
    segment: Option<Segment>,
    full: Option<u64>,
    end: u64,
    dropped: u64,
}

#[derive(Debug)]
struct Segment {
    file: File,
    base: u64,
}

impl LogWriter {
    /// A writer that keeps at most so many bytes.
    #[must_use]
    pub fn new(stream: LogStream, cap_bytes: u64) -> Self {
        Self {
            stream,
            redactor: Redactor::default(),
            segment_bytes: (cap_bytes / 2).max(1),
            segment: None,
            full: None,
            end: 0,
            dropped: 0,
        }
    }

    /// Writes some of it into the directory of its run. What cannot be stored is dropped.
    pub fn write(&mut self, directory: BorrowedFd<'_>, bytes: &[u8]) {
        let mut redactor = std::mem::take(&mut self.redactor);
        let text = redactor.take(bytes);
        self.store(directory, &text);
        self.redactor = redactor;
    }

    /// Writes what was held back, because it could have been the beginning of a token.
    pub fn finish(&mut self, directory: BorrowedFd<'_>) {
        let rest = self.redactor.finish();
        self.store(directory, &rest);
    }

    /// How many bytes could not be stored, because the disk was full or the directory gone.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn store(&mut self, directory: BorrowedFd<'_>, mut text: &[u8]) {
        while !text.is_empty() {
            let stored = self.segment(directory).and_then(|(segment, room)| {
                let room = usize::try_from(room).unwrap_or(usize::MAX);
                segment.file.write(&text[..text.len().min(room)])
            });
            match stored {
                Ok(length) if length > 0 => {
                    self.end += length as u64;
                    text = &text[length..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => {
                    self.dropped += text.len() as u64;
                    return;
                }
            }
        }
    }

    /// The segment to write to, and how much fits into it.
    fn segment(&mut self, directory: BorrowedFd<'_>) -> io::Result<(&mut Segment, u64)> {
        let written = self.segment.as_ref().map(|segment| self.end - segment.base);
        if written.is_none_or(|written| written >= self.segment_bytes) {
            let next = Segment {
                file: create(directory, &segment_name(self.stream.as_str(), self.end))?,
                base: self.end,
            };
            let full = self.segment.replace(next).map(|segment| segment.base);
            if let Some(oldest) = std::mem::replace(&mut self.full, full) {
                let name = segment_name(self.stream.as_str(), oldest);
                // What cannot be removed now goes with the whole directory.
                let _stays = unlinkat(directory, name.as_str(), UnlinkatFlags::NoRemoveDir);
            }
        }
        let end = self.end;
        let segment = self.segment.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let room = self.segment_bytes - (end - segment.base);
        Ok((segment, room))
    }
}

/// The name of the segment that begins at an offset.
pub(crate) fn segment_name(stream: &str, base: u64) -> String {
    format!("{stream}.{base}")
}

fn create(directory: BorrowedFd<'_>, name: &str) -> io::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    Ok(file.into())
}
