//! Steps: work whose result is saved, so that it is done once.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::error::{BoxError, chain};
use crate::instance::Instance;
use crate::names::check;
use crate::protocol::Saved;

impl Instance {
    /// Does a step once and gives its result: on the first run what the body gives, after it was saved; on a later run what
    /// was saved, without the body.
    ///
    /// The name stands for the result, so each step of an instance has a name of its own: in a loop, put the number into it.
    /// A step whose process died before the result was saved is done again, so let its effect on the outside be one that can
    /// be repeated (an idempotency key made from [`Instance::id`] and the name will do).
    ///
    /// A cancel or a pause that waits is obeyed here, before the body.
    ///
    /// ```no_run
    /// # async fn example(instance: &runtara_sdk::Instance) -> Result<(), runtara_sdk::Error> {
    /// let dice: u8 = instance.checkpoint("roll", || async { 4 }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Encode`], [`Error::Decode`] if what was saved is not a `T`, and those that end the run.
    pub async fn checkpoint<T, F, Fut>(&self, name: &str, body: F) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> Fut,
        Fut: Future<Output = T>,
    {
        self.try_checkpoint(name, || async { Ok::<_, Infallible>(body().await) })
            .await
    }

    /// Like [`Instance::checkpoint`], for a body that may fail. A failure is not saved.
    ///
    /// ```no_run
    /// # async fn example(instance: &runtara_sdk::Instance) -> Result<(), runtara_sdk::Error> {
    /// let pages: usize = instance
    ///     .try_checkpoint("count", || async { "17".parse::<usize>() })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Step`] with what the body gave, and those of [`Instance::checkpoint`].
    pub async fn try_checkpoint<T, E, F, Fut>(&self, name: &str, body: F) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
        E: Into<BoxError>,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let _operation = self.work().begin();
        if let Some(saved) = self.saved_step(name).await? {
            return Ok(saved);
        }
        match body().await {
            Ok(value) => self.save_step(name, value).await,
            Err(error) => Err(Error::Step {
                name: name.to_owned(),
                source: error.into(),
            }),
        }
    }

    /// Like [`Instance::try_checkpoint`], but a body that fails is tried again, with a growing pause. Each further attempt is
    /// recorded with the instance.
    ///
    /// ```no_run
    /// # async fn charge() -> Result<String, std::io::Error> { Ok("r-17".to_owned()) }
    /// # async fn example(instance: &runtara_sdk::Instance) -> Result<(), runtara_sdk::Error> {
    /// use runtara_sdk::Retries;
    ///
    /// let receipt: String = instance.retry("charge", Retries::new(5), || charge()).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Step`] with what the last attempt gave, and those of [`Instance::checkpoint`].
    pub async fn retry<T, E, F, Fut>(
        &self,
        name: &str,
        retries: Retries,
        mut body: F,
    ) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
        E: Into<BoxError>,
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let _operation = self.work().begin();
        if let Some(saved) = self.saved_step(name).await? {
            return Ok(saved);
        }
        let mut pause = retries.first_pause;
        let mut attempt = 1;
        loop {
            let error: BoxError = match body().await {
                Ok(value) => return self.save_step(name, value).await,
                Err(error) => error.into(),
            };
            if attempt >= retries.attempts {
                let name = name.to_owned();
                return Err(Error::Step {
                    name,
                    source: error,
                });
            }
            attempt += 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(retries.longest_pause);
            self.poll().await?;
            self.report_retry(name, attempt, &chain(error.as_ref()))
                .await?;
        }
    }

    /// What an earlier run saved for the step.
    async fn saved_step<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let saved = self.look_up(check(name)?).await?;
        self.note_step(saved.is_some()).await?;
        saved.map(|state| read(name, &state)).transpose()
    }

    /// Saves the result of a step and gives what is saved then.
    async fn save_step<T>(&self, name: &str, value: T) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
    {
        let state = serde_json::to_vec(&value)
            .map_err(Error::encode(format!("the result of step '{name}'")))?;
        match self.save(name, &state).await? {
            None => Ok(value),
            // Another saver of the same name was first: what is stored is what every later run will see.
            Some(stored) => read(name, &stored),
        }
    }

    /// Looks a checkpoint up, and obeys the signal that the answer shows.
    pub(crate) async fn look_up(&self, id: &str) -> Result<Option<Vec<u8>>, Error> {
        self.leaving().check()?;
        let mut answer = self.told(self.server().look_up(id).await)?;
        let leave = answer.leave.take();
        let found = self.found(answer);
        self.obey(leave).await?;
        Ok(found)
    }

    /// Saves a checkpoint; gives what was there before, if something was. The signal that the answer shows is left for the
    /// next call: what was done is to be handed on first.
    pub(crate) async fn save(&self, id: &str, state: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let answer = self.told(self.server().save(id, state).await)?;
        Ok(self.found(answer))
    }

    fn found(&self, answer: Saved) -> Option<Vec<u8>> {
        if let Some(signal) = answer.custom_signal {
            self.names().keep(signal);
        }
        answer.found
    }
}

fn read<T: DeserializeOwned>(name: &str, state: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(state).map_err(Error::decode(format!("what is saved as '{name}'")))
}

/// How often a step is tried, and how long it pauses in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    attempts: u32,
    first_pause: Duration,
    longest_pause: Duration,
}

impl Retries {
    /// So many attempts in all, with a pause of 1 s that doubles up to 60 s.
    #[must_use]
    pub fn new(attempts: u32) -> Self {
        Self {
            attempts,
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
        }
    }

    /// Sets the pause before the second attempt.
    #[must_use]
    pub fn first_pause(mut self, pause: Duration) -> Self {
        self.first_pause = pause;
        self
    }

    /// Sets what the pause grows up to.
    #[must_use]
    pub fn longest_pause(mut self, pause: Duration) -> Self {
        self.longest_pause = pause;
        self
    }
}
