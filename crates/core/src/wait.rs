//! Sleeps and waits: calls that are answered later, or by a later run.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use runtara_domain::{Caller, Refusal, SignalWait, Sleep, WaitCall, WaitKind, Waited, limits};
use runtara_runner::CallError;
use runtara_store::{HeldWait, WaitKey, WaitRequest, Waiting, Watch};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::Core;

/// How long the connection of a parked run is kept open at most. Its process is killed at once, which ends it sooner.
const PARKED: Duration = Duration::from_secs(60);

impl Core {
    pub(crate) async fn sleep_durably(
        &self,
        caller: &Caller,
        request: Sleep,
    ) -> Result<(), CallError> {
        let call = WaitCall {
            kind: WaitKind::Sleep,
            identified: request.checkpoint_id.is_some(),
            duration_ms: Some(check_duration(request.duration_ms)?),
            state_hash: Sha256::digest(&request.state).into(),
            named: request.request_id.is_some(),
            request_id: self.request_id(request.request_id),
            park: request.park,
        };
        let wait = WaitRequest {
            key: WaitKey::Sleep(request.checkpoint_id),
            call,
            state: request.state,
            hold_ms: self.config.hold_ms,
        };
        self.wait(caller, wait).await.map(drop)
    }

    pub(crate) async fn wait_for_signal(
        &self,
        caller: &Caller,
        request: SignalWait,
    ) -> Result<Waited, CallError> {
        let duration_ms = request.timeout_ms.map(check_duration).transpose()?;
        let asked = duration_ms.map_or_else(|| "forever".to_owned(), |ms| ms.to_string());
        let call = WaitCall {
            kind: WaitKind::Signal,
            identified: true,
            duration_ms,
            state_hash: Sha256::digest(asked).into(),
            named: request.request_id.is_some(),
            request_id: self.request_id(request.request_id),
            park: request.park,
        };
        let wait = WaitRequest {
            key: WaitKey::Signal(request.signal_id),
            call,
            state: Bytes::new(),
            hold_ms: self.config.hold_ms,
        };
        self.wait(caller, wait).await
    }

    async fn wait(&self, caller: &Caller, request: WaitRequest) -> Result<Waited, CallError> {
        // Watched from before the first look, so that nothing can happen between look and wait.
        let mut watch = self.store.nudges().watch(&caller.instance_id);
        let mut stands = self
            .patience(caller)
            .repeat(|| self.store.begin_wait(caller, request.clone()))
            .await;
        let mut was_held = false;
        loop {
            match stands {
                Ok(Waiting::Over { signal, elapsed }) => {
                    return Ok(Waited {
                        signal,
                        timed_out: elapsed,
                    });
                }
                Ok(Waiting::Held(held)) => {
                    was_held = true;
                    let _counted = Held::count(&self.held);
                    let closing = self.until_looked_at(&held, &mut watch).await;
                    stands = self
                        .patience(caller)
                        .repeat(|| self.store.continue_wait(caller, &held, closing))
                        .await;
                    if closing && matches!(stands, Ok(Waiting::Held(_))) {
                        // It cannot be parked (other branches are at work, or its process is not ours): the end of the
                        // connection tells it.
                        return Err(CallError::Unavailable);
                    }
                }
                Ok(Waiting::Parked) => return leave().await,
                // Somebody ended or suspended the instance under the held call: like parked, its process is on the way out.
                Err(CallError::Refused(Refusal::InstanceEnded { .. })) if was_held => {
                    return leave().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until a held call should be looked at again, and says whether that is because this process is about to end.
    async fn until_looked_at(&self, held: &HeldWait, watch: &mut Watch) -> bool {
        let mut closing = self.closing.subscribe();
        let elapsed = async {
            match held.remaining_ms {
                Some(millis) => sleep(Duration::from_millis(millis)).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = elapsed => false,
            _ = watch.changed() => false,
            _ = closing.wait_for(|closing| *closing) => true,
        }
    }
}

/// A call that is held, counted for as long as this lives.
struct Held<'a>(&'a watch::Sender<usize>);

impl<'a> Held<'a> {
    fn count(held: &'a watch::Sender<usize>) -> Self {
        held.send_modify(|held| *held += 1);
        Self(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held = held.saturating_sub(1));
    }
}

/// Keeps the connection of a run open until its process is gone, or should long be: an answer would let it go on.
async fn leave() -> Result<Waited, CallError> {
    let _left: Result<(), _> = timeout(PARKED, pending()).await;
    Err(Refusal::RunSuperseded.into())
}

fn check_duration(millis: u64) -> Result<u64, CallError> {
    if millis > limits::SLEEP_MAX_MS {
        return Err(CallError::Invalid(format!(
            "a wait of {millis} ms is longer than the {} ms that are allowed",
            limits::SLEEP_MAX_MS
        )));
    }
    Ok(millis)
}
