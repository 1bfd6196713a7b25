//! Why a change is not applied.

use crate::{CheckpointId, Status};

/// Why a change was not applied. None of these is a fault of the store: repeating the same request gives the same answer
/// until something else changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such instance.
    #[error("the instance is unknown")]
    InstanceUnknown,
    /// The caller's token is not that of the instance's current run.
    #[error("this run is over: its token is not that of the instance's current run")]
    RunSuperseded,
    /// The instance ended, or its run has said its last word.
    #[error("the instance is {status}; its run may change nothing any more")]
    InstanceEnded {
        /// Where it stands.
        status: Status,
    },
    /// The instance was launched by us and is spoken for without its token.
    #[error("the instance was launched by this environment and speaks only with its run's token")]
    TokenRequired,
    /// The instance belongs to another tenant.
    #[error("the instance belongs to another tenant")]
    TenantMismatch,
    /// A registration named a checkpoint that does not exist.
    #[error("checkpoint '{id}' does not exist")]
    CheckpointUnknown {
        /// The name.
        id: CheckpointId,
    },
    /// The operation does not apply where the instance stands.
    #[error("cannot {operation} an instance in '{status}' state")]
    WrongState {
        /// What was asked for, such as `resume`.
        operation: &'static str,
        /// Where the instance stands.
        status: Status,
    },
    /// The overall deadline of the instance is over, so there is nothing for which it could be resumed.
    #[error(
        "cannot resume an instance whose overall deadline is over: it was to end by {at} (expires_at of its start); start another one \
         for what is left to be done"
    )]
    Expired {
        /// The deadline.
        at: crate::Timestamp,
    },
    /// The content of an image would take a tenant over what its images may have together.
    #[error(
        "the tenant's images have {kept} bytes, and the {size} of this one would take them over the {allowed} that the operator allows together \
         (RUNTARA_MAX_IMAGE_BYTES_PER_TENANT); delete images that are not needed"
    )]
    TooManyImageBytes {
        /// What is kept of the tenant's images, each content once.
        kept: u64,
        /// The size of this one.
        size: u64,
        /// How much they may have.
        allowed: u64,
    },
    /// The instance has no image that could be launched.
    #[error("the instance registered itself and has no associated image")]
    NoImage,
}
