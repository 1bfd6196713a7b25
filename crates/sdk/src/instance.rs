//! The instance: who this program is, what it was given, and its last word.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::leave::{Leave, Leaving};
use crate::names::Names;
use crate::report::Progress;
use crate::work::Work;
use crate::{Error, Server, Settings};

/// One durable execution of this program. Cheap to clone; all clones are the same instance.
#[derive(Clone)]
pub struct Instance(Arc<Inner>);

struct Inner {
    server: Server,
    work: Arc<Work>,
    leaving: Leaving,
    names: Names,
    progress: Progress,
    /// Whether the last word was said.
    said: AtomicBool,
    /// Whether the last call failed by a fault of the server's.
    trouble: AtomicBool,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("settings", self.settings())
            .finish_non_exhaustive()
    }
}

impl Instance {
    /// Reads the environment and registers this run with the server.
    ///
    /// # Errors
    /// [`Error::Settings`], [`Error::Ended`] if the instance has ended, [`Error::Unreachable`].
    pub async fn from_env() -> Result<Self, Error> {
        Self::connect(Settings::from_env()?).await
    }

    /// Registers this run with the server.
    ///
    /// # Errors
    /// Like [`Instance::from_env`].
    pub async fn connect(settings: Settings) -> Result<Self, Error> {
        let run_number = settings.run_number;
        let instance = Self(Arc::new(Inner {
            server: Server::new(settings)?,
            work: Work::new(),
            leaving: Leaving::new(),
            names: Names::default(),
            progress: Progress::of_run(run_number),
            said: AtomicBool::new(false),
            trouble: AtomicBool::new(false),
        }));
        instance.told(instance.server().register().await)?;
        Ok(instance)
    }

    /// The id of the instance, the same in all of its runs.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.settings().instance_id
    }

    /// The tenant that owns it.
    #[must_use]
    pub fn tenant_id(&self) -> &str {
        &self.settings().tenant_id
    }

    /// Which run of the instance this is, from 1.
    #[must_use]
    pub fn run_number(&self) -> u32 {
        self.settings().run_number
    }

    /// Gives the input that the instance was started with, the same in all of its runs. Without one it is `null`.
    ///
    /// # Errors
    /// [`Error::Decode`] if it is not a `T`.
    pub async fn input<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.leaving().check()?;
        let input = self.told(self.server().input().await)?;
        let bytes = input.unwrap_or_else(|| b"null".to_vec());
        serde_json::from_slice(&bytes).map_err(Error::decode("the input"))
    }

    /// Says that the instance is done, with its output. The last word: nothing can be saved after it.
    ///
    /// # Errors
    /// [`Error::Encode`] if the output cannot be written as JSON; nothing is said then.
    pub async fn complete(&self, output: &impl Serialize) -> Result<(), Error> {
        self.leaving().check()?;
        let output = serde_json::to_vec(output).map_err(Error::encode("the output"))?;
        self.said(self.server().complete(&output).await)
    }

    /// Says that the instance cannot go on, and why. The last word: it ends as failed.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub async fn fail(&self, error: &str) -> Result<(), Error> {
        self.leaving().check()?;
        let error = self.settings().endpoint.redact(error);
        self.said(self.server().fail(&error).await)
    }

    pub(crate) fn settings(&self) -> &Settings {
        self.server().settings()
    }

    pub(crate) fn server(&self) -> &Server {
        &self.0.server
    }

    pub(crate) fn work(&self) -> &Arc<Work> {
        &self.0.work
    }

    pub(crate) fn leaving(&self) -> &Leaving {
        &self.0.leaving
    }

    pub(crate) fn names(&self) -> &Names {
        &self.0.names
    }

    pub(crate) fn held_progress(&self) -> &Progress {
        &self.0.progress
    }

    /// Whether the last word was said.
    pub(crate) fn has_spoken(&self) -> bool {
        self.0.said.load(Ordering::SeqCst)
    }

    /// Whether the last call failed by a fault of the server's.
    pub(crate) fn is_in_trouble(&self) -> bool {
        self.0.trouble.load(Ordering::SeqCst)
    }

    /// Notes what became of a call: whether the server is in trouble, and whether this run is over.
    pub(crate) fn told<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        let trouble = result.as_ref().is_err_and(Error::is_trouble);
        self.0.trouble.store(trouble, Ordering::SeqCst);
        result.map_err(|error| match error {
            Error::Superseded => self.leaving().leave(Leave::Superseded),
            Error::Ended => self.leaving().leave(Leave::Ended),
            other => other,
        })
    }

    /// Like [`Instance::told`], for a last word.
    pub(crate) fn said(&self, result: Result<(), Error>) -> Result<(), Error> {
        self.told(result)?;
        self.0.said.store(true, Ordering::SeqCst);
        Ok(())
    }
}
