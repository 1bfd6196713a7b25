//! What a program writes to its standard output and error, read from a pipe.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::read;

use super::log_writer::LogWriter;
use super::logs::LogStream;

/// Read at once; on the stack, so that a shim that waits holds no buffer.
const READ_BYTES: usize = 16 * 1024;
/// Reads in a row, so that a program that writes without end cannot keep its shim from anything else.
const READS: usize = 32;

/// One output of a program that is a process.
pub(crate) struct Capture {
    pipe: Option<OwnedFd>,
    writer: LogWriter,
}

impl Capture {
    pub(crate) fn new(stream: LogStream, pipe: OwnedFd, cap_bytes: u64) -> Self {
        Self {
            pipe: Some(pipe),
            writer: LogWriter::new(stream, cap_bytes),
        }
    }

    /// The pipe, as long as somebody may write to it.
    pub(crate) fn pipe(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(OwnedFd::as_fd)
    }

    /// How many bytes could not be stored.
    pub(crate) fn dropped(&self) -> u64 {
        self.writer.dropped()
    }

    /// Stores some of what is in the pipe. To be called when it is readable or closed.
    pub(crate) fn store_some(&mut self, directory: BorrowedFd<'_>) {
        let mut buffer = [0; READ_BYTES];
        let Some(pipe) = &self.pipe else { return };
        match read(pipe, &mut buffer) {
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Ok(0) | Err(_) => {
                self.pipe = None;
                self.writer.finish(directory);
            }
            Ok(length) => self.writer.write(directory, &buffer[..length]),
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
        self.writer.finish(directory);
        self.pipe = None;
    }

    fn is_readable(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let Some(pipe) = &self.pipe else { return false };
        let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use super::*;
    use crate::RunDirectory;
    use crate::shim::logs::LogReader;

    fn capture(directory: &std::path::Path, texts: &[&[u8]], cap: u64) -> Capture {
        let handle = File::open(directory).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut capture = Capture::new(LogStream::Stdout, reader, cap);
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
        assert_eq!(capture.dropped(), 0);

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
        let mut capture = Capture::new(LogStream::Stderr, reader, 100);
        directory.close().unwrap();
        nix::unistd::write(&writer, b"hello").unwrap();
        capture.store_some(handle.as_fd());
        assert_eq!(capture.dropped(), 5);
    }

    #[test]
    fn a_pipe_that_somebody_else_holds_open_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let handle = File::open(directory.path()).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut capture = Capture::new(LogStream::Stderr, reader, 100);
        nix::unistd::write(&writer, b"hello /r").unwrap();
        capture.store_rest(handle.as_fd());
        let mut text = String::new();
        let mut file = File::open(directory.path().join("stderr.0")).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello /r");
    }
}
