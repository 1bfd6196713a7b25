//! What a guest writes to its standard output and error.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use runtara_runner::shim::{LogStream, LogWriter};
use runtara_runner::{RunDirectories, RunDirectory, RunKey};
use tracing::warn;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Most bytes of one write of a guest.
const WRITE_BYTES: usize = 64 * 1024;

/// Both outputs of a run. A run that writes nothing has no files.
pub(crate) struct Outputs {
    directories: Arc<RunDirectories>,
    key: RunKey,
    written: Mutex<Written>,
}

struct Written {
    directory: Directory,
    /// What was written while there was no place for it.
    missed: Vec<LogStream>,
    stdout: LogWriter,
    stderr: LogWriter,
}

enum Directory {
    NotYet,
    Open(RunDirectory, File),
    /// It could not be made, which was said once.
    Missing,
}

impl Outputs {
    pub(crate) fn new(directories: Arc<RunDirectories>, key: RunKey, cap_bytes: u64) -> Self {
        Self {
            directories,
            key,
            written: Mutex::new(Written {
                directory: Directory::NotYet,
                missed: Vec::new(),
                stdout: LogWriter::new(LogStream::Stdout, cap_bytes),
                stderr: LogWriter::new(LogStream::Stderr, cap_bytes),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a text. Blocks no longer than a write to the cache of the system.
    pub(crate) fn write(&self, stream: LogStream, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let mut written = self.lock();
        if matches!(written.directory, Directory::NotYet) {
            written.directory = self.open();
        }
        let Written {
            directory,
            missed,
            stdout,
            stderr,
        } = &mut *written;
        match directory {
            Directory::Open(_, handle) => {
                let writer = match stream {
                    LogStream::Stdout => stdout,
                    LogStream::Stderr => stderr,
                };
                writer.write(handle.as_fd(), text);
            }
            Directory::NotYet | Directory::Missing => {
                if !missed.contains(&stream) {
                    missed.push(stream);
                }
            }
        }
    }

    fn open(&self) -> Directory {
        let made = self.directories.create(&self.key);
        let opened = made.and_then(|directory| {
            let handle = File::open(directory.path())?;
            Ok(Directory::Open(directory, handle))
        });
        opened.unwrap_or_else(|error| {
            warn!(run = %self.key, %error, "the outputs of a run cannot be kept");
            Directory::Missing
        })
    }

    /// Writes the rest. Gives the directory with what was written, and those of which some could not be stored.
    pub(crate) fn finish(&self) -> (Option<RunDirectory>, Vec<LogStream>) {
        let mut written = self.lock();
        let Written {
            directory,
            missed,
            stdout,
            stderr,
        } = &mut *written;
        let Directory::Open(place, handle) = directory else {
            return (None, missed.clone());
        };
        let mut cut = Vec::new();
        for (stream, writer) in [(LogStream::Stdout, stdout), (LogStream::Stderr, stderr)] {
            writer.finish(handle.as_fd());
            if writer.dropped() > 0 {
                cut.push(stream);
            }
        }
        (Some(place.clone()), cut)
    }
}

/// One of the outputs, as WASI has it.
#[derive(Clone)]
pub(crate) struct Sink {
    pub(crate) outputs: Arc<Outputs>,
    pub(crate) stream: LogStream,
}

impl IsTerminal for Sink {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Sink {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl tokio::io::AsyncWrite for Sink {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
        text: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.outputs.write(self.stream, text);
        std::task::Poll::Ready(Ok(text.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

impl OutputStream for Sink {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.outputs.write(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES)
    }
}

#[async_trait]
impl Pollable for Sink {
    async fn ready(&mut self) {}
}
