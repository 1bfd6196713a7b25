//! Which calls of which runs are open, and which runs suffer from a fault of ours.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
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
/// Runs are known by their token. Calls of a run that the scheduler has not announced are counted while they are open, for the core
/// may serve before every run is found again; nothing is remembered of them beyond that, except that a young process remembers which
/// of them it has answered. Those are runs that it has not adopted yet, or runs of another node whose calls come here.
#[derive(Debug, Clone)]
pub struct CallTracker {
    since: Instant,
    runs: Arc<Mutex<Runs>>,
    answered: Arc<Mutex<HashSet<TokenHash>>>,
}

#[derive(Debug, Default)]
struct Runs {
    calls: HashMap<TokenHash, Calls>,
    /// The number of the next entry of `calls`.
    next: u64,
}

#[derive(Debug)]
struct Calls {
    /// Tells this entry from another one of the same token, after the run was forgotten with a call still open.
    number: u64,
    open: watch::Sender<usize>,
    /// `None` until the run is announced.
    our_fault: Option<bool>,
    /// When a call of it began or ended last, or it was announced.
    heard: Instant,
}

impl Runs {
    fn of(&mut self, token: TokenHash) -> &mut Calls {
        let next = &mut self.next;
        self.calls.entry(token).or_insert_with(|| {
            *next += 1;
            Calls {
                number: *next,
                open: watch::Sender::new(0),
                our_fault: None,
                heard: Instant::now(),
            }
        })
    }
}

impl Default for CallTracker {
    fn default() -> Self {
        Self::new()
    }
}

impl CallTracker {
    /// A tracker that knows of no run.
    #[must_use]
    pub fn new() -> Self {
        Self::since(Instant::now())
    }

    fn since(since: Instant) -> Self {
        Self {
            since,
            runs: Arc::default(),
            answered: Arc::default(),
        }
    }

    fn is_young(&self) -> bool {
        self.since.elapsed() < YOUTH
    }

    fn lock(&self) -> MutexGuard<'_, Runs> {
        // The state under the lock is plain values: a panic elsewhere cannot have left it half changed.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a run. With `our_fault`, it may have called in vain while nobody listened.
    pub fn announce(&self, token: TokenHash, our_fault: bool) {
        let mut runs = self.lock();
        let calls = runs.of(token);
        calls.our_fault.get_or_insert(our_fault);
        calls.heard = Instant::now();
    }

    /// Notes that a run has begun a call. The guard is to be told how the call was answered. If it is dropped untold, its
    /// client has gone away: because its process died, or because it was tired of waiting for us. Only the latter is our
    /// fault, and told by how long the call was open; a call that `waits` is meant to be open for long. A guard that is dropped by a
    /// panic says that we failed.
    #[must_use]
    pub fn begin(&self, token: TokenHash, waits: bool) -> CallGuard {
        let mut runs = self.lock();
        let calls = runs.of(token);
        calls.open.send_modify(|open| *open += 1);
        calls.heard = Instant::now();
        CallGuard {
            tracker: self.clone(),
            token,
            number: calls.number,
            since: Instant::now(),
            waits,
            end: None,
        }
    }

    /// Whether a run has our fault pending. Of a run that was not announced nobody knows: it has.
    #[must_use]
    pub fn is_our_fault(&self, token: TokenHash) -> bool {
        let runs = self.lock();
        let known = runs.calls.get(&token).and_then(|calls| calls.our_fault);
        known.unwrap_or(true)
    }

    /// Whether a failure that a run reports may be our fault.
    ///
    /// Of a run that was not announced here only a young process may have to answer for what the process before it cut off: programs
    /// report that within seconds. Once this process has answered one of its calls, it does not.
    #[must_use]
    pub fn excuses(&self, token: TokenHash) -> bool {
        let runs = self.lock();
        let known = runs.calls.get(&token).and_then(|calls| calls.our_fault);
        known.unwrap_or_else(|| self.is_young() && !self.answered().contains(&token))
    }

    fn answered(&self) -> MutexGuard<'_, HashSet<TokenHash>> {
        // The state under the lock is plain values, as above.
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_answered(&self, token: TokenHash) {
        let mut answered = self.answered();
        if !self.is_young() {
            *answered = HashSet::new();
        } else if answered.len() < ANSWERED {
            answered.insert(token);
        }
    }

    /// For how long nothing was heard of a run: since its last call began or ended, whatever came of it, or it was announced, or
    /// [`CallTracker::excuse_silence`] was asked for. For no time while a call of it is open, or if it is not known.
    #[must_use]
    pub fn unheard(&self, token: TokenHash) -> Duration {
        let runs = self.lock();
        let calls = runs.calls.get(&token);
        let idle = calls.filter(|calls| *calls.open.borrow() == 0);
        idle.map_or(Duration::ZERO, |calls| calls.heard.elapsed())
    }

    /// Has the silence of a run begin anew: it may have called in vain, or its calls may not have been read yet.
    pub fn excuse_silence(&self, token: TokenHash) {
        if let Some(calls) = self.lock().calls.get_mut(&token) {
            calls.heard = Instant::now();
        }
    }

    /// Waits until a run has no open call. Callers bound this by a deadline of their own.
    pub async fn idle(&self, token: TokenHash) {
        let open = {
            let runs = self.lock();
            runs.calls.get(&token).map(|calls| calls.open.subscribe())
        };
        let Some(mut open) = open else { return };
        // If the run is forgotten meanwhile, nothing is left to wait for.
        let _forgotten = open.wait_for(|open| *open == 0).await;
    }

    /// Forgets a run whose exit is recorded.
    pub fn forget(&self, token: TokenHash) {
        self.lock().calls.remove(&token);
    }
}

/// For so long after its start a process may meet programs whose calls the process before it cut off.
const YOUTH: Duration = Duration::from_secs(60);
/// Of how many runs it remembers that it has answered them.
const ANSWERED: usize = 100_000;

/// A client that went away after so long was tired of waiting.
const TIRED: Duration = Duration::from_secs(5);

/// A call that is open.
#[derive(Debug)]
pub struct CallGuard {
    tracker: CallTracker,
    token: TokenHash,
    number: u64,
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

    /// Whether our fault is pending after this call, if it was before.
    fn leaves_our_fault(&self, before: bool) -> bool {
        if let Some(our_fault) = self.end {
            return our_fault;
        }
        let tired = !self.waits && self.since.elapsed() >= TIRED;
        before || tired || std::thread::panicking()
    }

    /// Notes the end of the call, and says whether its run was announced.
    fn end_in(&self, runs: &mut Runs) -> bool {
        let Entry::Occupied(mut entry) = runs.calls.entry(self.token) else {
            return false;
        };
        let calls = entry.get_mut();
        if calls.number != self.number {
            return calls.our_fault.is_some();
        }
        calls.our_fault = calls.our_fault.map(|before| self.leaves_our_fault(before));
        calls.open.send_modify(|open| *open -= 1);
        calls.heard = Instant::now();
        let is_announced = calls.our_fault.is_some();
        if !is_announced && *calls.open.borrow() == 0 {
            entry.remove();
        }
        is_announced
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        let is_announced = self.end_in(&mut self.tracker.lock());
        if !is_announced && self.end == Some(false) {
            self.tracker.note_answered(self.token);
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
        tracker.begin(TOKEN, false).failed();
        assert!(tracker.lock().calls.is_empty());
    }

    #[test]
    fn a_call_that_panics_is_our_fault() {
        let tracker = CallTracker::new();
        tracker.announce(TOKEN, false);
        let panicked = std::panic::catch_unwind(|| {
            let _open = tracker.begin(TOKEN, false);
            panic!("a handler has an error");
        });
        assert!(panicked.is_err());
        assert!(tracker.is_our_fault(TOKEN));
    }

    #[tokio::test]
    async fn a_call_that_began_before_the_run_was_announced_is_waited_for() {
        let tracker = CallTracker::new();
        let early = tracker.begin(TOKEN, false);
        tracker.announce(TOKEN, true);
        let later = tracker.begin(TOKEN, false);
        early.answered();
        let idle = tokio::time::timeout(Duration::from_millis(20), tracker.idle(TOKEN)).await;
        assert!(idle.is_err(), "the later call is still open");
        let early = tracker.begin(TOKEN, false);
        later.answered();
        let idle = tokio::time::timeout(Duration::from_millis(20), tracker.idle(TOKEN)).await;
        assert!(idle.is_err(), "another one is");
        early.answered();
        tracker.idle(TOKEN).await;
        assert!(!tracker.is_our_fault(TOKEN));
    }

    #[tokio::test]
    async fn a_call_of_a_forgotten_run_is_not_taken_for_one_of_its_successor() {
        let tracker = CallTracker::new();
        tracker.announce(TOKEN, false);
        let old = tracker.begin(TOKEN, false);
        tracker.forget(TOKEN);
        tracker.announce(TOKEN, false);
        let new = tracker.begin(TOKEN, false);
        old.failed();
        assert!(!tracker.is_our_fault(TOKEN));
        let idle = tokio::time::timeout(Duration::from_millis(20), tracker.idle(TOKEN)).await;
        assert!(idle.is_err(), "the call of the successor is still open");
        new.answered();
        tracker.idle(TOKEN).await;
    }

    #[test]
    fn a_run_that_is_not_known_is_excused_only_by_a_young_process_that_has_not_answered_it() {
        let young = CallTracker::new();
        assert!(young.excuses(TOKEN), "the process before may have cut it");
        young.begin(TOKEN, false).answered();
        assert!(!young.excuses(TOKEN), "it has been answered since");
        let old = CallTracker::since(Instant::now().checked_sub(YOUTH).unwrap());
        assert!(!old.excuses(TOKEN), "it is a run of another node");
        assert!(old.is_our_fault(TOKEN), "of an exit nobody knows");
    }

    #[test]
    fn a_run_that_is_known_is_excused_by_what_is_known() {
        let tracker = CallTracker::new();
        tracker.announce(TOKEN, false);
        assert!(!tracker.excuses(TOKEN));
        tracker.begin(TOKEN, false).failed();
        assert!(tracker.excuses(TOKEN));
    }

    #[test]
    fn a_call_is_heard_when_it_begins_and_when_it_ends() {
        let tracker = CallTracker::new();
        let pause = Duration::from_millis(20);
        assert_eq!(tracker.unheard(TOKEN), Duration::ZERO, "nobody knows it");
        tracker.announce(TOKEN, false);
        std::thread::sleep(pause);
        assert!(tracker.unheard(TOKEN) >= pause);
        let open = tracker.begin(TOKEN, true);
        std::thread::sleep(pause);
        assert_eq!(tracker.unheard(TOKEN), Duration::ZERO, "it is open");
        let before_end = Instant::now();
        open.failed();
        assert!(tracker.unheard(TOKEN) <= before_end.elapsed());
        std::thread::sleep(pause);
        assert!(tracker.unheard(TOKEN) >= pause);
        let excused = Instant::now();
        tracker.excuse_silence(TOKEN);
        assert!(tracker.unheard(TOKEN) <= excused.elapsed());
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
