//! What people ask of an instance.

use bytes::Bytes;
use serde_json::json;

use super::{ResultChange, Transition, wrong_state};
use crate::{
    Attempts, EventKind, InstanceState, NewEvent, Origin, PendingSignal, Reason, Refusal, SignalId,
    Status, Timestamp, limits, subtype, tail,
};

/// Whether the run is in a held call with nothing else to do, so that a signal can act on it at once.
fn is_parked(state: &InstanceState) -> bool {
    state.origin == Origin::Launched && state.run.hold.as_ref().is_some_and(|hold| hold.park)
}

pub(super) fn cancel(
    state: &InstanceState,
    payload: Option<&Bytes>,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    if state.status.is_end() {
        return Err(wrong_state("cancel", state));
    }
    let mut next = Transition::of(state.clone());
    if state.status != Status::Running {
        return Ok(next.cancel(now).leave_within(limits::LEAVE_MS, now));
    }
    if is_parked(state) {
        return Ok(next.cancel(now).leave_within(0, now));
    }
    next.state.pending.cancel = Some(PendingSignal {
        payload: payload.cloned(),
        at: now,
    });
    if state.origin == Origin::Launched && !state.run.spoke {
        // Nobody is there to see the signal: a program that does not speak the protocol is asked as every process is.
        return Ok(ask_to_leave(next, limits::LEAVE_MS, now));
    }
    Ok(next)
}

fn ask_to_leave(mut next: Transition, grace_ms: u64, now: Timestamp) -> Transition {
    next.state.run.asked_to_leave = true;
    let hold = next.state.run.hold.take();
    let mut next = next.leave_within(grace_ms, now);
    next.state.run.hold = hold;
    next
}

pub(super) fn pause(
    state: &InstanceState,
    payload: Option<&Bytes>,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    if state.status.is_end() {
        return Err(wrong_state("pause", state));
    }
    let mut next = Transition::of(state.clone());
    if state.status == Status::Suspended && state.reason == Some(Reason::Paused) {
        return Ok(Transition::unchanged(state));
    }
    if state.status != Status::Running {
        return Ok(next
            .suspend(Some(Reason::Paused), None)
            .record(NewEvent::plain(EventKind::Suspended)));
    }
    if state.pending.cancel.is_some() {
        return Ok(Transition::unchanged(state));
    }
    if is_parked(state) {
        return Ok(next
            .suspend(Some(Reason::Paused), None)
            .record(NewEvent::plain(EventKind::Suspended))
            .leave_within(0, now));
    }
    next.state.pending.pause = Some(PendingSignal {
        payload: payload.cloned(),
        at: now,
    });
    next.state.pending.resume = false;
    Ok(next)
}

pub(super) fn resume(state: &InstanceState, now: Timestamp) -> Result<Transition, Refusal> {
    let mut next = Transition::of(state.clone());
    match state.status {
        Status::Pending | Status::Completed => return Err(wrong_state("resume", state)),
        Status::Running if state.pending.pause.is_none() => {
            return Err(wrong_state("resume", state));
        }
        Status::Running if state.run.pause_shown => {
            next.state.pending.resume = true;
            return Ok(next);
        }
        Status::Running => {
            next.state.pending.pause = None;
            return Ok(next);
        }
        Status::Suspended | Status::Failed | Status::Cancelled => {}
    }
    if state.origin == Origin::SelfRegistered {
        return Err(Refusal::NoImage);
    }
    if let Some(at) = state.expires_at.filter(|at| *at <= now) {
        return Err(Refusal::Expired { at });
    }
    if state.status.is_end() {
        next.state.finished_at = None;
        next.state.has_error = false;
        next.state.exit_code = None;
        next.state.attempts = Attempts {
            max_attempts: state.attempts.max_attempts,
            ..Attempts::default()
        };
        next.result = ResultChange::Clear;
    }
    let payload = json!({ "from": state.reason.map(Reason::as_str) });
    Ok(next
        .suspend(None, Some(now))
        .record(NewEvent::by_server(subtype::RESUMED, &payload)))
}

pub(super) fn stop(
    state: &InstanceState,
    grace_ms: u64,
    reason: &str,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    if state.status.is_end() {
        return Err(wrong_state("stop", state));
    }
    let payload = json!({
        "reason": tail(reason, limits::STDERR_BYTES),
        "grace_ms": grace_ms,
    });
    let asked = NewEvent::by_server(subtype::STOP_REQUESTED, &payload);
    let mut next = Transition::of(state.clone()).record(asked);
    let has_process = state.status == Status::Running && state.live_node.is_some();
    if !has_process {
        return Ok(next.cancel(now).leave_within(0, now));
    }
    if is_parked(state) {
        return Ok(next.cancel(now).leave_within(0, now));
    }
    if next.state.pending.cancel.is_none() {
        let payload = (!reason.is_empty()).then(|| Bytes::from(reason.to_owned().into_bytes()));
        next.state.pending.cancel = Some(PendingSignal { payload, at: now });
    }
    Ok(ask_to_leave(next, grace_ms, now))
}

pub(super) fn signal_arrived(
    state: &InstanceState,
    signal_id: &SignalId,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    if state.status.is_end() {
        return Err(wrong_state("send a custom signal to", state));
    }
    let waits = state.status == Status::Suspended
        && state.reason == Some(Reason::WaitingSignal)
        && state.waiting_for.as_ref() == Some(signal_id);
    if !waits {
        return Ok(Transition::unchanged(state));
    }
    let mut next = Transition::of(state.clone());
    next.state.due_at = Some(state.due_at.map_or(now, |due| due.min(now)));
    Ok(next)
}
