//! What archives are read from.

use std::io::{self, Read};

/// How much is read at once where content is passed over.
pub(super) const SKIP_BYTES: usize = 64 * 1024;

/// What an archive is read from.
pub(crate) trait Source: Read {
    /// Passes over bytes, and answers with how many there were: fewer at the end.
    fn skip(&mut self, bytes: u64) -> io::Result<u64>;
}

/// A source whose every byte must be read, because it is decompressed or hashed.
pub(crate) struct Stream<R>(pub(crate) R);

impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Source for Stream<R> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let mut buffer = [0; SKIP_BYTES];
        let wanted = bytes.min(SKIP_BYTES as u64) as usize;
        loop {
            match self.0.read(&mut buffer[..wanted]) {
                Ok(read) => return Ok(read as u64),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
