//! What can go wrong in a chore.

use std::io;
use std::process::ExitStatus;

/// Why a chore ended before its work was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The operating system refused something.
    #[error("cannot {action}")]
    Io { action: String, source: io::Error },
    /// A command ran and did not succeed.
    #[error("`{command}` failed ({status}){output}")]
    Failed {
        command: String,
        status: ExitStatus,
        output: String,
    },
    /// Ctrl-C, SIGTERM or SIGHUP.
    #[error("interrupted")]
    Interrupted,
    /// A step of a verb failed; the step is named because its output may be far above.
    #[error("step `{step}` failed")]
    Step { step: String, source: Box<Error> },
    /// What was found is not what was wanted, and the text says both.
    #[error("{0}")]
    Unmet(String),
}

impl Error {
    /// Makes the closure for `map_err` that says what was being done.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io {
            action: action.into(),
            source,
        }
    }
}

/// Gives the error and everything that caused it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_each_of_its_causes_once() {
        let error = Error::Step {
            step: "database".to_owned(),
            source: Box::new(Error::Io {
                action: "write pg_ctl".to_owned(),
                source: io::Error::other("disk full"),
            }),
        };
        assert_eq!(
            with_causes(&error),
            "step `database` failed: cannot write pg_ctl: disk full"
        );
    }
}
