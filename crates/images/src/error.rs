//! What can go wrong with content.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtara_domain::ImageDigest;

use crate::Base64Error;

/// Says why content could not be stored, read or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The content is larger than this server takes.
    #[error("the image is larger than {limit} bytes, the most that this server takes")]
    TooLarge {
        /// The largest content that is taken, in bytes.
        limit: u64,
    },
    /// As many uploads as are allowed were under way for as long as this one was ready to wait.
    #[error(
        "{limit} uploads are under way, the most that this server takes at once, and none ended within {} s; try again later",
        waited.as_secs()
    )]
    TooManyUploads {
        /// How many may be under way at once.
        limit: usize,
        /// How long this one waited.
        waited: Duration,
    },
    /// The content is not what its sender said.
    #[error("the content has the sha256 digest {found}; its sender announced {expected}")]
    ChecksumMismatch {
        /// The digest that was announced.
        expected: ImageDigest,
        /// The digest of what arrived.
        found: ImageDigest,
    },
    /// The text is not base64.
    #[error(transparent)]
    Base64(#[from] Base64Error),
    /// Where the content came from failed.
    #[error("the upload broke off after {received} bytes")]
    Source {
        /// How much had arrived, in bytes of content.
        received: u64,
        /// What the sender's side reported.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An earlier call on this upload failed or was not awaited to its end, so that its content has a gap.
    #[error("the upload has a gap: an earlier write failed or was abandoned; start a new upload")]
    Gap,
    /// There is no such content.
    #[error("there is no content with the sha256 digest {digest}")]
    Absent {
        /// The digest.
        digest: ImageDigest,
    },
    /// What is kept under a digest has another digest.
    #[error(
        "the content kept as {digest} has the sha256 digest {found}; remove it and register it again"
    )]
    Corrupt {
        /// The digest it is kept under.
        digest: ImageDigest,
        /// The digest of what is there.
        found: ImageDigest,
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
    /// Another process held the lock on a part of the store for too long.
    #[error("{} was locked by another process for {} s; end that process", path.display(), waited.as_secs())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// How long it was tried.
        waited: Duration,
    },
    /// The object store refused something.
    #[error("cannot {action} in the image store")]
    Objects {
        /// What was tried, such as `list`.
        action: &'static str,
        /// What it reported.
        source: object_store::Error,
    },
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Stopping,
}

impl BlobError {
    /// Turns an error of the system into one that names what was tried and on what.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::StorageFull { path, source }
            }
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }

    pub(crate) fn objects(action: &'static str) -> impl FnOnce(object_store::Error) -> Self {
        move |source| Self::Objects { action, source }
    }
}
