//! Durable waits: for a time, for a signal.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use crate::clock::{now_ms, remaining};
use crate::instance::Instance;
use crate::names::{Use, check};
use crate::protocol::{CustomSignal, Sleep};
use crate::work::{Awaited, Operation};
use crate::{Error, Server};

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
        let mut is_saved = begun.is_some();
        let Until { until_ms } = match begun {
            Some(state) => serde_json::from_slice(&state).map_err(Error::decode(format!(
                "what is saved as '{id}', the name of a sleep,"
            )))?,
            None => Until { until_ms },
        };
        let state = serde_json::to_vec(&Until { until_ms }).expect("a number serializes");
        let sleep = Sleep {
            id: &id,
            state: &state,
            until_ms,
        };
        let mut early = Early::default();
        loop {
            self.sleep_once(&operation, &sleep, &mut is_saved).await?;
            if now_ms() >= until_ms {
                return Ok(());
            }
            // Called away to see a signal, or the server's clock is not ours.
            self.poll().await?;
            early.pause(Some(until_ms)).await;
        }
    }

    /// Sleeps once, as the other branches let it.
    async fn sleep_once(
        &self,
        operation: &Operation,
        sleep: &Sleep<'_>,
        is_saved: &mut bool,
    ) -> Result<(), Error> {
        let mut waiting = operation.wait(Awaited::Time, Some(sleep.until_ms));
        if !Server::HEARS_OF_EACH_SLEEP && !*is_saved && !waiting.order().park {
            // Whatever happens to this run meanwhile, a later one owes the remainder only.
            let _first = self.save(sleep.id, sleep.state).await?;
            *is_saved = true;
        }
        let slept = self.server().sleep(sleep, &mut waiting, self.leaving());
        self.told(slept.await)
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
            Some(payload) => outcome(payload),
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
                Some(signal) => return Ok(outcome(signal.payload)),
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

    /// Waits once, as the other branches let it.
    async fn wait_once(
        &self,
        operation: &Operation,
        name: &str,
        until_ms: Option<i64>,
    ) -> Result<Option<CustomSignal>, Error> {
        let mut waiting = operation.wait(Awaited::Signal, until_ms);
        let waited = self.server().wait(name, &mut waiting, self.leaving());
        self.told(waited.await)
    }
}

fn outcome(payload: Option<Vec<u8>>) -> Outcome {
    let Some(payload) = payload.filter(|payload| !payload.is_empty()) else {
        return Outcome::Empty;
    };
    match String::from_utf8(payload) {
        Ok(text) => Outcome::Text(text),
        Err(error) => Outcome::Bytes(STANDARD.encode(error.as_bytes())),
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
