//! What a program writes to its standard output and error, into files of bounded size.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, read, unlinkat};

use super::redact::Redactor;

/// Read at once; on the stack, so that a shim that waits holds no buffer.
const READ_BYTES: usize = 16 * 1024;
/// Reads in a row, so that a program that writes without end cannot keep its shim from anything else.
const READS: usize = 32;

/// One output of a program.
///
/// It is kept in segments `<stream>.<offset of the first byte>`, of half the cap each. When one is full the next begins, and the one
/// before the full one goes: at least the newest half of the cap is always there. A stream without output has no file.
pub(crate) struct Capture {
    stream: &'static str,
    pipe: Option<OwnedFd>,
    redactor: Redactor,
    segment_bytes: u64,
    segment: Option<Segment>,
    full: Option<u64>,
    end: u64,
    /// Bytes that could not be stored, because the disk was full or the directory gone.
    pub(crate) dropped: u64,
}

struct Segment {
    file: File,
    base: u64,
}

impl Capture {
    pub(crate) fn new(stream: &'static str, pipe: OwnedFd, cap_bytes: u64) -> Self {
        Self {
            stream,
            pipe: Some(pipe),
            redactor: Redactor::default(),
            segment_bytes: (cap_bytes / 2).max(1),
            segment: None,
            full: None,
            end: 0,
            dropped: 0,
        }
    }

    /// The pipe, as long as somebody may write to it.
    pub(crate) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(OwnedFd::as_fd)
    }

    /// Stores some of what is in the pipe. To be called when it is readable or closed.
    pub(crate) fn store_some(&mut self, directory: BorrowedFd<'_>) {
        let mut buffer = [0; READ_BYTES];
        let Some(pipe) = &self.pipe else { return };
        match read(pipe, &mut buffer) {
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Ok(0) | Err(_) => {
                self.pipe = None;
                let rest = self.redactor.finish();
                self.store(directory, &rest);
            }
            Ok(length) => {
                let mut redactor = std::mem::take(&mut self.redactor);
                let text = redactor.take(&buffer[..length]);
                self.store(directory, &text);
                self.redactor = redactor;
            }
        }
    }

    /// Stores what is in the pipe now, and no more than that: all processes are dead, but somebody else may have been handed
    /// the pipe, and may never close it.
    pub(crate) fn store_rest(&mut self, directory: BorrowedFd<'_>) {
        for _ in 0..READS {
            if !self.is_readable() {
                break;
            }
            self.store_some(directory);
        }
        let rest = self.redactor.finish();
        self.store(directory, &rest);
        self.pipe = None;
    }

    fn is_readable(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let Some(pipe) = &self.pipe else { return false };
        let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
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
                file: create(directory, &segment_name(self.stream, self.end))?,
                base: self.end,
            };
            let full = self.segment.replace(next).map(|segment| segment.base);
            if let Some(oldest) = std::mem::replace(&mut self.full, full) {
                let name = segment_name(self.stream, oldest);
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::RunDirectory;
    use crate::shim::logs::{LogReader, LogStream};

    fn capture(directory: &std::path::Path, texts: &[&[u8]], cap: u64) -> Capture {
        let handle = File::open(directory).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut capture = Capture::new("stdout", reader, cap);
        for text in texts {
            nix::unistd::write(&writer, text).unwrap();
            capture.store_some(handle.as_fd());
        }
        drop(writer);
        capture.store_rest(handle.as_fd());
        capture
    }

    #[test]
    fn the_newest_part_stays_and_keeps_its_offsets() {
        let directory = tempfile::tempdir().unwrap();
        let text: Vec<u8> = (0..1000_u32).map(|n| (n % 251) as u8).collect();
        let pieces: Vec<&[u8]> = text.chunks(7).collect();
        let capture = capture(directory.path(), &pieces, 100);
        assert_eq!(capture.dropped, 0);

        let reader = LogReader::new(
            &RunDirectory::at(directory.path().to_owned()),
            LogStream::Stdout,
        );
        let extent = reader.extent().unwrap();
        assert_eq!(extent.end, 1000);
        assert!(
            (50..=100).contains(&(extent.end - extent.oldest)),
            "{extent:?}"
        );
        let chunk = reader.read(0, 1 << 20).unwrap();
        assert_eq!(chunk.offset, extent.oldest);
        assert_eq!(chunk.bytes, text[extent.oldest as usize..]);
        let middle = reader.read(970, 10).unwrap();
        assert_eq!(
            (middle.offset, middle.bytes.as_slice()),
            (970, &text[970..980])
        );
    }

    #[test]
    fn a_stream_without_output_has_no_file() {
        let directory = tempfile::tempdir().unwrap();
        capture(directory.path(), &[], 100);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn output_into_a_directory_that_is_gone_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let handle = File::open(directory.path()).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut capture = Capture::new("stderr", reader, 100);
        directory.close().unwrap();
        nix::unistd::write(&writer, b"hello").unwrap();
        capture.store_some(handle.as_fd());
        assert_eq!(capture.dropped, 5);
    }

    #[test]
    fn a_pipe_that_somebody_else_holds_open_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let handle = File::open(directory.path()).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut capture = Capture::new("stderr", reader, 100);
        nix::unistd::write(&writer, b"hello /r").unwrap();
        capture.store_rest(handle.as_fd());
        let mut text = String::new();
        let mut file = File::open(directory.path().join("stderr.0")).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello /r");
    }
}
