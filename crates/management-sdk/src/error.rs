//! What can go wrong in a call, sorted by what a caller can do about it.

use std::fmt;
use std::time::Duration;

use crate::Status;

/// How much of an answer that makes no sense is shown.
const SHOWN_BYTES: usize = 200;

/// Which thing was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotFound {
    /// The image is unknown, or another tenant's.
    Image,
    /// The instance is unknown, or another tenant's.
    Instance,
    /// The instance has no checkpoint of that id.
    Checkpoint,
    /// No agent offers the capability.
    Capability,
    /// No node has that id or name.
    Node,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "image",
            Self::Instance => "instance",
            Self::Checkpoint => "checkpoint",
            Self::Capability => "capability",
            Self::Node => "node",
        })
    }
}

/// Why a call did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option of the client has a value that it cannot have.
    #[error("{name} is {found:?}, wanted is {wanted}")]
    Configuration {
        /// The option or environment variable.
        name: &'static str,
        /// What was found.
        found: String,
        /// What is allowed.
        wanted: &'static str,
    },
    /// A request that was not sent, because it cannot be.
    #[error("{what} is {found:?}, wanted is {wanted}")]
    InvalidRequest {
        /// The part of the request.
        what: &'static str,
        /// What was found.
        found: String,
        /// What is allowed.
        wanted: &'static str,
    },
    /// The server was not reached, or the connection broke. Whether the call was carried out is unknown.
    #[error("no answer from {server} to {action}")]
    Transport {
        /// Base address of the server.
        server: String,
        /// Method and path.
        action: String,
        /// What broke.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server did not answer in time. Whether the call was carried out is unknown.
    #[error("no answer from {server} to {action} within {after:?}")]
    Timeout {
        /// Base address of the server.
        server: String,
        /// Method and path.
        action: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// What was asked for does not exist, or belongs to another tenant.
    #[error("{kind} {id:?} was not found")]
    NotFound {
        /// Which kind of thing.
        kind: NotFound,
        /// Its id or name.
        id: String,
    },
    /// The server answered that it will not.
    #[error("{message} ({code})")]
    Refused {
        /// HTTP status of the answer.
        status: u16,
        /// The server's code, or the status where it gave none.
        code: String,
        /// The server's words.
        message: String,
        /// When it may be tried again, where the server said so.
        retry_after: Option<Duration>,
    },
    /// The answer was not what was expected.
    #[error("cannot read {what}, found {found:?}")]
    Decode {
        /// What was read.
        what: String,
        /// The beginning of what was found.
        found: String,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The answer is longer than the client reads.
    #[error("the answer to {action} is longer than {limit} bytes, which is the client's limit")]
    TooLarge {
        /// Method and path.
        action: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// A file could not be read.
    #[error("cannot read {path}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes that were uploaded are not those that were announced.
    #[error(
        "the content has SHA-256 {found}, announced was {wanted}: it changed while it was read, or the digest is another file's"
    )]
    Checksum {
        /// Digest of what was read.
        found: String,
        /// Digest that was announced.
        wanted: String,
    },
    /// The instance had not ended when the time was over. It goes on.
    #[error("instance {id:?} had not ended after {after:?}, it is {status}")]
    WaitTimedOut {
        /// Its id.
        id: String,
        /// How long it was waited for.
        after: Duration,
        /// Where it stood last.
        status: Status,
    },
}

impl Error {
    pub(crate) fn decode(what: impl Into<String>, found: &[u8], source: serde_json::Error) -> Self {
        let cut = &found[..found.len().min(SHOWN_BYTES)];
        Self::Decode {
            what: what.into(),
            found: String::from_utf8_lossy(cut).into_owned(),
            source,
        }
    }

    pub(crate) fn not_found(kind: NotFound, id: &str) -> Self {
        Self::NotFound {
            kind,
            id: id.to_owned(),
        }
    }

    /// Whether nothing is known of the call's effect, because the server could not be reached or did not answer.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Transport { .. } | Self::Timeout { .. })
    }

    /// Whether the same call may succeed a little later: the server is away, starting, draining or busy.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.is_unreachable()
            || matches!(
                self,
                Self::Refused {
                    status: 429 | 502 | 503 | 504,
                    ..
                }
            )
    }

    /// Whether something that was named does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_shown_but_not_all_of_it() {
        let source = serde_json::from_str::<u8>("x").unwrap_err();
        let Error::Decode { found, .. } = Error::decode("x", &[b'a'; 5000], source) else {
            panic!("another variant");
        };
        assert_eq!(found.len(), SHOWN_BYTES);
    }

    #[test]
    fn a_busy_server_is_transient_a_refusal_is_not() {
        let refused = |status| Error::Refused {
            status,
            code: String::new(),
            message: String::new(),
            retry_after: None,
        };
        assert!(refused(503).is_transient());
        assert!(!refused(409).is_transient());
        assert!(!Error::not_found(NotFound::Image, "x").is_transient());
    }
}
