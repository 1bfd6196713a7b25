//! Where an instance stands, and why.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A word that is none of those a value knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {found:?} is unknown; known are: {known}")]
pub struct UnknownWord {
    /// Which value was meant, such as `status`.
    pub what: &'static str,
    /// The word that was found.
    pub found: String,
    /// The words that are known, separated by commas.
    pub known: &'static str,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word on the wire and in the store.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord {
                        what: $what,
                        found: word.chars().take(64).collect(),
                        known: concat!($($word, ", "),+).trim_ascii_end_comma(),
                    }),
                }
            }
        }
    };
}
pub(crate) use words;

/// Cuts the comma that a list built by `concat!` ends with.
pub(crate) trait TrimComma {
    fn trim_ascii_end_comma(&self) -> &str;
}

impl TrimComma for str {
    fn trim_ascii_end_comma(&self) -> &str {
        self.trim_end_matches(", ")
    }
}

words! {
    /// Where an instance stands.
    Status, "status" {
        /// It never ran and waits for its first run.
        Pending = "pending",
        /// A node has claimed it; its run is live, starting or just gone.
        Running = "running",
        /// It ran, has no run now, and waits: for its due time or for someone.
        Suspended = "suspended",
        /// It ended with a result.
        Completed = "completed",
        /// It ended without a result.
        Failed = "failed",
        /// It was ended by request.
        Cancelled = "cancelled",
    }
}

impl Status {
    /// Whether nothing but an explicit resume changes it any more.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

words! {
    /// Why an instance is suspended, or how it ended.
    Reason, "reason" {
        /// Suspended: it was paused, and waits for a resume.
        Paused = "paused",
        /// Suspended: it sleeps until its due time.
        Sleeping = "sleeping",
        /// Suspended: it waits for a custom signal, until its due time if it has one.
        WaitingSignal = "waiting_signal",
        /// Suspended: its run crashed, and it is due again after a pause. Failed: it crashed too often.
        Crashed = "crashed",
        /// Suspended: its run ended through no fault of its own, and it is due again.
        Interrupted = "interrupted",
        /// Completed.
        Completed = "completed",
        /// Failed: the program said so.
        ApplicationError = "application_error",
        /// Failed: its running time was over, or its overall deadline.
        Timeout = "timeout",
        /// Suspended: its run lived but was silent for too long, and it is due again after a pause. Failed: that happened too often; or it
        /// registered itself, and nothing was heard of it any more.
        HeartbeatTimeout = "heartbeat_timeout",
        /// Cancelled.
        Cancelled = "cancelled",
    }
}

words! {
    /// A signal that is meant for an instance as a whole.
    SignalKind, "signal type" {
        /// End.
        Cancel = "cancel",
        /// Leave and wait for a resume.
        Pause = "pause",
        /// Go on.
        Resume = "resume",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse::<Status>().unwrap(), *status);
        }
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse::<Reason>().unwrap(), *reason);
        }
    }

    #[test]
    fn an_unknown_word_is_named_with_those_that_are_known() {
        let error = "shutdown".parse::<SignalKind>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"signal type "shutdown" is unknown; known are: cancel, pause, resume"#
        );
    }
}
