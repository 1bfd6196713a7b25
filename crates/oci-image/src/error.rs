//! What can go wrong with an image.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use runtara_domain::ImageDigest;

use crate::{ConfigProblem, DiffId, LimitExceeded, UserProblem};

/// How much of a hostile name is shown.
const SHOWN_BYTES: usize = 256;

/// An entry of an archive. Its `Display` names it: by its name, escaped and shortened, or by its place while it has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryName {
    /// The name as it stands in the archive; need not be UTF-8. Empty if it was not read yet.
    pub name: Vec<u8>,
    /// Where its header begins, in bytes of the uncompressed archive.
    pub offset: u64,
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_slice() {
            [] => write!(f, "the entry at byte {}", self.offset),
            name => write!(f, "entry \"{}\"", Shown(name)),
        }
    }
}

/// Bytes from an archive as text for people.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, rest) = self.0.split_at(self.0.len().min(SHOWN_BYTES));
        for chunk in shown.utf8_chunks() {
            write!(f, "{}", chunk.valid().escape_debug())?;
            write!(f, "{}", chunk.invalid().escape_ascii())?;
        }
        match rest.len() {
            0 => Ok(()),
            more => write!(f, "… and {more} bytes more"),
        }
    }
}

/// Says why one entry of a tar archive is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryProblem {
    /// The archive breaks the rules of its format.
    #[error("breaks the rules of tar archives: {what}")]
    Malformed {
        /// Which rule, as a phrase.
        what: &'static str,
    },
    /// The archive ends before the entry does.
    #[error("is cut off: {missing} bytes of it are missing")]
    CutOff {
        /// How much is missing at least.
        missing: u64,
    },
    /// The archive could not be read or decompressed.
    #[error("cannot be read or decompressed")]
    Unreadable {
        /// What the file or the decompression reported.
        source: io::Error,
    },
    /// A path leads, or tries to lead, out of the image.
    #[error(
        "has a `..` in {role} \"{}\"; paths of an image start at its root",
        Shown(path)
    )]
    LeadsOut {
        /// Which path: `its name`, `its target`.
        role: &'static str,
        /// The path.
        path: Vec<u8>,
    },
    /// A path names nothing that could be made.
    #[error("has the unusable path \"{}\" as {role}: {what}", Shown(path))]
    BadPath {
        /// Which path: `its name`, `its target`.
        role: &'static str,
        /// The path.
        path: Vec<u8>,
        /// What is wrong with it, as a phrase.
        what: &'static str,
    },
    /// What the entry lies in is no directory.
    #[error("lies in \"{}\", which is not a directory", Shown(parent))]
    ParentNotDirectory {
        /// The path of what should be one.
        parent: Vec<u8>,
    },
    /// A hard link to what is not in the layer.
    #[error("is a hard link to \"{}\", which is not in its layer", Shown(target))]
    LinkTargetAbsent {
        /// The target as it stands in the archive.
        target: Vec<u8>,
    },
    /// A hard link to a directory.
    #[error("is a hard link to \"{}\", which is a directory", Shown(target))]
    LinkToDirectory {
        /// The target as it stands in the archive.
        target: Vec<u8>,
    },
    /// A user or group that cannot own files here.
    #[error("belongs to {what} {found}; at most {allowed} is possible here")]
    OwnerOutOfRange {
        /// `user` or `group`.
        what: &'static str,
        /// The number in the archive.
        found: i64,
        /// The largest that is possible.
        allowed: u64,
    },
    /// A kind of entry that no image has.
    #[error("is of the unknown type '{}'", [*kind].escape_ascii())]
    UnknownType {
        /// The type flag.
        kind: u8,
    },
    /// A whiteout where it means nothing.
    #[error("is a whiteout that {what}")]
    BadWhiteout {
        /// What is wrong with it, as a phrase.
        what: &'static str,
    },
    /// A bound was met.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The system refused to make it.
    #[error("cannot be unpacked: {action} failed")]
    System {
        /// What was tried, such as `making the directory`.
        action: &'static str,
        /// What the system reported.
        source: io::Error,
    },
}

/// Says why an image or a layer could not be read, unpacked or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The content is no container image.
    #[error(
        "the content is not a container image: {what}; send an OCI layout or a docker archive, as tar, tar.gz or tar.zst"
    )]
    NotAnImage {
        /// What it is instead, as a phrase.
        what: String,
    },
    /// The archive that holds the image's parts is broken.
    #[error("the image archive is broken at {entry}")]
    Archive {
        /// The entry.
        entry: EntryName,
        /// What is wrong with it.
        #[source]
        problem: Box<EntryProblem>,
    },
    /// A part that the image names is not in the archive.
    #[error("the image archive lacks {what}, \"{}\"; save the image again, with all its layers", Shown(name.as_bytes()))]
    PartAbsent {
        /// Which part, such as `a layer`.
        what: &'static str,
        /// Its name in the archive.
        name: String,
    },
    /// A part has another size than its descriptor says.
    #[error("{what} {digest} has {found} bytes; its descriptor says {wanted}")]
    SizeMismatch {
        /// Which part, such as `the manifest`.
        what: &'static str,
        /// The digest that it is named by.
        digest: ImageDigest,
        /// What the descriptor says.
        wanted: u64,
        /// What is there.
        found: u64,
    },
    /// A part is not what its digest says.
    #[error(
        "{what} that should have the sha256 digest {wanted} has {found}; save and send the image again"
    )]
    DigestMismatch {
        /// Which part, such as `the manifest`.
        what: &'static str,
        /// The digest that it is named by.
        wanted: ImageDigest,
        /// The digest of what is there.
        found: ImageDigest,
    },
    /// A digest that is not SHA-256.
    #[error("{what} is named by \"{}\"; only `sha256:` and 64 hexadecimal digits is understood", Shown(found.as_bytes()))]
    UnsupportedDigest {
        /// Which part, such as `the manifest`.
        what: &'static str,
        /// What was found.
        found: String,
    },
    /// A manifest, an index or a configuration is not what the specification says.
    #[error("{what} is not what the specification of images says")]
    Document {
        /// Which document.
        what: &'static str,
        /// What the parser reported, with line and column.
        source: serde_json::Error,
    },
    /// A manifest, an index or a configuration that says something impossible.
    #[error("{what} {problem}")]
    Inconsistent {
        /// Which document.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no image for this machine.
    #[error("the archive holds no image for {wanted}, only for {}; build it for {wanted}", available.join(", "))]
    PlatformAbsent {
        /// This machine's platform, such as `linux/amd64`.
        wanted: String,
        /// What there is.
        available: Vec<String>,
    },
    /// There are several images and nothing to choose by.
    #[error(
        "the archive holds {} images for this machine ({}); save one by itself",
        found.len(),
        found.join(", ")
    )]
    Ambiguous {
        /// Their names or digests.
        found: Vec<String>,
    },
    /// The image's configuration asks for what cannot be.
    #[error("the image's configuration is refused")]
    Config(#[from] ConfigProblem),
    /// The image's user cannot be found.
    #[error("the image's user cannot be told")]
    User(#[from] UserProblem),
    /// A bound was met.
    #[error("the image is too large")]
    Limit(#[from] LimitExceeded),
    /// A layer cannot be unpacked.
    #[error("layer {layer} is refused at {entry}")]
    Layer {
        /// The layer.
        layer: DiffId,
        /// The entry.
        entry: EntryName,
        /// What is wrong with it.
        #[source]
        problem: Box<EntryProblem>,
    },
    /// A program that cannot run alone in an image.
    #[error("the program cannot be made an image: {what}")]
    Program {
        /// Why, and what to do, as a phrase.
        what: String,
    },
    /// The disk is full.
    #[error("no space left for images at {}; free some and try again", path.display())]
    StorageFull {
        /// What was being written.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// The file system refused something.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried, such as `write`.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// What the system reported.
        source: io::Error,
    },
    /// Another process has the layer store open.
    #[error("the layer store {} is in use by another process; end it", path.display())]
    InUse {
        /// The store's directory.
        path: PathBuf,
    },
    /// The file system of the layer store cannot hold whiteouts in any form.
    #[error(
        "the file system of {} takes neither character devices nor extended attributes, so that removed files of a layer \
         cannot be recorded; keep images on ext4, xfs or btrfs",
        path.display()
    )]
    WhiteoutsUnsupported {
        /// The store's directory.
        path: PathBuf,
    },
    /// [`crate::Watch`] said to stop.
    #[error("the work was stopped")]
    Stopped,
}

impl ImageError {
    /// Turns an error of the system into one that names what was tried and on what.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| {
            let path = path.clone();
            match is_full(&source) {
                true => Self::StorageFull { path, source },
                false => Self::Io {
                    action,
                    path,
                    source,
                },
            }
        }
    }
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Whether an error may pass, whatever the image is.
pub(crate) fn is_of_the_machine(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| {
        [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
            Errno::IO,
            Errno::ROFS,
            Errno::STALE,
            Errno::NODEV,
            Errno::AGAIN,
            Errno::INTR,
        ]
        .contains(&errno)
    })
}

/// What is wrong with which entry, before it is known to which archive it belongs.
#[derive(Debug)]
pub(crate) struct EntryFailure {
    pub(crate) entry: EntryName,
    pub(crate) problem: EntryProblem,
}
