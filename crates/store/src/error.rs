//! What a store cannot do.

use runtara_domain::Refusal;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The change does not apply; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store is away, or busy beyond its deadline. What was asked did not happen, or may be asked again.
    #[error("the store cannot be reached: {context}")]
    Unavailable {
        /// What was being done.
        context: String,
        /// What stood in the way.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The store answered with something that should not be. Asking again would not help.
    #[error("the store is broken: {context}")]
    Broken {
        /// What was being done.
        context: String,
        /// What the store said.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// The answer of a store.
pub type StoreResult<T> = Result<T, StoreError>;
