//! Changing what an instance does: stop, resume, signals, purge.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::client::{Client, refusal};
use crate::instances::INSTANCES;
use crate::query::Path;
use crate::start::whole_seconds;
use crate::transport::Call;
use crate::{Error, NotFound, SignalKind, Status};

/// The server answers a stop after the grace and 2 s, or after this.
const LONGEST_STOP: Duration = Duration::from_secs(25);

#[derive(Deserialize)]
struct SuccessAnswer {
    success: bool,
    error: Option<String>,
    code: Option<String>,
    status: Option<Status>,
    process_gone: Option<bool>,
}

/// Where an instance stood when its stop was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stopped {
    /// Cancelled; completed or failed, if the program came to that within the grace; running, while its process is still leaving.
    pub status: Status,
    /// Whether its process has left. If not, it is killed when the grace is over: [`Client::wait`] tells when.
    pub process_gone: bool,
}

impl Client {
    /// Ends an instance: it is asked to leave, and killed after `grace`, which counts in whole seconds and is rounded up. Answers
    /// when its process is gone, or after `grace` + 2 s, or after 25 s: so a process with a long grace may still be leaving, and
    /// [`Stopped`] says so.
    ///
    /// ```no_run
    /// # async fn example(client: runtara_management_sdk::Client) -> Result<(), runtara_management_sdk::Error> {
    /// use std::time::Duration;
    ///
    /// let grace = Duration::from_secs(60);
    /// let mut status = client.stop("order-17", grace, "no longer wanted").await?.status;
    /// if !status.is_end() {
    ///     status = client.wait("order-17", Some(grace)).await?.status;
    /// }
    /// println!("{status}");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is unknown, [`Error::Refused`] if it had ended before.
    pub async fn stop(
        &self,
        instance_id: &str,
        grace: Duration,
        reason: &str,
    ) -> Result<Stopped, Error> {
        let patience = grace
            .saturating_add(Duration::from_secs(2))
            .min(LONGEST_STOP);
        let body = json!({"reason": reason, "grace_period_seconds": whole_seconds(grace)});
        let call = Call::post(instance(instance_id)?.then("/stop")).patience(patience);
        let told = self
            .change(call.json(&body), instance_id, "STOP_FAILED")
            .await?;
        // A server that says no more than `success` answers when the instance is cancelled and its process gone.
        Ok(Stopped {
            status: told.status.unwrap_or(Status::Cancelled),
            process_gone: told.process_gone.unwrap_or(true),
        })
    }

    /// Lets an instance that is suspended, failed or cancelled run on from its last checkpoint. A sleeper runs now.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is unknown, [`Error::Refused`] if it cannot be resumed.
    pub async fn resume(&self, instance_id: &str) -> Result<(), Error> {
        self.change(
            Call::post(instance(instance_id)?.then("/resume")),
            instance_id,
            "RESUME_FAILED",
        )
        .await
        .map(drop)
    }

    /// Asks an instance to leave and to wait for a resume.
    ///
    /// # Errors
    ///
    /// Those of [`Client::signal`].
    pub async fn pause(&self, instance_id: &str) -> Result<(), Error> {
        self.signal(instance_id, &SignalKind::Pause, None).await
    }

    /// Asks an instance to end. One without a run is cancelled at once.
    ///
    /// # Errors
    ///
    /// Those of [`Client::signal`].
    pub async fn cancel(&self, instance_id: &str) -> Result<(), Error> {
        self.signal(instance_id, &SignalKind::Cancel, None).await
    }

    /// Sends a signal, with a text that the instance may read.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the instance is unknown, [`Error::Refused`] if it has ended.
    pub async fn signal(
        &self,
        instance_id: &str,
        kind: &SignalKind,
        payload: Option<&str>,
    ) -> Result<(), Error> {
        let body = json!({"signal_type": kind, "payload": payload});
        let call = Call::post(instance(instance_id)?.then("/signals")).json(&body);
        self.change(call, instance_id, "SIGNAL_FAILED")
            .await
            .map(drop)
    }

    /// Sends the custom signal `signal_id`, which the instance waits for or will. A second one replaces one that was not read.
    ///
    /// ```no_run
    /// # async fn example(client: runtara_management_sdk::Client) -> Result<(), runtara_management_sdk::Error> {
    /// client.custom_signal("order-17", "approved", Some(r#"{"by": "ada"}"#)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the instance is unknown.
    pub async fn custom_signal(
        &self,
        instance_id: &str,
        signal_id: &str,
        payload: Option<&str>,
    ) -> Result<(), Error> {
        // The wire calls the name of a signal `checkpoint_id`.
        let body = json!({"checkpoint_id": signal_id, "payload": payload});
        let call = Call::post(instance(instance_id)?.then("/signals/custom")).json(&body);
        self.change(call, instance_id, "CUSTOM_SIGNAL_FAILED")
            .await
            .map(drop)
    }

    /// Removes an ended instance and all that is kept of it: checkpoints, events, logs.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if it is unknown, [`Error::Refused`] with status 409 while it has not ended.
    pub async fn purge(&self, instance_id: &str) -> Result<(), Error> {
        self.change(
            Call::delete(instance(instance_id)?),
            instance_id,
            "PURGE_FAILED",
        )
        .await
        .map(drop)
    }

    /// Sends a change and reads `success`, which may be false in an answer of status 200.
    async fn change(
        &self,
        call: Call,
        instance_id: &str,
        code: &str,
    ) -> Result<SuccessAnswer, Error> {
        let answer = self
            .send(call)
            .await?
            .ok_or_missing(NotFound::Instance, instance_id)?;
        let told: SuccessAnswer = answer.json()?;
        if told.success {
            return Ok(told);
        }
        let code = told.code.as_deref().unwrap_or(code);
        Err(refusal(
            NotFound::Instance,
            instance_id,
            answer.status.as_u16(),
            code,
            told.error,
        ))
    }
}

/// The path of one instance.
pub(crate) fn instance(instance_id: &str) -> Result<Path, Error> {
    Path::new(INSTANCES).id("instance id", instance_id)
}
