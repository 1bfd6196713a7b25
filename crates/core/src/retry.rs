//! Patience with a store that is away.

use std::future::Future;
use std::time::Duration;

use runtara_runner::CallError;
use runtara_store::{Store, StoreError, StoreResult};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, error, warn};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Repeats what a store that is away could not do, until a deadline. Programs that speak the published protocol never repeat
/// a call; so it is on us to wait.
pub(crate) struct Patience<'a> {
    deadline: Instant,
    closing: watch::Receiver<bool>,
    store: &'a dyn Store,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(
        limit: Duration,
        closing: watch::Receiver<bool>,
        store: &'a dyn Store,
    ) -> Self {
        Self {
            deadline: Instant::now() + limit,
            closing,
            store,
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

    /// Does something that may not be repeated, and if the store is away answers only when it is back: a program that is
    /// told of our failure then reports it to a store that can record it.
    pub(crate) async fn once<T>(
        &self,
        act: impl Future<Output = StoreResult<T>>,
    ) -> Result<T, CallError> {
        match act.await {
            Err(StoreError::Unavailable { context, .. }) => {
                warn!(context, "a call that cannot be repeated failed");
                self.repeat(|| self.store.ping()).await?;
                Err(CallError::Unavailable)
            }
            answer => answer.map_err(into_call_error),
        }
    }

    /// Waits a little; false if the deadline has come or this process is about to end.
    async fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        if until >= self.deadline || *self.closing.borrow() {
            return false;
        }
        let mut closing = self.closing.clone();
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
