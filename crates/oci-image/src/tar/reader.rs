//! From a stream to entries.

use std::io;

use super::header::{Header, malformed, until_nul};
use super::pax::{Pax, decimal};
use super::source::{SKIP_BYTES, Source};
use super::sparse::{GnuMap, Map};
use super::{BLOCK, Entry, Kind};
use crate::error::{EntryFailure, EntryName};
use crate::limits::{EXTENDED_HEADER_BYTES, EXTENDED_HEADERS, Limit, SPARSE_SEGMENTS};
use crate::{EntryProblem, ImageError, Watch};

/// Why reading went no further: the archive's fault, or ours.
#[derive(Debug)]
pub(crate) enum Ended {
    Failed(EntryFailure),
    Stopped,
}

impl Ended {
    /// Gives the failure the name of its archive.
    pub(crate) fn named(self, archive: impl FnOnce(EntryFailure) -> ImageError) -> ImageError {
        match self {
            Self::Failed(failure) => archive(failure),
            Self::Stopped => ImageError::Stopped,
        }
    }
}

/// Reads an archive, entry by entry. Holds one entry's headers at a time.
pub(crate) struct Reader<'w, S> {
    source: S,
    watch: Watch<'w>,
    limit: (Limit, u64),
    position: u64,
    /// The entry at work, for errors.
    entry: EntryName,
    /// Content of this entry that was not read yet, and the padding after it.
    content: u64,
    padding: u64,
    ended: bool,
}

impl<'w, S: Source> Reader<'w, S> {
    /// Reads at most `limit` bytes of archive.
    pub(crate) fn new(source: S, limit: (Limit, u64), watch: Watch<'w>) -> Self {
        Self {
            source,
            watch,
            limit,
            position: 0,
            entry: EntryName {
                name: Vec::new(),
                offset: 0,
            },
            content: 0,
            padding: 0,
            ended: false,
        }
    }

    /// Where the reader is, in bytes of the archive.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// What the archive is read from.
    pub(crate) fn into_source(self) -> S {
        self.source
    }

    /// Makes a failure of the entry at work.
    pub(crate) fn fail(&self, problem: impl Into<EntryProblem>) -> Ended {
        Ended::Failed(EntryFailure {
            entry: self.entry.clone(),
            problem: problem.into(),
        })
    }

    /// Goes to the next entry, past what was not read of this one. `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Ended> {
        self.skip(self.content + self.padding)?;
        self.content = 0;
        self.padding = 0;
        if self.ended {
            return Ok(None);
        }
        self.entry = EntryName {
            name: Vec::new(),
            offset: self.position,
        };
        let mut extensions = Extensions::default();
        loop {
            if self.watch.check().is_err() {
                return Err(Ended::Stopped);
            }
            let Some(block) = self.header_block()? else {
                self.ended = true;
                return match extensions.count {
                    0 => Ok(None),
                    _ => Err(self.fail(malformed("it has an extended header and no own"))),
                };
            };
            let header = Header::parse(&block).map_err(|problem| self.fail(problem))?;
            if !self.extension(&header, &mut extensions)? {
                return self.entry(&block, header, extensions).map(Some);
            }
        }
    }

    /// Reads content of the entry at work; 0 at its end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Ended> {
        if self.watch.check().is_err() {
            return Err(Ended::Stopped);
        }
        let wanted = buffer
            .len()
            .min(usize::try_from(self.content).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.read_some(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(self.fail(EntryProblem::CutOff {
                missing: self.content,
            }));
        }
        self.content -= read as u64;
        Ok(read)
    }

    /// Reads on to the end of the stream, past whatever follows the archive in it.
    pub(crate) fn drain(&mut self) -> Result<(), Ended> {
        let mut buffer = [0; SKIP_BYTES];
        loop {
            if self.watch.check().is_err() {
                return Err(Ended::Stopped);
            }
            if self.read_some(&mut buffer)? == 0 {
                return Ok(());
            }
        }
    }

    /// Takes in a header that only says something about the next one. Answers whether it was such.
    fn extension(&mut self, header: &Header, extensions: &mut Extensions) -> Result<bool, Ended> {
        if !matches!(header.flag, b'x' | b'g' | b'L' | b'K') {
            return Ok(false);
        }
        extensions.count += 1;
        Limit::ExtendedHeaders
            .check(extensions.count as u64, EXTENDED_HEADERS as u64)
            .map_err(|problem| self.fail(problem))?;
        let content = self.extension_content(header.size)?;
        match header.flag {
            b'x' => extensions
                .pax
                .read(&content)
                .map_err(|problem| self.fail(problem))?,
            b'L' => extensions.name = Some(until_nul(&content).to_vec()),
            b'K' => extensions.target = Some(until_nul(&content).to_vec()),
            // A global header holds remarks, such as the commit that an archive was made from. That it could change every
            // later entry is used by nobody, and readers of images pass over it.
            _ => extensions.count -= 1,
        }
        Ok(true)
    }

    fn extension_content(&mut self, size: i64) -> Result<Vec<u8>, Ended> {
        let size = u64::try_from(size)
            .map_err(|_| self.fail(malformed("its extended header has a negative size")))?;
        Limit::ExtendedHeaderBytes
            .check(size, EXTENDED_HEADER_BYTES)
            .map_err(|problem| self.fail(problem))?;
        let mut content = vec![0; size as usize];
        self.read_exact(&mut content)?;
        self.skip(padding(size))?;
        Ok(content)
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK as usize],
        header: Header,
        extensions: Extensions,
    ) -> Result<Entry, Ended> {
        let Extensions {
            pax, name, target, ..
        } = extensions;
        let sparse_name = pax.sparse.name.clone();
        let name = name
            .or(sparse_name)
            .or(pax.path.clone())
            .unwrap_or(header.name);
        self.entry.name.clone_from(&name);
        let kind = self.kind(header.flag, &name)?;
        let stored = match kind {
            Kind::File => u64::try_from(pax.size.unwrap_or(header.size))
                .map_err(|_| self.fail(malformed("its size is negative")))?,
            // Some writers give links the size of their target; none of them writes content.
            _ => 0,
        };
        let map = match kind {
            Kind::File => self.sparse_map(block, header.flag, &pax, stored)?,
            _ => None,
        };
        let (size, stored, sparse) = match map {
            None => {
                self.content = stored;
                self.padding = padding(stored);
                (stored, stored, None)
            }
            Some(map) => {
                let size = map
                    .check(self.content)
                    .map_err(|problem| self.fail(problem))?;
                (size, self.content, Some(map.segments))
            }
        };
        Ok(Entry {
            name,
            kind,
            target: target.or(pax.target).unwrap_or(header.target),
            size,
            stored,
            mode: header.mode,
            uid: pax.uid.unwrap_or(header.uid),
            gid: pax.gid.unwrap_or(header.gid),
            modified: pax.modified.unwrap_or(header.modified),
            attributes: pax.attributes,
            sparse,
        })
    }

    fn kind(&self, flag: u8, name: &[u8]) -> Result<Kind, Ended> {
        Ok(match flag {
            // Before POSIX a directory was a file whose name ends so.
            0 if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            kind => return Err(self.fail(EntryProblem::UnknownType { kind })),
        })
    }

    /// Reads the map of a sparse file, in whichever form, and sets how much content is left after it.
    fn sparse_map(
        &mut self,
        block: &[u8; BLOCK as usize],
        flag: u8,
        pax: &Pax,
        stored: u64,
    ) -> Result<Option<Map>, Ended> {
        if flag == b'S' {
            let mut gnu = GnuMap::first(block).map_err(|problem| self.fail(problem))?;
            while gnu.goes_on {
                let mut block = [0; BLOCK as usize];
                self.read_exact(&mut block)?;
                gnu.next(&block).map_err(|problem| self.fail(problem))?;
            }
            self.content = stored;
            self.padding = padding(stored);
            return Ok(Some(gnu.map));
        }
        self.content = stored;
        self.padding = padding(stored);
        if pax.sparse.is_before_content() {
            let numbers = self.map_before_content()?;
            let map = pax
                .sparse
                .join(&numbers)
                .map_err(|problem| self.fail(problem))?;
            return Ok(Some(map));
        }
        pax.sparse.map().map_err(|problem| self.fail(problem))
    }

    /// The text before the content, version 1.0: the number of pieces, then offset and length of each, a number a line; filled
    /// up to a whole block.
    fn map_before_content(&mut self) -> Result<Vec<i64>, Ended> {
        let mut numbers: Vec<i64> = Vec::new();
        let mut line = Vec::new();
        let mut wanted = None;
        loop {
            let mut block = [0; BLOCK as usize];
            if self.content < BLOCK {
                return Err(self.fail(malformed("its sparse map is cut off")));
            }
            self.read_exact(&mut block)?;
            self.content -= BLOCK;
            for byte in block {
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(self.fail(malformed("its sparse map is not made of numbers")));
                    }
                    continue;
                }
                let number = decimal(&line).map_err(|problem| self.fail(problem))?;
                line.clear();
                match wanted {
                    None => {
                        let pieces = u64::try_from(number).unwrap_or(u64::MAX);
                        Limit::SparseSegments
                            .check(pieces, SPARSE_SEGMENTS as u64)
                            .map_err(|problem| self.fail(problem))?;
                        wanted = Some(pieces as usize * 2);
                    }
                    Some(_) => numbers.push(number),
                }
                if wanted == Some(numbers.len()) {
                    return Ok(numbers);
                }
            }
        }
    }

    /// The next header; `None` at the end: at a block of zeroes, or where the stream ends.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK as usize]>, Ended> {
        let mut block = [0; BLOCK as usize];
        let read = self.fill(&mut block)?;
        if read == 0 {
            return Ok(None);
        }
        if read < block.len() {
            let missing = BLOCK - read as u64;
            return Err(self.fail(EntryProblem::CutOff { missing }));
        }
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        // Two blocks of zeroes end an archive. One alone amid entries is damage; one alone at the end is common.
        let read = self.fill(&mut block)?;
        if block[..read].iter().any(|byte| *byte != 0) {
            return Err(self.fail(malformed("a block of zeroes stands before it")));
        }
        Ok(None)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), Ended> {
        let read = self.fill(buffer)?;
        if read == buffer.len() {
            return Ok(());
        }
        let missing = (buffer.len() - read) as u64;
        Err(self.fail(EntryProblem::CutOff { missing }))
    }

    /// Fills the buffer, or as much of it as the stream has.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Ended> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, Ended> {
        loop {
            match self.source.read(buffer) {
                Ok(read) => {
                    self.advance(read as u64)?;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.fail(EntryProblem::Unreadable { source })),
            }
        }
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), Ended> {
        while bytes > 0 {
            if self.watch.check().is_err() {
                return Err(Ended::Stopped);
            }
            let skipped = self
                .source
                .skip(bytes)
                .map_err(|source| self.fail(EntryProblem::Unreadable { source }))?;
            if skipped == 0 {
                // An archive may end before the padding of its last entry.
                return match bytes > self.padding {
                    true => Err(self.fail(EntryProblem::CutOff { missing: bytes })),
                    false => Ok(()),
                };
            }
            self.advance(skipped)?;
            bytes -= skipped;
        }
        Ok(())
    }

    fn advance(&mut self, bytes: u64) -> Result<(), Ended> {
        self.position = self.position.saturating_add(bytes);
        let (limit, allowed) = self.limit;
        limit
            .check(self.position, allowed)
            .map_err(|problem| self.fail(problem))
    }
}

/// What the headers before an entry's own say.
#[derive(Default)]
struct Extensions {
    count: usize,
    pax: Pax,
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

/// Up to the next whole block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}
