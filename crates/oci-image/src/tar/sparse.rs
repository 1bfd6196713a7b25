//! Maps of sparse files: which parts of a file are in the archive. The rest reads as zeroes.
//!
//! Four forms are about (GNU tar manual, "Storing Sparse Files"): GNU's own headers, and in pax headers the versions 0.0 (two
//! records for each piece), 0.1 (one record for all) and 1.0 (a text before the content).

use super::header::{malformed, number};
use super::pax::decimal;
use crate::EntryProblem;
use crate::limits::{Limit, SPARSE_SEGMENTS};

/// A piece of a file that is in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where in the file it goes, in bytes.
    pub(crate) offset: u64,
    /// How long it is, in bytes.
    pub(crate) length: u64,
}

/// A map and the size of the file with its holes.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) segments: Vec<Segment>,
    pub(super) size: i64,
}

impl Map {
    fn push(&mut self, offset: i64, length: i64) -> Result<(), EntryProblem> {
        Limit::SparseSegments.check(self.segments.len() as u64 + 1, SPARSE_SEGMENTS as u64)?;
        match (u64::try_from(offset), u64::try_from(length)) {
            (Ok(offset), Ok(length)) => {
                self.segments.push(Segment { offset, length });
                Ok(())
            }
            _ => Err(malformed("its sparse map has a negative number")),
        }
    }

    /// Accepts pieces in ascending order, within the file, that are together as long as what is stored.
    pub(super) fn check(&self, stored: u64) -> Result<u64, EntryProblem> {
        let size = u64::try_from(self.size).map_err(|_| malformed("its sparse map has no size"))?;
        let mut end = 0;
        let mut total = 0_u64;
        for segment in &self.segments {
            let next = segment.offset.checked_add(segment.length);
            match next {
                Some(next) if segment.offset >= end && next <= size => end = next,
                _ => {
                    return Err(malformed(
                        "the pieces of its sparse map overlap or lie outside",
                    ));
                }
            }
            total = total.saturating_add(segment.length);
        }
        match total == stored {
            true => Ok(size),
            false => Err(malformed("its sparse map is for content of another size")),
        }
    }
}

/// GNU's own form: four pieces in the header, and as long as each block says that there is another, 21 in each of those.
pub(super) struct GnuMap {
    pub(super) map: Map,
    pub(super) goes_on: bool,
}

impl GnuMap {
    pub(super) fn first(header: &[u8]) -> Result<Self, EntryProblem> {
        let mut this = Self {
            map: Map {
                segments: Vec::new(),
                size: number(&header[483..495], "its sparse size is not a number")?,
            },
            goes_on: header[482] != 0,
        };
        this.pieces(&header[386..482])?;
        Ok(this)
    }

    pub(super) fn next(&mut self, block: &[u8]) -> Result<(), EntryProblem> {
        self.goes_on = block[504] != 0;
        self.pieces(&block[..504])
    }

    fn pieces(&mut self, table: &[u8]) -> Result<(), EntryProblem> {
        for piece in table.chunks_exact(24) {
            // Unused places are at the end.
            if piece[0] == 0 || piece[12] == 0 {
                break;
            }
            let what = "its sparse map is not made of numbers";
            self.map
                .push(number(&piece[..12], what)?, number(&piece[12..], what)?)?;
        }
        Ok(())
    }
}

/// The `GNU.sparse.` records of a pax header.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    major: Option<i64>,
    minor: Option<i64>,
    pub(super) name: Option<Vec<u8>>,
    size: Option<i64>,
    /// Offsets and lengths, one after the other.
    numbers: Vec<i64>,
}

impl PaxSparse {
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), EntryProblem> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" if value.contains(&0) => {
                return Err(malformed("a name in its extended header has a NUL"));
            }
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"offset" if self.numbers.len().is_multiple_of(2) => self.number(value)?,
            b"numbytes" if !self.numbers.len().is_multiple_of(2) => self.number(value)?,
            b"offset" | b"numbytes" => {
                return Err(malformed("its sparse map has numbers in the wrong order"));
            }
            b"map" => {
                self.numbers.clear();
                for value in value.split(|byte| *byte == b',') {
                    self.number(value)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn number(&mut self, value: &[u8]) -> Result<(), EntryProblem> {
        Limit::SparseSegments.check(self.numbers.len() as u64 / 2 + 1, SPARSE_SEGMENTS as u64)?;
        self.numbers.push(decimal(value)?);
        Ok(())
    }

    /// Whether the map is a text before the content.
    pub(super) fn is_before_content(&self) -> bool {
        (self.major, self.minor) == (Some(1), Some(0))
    }

    /// The map of version 0.0 or 0.1, if there is one.
    pub(super) fn map(&self) -> Result<Option<Map>, EntryProblem> {
        if self.numbers.is_empty() {
            return Ok(None);
        }
        self.join(&self.numbers).map(Some)
    }

    /// The map from the numbers of a text before the content.
    pub(super) fn join(&self, numbers: &[i64]) -> Result<Map, EntryProblem> {
        let mut map = Map {
            segments: Vec::new(),
            size: self.size.ok_or(malformed("its sparse map has no size"))?,
        };
        let (pairs, rest) = numbers.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(malformed("its sparse map has an offset without a length"));
        }
        for [offset, length] in pairs {
            map.push(*offset, *length)?;
        }
        Ok(map)
    }
}
