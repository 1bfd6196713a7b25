//! What PostgreSQL answers, in the words of a store.

use std::error::Error;
use std::sync::Arc;

use runtara_domain::Refusal;

use crate::StoreError;

/// Why a statement was not carried out, before anybody has decided whether to try again.
#[derive(Debug)]
pub(super) enum Fault {
    /// The change does not apply.
    Refused(Refusal),
    /// The database said no, or nothing.
    Database(sqlx::Error),
    /// The database said no, or nothing, to several at once.
    Batch(Arc<sqlx::Error>),
    /// What is stored cannot be.
    Stored(String),
    /// A change was asked for that comes with a method of its own.
    Misplaced,
    /// Others changed the instance each time before this change was written.
    Contended,
    /// The store is being closed, or has more waiting than it takes.
    Overloaded,
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Fault {
    /// Says what was being done, in words that a caller may see.
    pub(super) fn during(self, doing: &str) -> StoreError {
        match self {
            Self::Refused(refusal) => StoreError::Refused(refusal),
            Self::Database(error) => during(kind(&error), Box::new(error), doing),
            Self::Batch(error) => during(kind(&error), Box::new(error), doing),
            Self::Misplaced => StoreError::Broken {
                context: format!("{doing}: this change has a method of its own"),
                source: None,
            },
            Self::Contended | Self::Overloaded => {
                tracing::warn!(doing, why = ?self, "gave up on a change");
                StoreError::Unavailable {
                    context: doing.to_owned(),
                    source: None,
                }
            }
            Self::Stored(what) => {
                tracing::error!(
                    doing,
                    what,
                    "found something in the database that cannot be"
                );
                StoreError::Broken {
                    context: doing.to_owned(),
                    source: Some(what.into()),
                }
            }
        }
    }
}

/// The answer of everything below the trait.
pub(super) type Answer<T> = Result<T, Fault>;

/// How an error of the database is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The connection was lost, or there was none to be had.
    Away,
    /// Two transactions stood in each other's way; nothing of this one happened.
    Conflict,
    /// The statement took longer than it may.
    TooSlow,
    /// Asking again would not help.
    Broken,
}

/// Tells what kind of error it is. Codes are those of PostgreSQL's manual, appendix A.
pub(super) fn kind(error: &sqlx::Error) -> Kind {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Kind::Away,
        // A connection that was cut in the middle of a message shows as a breach of the protocol.
        sqlx::Error::Protocol(_) => Kind::Away,
        sqlx::Error::Database(error) => match error.code().as_deref() {
            // A key that was free when the statement began and is taken now counts: the next look sees it taken.
            Some("40001" | "40P01" | "23505") => Kind::Conflict,
            Some("57014" | "55P03") => Kind::TooSlow,
            // Connection exceptions, insufficient resources, operator intervention (shutdown, crash recovery), and a server
            // that is read-only because another one has taken over or that takes no connections to this database for now.
            Some(code)
                if code.starts_with("08")
                    || code.starts_with("53")
                    || code.starts_with("57")
                    || matches!(code, "25006" | "55000") =>
            {
                Kind::Away
            }
            _ => Kind::Broken,
        },
        _ => Kind::Broken,
    }
}

/// Whether the statement may be sent again, if sending it twice does no harm.
pub(super) fn may_repeat(error: &sqlx::Error) -> bool {
    match error {
        // These have waited for their time already, or will never end.
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => false,
        _ => matches!(kind(error), Kind::Away | Kind::Conflict),
    }
}

fn during(kind: Kind, error: Box<dyn Error + Send + Sync>, doing: &str) -> StoreError {
    match kind {
        Kind::Away => tracing::debug!(doing, %error, "the database was away"),
        Kind::Conflict | Kind::TooSlow => {
            tracing::warn!(doing, %error, "the database was busy beyond the deadline");
        }
        Kind::Broken => tracing::error!(doing, %error, "the database refused a statement"),
    }
    let (context, source) = (doing.to_owned(), Some(error));
    match kind {
        Kind::Broken => StoreError::Broken { context, source },
        _ => StoreError::Unavailable { context, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_not_a_fault_of_the_statement() {
        let lost = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert_eq!(kind(&lost), Kind::Away);
        assert!(may_repeat(&lost));
        assert!(!may_repeat(&sqlx::Error::PoolTimedOut));
        assert_eq!(kind(&sqlx::Error::RowNotFound), Kind::Broken);
    }

    #[test]
    fn callers_see_what_was_done_and_not_what_the_database_said() {
        let error = Fault::from(sqlx::Error::Protocol("secret".to_owned())).during("saving");
        assert_eq!(error.to_string(), "the store cannot be reached: saving");
    }
}
