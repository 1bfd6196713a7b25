//! What an error of SQLite means to a caller.

use std::error::Error as Cause;

use crate::StoreError;

/// Primary result codes after which the same request may succeed later (<https://sqlite.org/rescode.html>): busy, locked, out of
/// memory, read-only, interrupted, I/O error, disk full, cannot open.
const PASSING: [i32; 8] = [5, 6, 7, 8, 9, 10, 13, 14];

/// An error of a driver of SQLite.
pub(super) trait DriverError: Into<Box<dyn Cause + Send + Sync>> {
    /// Whether the same request may succeed later.
    fn is_passing(&self) -> bool;
}

fn is_passing(code: i32) -> bool {
    PASSING.contains(&(code & 0xff))
}

impl DriverError for sqlx::Error {
    fn is_passing(&self) -> bool {
        match self {
            Self::Database(database) => {
                let code = database.code().and_then(|code| code.parse().ok());
                code.is_some_and(is_passing)
            }
            Self::Io(_) | Self::WorkerCrashed | Self::PoolClosed | Self::PoolTimedOut => true,
            _ => false,
        }
    }
}

impl DriverError for rusqlite::Error {
    fn is_passing(&self) -> bool {
        let code = self.sqlite_error().map(|error| error.extended_code);
        code.is_some_and(is_passing)
    }
}

/// Sorts an error of the database: what may pass is [`StoreError::Unavailable`], everything else [`StoreError::Broken`].
pub(super) fn failed(context: &str, error: impl DriverError) -> StoreError {
    let passing = error.is_passing();
    let context = context.to_owned();
    let source = Some(error.into());
    if passing {
        StoreError::Unavailable { context, source }
    } else {
        tracing::error!(context, error = ?source, "the database answered with an error");
        StoreError::Broken { context, source }
    }
}

/// Says that the store cannot answer now.
pub(super) fn unavailable(context: impl Into<String>) -> StoreError {
    StoreError::Unavailable {
        context: context.into(),
        source: None,
    }
}

/// As [`unavailable`], with the cause.
pub(super) fn unavailable_by(
    context: impl Into<String>,
    cause: impl Into<Box<dyn Cause + Send + Sync>>,
) -> StoreError {
    StoreError::Unavailable {
        context: context.into(),
        source: Some(cause.into()),
    }
}

/// Says that the store holds, or was asked, something that should not be.
pub(super) fn broken(context: impl Into<String>) -> StoreError {
    StoreError::Broken {
        context: context.into(),
        source: None,
    }
}

/// As [`broken`], with the cause.
pub(super) fn broken_by(
    context: impl Into<String>,
    cause: impl Into<Box<dyn Cause + Send + Sync>>,
) -> StoreError {
    StoreError::Broken {
        context: context.into(),
        source: Some(cause.into()),
    }
}
