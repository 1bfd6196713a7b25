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
    /// The shared image store could not be reached, or refused something.
    #[error("cannot {action} the shared image store: {reason}")]
    Shared {
        /// What was tried, such as `fetch content from`.
        action: &'static str,
        /// What it reported, without what it may have repeated of a request.
        reason: String,
    },
    /// The shared image store is that of another database.
    #[error(
        "the shared image store belongs to the database with the id {found}, and this server uses {expected}: content without a row of its database is \
         removed from it. Name another place; or, if no other server uses this one, remove the object 'database' from it"
    )]
    OtherDatabase {
        /// The id that the store names.
        found: String,
        /// The id of our database.
        expected: String,
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

    pub(crate) fn shared(action: &'static str, error: &object_store::Error) -> Self {
        let reason = without_answer(error);
        Self::Shared { action, reason }
    }

    pub(crate) fn objects(action: &'static str) -> impl FnOnce(object_store::Error) -> Self {
        move |source| Self::Objects { action, source }
    }
}

/// What a store reported, without the document it may have answered with: those repeat parts of requests, such as the id of a key. Of one only
/// its code is left.
fn without_answer(error: &object_store::Error) -> String {
    use std::error::Error as _;

    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let further = error.to_string();
        if !text.contains(&further) {
            text.push_str(": ");
            text.push_str(&further);
        }
        cause = error.source();
    }
    let Some(begin) = text.find('<') else {
        return text;
    };
    let answer = text.split_off(begin);
    let code = answer
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"))
        .map_or("", |(code, _)| code);
    text.truncate(text.trim_end_matches([' ', ':']).len());
    if !code.is_empty() {
        text.push_str(&format!(" ({code})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_a_store_is_not_repeated() {
        let answer = "status 403 Forbidden: <?xml?><Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>KEY</AWSAccessKeyId></Error>";
        let error = object_store::Error::Generic {
            store: "S3",
            source: answer.into(),
        };
        let told = BlobError::shared("write to", &error).to_string();
        assert!(
            told.ends_with("403 Forbidden (SignatureDoesNotMatch)"),
            "{told}"
        );
        assert!(!told.contains("KEY"), "{told}");
    }
}
