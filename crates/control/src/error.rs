//! Why an operation was not done.

use runtara_domain::{ImageId, InstanceId, Refusal};
use runtara_runner::describe;
use runtara_store::StoreError;
use tracing::error;

/// Why an operation was not done.
///
/// Published clients look for the words `not found` in error texts: they stand in [`ControlError::NotFound`] and nowhere else.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// What was asked for does not exist, or belongs to another tenant.
    #[error("{what} '{id}' not found")]
    NotFound {
        /// `Instance` or `Image`.
        what: &'static str,
        /// Its id.
        id: String,
    },
    /// The operation does not apply to what it was asked for.
    #[error("{message}")]
    Refused {
        /// A code for programs.
        code: &'static str,
        /// The reason for people.
        message: String,
    },
    /// What was sent is not acceptable.
    #[error("{message}")]
    Invalid {
        /// A code for programs.
        code: &'static str,
        /// What was found and what was wanted.
        message: String,
    },
    /// A tenant has as much as the operator allows it.
    #[error("{message}")]
    OverLimit {
        /// A code for programs.
        code: &'static str,
        /// What there is, what is allowed, and what to do.
        message: String,
        /// Whether the same may be accepted a little later although nobody does anything about it.
        passes: bool,
    },
    /// The store is away, or the server is busy beyond its bounds; the same may be asked again.
    #[error("the environment cannot do that now: {message}")]
    Unavailable {
        /// What stands in the way.
        message: String,
    },
    /// Something is wrong here; the log says what.
    #[error("internal error")]
    Internal,
}

/// The answer of an operation.
pub type ControlResult<T> = Result<T, ControlError>;

impl ControlError {
    pub(crate) fn instance_not_found(id: &InstanceId) -> Self {
        Self::NotFound {
            what: "Instance",
            id: id.to_string(),
        }
    }

    pub(crate) fn image_not_found(id: &ImageId) -> Self {
        Self::NotFound {
            what: "Image",
            id: id.to_string(),
        }
    }

    pub(crate) fn invalid(code: &'static str, message: impl ToString) -> Self {
        Self::Invalid {
            code,
            message: message.to_string(),
        }
    }

    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        error!(error = describe(error), "an operation failed");
        Self::Internal
    }

    /// What the store refused, said of this instance.
    pub(crate) fn of_instance(error: StoreError, id: &InstanceId) -> Self {
        match error {
            StoreError::Refused(Refusal::InstanceUnknown) => Self::instance_not_found(id),
            StoreError::Refused(Refusal::WrongState { operation, status }) => Self::Refused {
                code: "WRONG_STATE",
                message: format!("Cannot {operation} instance in '{status}' state"),
            },
            StoreError::Refused(refusal @ Refusal::Expired { .. }) => Self::Refused {
                code: "EXPIRED",
                message: refusal.to_string(),
            },
            StoreError::Refused(Refusal::NoImage) => Self::Refused {
                code: "NO_IMAGE",
                message: format!("Instance '{id}' has no associated image"),
            },
            other => other.into(),
        }
    }
}

impl From<StoreError> for ControlError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(refusal @ Refusal::TooManyImageBytes { .. }) => Self::OverLimit {
                code: "TOO_MANY_IMAGE_BYTES",
                message: refusal.to_string(),
                passes: false,
            },
            StoreError::Refused(refusal) => Self::Refused {
                code: "REFUSED",
                message: refusal.to_string(),
            },
            StoreError::Unavailable { .. } => {
                tracing::warn!(%error, "the store cannot be reached");
                Self::Unavailable {
                    message: "the store cannot be reached".to_owned(),
                }
            }
            broken => Self::internal(&broken),
        }
    }
}
