//! The words of the wire as types. A word this version does not know is kept as it is, so that a newer server never breaks a
//! client.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal $(| $also:literal)*),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
            /// A word that this version does not know.
            Other(String),
        }

        impl $name {
            /// The words that this version knows, as they stand on the wire.
            pub const KNOWN: &'static [&'static str] = &[$($word),+];

            /// The word as it stands on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)+
                    Self::Other(word) => word,
                }
            }

            /// Whether this version knows the word.
            #[must_use]
            pub fn is_known(&self) -> bool {
                !matches!(self, Self::Other(_))
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word $(| $also)* => Self::$variant,)+
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl From<String> for $name {
            fn from(word: String) -> Self {
                Self::from(word.as_str())
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> Self {
                word.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

words! {
    /// Where an instance stands.
    Status {
        /// It has not run yet.
        Pending = "pending",
        /// It has a live run.
        Running = "running",
        /// It has no run now and waits, see [`StatusReason`].
        Suspended = "suspended" | "sleeping",
        /// It ended with a result.
        Completed = "completed",
        /// It ended without a result.
        Failed = "failed",
        /// It was ended by request.
        Cancelled = "cancelled",
    }
}

impl Status {
    /// Whether nothing but a resume changes the instance any more.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

words! {
    /// Why an instance is suspended.
    StatusReason {
        /// It was paused, and waits for a resume.
        Paused = "paused",
        /// It sleeps until its due time.
        Sleeping = "sleeping",
        /// It waits for a custom signal.
        WaitingSignal = "waiting_signal",
        /// Its run crashed; it is due again after a pause.
        Crashed = "crashed",
        /// Its run was silent for too long; it is due again after a pause.
        HeartbeatTimeout = "heartbeat_timeout",
        /// Its run ended through no fault of its own; it is due again.
        Interrupted = "interrupted",
    }
}

words! {
    /// How the last run of an instance ended.
    TerminationReason {
        /// With a result.
        Completed = "completed",
        /// The program said so.
        ApplicationError = "application_error",
        /// It crashed.
        Crashed = "crashed",
        /// Its running time was over, or its overall deadline.
        Timeout = "timeout",
        /// It was silent for too long.
        HeartbeatTimeout = "heartbeat_timeout",
        /// By request.
        Cancelled = "cancelled",
        /// It was paused.
        Paused = "paused",
        /// It sleeps.
        Sleeping = "sleeping",
        /// Its process was lost.
        Orphaned = "orphaned",
        /// It waits for a custom signal.
        WaitingSignal = "waiting_signal",
        /// It ended through no fault of its own.
        Interrupted = "interrupted",
    }
}

words! {
    /// What kind of isolation an image asks for.
    RunnerKind {
        /// A container.
        Oci = "oci",
        /// A process of the host.
        Native = "native",
        /// A WebAssembly guest.
        Wasm = "wasm",
    }
}

words! {
    /// What a container reaches over the network.
    NetworkMode {
        /// Nothing but the instance protocol.
        Isolated = "isolated" | "none",
        /// The internet and the instance protocol, not the host.
        Egress = "egress" | "pasta",
        /// All that the host reaches: no isolation of the network at all.
        Host = "host",
    }
}

words! {
    /// A signal for an instance as a whole.
    SignalKind {
        /// End.
        Cancel = "cancel",
        /// Leave, and wait for a resume.
        Pause = "pause",
        /// Go on.
        Resume = "resume",
    }
}

words! {
    /// In which order instances are listed.
    InstanceOrder {
        /// Newest first.
        CreatedAtDesc = "created_at_desc",
        /// Oldest first.
        CreatedAtAsc = "created_at_asc",
        /// Those that ended last first; those that have not ended come last.
        FinishedAtDesc = "finished_at_desc",
        /// Those that ended first first; those that have not ended come last.
        FinishedAtAsc = "finished_at_asc",
    }
}

words! {
    /// In which order events and steps are listed.
    SortOrder {
        /// Oldest first.
        Asc = "asc",
        /// Newest first.
        Desc = "desc",
    }
}

words! {
    /// What an event tells.
    EventType {
        /// A run began.
        Started = "started",
        /// A run is alive.
        Heartbeat = "heartbeat",
        /// The instance completed.
        Completed = "completed",
        /// The instance failed.
        Failed = "failed",
        /// The instance was suspended.
        Suspended = "suspended",
        /// What the subtype says.
        Custom = "custom",
    }
}

words! {
    /// Where a step stands.
    StepStatus {
        /// It has not ended.
        Running = "running",
        /// It ended with a result.
        Completed = "completed",
        /// It ended with an error.
        Failed = "failed",
    }
}

words! {
    /// The length of one bucket of metrics.
    Granularity {
        /// An hour.
        Hourly = "hourly",
        /// A day.
        Daily = "daily",
    }
}

words! {
    /// Which of a run's two outputs is meant.
    OutputStream {
        /// Standard output.
        Stdout = "stdout",
        /// Standard error.
        Stderr = "stderr",
    }
}

words! {
    /// How it is with something that the server has looked at on its machine.
    CheckResult {
        /// As it should be.
        Fine = "fine",
        /// It works, and the operator should know.
        Warning = "warning",
        /// Something cannot be run like this.
        Unfit = "unfit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words_read_back_and_unknown_ones_are_kept() {
        for word in Status::KNOWN {
            let status = Status::from(*word);
            assert!(status.is_known(), "{word}");
            assert_eq!(status.to_string(), *word);
        }
        assert_eq!(Status::from("sleeping"), Status::Suspended);
        let unknown: StatusReason = serde_json::from_str(r#""shutdown_requested""#).unwrap();
        assert_eq!(
            unknown,
            StatusReason::Other("shutdown_requested".to_owned())
        );
        assert_eq!(
            serde_json::to_string(&unknown).unwrap(),
            r#""shutdown_requested""#
        );
    }

    #[test]
    fn exactly_three_statuses_are_ends() {
        let ends: Vec<_> = Status::KNOWN
            .iter()
            .filter(|word| Status::from(**word).is_end())
            .collect();
        assert_eq!(ends, [&"completed", &"failed", &"cancelled"]);
    }

    #[test]
    fn words_pad_in_tables() {
        assert_eq!(format!("{:<10}|", Status::Failed), "failed    |");
    }
}
