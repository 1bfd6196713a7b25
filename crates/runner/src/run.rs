//! The trait of all runners and the words around it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use runtara_domain::{
    CheckpointId, ImageContent, ImageDigest, InstanceId, RunExit, RunNumber, RunSettings, RunToken,
    RunnerKind, TenantId, Usage,
};

/// Names one run: an instance and the number of its launch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey {
    /// The instance.
    pub instance_id: InstanceId,
    /// Which of its launches.
    pub run_number: RunNumber,
}

impl std::fmt::Display for RunKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "run {} of instance '{}'",
            self.run_number, self.instance_id
        )
    }
}

/// The content of an image as files of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFiles {
    /// What it is.
    pub content: ImageContent,
    /// The file with the content of the image.
    pub path: PathBuf,
    /// The file with the content that it is laid on, if it is laid on one.
    pub base: Option<PathBuf>,
}

/// An image that a runner has made ready, as often launched as wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedImage {
    /// Its content.
    pub content: ImageContent,
    /// What the content says of itself, if it is a container image: JSON text.
    pub about: Option<String>,
    /// What the runner launches: an executable, a bundle's directory, a compiled module.
    pub path: PathBuf,
}

/// The input of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Its bytes: JSON text.
    Inline(Bytes),
    /// A file that holds them, because they are many.
    File(PathBuf),
}

/// What is asked of the box in which a program runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AskedSettings {
    /// By its image.
    pub image: RunSettings,
    /// By its start, which wins.
    pub start: RunSettings,
}

/// Everything a runner must know to launch a run. The image's own settings are in what was prepared.
#[derive(Clone)]
pub struct LaunchSpec {
    /// Which run.
    pub key: RunKey,
    /// Whose it is.
    pub tenant_id: TenantId,
    /// What is launched.
    pub image: PreparedImage,
    /// What is asked of the box in which the program runs.
    pub settings: AskedSettings,
    /// Arguments of the start, after those of the image.
    pub args: Vec<String>,
    /// Variables of the start. Names that would change who the program is (`RUNTARA_INSTANCE_ID` and the like) or what the
    /// loader does are already refused. Values are secrets.
    pub env: BTreeMap<String, String>,
    /// Variables that the operator gives to every program.
    pub passed_env: BTreeMap<String, String>,
    /// What the program is given to work on.
    pub input: Input,
    /// The checkpoint it saved last, if an earlier run saved one.
    pub checkpoint_id: Option<CheckpointId>,
    /// The secret by which the run speaks for itself.
    pub token: RunToken,
    /// Where the core listens, as `host:port`.
    pub core_addr: String,
    /// How long its program may run from the moment at which it was started, held sleeps not counted.
    pub timeout: Duration,
    /// How long it is from now until it is ended whatever it does, held sleeps counted, if its instance has an overall deadline.
    pub expires_in: Option<Duration>,
}

impl std::fmt::Debug for LaunchSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaunchSpec")
            .field("key", &self.key)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// Says why an image cannot be made ready.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The image can never be run by this runner.
    #[error("image {content} cannot run here: {reason}")]
    Unfit {
        /// The image.
        content: ImageContent,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The image needs more than this runner is configured to give; with another configuration it could run.
    #[error("image {content} cannot run with this configuration: {reason}")]
    NotAllowed {
        /// The image.
        content: ImageContent,
        /// What it needs, and which setting is in its way.
        reason: String,
    },
    /// Something of this machine stood in the way; a later attempt may succeed.
    #[error("image {content} could not be made ready: {context}")]
    Host {
        /// The image.
        content: ImageContent,
        /// What was being done.
        context: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl PrepareError {
    /// Something of this machine stood in the way while that was being done.
    #[must_use]
    pub fn host(content: ImageContent, context: impl Into<String>, source: std::io::Error) -> Self {
        Self::Host {
            content,
            context: context.into(),
            source,
        }
    }
}

/// Says why a run could not be launched.
#[derive(Debug, thiserror::Error)]
#[error("{key} could not be launched: {reason}")]
pub struct LaunchError {
    /// Which run.
    pub key: RunKey,
    /// What a later launch may hope for.
    pub obstacle: LaunchObstacle,
    /// What stood in the way.
    pub reason: String,
}

/// What stood in the way of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchObstacle {
    /// The image: a later launch would fail the same way.
    Image,
    /// What was made ready of the image is gone: it must be prepared again.
    NotPrepared,
    /// Something of this machine: a later launch may succeed.
    Host,
}

/// Says what a runner could not do for a run that exists.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {context}")]
pub struct RunnerError {
    /// Which run.
    pub key: RunKey,
    /// What was being done.
    pub context: String,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

/// What became of a run that an earlier server process had launched.
pub enum Adoption {
    /// It lives, and is ours again.
    Alive(Arc<dyn Run>),
    /// It ended, and this is how.
    Exited(RunExit),
    /// There is no trace of it, and proof that nothing of it lives.
    Gone,
}

/// Whether a runner can work on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It can; the text names what it uses, such as a version.
    Ready(String),
    /// It cannot; the text says what is missing and what to do.
    Unfit(String),
}

/// Runs images of one kind.
///
/// The state of a run is on disk and in its process, not in the runner: after a restart of the server, [`Runner::adopt`] of a
/// new runner finds each run again.
#[async_trait]
pub trait Runner: Send + Sync {
    /// The kind of images it runs.
    fn kind(&self) -> RunnerKind;

    /// Says whether it can work on this machine.
    async fn readiness(&self) -> Readiness;

    /// Makes an image ready, given its content as local files. Idempotent, and safe to call for one image from several tasks.
    ///
    /// # Errors
    /// [`PrepareError::Unfit`] if the image can never run here, [`PrepareError::NotAllowed`] if it could with another configuration,
    /// [`PrepareError::Host`] if this machine stood in the way.
    async fn prepare(&self, image: ImageFiles) -> Result<PreparedImage, PrepareError>;

    /// Says why it would not launch what asks for these settings: it cannot give them, or the operator does not allow them. A start is refused
    /// for it; an instance that was started when they could be had waits until they can be had again.
    ///
    /// # Errors
    /// The reason, for whoever asks: what was found and what is allowed.
    fn check(&self, settings: &AskedSettings) -> Result<(), String>;

    /// Takes away what was made ready of all images with this content, or on it, when that goes away: from then on nobody finds it, and
    /// who needs it makes it anew. Idempotent. Runs that were launched from it go on.
    ///
    /// Quick, whatever its size: it is asked while the content is locked against registrations. What it leaves on the disk goes with
    /// [`Runner::reclaim`], or with the next start of the server.
    ///
    /// # Errors
    /// What taking it away reported; a later call tries again.
    async fn forget(&self, _digest: ImageDigest) -> Result<(), std::io::Error> {
        Ok(())
    }

    /// Removes from the disk what forgotten images have left, if they have: maybe gigabytes in many files, so it is asked while nobody
    /// waits for it. What another image needs stays. Idempotent, and safe at any time.
    ///
    /// # Errors
    /// What removing reported; a later call tries again.
    async fn reclaim(&self) -> Result<(), std::io::Error> {
        Ok(())
    }

    /// Launches a run. When it answers, the run is on its way: everything that happens to it from here on is told by
    /// [`Run::wait`]. Launching the same key twice is refused while traces of the first launch exist.
    ///
    /// # Errors
    /// [`LaunchError`] if there is no process of the run and there will be none.
    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Run>, LaunchError>;

    /// Finds out what became of a run that an earlier server process had launched, or was about to. If a launch is caught
    /// in its middle, it is prevented from going on, and the answer is [`Adoption::Gone`].
    ///
    /// # Errors
    /// [`RunnerError`] if that cannot be told now. Nothing may be concluded from it.
    async fn adopt(&self, key: &RunKey) -> Result<Adoption, RunnerError>;

    /// Removes what it keeps on the machine for runs to come and none needs: the server is about to end. Nothing is launched any more.
    async fn leave(&self) {}

    /// Removes what a recorded run has left (files, mounts). Idempotent. Logs are kept until `keep_logs` is false.
    ///
    /// # Errors
    /// [`RunnerError`] if something could not be removed; a later call tries again.
    async fn clean(&self, key: &RunKey, keep_logs: bool) -> Result<(), RunnerError>;
}

/// One run that lives, or has just ended.
#[async_trait]
pub trait Run: Send + Sync {
    /// Which run it is.
    fn key(&self) -> &RunKey;

    /// Where its program was told that the core listens, as `host:port`; `None` if it reaches the core without an address.
    fn core_addr(&self) -> Option<&str>;

    /// Waits until no process of the run is left and says how it ended. Every caller gets the same answer. Dropping the
    /// future loses nothing.
    ///
    /// # Errors
    /// [`RunnerError`] if that cannot be told.
    async fn wait(&self) -> Result<RunExit, RunnerError>;

    /// Ends all processes of the run: asks them to leave (SIGTERM) and kills what is left when the grace period is over. With no grace they
    /// are killed at once. Answers when the wish is on its way; [`Run::wait`] tells the end. A later call with a shorter
    /// grace period wins. Ending a run that has ended does nothing.
    ///
    /// # Errors
    /// [`RunnerError`] if the wish could not be delivered.
    async fn terminate(
        &self,
        grace: Duration,
        ended_by: runtara_domain::EndedBy,
    ) -> Result<(), RunnerError>;

    /// Sets how long the run slept in held calls so far: that time does not count against its time limit.
    ///
    /// # Errors
    /// [`RunnerError`] if it could not be written down.
    async fn set_slept(&self, slept: Duration) -> Result<(), RunnerError>;

    /// What its processes have used so far.
    ///
    /// # Errors
    /// [`RunnerError`] if that cannot be told.
    async fn usage(&self) -> Result<Usage, RunnerError>;
}
