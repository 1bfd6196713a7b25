//! How a command fails, and what a script sees of it.

use std::error::Error as _;
use std::io;

use runtara_management_sdk::{Error, Status};
use runtara_oci_pull::PullError;
use serde_json::{Value, json};

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The client could not do it.
    #[error(transparent)]
    Client(#[from] Error),
    /// The registry does not give the image.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// What was typed cannot be.
    #[error("{0}")]
    Usage(String),
    /// What was asked for does not exist.
    #[error("{0}")]
    Missing(String),
    /// The instance ended without a result.
    #[error("instance {id:?} {}", how(.status, .error.as_deref()))]
    Ended {
        /// Its id.
        id: String,
        /// How it ended.
        status: Status,
        /// Its error text.
        error: Option<String>,
    },
    /// The user left before the end.
    #[error("interrupted; {0}")]
    Interrupted(String),
    /// Some of several things failed, and was told already.
    #[error("{message}")]
    Several {
        /// How many of how many.
        message: String,
        /// Exit status of the first.
        code: u8,
    },
    /// A check found what does not work, and told it already.
    #[error("{message}")]
    Check {
        /// What was found.
        message: String,
        /// Exit status.
        code: u8,
    },
    /// Reading or writing failed on this side.
    #[error("cannot read or write")]
    Io(#[from] io::Error),
}

fn how(status: &Status, error: Option<&str>) -> String {
    match error {
        Some(error) => format!("{status}: {error}"),
        None if *status == Status::Cancelled => "was cancelled".to_owned(),
        None => format!("{status} without a reason"),
    }
}

impl Failure {
    /// The exit status, see the head of the program.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Client(
                Error::Configuration { .. } | Error::InvalidRequest { .. } | Error::File { .. },
            ) => 2,
            Self::Usage(_) => 2,
            Self::Client(Error::WaitTimedOut { .. }) => 124,
            Self::Missing(_) => 3,
            Self::Client(error) if error.is_not_found() => 3,
            Self::Client(error) if error.is_unreachable() => 4,
            Self::Pull(error) if error.is_usage() => 2,
            Self::Pull(error) if error.is_not_found() => 3,
            Self::Pull(error) if error.is_unreachable() => 4,
            Self::Interrupted(_) => 130,
            Self::Several { code, .. } | Self::Check { code, .. } => *code,
            // Whoever reads has enough, as in `runtara ps | head`: nothing went wrong.
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Client(_) | Self::Pull(_) | Self::Ended { .. } | Self::Io(_) => 1,
        }
    }

    /// A short word for scripts.
    fn code(&self) -> &str {
        match self {
            Self::Client(Error::Refused { code, .. }) => code,
            Self::Ended { .. } => "INSTANCE_ENDED",
            Self::Several { .. } => "SEVERAL",
            Self::Check { .. } => "CHECK_FAILED",
            _ => match self.exit_code() {
                2 => "USAGE",
                3 => "NOT_FOUND",
                4 => "UNREACHABLE",
                124 => "WAIT_TIMED_OUT",
                130 => "INTERRUPTED",
                _ => "FAILED",
            },
        }
    }

    /// The text with all its causes, and what to do about it where that is known.
    pub(crate) fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let more = error.to_string();
            // Some wrappers repeat their cause.
            if !text.ends_with(&more) {
                text.push_str(": ");
                text.push_str(&more);
            }
            cause = error.source();
        }
        if let Self::Pull(PullError::File(_)) = self {
            let directory = std::env::temp_dir();
            let hint = format!(
                "\nhint: it is kept under {} meanwhile, TMPDIR names another place",
                directory.display()
            );
            text.push_str(&hint);
        } else if self.exit_code() == 4 && !matches!(self, Self::Check { .. } | Self::Pull(_)) {
            text.push_str("\nhint: `runtara-environment dev` starts a server here, --server names another one");
        }
        text
    }

    /// What a script is told of a failure with one of several.
    pub(crate) fn json_of(&self, id: &str) -> Value {
        json!({"id": id, "error": self.text(), "code": self.code()})
    }

    /// Tells it on standard error, but for what needs no words.
    pub(crate) fn report(&self, json: bool) {
        if matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return;
        }
        let told = if json {
            json!({"error": self.text(), "code": self.code()}).to_string()
        } else {
            format!("error: {}", crate::text::printable_lines(&self.text()))
        };
        // There is nobody left to tell if this fails.
        let _ = io::Write::write_all(&mut io::stderr(), format!("{told}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtara_management_sdk::NotFound;
    use std::time::Duration;

    #[test]
    fn every_kind_of_failure_has_its_exit_status() {
        let refused = Error::Refused {
            status: 409,
            code: "X".to_owned(),
            message: "no".to_owned(),
            retry_after: None,
        };
        let timed_out = Error::WaitTimedOut {
            id: "i".to_owned(),
            after: Duration::ZERO,
            status: Status::Running,
        };
        let missing = Error::NotFound {
            kind: NotFound::Image,
            id: "i".to_owned(),
        };
        let silent = Error::Timeout {
            server: "s".to_owned(),
            action: "a".to_owned(),
            after: Duration::ZERO,
        };
        let ended = Failure::Ended {
            id: "i".to_owned(),
            status: Status::Failed,
            error: None,
        };
        for (failure, code) in [
            (refused.into(), 1),
            (ended, 1),
            (Failure::Usage(String::new()), 2),
            (missing.into(), 3),
            (silent.into(), 4),
            (timed_out.into(), 124),
            (Failure::Interrupted(String::new()), 130),
            (Failure::Io(io::ErrorKind::BrokenPipe.into()), 0),
            (Failure::Io(io::ErrorKind::StorageFull.into()), 1),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure:?}");
        }
    }

    #[test]
    fn an_end_says_how() {
        let ended = |status, error: Option<&str>| {
            Failure::Ended {
                id: "o-1".to_owned(),
                status,
                error: error.map(str::to_owned),
            }
            .to_string()
        };
        assert_eq!(
            ended(Status::Failed, Some("no stock")),
            r#"instance "o-1" failed: no stock"#
        );
        assert_eq!(
            ended(Status::Cancelled, None),
            r#"instance "o-1" was cancelled"#
        );
    }

    #[test]
    fn causes_are_told_and_a_hint_where_there_is_one() {
        let failure = Failure::Client(Error::Transport {
            server: "http://x:1".to_owned(),
            action: "GET /a".to_owned(),
            source: "connection refused".into(),
        });
        let text = failure.text();
        assert!(
            text.starts_with("no answer from http://x:1 to GET /a: connection refused\nhint: "),
            "{text}"
        );
    }
}
