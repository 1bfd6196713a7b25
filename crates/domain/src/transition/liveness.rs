//! The end of what is silent for too long, or outlives its deadline.

use super::Transition;
use super::exits::expiry;
use crate::{
    InstanceState, Origin, Reason, Refusal, RunNumber, Status, Timestamp, silence_allowed_ms,
};

/// Ends a run that was silent for too long, as a crash; a call that came meanwhile wins.
pub(super) fn silent(
    state: &InstanceState,
    run_number: RunNumber,
    unheard_ms: u64,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    if state.run_number != run_number || state.live_node.is_none() {
        return Err(Refusal::RunSuperseded);
    }
    let silent_ms = state.liveness().silent_ms(now).min(unheard_ms);
    let Some(allowed_ms) = state.heartbeat_timeout_ms else {
        return Ok(Transition::unchanged(state));
    };
    if state.status != Status::Running || silent_ms < silence_allowed_ms(allowed_ms) {
        return Ok(Transition::unchanged(state));
    }
    let next = Transition::of(state.clone());
    let next = if state.pending.cancel.is_some() {
        next.cancel(now)
    } else if state.pending.pause.is_some() {
        next.pause(now)
    } else {
        next.silenced(silent_ms, allowed_ms, now)
    };
    Ok(next.leave_within(0, now))
}

/// Ends an instance that registered itself and was not heard of since.
pub(super) fn lapse(state: &InstanceState, timeout_ms: u64, now: Timestamp) -> Transition {
    let silent_ms = state.liveness().silent_ms(now);
    let is_ours = state.origin == Origin::Launched;
    if is_ours || state.status != Status::Running || silent_ms < silence_allowed_ms(timeout_ms) {
        return Transition::unchanged(state);
    }
    let next = Transition::of(state.clone());
    if state.pending.cancel.is_some() {
        return next.cancel(now).leave_within(0, now);
    }
    let error = format!(
        "it registered itself and was then silent for {silent_ms} ms, longer than the {timeout_ms} ms that are allowed \
         (RUNTARA_SELF_REGISTERED_TIMEOUT)"
    );
    next.fail(Reason::HeartbeatTimeout, &error, now)
        .leave_within(0, now)
}

/// Ends an instance whose overall deadline is over.
pub(super) fn expire(state: &InstanceState, now: Timestamp) -> Transition {
    if state.status.is_end() || !state.is_expired(now) {
        return Transition::unchanged(state);
    }
    let error = format!("{}; it was {}", expiry(state), state.status);
    let next = Transition::of(state.clone());
    next.fail(Reason::Timeout, &error, now).leave_within(0, now)
}
