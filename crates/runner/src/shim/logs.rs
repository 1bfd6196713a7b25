//! Reads what a run has written, by absolute offset.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use crate::RunDirectory;

/// One of the two outputs of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// Its name, as in file names and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Which part of an output is there. Offsets count all bytes that the run has ever written to it (as stored: with its token
/// hidden).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogExtent {
    /// Offset of the oldest byte that is kept.
    pub oldest: u64,
    /// Offset behind the newest byte.
    pub end: u64,
}

/// A part of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// Offset of its first byte.
    pub offset: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Offset behind the newest byte that there was when it was read.
    pub end: u64,
}

/// Reads one output of one run, while it is written and afterwards. Blocking.
#[derive(Debug, Clone)]
pub struct LogReader {
    directory: PathBuf,
    stream: LogStream,
}

/// A segment that was open when it was listed: the name may go meanwhile, the bytes do not.
struct Segment {
    base: u64,
    length: u64,
    file: File,
}

impl LogReader {
    /// A reader of one output of the run with this directory.
    #[must_use]
    pub fn new(directory: &RunDirectory, stream: LogStream) -> Self {
        Self {
            directory: directory.path().to_owned(),
            stream,
        }
    }

    /// Says which part is there: nothing at offset 0 if the run has written nothing, or is gone.
    ///
    /// # Errors
    /// What reading reported.
    pub fn extent(&self) -> io::Result<LogExtent> {
        Ok(extent(&self.segments()?))
    }

    /// Reads up to `limit` bytes from an offset. If what was there is gone, it begins with the oldest byte that is kept; behind the end
    /// it is empty.
    ///
    /// # Errors
    /// What reading reported.
    pub fn read(&self, offset: u64, limit: usize) -> io::Result<LogChunk> {
        let segments = self.segments()?;
        read(&segments, offset, limit)
    }

    /// Reads the last bytes, at most `limit`.
    ///
    /// # Errors
    /// What reading reported.
    pub fn tail(&self, limit: usize) -> io::Result<LogChunk> {
        let segments = self.segments()?;
        let from = extent(&segments).end.saturating_sub(limit as u64);
        read(&segments, from, limit)
    }

    /// The segments, oldest first, without a gap between them.
    fn segments(&self) -> io::Result<Vec<Segment>> {
        let mut segments = Vec::new();
        for base in self.bases()? {
            let file = match File::open(self.directory.join(self.name(base))) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            segments.push((base, file));
        }
        // Lengths are read newest first: a segment is full before the next begins, so those before a known one are final.
        let mut found: Vec<Segment> = Vec::with_capacity(segments.len());
        for (base, file) in segments.into_iter().rev() {
            let length = file.metadata()?.len();
            if found.last().is_some_and(|next| next.base != base + length) {
                break;
            }
            found.push(Segment { base, length, file });
        }
        found.reverse();
        Ok(found)
    }

    fn name(&self, base: u64) -> String {
        super::log_writer::segment_name(self.stream.as_str(), base)
    }

    fn bases(&self) -> io::Result<Vec<u64>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut bases = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let base = name.to_str().and_then(|name| -> Option<u64> {
                let base = name.strip_prefix(self.stream.as_str())?;
                base.strip_prefix('.')?.parse().ok()
            });
            bases.extend(base);
        }
        bases.sort_unstable();
        Ok(bases)
    }
}

fn extent(segments: &[Segment]) -> LogExtent {
    LogExtent {
        oldest: segments.first().map_or(0, |segment| segment.base),
        end: segments
            .last()
            .map_or(0, |segment| segment.base + segment.length),
    }
}

fn read(segments: &[Segment], offset: u64, limit: usize) -> io::Result<LogChunk> {
    let LogExtent { oldest, end } = extent(segments);
    let offset = offset.max(oldest);
    let wanted = end.saturating_sub(offset).min(limit as u64);
    let mut bytes = vec![0; usize::try_from(wanted).map_err(io::Error::other)?];
    let mut filled = 0;
    for segment in segments {
        let at = offset + filled as u64;
        if filled == bytes.len() || at >= segment.base + segment.length {
            continue;
        }
        let here = usize::try_from(segment.base + segment.length - at).unwrap_or(usize::MAX);
        let upto = bytes.len().min(filled.saturating_add(here));
        segment
            .file
            .read_exact_at(&mut bytes[filled..upto], at - segment.base)?;
        filled = upto;
    }
    Ok(LogChunk { offset, bytes, end })
}
