//! Waiting for the end of an instance.

use std::time::Duration;

use tokio::time::Instant;

use crate::client::Client;
use crate::{Error, Instance};

/// How long the server is asked to wait at a time: below the time-outs that proxies in between tend to have.
const ROUND: Duration = Duration::from_secs(20);
/// Pause where the server does not wait, or cannot be reached.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a server may be away before waiting gives up.
const LONGEST_OUTAGE: Duration = Duration::from_secs(60);

impl Client {
    /// Waits until the instance has ended and tells how, or until `timeout` is over. A server that is away for less than a minute
    /// is waited for.
    ///
    /// ```no_run
    /// # async fn example(client: runtara_management_sdk::Client) -> Result<(), runtara_management_sdk::Error> {
    /// use std::time::Duration;
    ///
    /// let ended = client.wait("order-17", Some(Duration::from_secs(60))).await?;
    /// println!("{}", ended.status);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WaitTimedOut`] if it has not ended by then (it goes on), [`Error::NotFound`] if it is unknown.
    pub async fn wait(
        &self,
        instance_id: &str,
        timeout: Option<Duration>,
    ) -> Result<Instance, Error> {
        let began = Instant::now();
        let deadline = timeout.map(|timeout| began + timeout);
        let left = || deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let mut last_answer = began;
        loop {
            let asked = Instant::now();
            let round = left().unwrap_or(ROUND).min(ROUND);
            match self.instance_after(instance_id, round).await {
                Ok(instance) if instance.status.is_end() => return Ok(instance),
                Ok(instance) => {
                    last_answer = Instant::now();
                    if let (Some(after), Some(Duration::ZERO)) = (timeout, left()) {
                        return Err(Error::WaitTimedOut {
                            id: instance_id.to_owned(),
                            after,
                            status: instance.status,
                        });
                    }
                }
                Err(error) if !error.is_transient() => return Err(error),
                Err(error) => {
                    if last_answer.elapsed() > LONGEST_OUTAGE || left() == Some(Duration::ZERO) {
                        return Err(error);
                    }
                }
            }
            let next = asked + PAUSE;
            tokio::time::sleep_until(deadline.map_or(next, |deadline| next.min(deadline))).await;
        }
    }
}
