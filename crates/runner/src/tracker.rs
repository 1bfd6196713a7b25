//! Which calls of which runs are open, and which runs suffer from a fault of ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::RunKey;

/// Counts the open calls of each run and remembers which runs have *our fault pending*.
///
/// A published client never repeats a call: when one is cut, or answered with an error of ours, the program exits or reports a
/// failure. What a run says or does in that state is no fault of its own. The state begins when a call could not be answered
/// properly (also: when the run is adopted, because nobody knows what it called meanwhile) and ends with its next answered
/// call.
#[derive(Debug, Clone, Default)]
pub struct CallTracker {
    runs: Arc<Mutex<HashMap<RunKey, Calls>>>,
}

#[derive(Debug)]
struct Calls {
    open: watch::Sender<usize>,
    our_fault: bool,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            open: watch::Sender::new(0),
            our_fault: false,
        }
    }
}

impl Calls {
    fn is_idle(&self) -> bool {
        *self.open.borrow() == 0 && self.open.receiver_count() == 0 && !self.our_fault
    }
}

impl CallTracker {
    /// A tracker that knows of no call.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn with<T>(&self, key: &RunKey, act: impl FnOnce(&mut Calls) -> T) -> T {
        // The state under the lock is two plain values: a panic elsewhere cannot have left it half changed.
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = runs.entry(key.clone()).or_default();
        let answer = act(calls);
        if calls.is_idle() {
            runs.remove(key);
        }
        answer
    }

    /// Notes that a run has begun a call. The guard is to be told how it was answered; if it is dropped untold, the call
    /// was cut, which is our fault.
    #[must_use]
    pub fn begin(&self, key: &RunKey) -> CallGuard {
        self.with(key, |calls| calls.open.send_modify(|open| *open += 1));
        CallGuard {
            tracker: self.clone(),
            key: key.clone(),
            answered: false,
        }
    }

    /// Says that a run could not reach us, or that nobody knows whether it could.
    pub fn blame_us(&self, key: &RunKey) {
        self.with(key, |calls| calls.our_fault = true);
    }

    /// Whether a run has our fault pending.
    #[must_use]
    pub fn is_our_fault(&self, key: &RunKey) -> bool {
        self.with(key, |calls| calls.our_fault)
    }

    /// Waits until a run has no open call. Callers bound this by a deadline of their own.
    pub async fn idle(&self, key: &RunKey) {
        let mut open = self.with(key, |calls| calls.open.subscribe());
        // The sender lives in the map for as long as there is a receiver.
        let _closed = open.wait_for(|open| *open == 0).await;
    }

    /// Forgets a run whose exit is recorded.
    pub fn forget(&self, key: &RunKey) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.remove(key);
    }
}

/// A call that is open.
#[derive(Debug)]
pub struct CallGuard {
    tracker: CallTracker,
    key: RunKey,
    answered: bool,
}

impl CallGuard {
    /// Says that the call was answered properly: the run has no fault of ours pending any more.
    pub fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        let our_fault = !self.answered;
        self.tracker.with(&self.key, |calls| {
            calls.our_fault = our_fault;
            calls
                .open
                .send_modify(|open| *open = open.saturating_sub(1));
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use runtara_domain::{InstanceId, RunNumber};

    use super::*;

    fn key() -> RunKey {
        RunKey {
            instance_id: InstanceId::new("i").unwrap(),
            run_number: RunNumber(1),
        }
    }

    #[test]
    fn a_cut_call_is_our_fault_until_the_next_answer() {
        let tracker = CallTracker::new();
        drop(tracker.begin(&key()));
        assert!(tracker.is_our_fault(&key()));
        tracker.begin(&key()).answered();
        assert!(!tracker.is_our_fault(&key()));
        assert!(
            tracker.runs.lock().unwrap().is_empty(),
            "nothing is kept of an idle run"
        );
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_open_call() {
        let tracker = CallTracker::new();
        let (first, second) = (tracker.begin(&key()), tracker.begin(&key()));
        first.answered();
        let early = tokio::time::timeout(Duration::from_millis(20), tracker.idle(&key())).await;
        assert!(early.is_err(), "one call is still open");
        second.answered();
        let idle = tokio::time::timeout(Duration::from_secs(5), tracker.idle(&key())).await;
        assert!(idle.is_ok());
    }
}
