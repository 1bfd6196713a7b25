//! Why an image could not be pulled.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Digest, Platform};

/// Why an image could not be pulled. None of the texts holds a credential, or the query of an address, which may hold one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// What was written is no reference.
    #[error(
        "{found:?} is no reference to an image: {problem}; wanted is one like alpine:3.20, registry.example.com/team/app:1 or registry.example.com/team/app@sha256:…"
    )]
    Reference {
        /// What was written.
        found: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The configuration of docker cannot be used.
    #[error("cannot take credentials from {}: {problem}", file.display())]
    CredentialsFile {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it, without its content.
        problem: String,
    },
    /// The program that keeps the credentials did not give them.
    #[error("{program}, which {} names for the credentials of {registry}, {problem}", file.display())]
    CredentialHelper {
        /// The program.
        program: String,
        /// Whose credentials were asked for.
        registry: String,
        /// Which file names it.
        file: PathBuf,
        /// What it did.
        problem: String,
    },
    /// No connection, or one that broke.
    #[error("no answer from {host}: {problem}")]
    Unreachable {
        /// Whom.
        host: String,
        /// What happened.
        problem: String,
    },
    /// The connection is not secure.
    #[error("no secure connection to {host}: {problem}")]
    Tls {
        /// To whom.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// Plain HTTP, where it is not allowed.
    #[error(
        "{host} {what} over plain HTTP, which is for loopback addresses; if the network in between is trusted, --plain-http (`PullOptions::plain_http`) allows it"
    )]
    PlainHttp {
        /// Who wants it.
        host: String,
        /// What it does with it.
        what: &'static str,
    },
    /// Nothing came.
    #[error("{host} sends nothing more of {what}: waited {after:?}")]
    Stalled {
        /// Who.
        host: String,
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The whole took too long.
    #[error("pulling the image took longer than {after:?}")]
    TooSlow {
        /// What was allowed.
        after: Duration,
    },
    /// The registry wants somebody else.
    #[error("{host} does not give {reference} ({status}): {}", known.text(registry))]
    Denied {
        /// Who said so: the registry, or the token server that it names.
        host: String,
        /// What was asked for.
        reference: String,
        /// Whose credentials are meant.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// What was known of who asks.
        known: Known,
    },
    /// There is no such image.
    #[error("{host} has no image {reference}{}", behind(message))]
    NotFound {
        /// Who said so.
        host: String,
        /// What was asked for.
        reference: String,
        /// The registry's words, if it had any.
        message: String,
    },
    /// An image, but not for this platform.
    #[error("{reference} is not there for {wanted}, but for {}; --platform chooses", available.join(", "))]
    PlatformMissing {
        /// What was asked for.
        reference: String,
        /// For what.
        wanted: Platform,
        /// What is there.
        available: Vec<String>,
    },
    /// The registry asks for patience, and for more than there is.
    #[error("{host} asks to come back later (429){}{}", pause(*.after), behind(message))]
    Busy {
        /// Who.
        host: String,
        /// How much later.
        after: Option<Duration>,
        /// The registry's words.
        message: String,
    },
    /// An answer that does not fit.
    #[error("{host} answers {status} when asked for {what}{}", behind(message))]
    Answer {
        /// Who.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The registry's words.
        message: String,
    },
    /// An answer that cannot be understood, or that contradicts itself.
    #[error("{what} {problem}")]
    Malformed {
        /// Which part of the answer.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Content is not what it was called.
    #[error("the content of {what} is not what the registry said: found {found}, wanted {wanted}")]
    DigestMismatch {
        /// Which content.
        what: String,
        /// What it was called.
        wanted: Digest,
        /// What it is.
        found: Digest,
    },
    /// Content has another size than was said.
    #[error("{what} has {found} bytes, wanted are {wanted}")]
    SizeMismatch {
        /// Which content.
        what: String,
        /// What the manifest says.
        wanted: u64,
        /// What came, or was announced; what is too long is not read to its end.
        found: u64,
    },
    /// More than is taken.
    #[error("{what}: {found}, at most {allowed} are taken")]
    TooLarge {
        /// Of what.
        what: String,
        /// How much there is.
        found: u64,
        /// How much is allowed.
        allowed: u64,
    },
    /// The file of the archive cannot be written.
    #[error("cannot write the image's archive")]
    File(#[from] std::io::Error),
    /// The client cannot be made.
    #[error("cannot prepare HTTP connections: {problem}")]
    Client {
        /// Why.
        problem: String,
    },
}

impl PullError {
    /// Whether what was written cannot be carried out, whatever the registry says.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Reference { .. } | Self::CredentialsFile { .. })
    }

    /// Whether the registry has no such image, or not for the platform.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::PlatformMissing { .. })
    }

    /// Whether the registry did not answer, or could not be talked to safely.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Tls { .. }
                | Self::PlainHttp { .. }
                | Self::Stalled { .. }
                | Self::TooSlow { .. }
        )
    }

    /// Whether it may go better the next time.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } | Self::Busy { .. } => true,
            Self::Answer { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

/// What was known of who asks a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Known {
    /// Nothing, and nothing was looked for.
    Nothing,
    /// Nothing: there is no file that could say it.
    NoFile(Option<PathBuf>),
    /// Nothing: the file does not say it.
    NotIn(PathBuf),
    /// What this file says, or a program that it names.
    From(PathBuf),
}

impl Known {
    fn text(&self, registry: &str) -> String {
        let unknown = format!(
            "`docker login {registry}` stores some. Registries answer so for what does not exist, too"
        );
        match self {
            Self::Nothing => "it was asked without credentials".to_owned(),
            Self::NoFile(None) => {
                "there are no credentials, for neither DOCKER_CONFIG nor HOME is set".to_owned()
            }
            Self::NoFile(Some(file)) => {
                format!(
                    "there are no credentials, for {} does not exist; {unknown}",
                    file.display()
                )
            }
            Self::NotIn(file) => {
                format!(
                    "{} has no credentials for {registry}; {unknown}",
                    file.display()
                )
            }
            Self::From(file) => format!(
                "it was asked with the credentials that {} has for {registry}; `docker login {registry}` renews them",
                file.display()
            ),
        }
    }
}

fn behind(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

fn pause(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| {
        format!(", after {} s", after.as_secs())
    })
}

/// Foreign text in one line, without control characters, and not too much of it.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 200;
        for letter in self.0.chars().take(MOST) {
            write!(f, "{}", if letter.is_control() { ' ' } else { letter })?;
        }
        if self.0.chars().nth(MOST).is_some() {
            f.write_str("…")?;
        }
        Ok(())
    }
}
