//! Durable waits: for a time, for a signal.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::select;

use crate::instance::Instance;
use crate::names::{Use, check};
use crate::transport::request_id;
use crate::work::{Awaited, Operation, Order};
use crate::{Error, wire};

/// What is saved with a sleep, and with a wait for a signal that has an end: a later run owes only the remainder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Until {
    until_ms: i64,
}

/// What a wait for a signal came to, as it is saved.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// It came, with this text.
    Text(String),
    /// It came, with bytes that are no text, in base64.
    Bytes(String),
    /// It came with nothing.
    Empty,
    /// It did not come in time.
    TimedOut,
}

impl Instance {
    /// Sleeps for that long, durably: the time counts on while no process is there. A long sleep costs nothing but a row; the
    /// process is ended and started again when it is over, and the program replays its steps up to here.
    ///
    /// A name may be used again, in a loop: the first use in each run is the first sleep, the second the second.
    ///
    /// ```no_run
    /// # async fn example(instance: &runtara_sdk::Instance) -> Result<(), runtara_sdk::Error> {
    /// use std::time::Duration;
    ///
    /// instance.sleep("cooling off", Duration::from_secs(14 * 24 * 3600)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Name`]; those that end the run.
    pub async fn sleep(&self, name: &str, duration: Duration) -> Result<(), Error> {
        self.sleep_to(name, now_ms().saturating_add(millis(duration)))
            .await
    }

    /// Like [`Instance::sleep`], up to a moment. One that has passed is no sleep.
    ///
    /// The moment that the first run gave is the one that counts, whatever a later run would give.
    ///
    /// # Errors
    /// Like [`Instance::sleep`].
    pub async fn sleep_until(&self, name: &str, moment: OffsetDateTime) -> Result<(), Error> {
        let millis = moment.unix_timestamp_nanos().div_euclid(1_000_000);
        // The range of the type is far within that of milliseconds in 64 bits.
        self.sleep_to(name, i64::try_from(millis).unwrap_or(i64::MAX))
            .await
    }

    async fn sleep_to(&self, name: &str, until_ms: i64) -> Result<(), Error> {
        let operation = self.work().begin();
        let id = self.names().next(Use::Sleep, check(name)?);
        let begun = self.look_up(&id).await?;
        self.note_step(begun.is_some()).await?;
        let Until { until_ms } = match begun {
            Some(state) => serde_json::from_slice(&state).map_err(Error::decode(format!(
                "what is saved as '{id}', the name of a sleep,"
            )))?,
            None => Until { until_ms },
        };
        let state = serde_json::to_vec(&Until { until_ms }).expect("a number serializes");
        let mut early = Early::default();
        loop {
            self.sleep_once(&operation, &id, &state, until_ms).await?;
            if now_ms() >= until_ms {
                return Ok(());
            }
            // Called away to see a signal, or the server's clock is not ours.
            self.poll().await?;
            early.pause(Some(until_ms)).await;
        }
    }

    /// Asks for one sleep, anew whenever the other branches make another order of it, or it was held as long as one call may
    /// take. The id says that it is the same sleep.
    async fn sleep_once(
        &self,
        operation: &Operation,
        id: &str,
        state: &[u8],
        until_ms: i64,
    ) -> Result<(), Error> {
        let mut waiting = operation.wait(Awaited::Time, Some(until_ms));
        let request_id = request_id();
        loop {
            let order = waiting.order();
            let sleep = wire::Sleep {
                duration_ms: remaining(until_ms),
                checkpoint_id: id,
                state: wire::encode(state),
                park: order.park,
                request_id: &request_id,
            };
            select! {
                answer = self.post_and_wait::<wire::Done>("sleep", &sleep) => {
                    if answer?.is_some() {
                        return Ok(());
                    }
                }
                () = waiting.changed() => {}
                error = self.leaving().wait() => return Err(error),
            }
        }
    }

    /// Waits for a custom signal and gives what it brought. A long wait costs nothing but a row, as in [`Instance::sleep`].
    ///
    /// What came is saved, so a replay gets the same. The payload is read as JSON; one that is no JSON is taken as text. Each
    /// further use of a name in a run waits for a further signal. Give signals names that no checkpoint has: the protocol
    /// hands a signal over with the checkpoint of its name.
    ///
    /// ```no_run
    /// # async fn example(instance: &runtara_sdk::Instance) -> Result<(), runtara_sdk::Error> {
    /// #[derive(serde::Deserialize)]
    /// struct Approval { by: String }
    ///
    /// let approval: Approval = instance.signal("approved").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Decode`] if it is not a `T`, [`Error::Name`], those that end the run.
    pub async fn signal<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        match self.await_signal(name, None).await? {
            Outcome::TimedOut => Err(Error::Answer {
                action: format!("a wait for signal '{name}'"),
                problem: "it timed out, and has no end".to_owned(),
            }),
            outcome => read(name, outcome),
        }
    }

    /// Like [`Instance::signal`], for so long at most: `None` if it did not come. The time counts from the first run that
    /// comes here.
    ///
    /// # Errors
    /// Like [`Instance::signal`].
    pub async fn signal_within<T: DeserializeOwned>(
        &self,
        name: &str,
        limit: Duration,
    ) -> Result<Option<T>, Error> {
        match self.await_signal(name, Some(limit)).await? {
            Outcome::TimedOut => Ok(None),
            outcome => read(name, outcome).map(Some),
        }
    }

    async fn await_signal(&self, name: &str, limit: Option<Duration>) -> Result<Outcome, Error> {
        let operation = self.work().begin();
        let id = self.names().next(Use::Signal, check(name)?);
        let saved = self.look_up(&id).await?;
        self.note_step(saved.is_some()).await?;
        let broken = || Error::decode(format!("what is saved as '{id}'"));
        if let Some(state) = saved {
            return serde_json::from_slice(&state).map_err(broken());
        }
        let outcome = match self.names().take(name) {
            Some(payload) => self.outcome(payload)?,
            None => self.outcome_of_wait(&operation, &id, name, limit).await?,
        };
        let state = serde_json::to_vec(&outcome).expect("texts serialize");
        match self.save(&id, &state).await? {
            None => Ok(outcome),
            Some(stored) => serde_json::from_slice(&stored).map_err(broken()),
        }
    }

    async fn outcome_of_wait(
        &self,
        operation: &Operation,
        id: &str,
        name: &str,
        limit: Option<Duration>,
    ) -> Result<Outcome, Error> {
        let until_ms = match limit {
            None => None,
            Some(limit) => Some(self.end_of_wait(id, limit).await?),
        };
        let mut early = Early::default();
        loop {
            match self.wait_once(operation, name, until_ms).await? {
                Some(signal) => return self.outcome(signal.payload),
                None if until_ms.is_some_and(|end| end <= now_ms()) => {
                    return Ok(Outcome::TimedOut);
                }
                // Called away, or woken because another branch is to go on.
                None => self.poll().await?,
            }
            early.pause(until_ms).await;
        }
    }

    /// When the wait ends: as the first run that came here has said.
    async fn end_of_wait(&self, id: &str, limit: Duration) -> Result<i64, Error> {
        let id = format!("{id}::until");
        let until_ms = now_ms().saturating_add(millis(limit));
        let state = serde_json::to_vec(&Until { until_ms }).expect("a number serializes");
        match self.save(&id, &state).await? {
            None => Ok(until_ms),
            Some(stored) => serde_json::from_slice(&stored)
                .map(|until: Until| until.until_ms)
                .map_err(Error::decode(format!("what is saved as '{id}'"))),
        }
    }

    /// Asks for one wait, anew whenever the other branches make another order of it.
    async fn wait_once(
        &self,
        operation: &Operation,
        name: &str,
        until_ms: Option<i64>,
    ) -> Result<Option<wire::CustomSignal>, Error> {
        let mut waiting = operation.wait(Awaited::Signal, until_ms);
        let mut asked: Option<(Order, String)> = None;
        loop {
            let order = waiting.order();
            // Another end is another wait; the same one may be asked for again.
            let id = match asked.take() {
                Some((before, id)) if before.until_ms == order.until_ms => id,
                _ => request_id(),
            };
            let wait = wire::AwaitSignal {
                signal_id: name,
                timeout_ms: order.until_ms.map(remaining),
                park: order.park,
                request_id: &id,
            };
            let answer = self.post_and_wait::<wire::AwaitedSignal>("signals/wait", &wait);
            select! {
                answer = answer => {
                    if let Some(answer) = answer? {
                        return Ok(answer.signal);
                    }
                }
                () = waiting.changed() => {}
                error = self.leaving().wait() => return Err(error),
            }
            asked = Some((order, id));
        }
    }

    fn outcome(&self, payload: Option<String>) -> Result<Outcome, Error> {
        let Some(payload) = payload.filter(|payload| !payload.is_empty()) else {
            return Ok(Outcome::Empty);
        };
        let bytes = self.decoded("signals/wait", &payload)?;
        Ok(match String::from_utf8(bytes) {
            Ok(text) => Outcome::Text(text),
            Err(_) => Outcome::Bytes(payload),
        })
    }
}

fn read<T: DeserializeOwned>(name: &str, outcome: Outcome) -> Result<T, Error> {
    let value = match outcome {
        Outcome::Empty | Outcome::TimedOut => Value::Null,
        Outcome::Bytes(base64) => Value::String(base64),
        Outcome::Text(text) => match serde_json::from_str(&text) {
            Ok(value) => return Ok(value),
            Err(error) => {
                let as_text = serde_json::from_value(Value::String(text));
                return as_text.map_err(|_| signal_error(name)(error));
            }
        },
    };
    serde_json::from_value(value).map_err(signal_error(name))
}

fn signal_error(name: &str) -> impl FnOnce(serde_json::Error) -> Error {
    Error::decode(format!("what signal '{name}' brought"))
}

/// Waits that ended before their time, one after the other: a server that answers so again and again is not asked at full
/// speed.
#[derive(Default)]
struct Early(u32);

impl Early {
    async fn pause(&mut self, until_ms: Option<i64>) {
        let pause = (10 << self.0.min(7)).min(until_ms.map_or(u64::MAX, remaining));
        self.0 += 1;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn remaining(until_ms: i64) -> u64 {
    u64::try_from(until_ms.saturating_sub(now_ms())).unwrap_or(0)
}

/// The time of this machine: what is saved must mean the same in another process.
fn now_ms() -> i64 {
    let now = OffsetDateTime::now_utc();
    i64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_json_or_else_text() {
        let text = |text: &str| Outcome::Text(text.to_owned());
        assert_eq!(read::<u32>("s", text("17")).unwrap(), 17);
        assert_eq!(read::<String>("s", text("17")).unwrap(), "17");
        assert_eq!(read::<String>("s", text("\"yes\"")).unwrap(), "yes");
        assert_eq!(read::<String>("s", text("go on")).unwrap(), "go on");
        assert_eq!(read::<Option<u32>>("s", Outcome::Empty).unwrap(), None);
        read::<()>("s", Outcome::Empty).unwrap();
        let error = read::<u32>("s", text("go on")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "what signal 's' brought is not of the wanted type"
        );
    }

    #[test]
    fn outcomes_are_readable_in_the_list_of_checkpoints() {
        let json = |outcome: Outcome| serde_json::to_string(&outcome).unwrap();
        assert_eq!(json(Outcome::Text("x".to_owned())), r#"{"text":"x"}"#);
        assert_eq!(json(Outcome::TimedOut), r#""timed_out""#);
    }
}
