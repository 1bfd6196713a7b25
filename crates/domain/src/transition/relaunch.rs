//! Launching an instance again: after a crash, an interruption, or a launch that could not be.

use serde_json::json;

use super::Transition;
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

    /// Has the instance launched again after a pause, however often it could not be: the program has had no part in it, and a host that
    /// cannot launch (its disk is full, it has no process left) must not use up what the instance is allowed.
    pub(super) fn postpone(mut self, cause: &str, now: Timestamp) -> Self {
        let due = next_attempt(&mut self.state, now);
        self.relaunch_uncounted(cause, due)
    }

    pub(super) fn relaunch_uncounted(self, cause: &str, due: Timestamp) -> Self {
        let payload = json!({
            "run": self.state.run_number.0,
            "cause": tail(cause, limits::STDERR_BYTES),
            "due_at_ms": due.0,
        });
        self.suspend(Some(Reason::Interrupted), Some(due))
            .record(NewEvent::by_server(subtype::INTERRUPTED, &payload))
    }

    /// Counts a crash and has the instance launched again after a pause, or ends it if that has happened too often.
    pub(super) fn crash(mut self, exit: &RunExit, now: Timestamp) -> Self {
        let attempts = &mut self.state.attempts;
        attempts.crash_count += 1;
        attempts.relaunches += 1;
        let (crashes, allowed) = (attempts.crash_count, attempts.allowed());
        if crashes >= allowed || attempts.relaunches > limits::RELAUNCHES {
            let error = if crashes > 1 {
                format!(
                    "crashed {crashes} times without progress; the last time: {}",
                    exit.describe()
                )
            } else {
                exit.describe()
            };
            return self.fail(Reason::Crashed, &error, now);
        }
        let due = next_attempt(&mut self.state, now);
        let payload = json!({
            "run": self.state.run_number.0,
            "crash_count": crashes,
            "max_attempts": allowed,
            "cause": exit.describe(),
            "due_at_ms": due.0,
        });
        self.suspend(Some(Reason::Crashed), Some(due))
            .record(NewEvent::by_server(subtype::CRASHED, &payload))
    }
}

/// When a relaunch with a pause is due. The pause doubles each time; its jitter comes from the instance and the run, so that
/// instances that crashed together come back apart, and the same history gives the same times.
fn next_attempt(state: &mut InstanceState, now: Timestamp) -> Timestamp {
    let ran_ms = state.run.claimed_at.map_or(0, |at| now.millis_since(at));
    if ran_ms > limits::BACKOFF_RESET_MS {
        state.attempts.backoff = 0;
    }
    let doublings = state.attempts.backoff.min(16);
    let pause = (limits::BACKOFF_MS << doublings).min(limits::BACKOFF_MAX_MS);
    state.attempts.backoff = doublings + 1;
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
