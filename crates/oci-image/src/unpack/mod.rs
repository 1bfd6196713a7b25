//! From a layer's archive to a directory tree.
//!
//! # What becomes of an entry
//!
//! | entry | becomes |
//! |---|---|
//! | file, directory, symbolic and hard link | the same |
//! | device node, fifo | nothing, and counted: a runtime makes the devices that a container may have, and images that carry some (old base images, in `/dev`) do not need them |
//! | `.wh.name` | a whiteout of `name`: see [`OverlayForm`] |
//! | `.wh..wh..opq` | an opaque directory |
//! | a type that images do not have | the layer is refused |
//!
//! Of two entries of one name the later counts: a directory keeps what is in it and gets the new owner, mode and time; in all
//! other cases what was there goes first. So nothing is ever written through a link.
//!
//! A directory that no entry describes is root's, with mode 0755, as other readers make it, and is marked: where a lower layer
//! describes it, what that one says holds for the image. umoci, for one, writes nothing but what changed, and `/tmp` would
//! lose its mode with the first file that a layer puts there.
//!
//! # What is kept
//!
//! Mode (setuid and setgid only if that is allowed), owner ([`Ownership`]), time of modification, holes, and extended attributes
//! that begin with `user.`, but for those of overlayfs and our own. Dropped are all other attributes: `security.capability`, because a
//! container has no capabilities for a program to gain, and execve(2) refuses one that asks for some; access control lists
//! and labels, because they mean users and policies of another machine; `trusted.`, which would speak to overlayfs.
//!
//! [`OverlayForm`]: crate::OverlayForm
//! [`Ownership`]: crate::Ownership

mod content;
mod link;
mod whiteout;

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::limits::Limit;
use crate::metadata::{Metadata, MetadataRules};
use crate::overlay::OverlayForm;
use crate::path::ImagePath;
use crate::tar::{Ended, Entry, Kind, Reader, Source};
use crate::tree::Tree;
use crate::{EntryProblem, Limits};

/// Progress is told each time so many bytes went by.
const TELL_BYTES: u64 = 4 * 1024 * 1024;

/// What an image has used of its limits; one for all of its layers.
#[derive(Debug)]
pub(crate) struct Budget<'l> {
    pub(crate) limits: &'l Limits,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

impl<'l> Budget<'l> {
    pub(crate) fn new(limits: &'l Limits) -> Self {
        Self {
            limits,
            bytes: 0,
            entries: 0,
        }
    }

    /// How many bytes a layer may have, and by which limit.
    pub(crate) fn layer(&self) -> (Limit, u64) {
        let left = self.limits.image_bytes.saturating_sub(self.bytes);
        match left < self.limits.layer_bytes {
            true => (Limit::ImageBytes, left),
            false => (Limit::LayerBytes, self.limits.layer_bytes),
        }
    }
}

/// What came out of a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Bytes of its files, holes included, or of its archive, whichever is more.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Devices and fifos that were left out.
    pub(crate) skipped: u64,
    /// Directories that no entry describes, for which lower layers may speak.
    pub(crate) implied: u64,
    /// Whether its root is opaque, which overlayfs does not look at.
    pub(crate) opaque_root: bool,
}

/// Unpacks an archive into an empty directory, and tells how many bytes of it went by.
///
/// The archive is read to its end, and what follows it in the stream, so that it can be verified. Nothing is synced.
pub(crate) fn unpack<S: Source>(
    reader: &mut Reader<'_, S>,
    root: OwnedFd,
    (form, rules): (OverlayForm, MetadataRules),
    budget: &mut Budget<'_>,
    tell: &dyn Fn(u64),
) -> Result<Contents, Ended> {
    let tree = Tree::new(root, form, rules, budget.limits.depth);
    let mut unpacker = Unpacker {
        tree: tree.map_err(|problem| reader.fail(problem))?,
        contents: Contents::default(),
        layer: budget.layer(),
        budget,
        buffer: vec![0; content::BUFFER_BYTES],
    };
    let mut told = 0;
    while let Some(entry) = reader.next()? {
        unpacker
            .count(&entry)
            .map_err(|problem| reader.fail(problem))?;
        unpacker.entry(reader, &entry)?;
        runtara_failpoints::pass(runtara_failpoints::Point::MidUnpack);
        if reader.position() - told >= TELL_BYTES {
            told = reader.position();
            tell(told);
        }
    }
    reader.drain()?;
    tell(reader.position());
    unpacker.finish(reader)
}

struct Unpacker<'b, 'l> {
    tree: Tree,
    contents: Contents,
    layer: (Limit, u64),
    budget: &'b mut Budget<'l>,
    buffer: Vec<u8>,
}

impl Unpacker<'_, '_> {
    /// Counts an entry against the limits, before anything is made of it.
    fn count(&mut self, entry: &Entry) -> Result<(), EntryProblem> {
        let limits = self.budget.limits;
        self.contents.entries += 1;
        let entries = self.budget.entries + self.contents.entries + self.tree.implied();
        Limit::ImageEntries.check(entries, limits.image_entries)?;
        Limit::FileBytes.check(entry.size, limits.file_bytes)?;
        self.contents.bytes = self.contents.bytes.saturating_add(entry.size);
        let (limit, allowed) = self.layer;
        Ok(limit.check(self.contents.bytes, allowed)?)
    }

    fn entry<S: Source>(&mut self, reader: &mut Reader<'_, S>, entry: &Entry) -> Result<(), Ended> {
        let path =
            ImagePath::parse("its name", &entry.name).map_err(|problem| reader.fail(problem))?;
        if self.is_bookkeeping(&path) {
            return Ok(());
        }
        if whiteout::lies_in_one(&path) {
            return Err(reader.fail(EntryProblem::BadWhiteout {
                what: "has something in it",
            }));
        }
        if whiteout::is_one(&path) {
            return self.whiteout(&path).map_err(|problem| reader.fail(problem));
        }
        match entry.kind {
            Kind::File => self.file(reader, entry, &path),
            Kind::Directory => self
                .directory(entry, &path)
                .map_err(|problem| reader.fail(problem)),
            Kind::Symlink => self
                .symlink(entry, &path)
                .map_err(|problem| reader.fail(problem)),
            Kind::HardLink => self
                .hard_link(entry, &path)
                .map_err(|problem| reader.fail(problem)),
            Kind::Device | Kind::Fifo => {
                self.contents.skipped += 1;
                Ok(())
            }
        }
    }

    fn directory(&mut self, entry: &Entry, path: &ImagePath) -> Result<(), EntryProblem> {
        let metadata = self.metadata(entry, true)?;
        let Some((parent, name)) = path.split_last() else {
            return self.tree.root(metadata);
        };
        let place = self.tree.reach(parent)?;
        let directory = self.tree.directory(&place, name, metadata)?;
        set_attributes(&directory, entry)
    }

    fn metadata(&self, entry: &Entry, directory: bool) -> Result<Metadata, EntryProblem> {
        self.tree.rules().metadata(entry, directory)
    }

    fn finish<S: Source>(self, reader: &Reader<'_, S>) -> Result<Contents, Ended> {
        let mut contents = self.contents;
        contents.bytes = contents.bytes.max(reader.position());
        contents.entries += self.tree.implied();
        contents.implied = self.tree.finish().map_err(|source| {
            reader.fail(EntryProblem::System {
                action: "setting owners, modes and times of directories",
                source,
            })
        })?;
        self.budget.bytes = self.budget.bytes.saturating_add(contents.bytes);
        self.budget.entries = self.budget.entries.saturating_add(contents.entries);
        Ok(contents)
    }
}

/// Sets the extended attributes that are kept. A file system that has none, or not so much room, does without.
fn set_attributes(file: &OwnedFd, entry: &Entry) -> Result<(), EntryProblem> {
    for (name, value) in &entry.attributes {
        if !is_kept(name) {
            continue;
        }
        match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            Ok(())
            | Err(Errno::OPNOTSUPP | Errno::TOOBIG | Errno::RANGE | Errno::NOSPC | Errno::PERM) => {
            }
            Err(error) => {
                return Err(EntryProblem::System {
                    action: "setting an extended attribute",
                    source: io::Error::from(error),
                });
            }
        }
    }
    Ok(())
}

/// Whether an extended attribute may come with an image.
pub(crate) fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        && !name.starts_with(b"user.overlay.")
        && !name.starts_with(b"user.runtara.")
}
