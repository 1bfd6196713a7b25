//! Which calls of which runs are open, and which runs suffer from a fault of ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use runtara_domain::TokenHash;
use tokio::sync::watch;

/// Counts the open calls of each launched run and remembers which runs have *our fault pending*.
///
/// A published client never repeats a call: when one is cut, or answered with an error of ours, the program exits or reports a
/// failure. What a run says or does in that state is no fault of its own. The state begins when a call could not be answered
/// properly, or its client got tired of waiting (also: when the run is adopted, because nobody knows what it called meanwhile) and ends with its next answered
/// call.
///
/// Runs are known by their token, and only those that the scheduler has announced: calls with other tokens leave no trace.
#[derive(Debug, Clone, Default)]
pub struct CallTracker {
    runs: Arc<Mutex<HashMap<TokenHash, Calls>>>,
}

#[derive(Debug)]
struct Calls {
    open: watch::Sender<usize>,
    our_fault: bool,
}

impl CallTracker {
    /// A tracker that knows of no run.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenHash, Calls>> {
        // The state under the lock is plain values: a panic elsewhere cannot have left it half changed.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a run. With `our_fault`, it may have called in vain while nobody listened.
    pub fn announce(&self, token: TokenHash, our_fault: bool) {
        let calls = Calls {
            open: watch::Sender::new(0),
            our_fault,
        };
        self.lock().entry(token).or_insert(calls);
    }

    /// Notes that a run has begun a call. The guard is to be told how the call was answered. If it is dropped untold, its
    /// client has gone away: because its process died, or because it was tired of waiting for us. Only the latter is our
    /// fault, and told by how long the call was open; a call that `waits` is meant to be open for long.
    #[must_use]
    pub fn begin(&self, token: TokenHash, waits: bool) -> CallGuard {
        if let Some(calls) = self.lock().get(&token) {
            calls.open.send_modify(|open| *open += 1);
        }
        CallGuard {
            tracker: self.clone(),
            token,
            since: Instant::now(),
            waits,
            end: None,
        }
    }

    /// Whether a run has our fault pending. Of a run that was not announced nobody knows: it has.
    #[must_use]
    pub fn is_our_fault(&self, token: TokenHash) -> bool {
        self.lock().get(&token).is_none_or(|calls| calls.our_fault)
    }

    /// Waits until a run has no open call. Callers bound this by a deadline of their own.
    pub async fn idle(&self, token: TokenHash) {
        let Some(mut open) = self.lock().get(&token).map(|calls| calls.open.subscribe()) else {
            return;
        };
        // If the run is forgotten meanwhile, nothing is left to wait for.
        let _forgotten = open.wait_for(|open| *open == 0).await;
    }

    /// Forgets a run whose exit is recorded.
    pub fn forget(&self, token: TokenHash) {
        self.lock().remove(&token);
    }
}

/// A client that went away after so long was tired of waiting.
const TIRED: Duration = Duration::from_secs(5);

/// A call that is open.
#[derive(Debug)]
pub struct CallGuard {
    tracker: CallTracker,
    token: TokenHash,
    since: Instant,
    waits: bool,
    end: Option<bool>,
}

impl CallGuard {
    /// Says that the call was answered properly: the run has no fault of ours pending any more.
    pub fn answered(mut self) {
        self.end = Some(false);
    }

    /// Says that the call was answered with a failure of ours.
    pub fn failed(mut self) {
        self.end = Some(true);
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        let tired = !self.waits && self.since.elapsed() >= TIRED;
        if let Some(calls) = self.tracker.lock().get_mut(&self.token) {
            calls.our_fault = match self.end {
                Some(our_fault) => our_fault,
                None => calls.our_fault || tired,
            };
            calls
                .open
                .send_modify(|open| *open = open.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TOKEN: TokenHash = TokenHash([7; 32]);

    #[test]
    fn a_failed_call_is_our_fault_until_the_next_answer() {
        let tracker = CallTracker::new();
        tracker.announce(TOKEN, false);
        tracker.begin(TOKEN, false).failed();
        assert!(tracker.is_our_fault(TOKEN));
        drop(tracker.begin(TOKEN, false));
        assert!(tracker.is_our_fault(TOKEN), "a cut call answers nothing");
        tracker.begin(TOKEN, false).answered();
        assert!(!tracker.is_our_fault(TOKEN));
    }

    #[test]
    fn a_client_that_dies_in_a_call_is_no_fault_of_ours() {
        let tracker = CallTracker::new();
        tracker.announce(TOKEN, false);
        drop(tracker.begin(TOKEN, false));
        assert!(!tracker.is_our_fault(TOKEN));
    }

    #[test]
    fn calls_with_foreign_tokens_leave_no_trace() {
        let tracker = CallTracker::new();
        drop(tracker.begin(TOKEN, false));
        assert!(tracker.lock().is_empty());
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_open_call() {
        let tracker = CallTracker::new();
        tracker.announce(TOKEN, false);
        let (first, second) = (tracker.begin(TOKEN, false), tracker.begin(TOKEN, false));
        first.answered();
        let early = tokio::time::timeout(Duration::from_millis(20), tracker.idle(TOKEN)).await;
        assert!(early.is_err(), "one call is still open");
        second.answered();
        let idle = tokio::time::timeout(Duration::from_secs(5), tracker.idle(TOKEN)).await;
        assert!(idle.is_ok());
    }
}
