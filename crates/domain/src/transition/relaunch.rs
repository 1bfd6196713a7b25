//! Launching an instance again: after a crash, an interruption, or a launch that could not be.

use serde_json::json;

use super::{ResultChange, Transition};
use crate::{InstanceState, NewEvent, Reason, RunExit, Timestamp, limits, subtype, tail};

impl Transition {
    /// Has the instance launched again without counting it as a crash, or ends it if that has happened too often: it may be the program
    /// that brings our process down.
    pub(super) fn interrupt(mut self, cause: &str, now: Timestamp) -> Self {
        let attempts = &mut self.state.attempts;
        attempts.interruptions += 1;
        attempts.relaunches += 1;
        if attempts.interruptions > limits::INTERRUPTIONS
            || attempts.relaunches > limits::RELAUNCHES
        {
            let error = format!(
                "interrupted {} times without progress, relaunched {} times in all; the last time: {cause}",
                attempts.interruptions, attempts.relaunches
            );
            return self.fail(Reason::Crashed, &error, now);
        }
        self.relaunch_uncounted(cause, now)
    }

    /// Has the instance launched again after a pause, however often it could not be: the program has had no part in it, and neither a host
    /// that cannot launch (its disk is full, it has no process left) nor an operator who does not allow it any more must use up what the
    /// instance is allowed.
    ///
    /// It may go on so for months. So the pause grows to [`limits::POSTPONED_MAX_MS`], and once it has, only each attempt is recorded whose
    /// number has doubled.
    pub(super) fn postpone(mut self, cause: &str, now: Timestamp) -> Self {
        let pauses = self.state.attempts.backoff.saturating_add(1);
        let due = next_attempt(&mut self.state, limits::POSTPONED_MAX_MS, now);
        let grows = pause_ms(pauses - 1, u64::MAX) <= limits::POSTPONED_MAX_MS;
        let next = self.wait_for_relaunch(cause, due);
        match grows || pauses.is_power_of_two() {
            true => next.record_interruption(cause, due),
            false => next,
        }
    }

    fn relaunch_uncounted(self, cause: &str, due: Timestamp) -> Self {
        self.wait_for_relaunch(cause, due)
            .record_interruption(cause, due)
    }

    /// Suspends it until it is due, and keeps why, for whoever looks meanwhile.
    fn wait_for_relaunch(mut self, cause: &str, due: Timestamp) -> Self {
        self.result = ResultChange::Set {
            output: None,
            error: Some(tail(cause, limits::STDERR_BYTES)),
        };
        self.suspend(Some(Reason::Interrupted), Some(due))
    }

    fn record_interruption(self, cause: &str, due: Timestamp) -> Self {
        let payload = json!({
            "run": self.state.run_number.0,
            "cause": tail(cause, limits::STDERR_BYTES),
            "due_at_ms": due.0,
        });
        self.record(NewEvent::by_server(subtype::INTERRUPTED, &payload))
    }

    /// Counts a crash and has the instance launched again after a pause, or ends it if that has happened too often.
    pub(super) fn crash(self, exit: &RunExit, now: Timestamp) -> Self {
        let crash = Crash {
            cause: exit.describe(),
            reason: Reason::Crashed,
            ran_ms: exit.usage.running_ms,
            silent_ms: None,
        };
        self.crashed(&crash, now)
    }

    /// The same for a run that was silent for so long, which is more than is allowed.
    pub(super) fn silenced(self, silent_ms: u64, allowed_ms: u64, now: Timestamp) -> Self {
        let spoke = if self.state.run.spoke {
            "made no call of the instance protocol"
        } else {
            "never spoke the instance protocol, and made no call of it"
        };
        let claimed_at = self.state.run.claimed_at;
        let crash = Crash {
            cause: format!(
                "its process lived, but {spoke} for {silent_ms} ms, longer than its heartbeat timeout of {allowed_ms} ms"
            ),
            reason: Reason::HeartbeatTimeout,
            ran_ms: claimed_at.map_or(0, |at| now.millis_since(at)),
            silent_ms: Some(silent_ms),
        };
        self.crashed(&crash, now)
    }

    fn crashed(mut self, crash: &Crash, now: Timestamp) -> Self {
        let attempts = &mut self.state.attempts;
        attempts.crash_count += 1;
        attempts.relaunches += 1;
        let (crashes, allowed) = (attempts.crash_count, attempts.allowed());
        if crashes >= allowed || attempts.relaunches > limits::RELAUNCHES {
            let error = if crashes > 1 {
                format!(
                    "crashed {crashes} times without progress; the last time: {}",
                    crash.cause
                )
            } else {
                crash.cause.clone()
            };
            return self.fail(crash.reason, &error, now);
        }
        if crash.ran_ms > limits::BACKOFF_RESET_MS {
            self.state.attempts.backoff = 0;
        }
        let due = next_attempt(&mut self.state, limits::BACKOFF_MAX_MS, now);
        let mut payload = json!({
            "run": self.state.run_number.0,
            "crash_count": crashes,
            "max_attempts": allowed,
            "cause": crash.cause,
            "due_at_ms": due.0,
        });
        if let Some(silent_ms) = crash.silent_ms {
            payload["reason"] = json!(crash.reason);
            payload["silent_ms"] = json!(silent_ms);
        }
        self.suspend(Some(crash.reason), Some(due))
            .record(NewEvent::by_server(subtype::CRASHED, &payload))
    }
}

/// What is told of a crash.
struct Crash {
    cause: String,
    reason: Reason,
    /// For how long the run ran.
    ran_ms: u64,
    /// For how long it was silent, if it was ended for that.
    silent_ms: Option<u64>,
}

/// A pause that has doubled so often.
fn pause_ms(doublings: u32, most: u64) -> u64 {
    (limits::BACKOFF_MS << doublings.min(16)).min(most)
}

/// When a relaunch with a pause is due. The pause doubles each time up to what is given; its jitter comes from the instance and the run, so that
/// instances that crashed together come back apart, and the same history gives the same times.
fn next_attempt(state: &mut InstanceState, most_ms: u64, now: Timestamp) -> Timestamp {
    let pause = pause_ms(state.attempts.backoff, most_ms);
    state.attempts.backoff = state.attempts.backoff.saturating_add(1);
    let seed = state
        .instance_id
        .as_str()
        .bytes()
        .chain(state.run_number.0.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    now.plus_millis(pause + pause * (seed % 256) / 1024)
}
