//! Minds that a run is not silent for too long.
//!
//! Whether it was is decided by its row and by the clock of the store. But the row knows only of calls that came through, and a call may have
//! been made in vain: while no server was there, while the store was away, or while this process stood still. So a run is silent for no longer
//! than this process has heard nothing of it, and for no longer than its program has run.

use std::time::Duration;

use runtara_domain::{Change, TokenHash, limits, silence_allowed_ms};
use runtara_runner::Run;
use runtara_store::{LiveRun, StoreError};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::Shared;
use crate::live::Live;

/// If this process wakes so much later than it wanted to, it may not have read what was called meanwhile.
const STOOD_STILL: Duration = Duration::from_millis(limits::SIGN_OF_LIFE_MS);
/// When to look again where the store did not decide.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is known of the silence of one run.
#[derive(Default)]
pub(crate) struct Silence {
    /// When the row was to be looked at again for it.
    look_at: Option<Instant>,
}

impl Silence {
    /// Ends the run if its row says that it is silent for too long, and nothing speaks against it; says when to look again.
    pub(crate) async fn follow(
        &mut self,
        shared: &Shared,
        live: &Live,
        run: &dyn Run,
        row: &LiveRun,
    ) -> Option<Instant> {
        self.look_at = match (row.heartbeat_timeout_ms, row.silent_in_ms) {
            (Some(timeout_ms), Some(silent_in_ms)) => {
                let now = Instant::now();
                let wanted = self.look_at.take();
                if wanted.is_some_and(|at| now.saturating_duration_since(at) > STOOD_STILL) {
                    debug!("this process stood still; the silence of the run begins anew");
                    shared.tracker.excuse_silence(live.token);
                }
                let left = match silent_in_ms {
                    0 => end_if_silent(shared, live, run, timeout_ms).await,
                    left => Some(Duration::from_millis(left)),
                };
                left.and_then(|left| now.checked_add(left))
            }
            _ => None,
        };
        self.look_at
    }

    /// The row could not be read: so may the calls of the run not have been answered.
    pub(crate) fn excuse(shared: &Shared, token: TokenHash) {
        shared.tracker.excuse_silence(token);
    }
}

/// Ends a run that its row says is silent for too long, unless it is not; says how long to wait before the next look.
async fn end_if_silent(
    shared: &Shared,
    live: &Live,
    run: &dyn Run,
    timeout_ms: u64,
) -> Option<Duration> {
    let ran = match run.usage().await {
        Ok(usage) => Duration::from_millis(usage.running_ms),
        Err(error) => {
            warn!(%error, "how long a run has run is unknown");
            return Some(LOOK_AGAIN);
        }
    };
    let unheard = shared.tracker.unheard(live.token).min(ran);
    let allowed = Duration::from_millis(silence_allowed_ms(timeout_ms));
    if let Some(left) = allowed.checked_sub(unheard).filter(|left| !left.is_zero()) {
        return Some(left);
    }
    let change = Change::Silent {
        run_number: live.key.run_number,
        unheard_ms: u64::try_from(unheard.as_millis()).unwrap_or(u64::MAX),
    };
    match shared.store.change(&live.key.instance_id, change).await {
        Ok(changed) if changed.applied => {
            info!(
                silent_for = ?unheard,
                heartbeat_timeout_ms = timeout_ms,
                status = %changed.state.status,
                "a run that is silent for too long is ended"
            );
            // It is to leave at once.
            live.look();
            None
        }
        // A call came meanwhile.
        Ok(_) => Some(LOOK_AGAIN),
        Err(StoreError::Refused(refusal)) => {
            debug!(%refusal, "the run was over before it was ended for its silence");
            None
        }
        Err(error) => {
            debug!(%error, "a silent run could not be ended");
            Silence::excuse(shared, live.token);
            Some(LOOK_AGAIN)
        }
    }
}
