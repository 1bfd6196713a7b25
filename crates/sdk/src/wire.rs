//! The protocol over HTTP, for a program in a process or a container of its own.

mod bodies;
mod transport;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::select;

use crate::clock::remaining;
use crate::leave::{Leave, Leaving};
use crate::protocol::{CustomSignal, Saved, Sleep};
use crate::work::{Order, Waiting};
use crate::{Error, Settings};
use transport::{Call, Transport, request_id, segment};

/// The server, as this program reaches it.
pub(crate) struct Server {
    transport: Transport,
    /// The path in front of every call.
    path: String,
}

impl Server {
    /// Whether the server hears of a sleep, and saves it, before nothing else is to be done.
    pub(crate) const HEARS_OF_EACH_SLEEP: bool = true;

    /// # Errors
    /// [`Error::Settings`].
    pub(crate) fn new(settings: Settings) -> Result<Self, Error> {
        Ok(Self {
            path: format!("/api/v1/instances/{}/", segment(&settings.instance_id)),
            transport: Transport::new(settings)?,
        })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.transport.settings
    }

    /// Announces this run.
    pub(crate) async fn register(&self) -> Result<(), Error> {
        let body = bodies::Register {
            tenant_id: &self.settings().tenant_id,
            checkpoint_id: None,
        };
        self.done("register", &body).await
    }

    pub(crate) async fn input(&self) -> Result<Option<Vec<u8>>, Error> {
        let answer: bodies::Input = self.answer(&Call::get(self.path_to("input"))).await?;
        let decoded = |text: String| self.decoded("input", &text);
        answer.input.map(decoded).transpose()
    }

    /// Looks a checkpoint up.
    pub(crate) async fn look_up(&self, id: &str) -> Result<Saved, Error> {
        self.checkpoint(&bodies::Save {
            checkpoint_id: id,
            state: String::new(),
            request_id: None,
        })
        .await
    }

    /// Saves a checkpoint, unless there is one.
    pub(crate) async fn save(&self, id: &str, state: &[u8]) -> Result<Saved, Error> {
        self.checkpoint(&bodies::Save {
            checkpoint_id: id,
            state: bodies::encode(state),
            request_id: Some(request_id()),
        })
        .await
    }

    async fn checkpoint(&self, save: &bodies::Save<'_>) -> Result<Saved, Error> {
        let answer: bodies::Saved = self.post("checkpoint", save).await?;
        let found = match answer.found {
            true => Some(self.decoded("checkpoint", &answer.state.unwrap_or_default())?),
            false => None,
        };
        let custom_signal = answer.custom_signal;
        let custom_signal = custom_signal.map(|signal| self.custom_signal("checkpoint", signal));
        Ok(Saved {
            found,
            leave: answer.signal.as_ref().and_then(told),
            custom_signal: custom_signal.transpose()?,
        })
    }

    /// Why this run is to leave, if it is.
    pub(crate) async fn poll(&self) -> Result<Option<Leave>, Error> {
        let answer: bodies::Signals = self.answer(&Call::get(self.path_to("signals"))).await?;
        Ok(answer.signal.as_ref().and_then(told))
    }

    /// Sleeps: asks anew whenever the other branches make another order of it, or it was held as long as one call may take. The id says
    /// that it is the same sleep. It may end before its time.
    pub(crate) async fn sleep(
        &self,
        sleep: &Sleep<'_>,
        waiting: &mut Waiting<'_>,
        leaving: &Leaving,
    ) -> Result<(), Error> {
        let request_id = request_id();
        loop {
            let body = bodies::Sleep {
                duration_ms: remaining(sleep.until_ms),
                checkpoint_id: sleep.id,
                state: bodies::encode(sleep.state),
                park: waiting.order().park,
                request_id: &request_id,
            };
            select! {
                answer = self.post_and_wait::<bodies::Done>("sleep", &body) => {
                    if answer?.is_some() {
                        return Ok(());
                    }
                }
                () = waiting.changed() => {}
                error = leaving.wait() => return Err(error),
            }
        }
    }

    /// Waits for a custom signal: asks anew whenever the other branches make another order of it. It may end before its time without one.
    pub(crate) async fn wait(
        &self,
        id: &str,
        waiting: &mut Waiting<'_>,
        leaving: &Leaving,
    ) -> Result<Option<CustomSignal>, Error> {
        let mut asked: Option<(Order, String)> = None;
        loop {
            let order = waiting.order();
            // Another end is another wait; the same one may be asked for again.
            let request_id = match asked.take() {
                Some((before, request_id)) if before.until_ms == order.until_ms => request_id,
                _ => request_id(),
            };
            let body = bodies::AwaitSignal {
                signal_id: id,
                timeout_ms: order.until_ms.map(remaining),
                park: order.park,
                request_id: &request_id,
            };
            select! {
                answer = self.post_and_wait::<bodies::AwaitedSignal>("signals/wait", &body) => {
                    if let Some(answer) = answer? {
                        let signal = answer.signal;
                        let signal = signal.map(|signal| self.custom_signal("signals/wait", signal));
                        return signal.transpose();
                    }
                }
                () = waiting.changed() => {}
                error = leaving.wait() => return Err(error),
            }
            asked = Some((order, request_id));
        }
    }

    /// Says that this run leaves as it was asked to.
    pub(crate) async fn acknowledge_cancel(&self) -> Result<(), Error> {
        let signal_type = "cancel";
        self.done("signals/ack", &bodies::Acknowledge { signal_type })
            .await
    }

    /// Says that this run leaves as it was asked to.
    pub(crate) async fn acknowledge_pause(&self) -> Result<(), Error> {
        let signal_type = "pause";
        self.done("signals/ack", &bodies::Acknowledge { signal_type })
            .await
    }

    pub(crate) async fn suspend(&self) -> Result<(), Error> {
        self.done("suspended", &bodies::Empty {}).await
    }

    /// Says that the instance is done, with this output as JSON.
    pub(crate) async fn complete(&self, output: &[u8]) -> Result<(), Error> {
        let output = bodies::encode(output);
        self.done("completed", &bodies::Completed { output }).await
    }

    pub(crate) async fn fail(&self, error: &str) -> Result<(), Error> {
        self.done("failed", &bodies::Failed { error }).await
    }

    /// Records an event of the program's own.
    pub(crate) async fn event(&self, subtype: &str, payload: &[u8]) -> Result<(), Error> {
        let event = bodies::Event {
            event_type: "custom",
            subtype: Some(subtype),
            payload: Some(bodies::encode(payload)),
            request_id: request_id(),
        };
        self.done("events", &event).await
    }

    pub(crate) async fn heartbeat(&self) -> Result<(), Error> {
        let event = bodies::Event {
            event_type: "heartbeat",
            subtype: None,
            payload: None,
            request_id: request_id(),
        };
        self.done("events", &event).await
    }

    pub(crate) async fn retry(&self, name: &str, attempt: u32, error: &str) -> Result<(), Error> {
        let retry = bodies::Retry {
            checkpoint_id: name,
            attempt,
            error_message: error,
            request_id: request_id(),
        };
        self.done("retry", &retry).await
    }

    async fn done(&self, what: &str, body: &impl Serialize) -> Result<(), Error> {
        let bodies::Done {} = self.post(what, body).await?;
        Ok(())
    }

    async fn post<A: DeserializeOwned>(
        &self,
        what: &str,
        body: &impl Serialize,
    ) -> Result<A, Error> {
        self.answer(&Call::post(self.path_to(what), body)).await
    }

    async fn answer<A: DeserializeOwned>(&self, call: &Call) -> Result<A, Error> {
        let answer = self.transport.call(call).await?;
        Ok(answer.expect("only a held call goes without an answer"))
    }

    /// Like [`Server::post`], for a call that the server answers late on purpose. `None` if it was held for as long as one
    /// call may take: ask again.
    async fn post_and_wait<A: DeserializeOwned>(
        &self,
        what: &str,
        body: &impl Serialize,
    ) -> Result<Option<A>, Error> {
        let call = Call::post(self.path_to(what), body).held();
        self.transport.call(&call).await
    }

    fn custom_signal(
        &self,
        what: &str,
        signal: bodies::CustomSignal,
    ) -> Result<CustomSignal, Error> {
        let payload = signal.payload.map(|text| self.decoded(what, &text));
        Ok(CustomSignal {
            id: signal.signal_id,
            payload: payload.transpose()?,
        })
    }

    /// Reads base64 out of an answer.
    fn decoded(&self, what: &str, text: &str) -> Result<Vec<u8>, Error> {
        bodies::decode(text).map_err(|problem| Error::Answer {
            action: self.path_to(what),
            problem,
        })
    }

    fn path_to(&self, what: &str) -> String {
        format!("{}{what}", self.path)
    }
}

/// Why this run is to leave, if a signal says so.
fn told(signal: &bodies::Signal) -> Option<Leave> {
    match signal.signal_type.as_str() {
        "cancel" => Some(Leave::Cancelled),
        "pause" => Some(Leave::Suspended),
        _ => None,
    }
}
