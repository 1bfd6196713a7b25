//! The table of contents of the outer archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::ArchiveOptions;
use crate::compression::{Decompressed, decompress};
use crate::error::EntryFailure;
use crate::limits::{ARCHIVE_ENTRIES, Limit};
use crate::tar::{Kind, Reader, Source};
use crate::{ImageError, Watch};

/// How often a link may lead to a link. Old docker archives have one.
const LINKS: usize = 4;
/// How much is decompressed at once.
const COPY_BYTES: usize = 256 * 1024;

/// Where a file of the archive lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

#[derive(Debug)]
enum Member {
    File(Range),
    /// The name that the link leads to.
    Link(Vec<u8>),
}

/// The files of an archive by their names.
#[derive(Debug)]
pub(crate) struct Members {
    file: File,
    by_name: HashMap<Vec<u8>, Member>,
}

impl Members {
    /// Reads the headers of an archive, decompressing it first if it is compressed.
    pub(crate) fn read(
        file: File,
        options: &ArchiveOptions,
        watch: Watch<'_>,
    ) -> Result<Self, ImageError> {
        let file = plain(file, options, watch)?;
        let by_name = index(&file, watch)?;
        Ok(Self { file, by_name })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Where the content of a name lies; links are followed within the archive.
    pub(crate) fn find(&self, name: &str) -> Option<Range> {
        let mut name = normal(&[], name.as_bytes())?;
        for _ in 0..=LINKS {
            match self.by_name.get(&name)? {
                Member::File(range) => return Some(*range),
                Member::Link(target) => name.clone_from(target),
            }
        }
        None
    }

    /// Reads a part of the archive.
    pub(crate) fn reader(&self, range: Range) -> RangeReader<'_> {
        RangeReader {
            file: &self.file,
            at: range.offset,
            left: range.size,
        }
    }
}

/// Reads a part of a file, without moving its position.
#[derive(Debug)]
pub(crate) struct RangeReader<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for RangeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The archive itself if it is not compressed, else what it decompresses to, in a file without a name.
fn plain(mut file: File, options: &ArchiveOptions, watch: Watch<'_>) -> Result<File, ImageError> {
    let unreadable = |source| ImageError::Io {
        action: "read the image archive for",
        path: options.scratch.clone(),
        source,
    };
    file.rewind().map_err(unreadable)?;
    let Decompressed {
        mut stream,
        compression,
    } = decompress(&file).map_err(unreadable)?;
    if compression.is_none() {
        drop(stream);
        return Ok(file);
    }
    let plain = nameless(&options.scratch)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut written = 0;
    loop {
        watch.check()?;
        let read = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(ImageError::NotAnImage {
                    what: format!("compressed content that is damaged ({error})"),
                });
            }
        };
        written += read as u64;
        Limit::ArchiveBytes.check(written, options.limits.image_bytes)?;
        (&plain)
            .write_all(&buffer[..read])
            .map_err(ImageError::io("write", &options.scratch))?;
    }
    Ok(plain)
}

fn nameless(directory: &Path) -> Result<File, ImageError> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(io::Error::from)
        .map_err(ImageError::io("make a temporary file in", directory))
}

fn index(file: &File, watch: Watch<'_>) -> Result<HashMap<Vec<u8>, Member>, ImageError> {
    let source = Seekable::new(file).map_err(|source| ImageError::Io {
        action: "read",
        path: "the image archive".into(),
        source,
    })?;
    let broken = |EntryFailure { entry, problem }| ImageError::Archive {
        entry,
        problem: Box::new(problem),
    };
    let size = source.size;
    let mut reader = Reader::new(source, (Limit::ArchiveBytes, size), watch);
    let mut by_name = HashMap::new();
    let mut entries = 0;
    loop {
        let entry = match reader.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(by_name),
            // Nothing was understood yet: this is no archive at all.
            Err(crate::tar::Ended::Failed(failure)) if entries == 0 => {
                return Err(ImageError::NotAnImage {
                    what: format!("no tar archive ({})", failure.problem),
                });
            }
            Err(ended) => return Err(ended.named(broken)),
        };
        entries += 1;
        Limit::ArchiveEntries.check(entries, ARCHIVE_ENTRIES as u64)?;
        let Some(name) = normal(&[], &entry.name) else {
            continue;
        };
        let member = match entry.kind {
            // A sparse file is not in one piece; no tool writes one there.
            Kind::File if entry.sparse.is_none() => Some(Member::File(Range {
                offset: reader.position(),
                size: entry.stored,
            })),
            Kind::Symlink => {
                let directory = name.rsplitn(2, |byte| *byte == b'/').nth(1);
                normal(directory.unwrap_or_default(), &entry.target).map(Member::Link)
            }
            Kind::HardLink => normal(&[], &entry.target).map(Member::Link),
            _ => None,
        };
        if let Some(member) = member {
            by_name.insert(name, member);
        }
    }
}

/// A path without `.`, `..` and needless slashes; `None` if it leads out.
fn normal(directory: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let directory = match path {
        [b'/', ..] => &[],
        _ => directory,
    };
    let mut components: Vec<&[u8]> = Vec::new();
    for component in [directory, path]
        .into_iter()
        .flat_map(|path| path.split(|byte| *byte == b'/'))
    {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop()?;
            }
            component => components.push(component),
        }
    }
    Some(components.join(&b'/'))
}

/// A file that is passed over without reading it.
struct Seekable<'a> {
    file: &'a File,
    position: u64,
    size: u64,
}

impl<'a> Seekable<'a> {
    fn new(mut file: &'a File) -> io::Result<Self> {
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self {
            file,
            position: 0,
            size,
        })
    }
}

impl Read for Seekable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Source for Seekable<'_> {
    fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let skipped = bytes.min(self.size.saturating_sub(self.position));
        self.position += skipped;
        Ok(skipped)
    }
}
