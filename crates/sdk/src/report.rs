//! What an instance tells while it works: progress, events, signs of life.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde_json::json;

use crate::Error;
use crate::instance::Instance;

/// What is held back while steps are replayed.
pub(crate) struct Progress(Mutex<Replay>);

#[derive(Default)]
struct Replay {
    /// Whether the step before was one that an earlier run had saved.
    replaying: bool,
    latest: Option<(String, f64)>,
}

impl Progress {
    /// For a run of this number: a later one begins with what an earlier one has told before.
    pub(crate) fn of_run(run_number: u32) -> Self {
        Self(Mutex::new(Replay {
            replaying: run_number > 1,
            latest: None,
        }))
    }

    /// Keeps it back if steps are being replayed.
    fn hold(&self, message: &str, percent: f64) -> bool {
        let mut replay = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if replay.replaying {
            replay.latest = Some((message.to_owned(), percent));
        }
        replay.replaying
    }

    /// Notes whether a step was replayed; gives what was held back once one is not.
    fn step(&self, replayed: bool) -> Option<(String, f64)> {
        let mut replay = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        replay.replaying = replayed;
        if replayed { None } else { replay.latest.take() }
    }
}

impl Instance {
    /// Tells how far the work is, for the people who watch it: a text, and 0 to 100. While an earlier run's steps are
    /// replayed it is held back, and only the latest is told when new work begins.
    ///
    /// ```no_run
    /// # async fn example(instance: &runtara_sdk::Instance) -> Result<(), runtara_sdk::Error> {
    /// instance.progress("charging the card", 40.0).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Like [`Instance::event`].
    pub async fn progress(&self, message: &str, percent: f64) -> Result<(), Error> {
        self.leaving().check()?;
        if self.held_progress().hold(message, percent) {
            return Ok(());
        }
        self.tell_progress(message, percent).await
    }

    /// Records an event of the program's own kind. It is recorded again when the code runs again.
    ///
    /// ```no_run
    /// # async fn example(instance: &runtara_sdk::Instance) -> Result<(), runtara_sdk::Error> {
    /// instance.event("invoice_sent", &serde_json::json!({"number": 17})).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Encode`]; [`Error::Refused`] if it is too large; those that end the run.
    pub async fn event(&self, subtype: &str, payload: &impl Serialize) -> Result<(), Error> {
        self.leaving().check()?;
        let payload = serde_json::to_vec(payload)
            .map_err(Error::encode(format!("the payload of event '{subtype}'")))?;
        let _operation = self.work().begin();
        self.told(self.server().event(subtype, &payload).await)
    }

    /// Gives a sign of life from within a long step.
    ///
    /// # Errors
    /// Those that end the run; [`Error::Unreachable`].
    pub async fn heartbeat(&self) -> Result<(), Error> {
        self.leaving().check()?;
        self.told(self.server().heartbeat().await)
    }

    /// Records that a step is tried again: which attempt begins, and why the one before failed. [`Instance::retry`] does so
    /// by itself.
    ///
    /// # Errors
    /// Those that end the run; [`Error::Unreachable`].
    pub async fn report_retry(&self, name: &str, attempt: u32, error: &str) -> Result<(), Error> {
        self.leaving().check()?;
        self.told(self.server().retry(name, attempt, error).await)
    }

    /// Notes whether a step was replayed.
    pub(crate) async fn note_step(&self, replayed: bool) -> Result<(), Error> {
        match self.held_progress().step(replayed) {
            Some((message, percent)) => self.tell_progress(&message, percent).await,
            None => Ok(()),
        }
    }

    async fn tell_progress(&self, message: &str, percent: f64) -> Result<(), Error> {
        let payload = json!({"message": message, "percent": percent.clamp(0.0, 100.0)});
        self.event("progress", &payload).await
    }
}
