//! What the control plane asks of those who run programs.

use std::io;

use async_trait::async_trait;
use runtara_domain::{ImageDigest, RunnerKind};
use runtara_runner::{AskedSettings, ImageFiles, PrepareError, PreparedImage};

/// Knows what can be run here. It answers before anything is registered or started; nothing of it launches or ends a run.
#[async_trait]
pub trait Programs: Send + Sync {
    /// Says why images of this kind would not be launched with these settings: they cannot be given, or the operator does not
    /// allow them.
    ///
    /// # Errors
    /// The reason, for whoever asks: what was found and what is allowed.
    fn check(&self, kind: RunnerKind, settings: &AskedSettings) -> Result<(), String>;

    /// Makes an image of this kind ready to be launched, and says what it says of itself. Idempotent.
    ///
    /// # Errors
    /// [`PrepareError::Unfit`] if it can never run here, [`PrepareError::NotAllowed`] if it could with another configuration,
    /// [`PrepareError::Host`] if this machine stood in the way.
    async fn prepare(
        &self,
        kind: RunnerKind,
        image: ImageFiles,
    ) -> Result<PreparedImage, PrepareError>;

    /// Takes away what was made ready of all images with this content, or on it. Ask while the content is locked against registrations, and
    /// no image needs it. Quick; see [`runtara_runner::Runner::forget`].
    ///
    /// # Errors
    /// What taking it away reported; a later call tries again.
    async fn forget(&self, digest: ImageDigest) -> io::Result<()>;

    /// Removes from the disk what forgotten images have left. Takes its time; see [`runtara_runner::Runner::reclaim`].
    ///
    /// # Errors
    /// What removing reported; a later call tries again.
    async fn reclaim(&self) -> io::Result<()>;
}
