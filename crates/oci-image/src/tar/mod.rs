//! Reading tar archives that may be hostile.
//!
//! The `tar` crate reads extended headers whole into memory, whatever size they announce, and knows neither the sparse files
//! of the pax format nor times before 1970; so the format is read here. Where writers and readers disagree about it, this does
//! what Go's `archive/tar` does, because that is what containerd, Docker and Podman read images with: what we see in an
//! archive is what they see.
//!
//! - [`Reader`] yields entries, long names, pax attributes and sparse maps applied, and then their content.
//! - [`header`] reads one block, [`pax`] an extended header, [`sparse`] the maps of sparse files.
//!
//! Rules: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; tar(5); GNU tar manual, "Sparse Formats".

mod header;
mod pax;
mod reader;
mod source;
mod sparse;

pub(crate) use reader::{Ended, Reader};
pub(crate) use source::{Source, Stream};
pub(crate) use sparse::Segment;

pub(crate) const BLOCK: u64 = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Device,
    Fifo,
}

/// Seconds and nanoseconds since 1970; negative before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// One entry, as it stands in the archive: nothing is checked but the format.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    /// Target of a link.
    pub(crate) target: Vec<u8>,
    /// Size of the file when it is unpacked.
    pub(crate) size: u64,
    /// Bytes of content in the archive.
    pub(crate) stored: u64,
    /// Permission bits, setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) modified: Time,
    /// Extended attributes.
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the stored bytes go, if the file is sparse.
    pub(crate) sparse: Option<Vec<Segment>>,
}
