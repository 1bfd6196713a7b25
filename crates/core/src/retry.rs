//! Patience with a store that is away.

use std::future::Future;
use std::time::Duration;

use runtara_runner::CallError;
use runtara_store::{StoreError, StoreResult};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Repeats what a store that is away could not do, until a deadline. Programs that speak the published protocol never repeat
/// a call; so it is on us to wait.
pub(crate) struct Patience<'a> {
    deadline: Instant,
    closing: &'a watch::Sender<bool>,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(limit: Duration, closing: &'a watch::Sender<bool>) -> Self {
        Self {
            deadline: Instant::now() + limit,
            closing,
        }
    }

    /// Does something that may be repeated.
    pub(crate) async fn repeat<T, F>(&self, mut act: impl FnMut() -> F) -> Result<T, CallError>
    where
        F: Future<Output = StoreResult<T>>,
    {
        let mut pause = FIRST_PAUSE;
        loop {
            match act().await {
                Err(unavailable @ StoreError::Unavailable { .. }) => {
                    debug!(error = %unavailable, "a call waits for the store");
                    if !self.pause(pause).await {
                        return Err(CallError::Unavailable);
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                answer => return answer.map_err(into_call_error),
            }
        }
    }

    /// Waits a little; false if the deadline has come or this process is about to end.
    async fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        if until >= self.deadline || *self.closing.borrow() {
            return false;
        }
        let mut closing = self.closing.subscribe();
        timeout_at(until, closing.wait_for(|closing| *closing))
            .await
            .is_err()
    }
}

pub(crate) fn into_call_error(error: StoreError) -> CallError {
    match error {
        StoreError::Refused(refusal) => CallError::Refused(refusal),
        StoreError::Unavailable { .. } => CallError::Unavailable,
        broken => {
            let source = std::error::Error::source(&broken).map(ToString::to_string);
            error!(error = %broken, source, "the store is broken");
            CallError::Internal
        }
    }
}
