//! What can go wrong, and what must end the program.

use std::time::Duration;

/// The cause of an error, of whatever type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a call did not give what it promises.
///
/// Four of these are no failures but the end of this run: [`Error::Cancelled`], [`Error::Suspended`], [`Error::Superseded`]
/// and [`Error::Ended`]. Hand them on with `?`; [`run`](crate::run) then leaves quietly. [`Error::ends_run`] tells them apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A variable of the environment is missing or wrong.
    #[error("{variable} is {found}, wanted {wanted}")]
    Settings {
        /// Its name.
        variable: &'static str,
        /// What it is, secrets redacted.
        found: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A name of a checkpoint, sleep or signal cannot be used.
    #[error("the name {name:?} cannot be used, wanted {wanted}")]
    Name {
        /// The name, shortened.
        name: String,
        /// What a name must be.
        wanted: &'static str,
    },
    /// The server could not be reached, or refused for lack of strength, for longer than
    /// [`Settings::retry_deadline`](crate::Settings::retry_deadline).
    #[error("{action} at {server} did not succeed within {tried_for:?}: {last}")]
    Unreachable {
        /// Method and path, or in a component the function of the host.
        action: String,
        /// Where, without the secret; in a component, `the host`.
        server: String,
        /// For how long it was tried.
        tried_for: Duration,
        /// What happened to the last attempt.
        last: String,
    },
    /// The server refused.
    #[error("{action} was refused with {status} {code}: {message}")]
    Refused {
        /// Method and path, or in a component the function of the host.
        action: String,
        /// The HTTP status, or that which would say the same.
        status: u16,
        /// The server's code, or the status again.
        code: String,
        /// The server's words.
        message: String,
    },
    /// The server's answer is not one that this client understands.
    #[error("the answer to {action} is not understood: {problem}")]
    Answer {
        /// Method and path, or in a component the function of the host.
        action: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A value could not be written as JSON.
    #[error("{what} cannot be written as JSON")]
    Encode {
        /// What it is.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A stored value is not what the program wants it to be.
    #[error("{what} is not of the wanted type")]
    Decode {
        /// What it is.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The body of a step failed; nothing was saved.
    #[error("step '{name}' failed")]
    Step {
        /// Its name.
        name: String,
        /// Why.
        source: BoxError,
    },
    /// The instance is cancelled: leave.
    #[error("the instance was cancelled")]
    Cancelled,
    /// The instance is paused and this run has said so: leave. A later run goes on from the checkpoints.
    #[error("the instance is suspended")]
    Suspended,
    /// Another run of the instance has taken over: leave, and touch nothing.
    #[error("another run of this instance has taken over")]
    Superseded,
    /// The instance has ended, or this run has said its last word: leave.
    #[error("the instance has ended")]
    Ended,
}

impl Error {
    /// Tells whether this run is over, so that the program must leave. Such an error says nothing bad about the program.
    #[must_use]
    pub fn ends_run(&self) -> bool {
        matches!(
            self,
            Self::Cancelled | Self::Suspended | Self::Superseded | Self::Ended
        )
    }

    /// Whether the fault is the server's, or of the way to it: a later run may well succeed.
    pub(crate) fn is_trouble(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => *status >= 500,
            _ => false,
        }
    }

    pub(crate) fn encode(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        |source| Self::Encode {
            what: what.into(),
            source,
        }
    }

    pub(crate) fn decode(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        |source| Self::Decode {
            what: what.into(),
            source,
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
