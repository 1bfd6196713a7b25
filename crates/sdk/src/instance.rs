//! The instance: who this program is, what it was given, and its last word.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::leave::{Leave, Leaving};
use crate::names::Names;
use crate::report::Progress;
use crate::transport::{Call, Transport, segment};
use crate::work::Work;
use crate::{Error, Settings, wire};

/// One durable execution of this program. Cheap to clone; all clones are the same instance.
#[derive(Clone)]
pub struct Instance(Arc<Inner>);

struct Inner {
    transport: Transport,
    /// The path in front of every call.
    path: String,
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
            .field("settings", &self.0.transport.settings)
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
        let path = format!("/api/v1/instances/{}/", segment(&settings.instance_id));
        let run_number = settings.run_number;
        let instance = Self(Arc::new(Inner {
            transport: Transport::new(settings)?,
            path,
            work: Work::new(),
            leaving: Leaving::new(),
            names: Names::default(),
            progress: Progress::of_run(run_number),
            said: AtomicBool::new(false),
            trouble: AtomicBool::new(false),
        }));
        let body = wire::Register {
            tenant_id: &instance.settings().tenant_id,
            checkpoint_id: None,
        };
        let _: wire::Done = instance.post("register", &body).await?;
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
        let answer: wire::Input = self.get("input").await?;
        let bytes = answer.input.map(|text| self.decoded("input", &text));
        let bytes = bytes.transpose()?.unwrap_or_else(|| b"null".to_vec());
        serde_json::from_slice(&bytes).map_err(Error::decode("the input"))
    }

    /// Says that the instance is done, with its output. The last word: nothing can be saved after it.
    ///
    /// # Errors
    /// [`Error::Encode`] if the output cannot be written as JSON; nothing is said then.
    pub async fn complete(&self, output: &impl Serialize) -> Result<(), Error> {
        self.leaving().check()?;
        let output = serde_json::to_vec(output).map_err(Error::encode("the output"))?;
        let output = wire::encode(&output);
        self.last_word("completed", &wire::Completed { output })
            .await
    }

    /// Says that the instance cannot go on, and why. The last word: it ends as failed.
    ///
    /// # Errors
    /// [`Error::Unreachable`].
    pub async fn fail(&self, error: &str) -> Result<(), Error> {
        self.leaving().check()?;
        let error = self.settings().endpoint.redact(error);
        self.last_word("failed", &wire::Failed { error: &error })
            .await
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.transport.settings
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

    pub(crate) async fn get<A: DeserializeOwned>(&self, what: &str) -> Result<A, Error> {
        self.now(&Call::get(self.path(what))).await
    }

    pub(crate) async fn post<A: DeserializeOwned>(
        &self,
        what: &str,
        body: &impl Serialize,
    ) -> Result<A, Error> {
        self.now(&Call::post(self.path(what), body)).await
    }

    async fn now<A: DeserializeOwned>(&self, call: &Call) -> Result<A, Error> {
        let answer = self.answered(call).await?;
        Ok(answer.expect("only a held call goes without an answer"))
    }

    /// Like [`Instance::post`], for a call that the server answers late on purpose. `None` if it was held for as long as one
    /// call may take: ask again.
    pub(crate) async fn post_and_wait<A: DeserializeOwned>(
        &self,
        what: &str,
        body: &impl Serialize,
    ) -> Result<Option<A>, Error> {
        self.answered(&Call::post(self.path(what), body).held())
            .await
    }

    pub(crate) async fn last_word(&self, what: &str, body: &impl Serialize) -> Result<(), Error> {
        let _: wire::Done = self.post(what, body).await?;
        self.0.said.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Reads base64 out of an answer.
    pub(crate) fn decoded(&self, what: &str, text: &str) -> Result<Vec<u8>, Error> {
        wire::decode(text).map_err(|problem| Error::Answer {
            action: self.path(what),
            problem,
        })
    }

    async fn answered<A: DeserializeOwned>(&self, call: &Call) -> Result<Option<A>, Error> {
        let result = self.0.transport.call(call).await;
        let trouble = result.as_ref().is_err_and(Error::is_trouble);
        self.0.trouble.store(trouble, Ordering::SeqCst);
        result.map_err(|error| match error {
            Error::Superseded => self.leaving().leave(Leave::Superseded),
            Error::Ended => self.leaving().leave(Leave::Ended),
            other => other,
        })
    }

    fn path(&self, what: &str) -> String {
        format!("{}{what}", self.0.path)
    }
}
