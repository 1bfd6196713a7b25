//! What runs say.

use super::{Call, Transition, Word};
use crate::{
    CheckpointId, EventKind, InstanceState, NewEvent, Origin, Reason, Refusal, RunMarks, SignalId,
    SignalKind, Status, TenantId, Timestamp, limits,
};

pub(super) fn call_of_run(
    state: &InstanceState,
    call: &Call,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    if let Call::Register {
        tenant_id,
        checkpoint_id,
    } = call
    {
        return register(state, tenant_id, checkpoint_id.clone(), now);
    }
    if state.status != Status::Running {
        return match call {
            Call::Say { .. } => Ok(Transition::unchanged(state)),
            _ => Err(Refusal::InstanceEnded {
                status: state.status,
            }),
        };
    }
    let mut next = Transition::of(state.clone());
    note_sign_of_life(&mut next.state, now);
    Ok(match call {
        Call::Register { .. } => unreachable!("a registration was answered above"),
        Call::Saved { checkpoint_id } => {
            show_signal(&mut next.state);
            progress(next, Some(checkpoint_id))
        }
        Call::Seen {
            shows_signal,
            heartbeat,
        } => seen(next, *shows_signal, *heartbeat),
        Call::Hold {
            hold,
            new,
            checkpoint_id,
        } => {
            if let Some(hold) = hold {
                put_back_unslept(&mut next.state, now);
                let until = hold.until.filter(|_| hold.park);
                let slept = until.map_or(0, |until| until.millis_since(now));
                next.state.run.slept_ms = next.state.run.slept_ms.saturating_add(slept);
                next.state.run.hold = Some(hold.clone());
            }
            progress_if(next, *new, checkpoint_id.as_ref())
        }
        Call::EndHold => end_hold(next, now),
        Call::Park {
            reason,
            until,
            waiting_for,
            new,
            checkpoint_id,
        } => {
            let next = progress_if(next, *new, checkpoint_id.as_ref());
            park(next, *reason, *until, waiting_for.clone(), now)
        }
        Call::Say { word, our_fault } => say(next, word, *our_fault, now),
    })
}

fn register(
    state: &InstanceState,
    tenant_id: &TenantId,
    checkpoint_id: Option<CheckpointId>,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    if state.tenant_id != *tenant_id {
        return Err(Refusal::TenantMismatch);
    }
    let launched = state.origin == Origin::Launched;
    if state.status.is_end() || (launched && state.status != Status::Running) {
        return Err(Refusal::InstanceEnded {
            status: state.status,
        });
    }
    let mut next = Transition::of(state.clone());
    let first = !launched || !state.run.spoke;
    if !launched {
        // Its process came anew, whatever became of the one before: a run of its own, which replays.
        next.state.status = Status::Running;
        next.state.reason = None;
        next.state.due_at = None;
        next.state.waiting_for = None;
        next.state.run_number = state.run_number.next();
        next.state.started_at = state.started_at.or(Some(now));
        next.state.run = RunMarks {
            claimed_at: Some(now),
            ..RunMarks::default()
        };
    }
    note_sign_of_life(&mut next.state, now);
    if first {
        next = next.record(NewEvent {
            checkpoint_id,
            ..NewEvent::plain(EventKind::Started)
        });
    }
    Ok(next)
}

fn note_sign_of_life(state: &mut InstanceState, now: Timestamp) {
    state.run.spoke = true;
    let age = state.last_seen_at.map(|seen| now.millis_since(seen));
    if age.is_none_or(|age| age >= limits::SIGN_OF_LIFE_MS) {
        state.last_seen_at = Some(now);
    }
}

fn show_signal(state: &mut InstanceState) {
    match state.pending.visible() {
        Some((SignalKind::Cancel, _)) => state.run.cancel_shown = true,
        Some((SignalKind::Pause, _)) => state.run.pause_shown = true,
        _ => {}
    }
}

fn progress(mut next: Transition, checkpoint_id: Option<&CheckpointId>) -> Transition {
    let state = &mut next.state;
    if let Some(id) = checkpoint_id {
        state.checkpoint_id = Some(id.clone());
    }
    state.run.stored_new = true;
    state.attempts.crash_count = 0;
    state.attempts.interruptions = 0;
    next.confirm_read_signals = state.has_read_signals;
    state.has_read_signals = false;
    next
}

/// A wait that is met again has stored nothing: not even the last checkpoint is another one.
fn progress_if(next: Transition, new: bool, checkpoint_id: Option<&CheckpointId>) -> Transition {
    if new {
        progress(next, checkpoint_id)
    } else {
        next
    }
}

fn seen(mut next: Transition, shows_signal: bool, heartbeat: bool) -> Transition {
    if shows_signal {
        show_signal(&mut next.state);
    }
    if heartbeat && !next.state.run.heartbeat_seen {
        next.state.run.heartbeat_seen = true;
        return next.record(NewEvent::plain(EventKind::Heartbeat));
    }
    next
}

/// Ends the hold that is recorded. The whole wait was taken off the running time when it began; what was not slept of it is
/// put back.
fn put_back_unslept(state: &mut InstanceState, now: Timestamp) {
    if let Some(hold) = state.run.hold.take() {
        let until = hold.until.filter(|_| hold.park);
        let early = until.map_or(0, |until| until.millis_since(now));
        state.run.slept_ms = state.run.slept_ms.saturating_sub(early);
    }
}

fn end_hold(mut next: Transition, now: Timestamp) -> Transition {
    show_signal(&mut next.state);
    put_back_unslept(&mut next.state, now);
    next
}

fn park(
    next: Transition,
    reason: Reason,
    until: Option<Timestamp>,
    waiting_for: Option<SignalId>,
    now: Timestamp,
) -> Transition {
    let pending = next.state.pending.clone();
    if pending.cancel.is_some() {
        return next.cancel(now).leave_within(0, now);
    }
    let paused = pending.pause.is_some() && !pending.resume;
    let mut next = if paused {
        next.suspend(Some(Reason::Paused), None)
    } else {
        let due = if pending.resume { Some(now) } else { until };
        next.suspend(Some(reason), due)
    };
    if !paused {
        next.state.waiting_for = waiting_for;
    }
    next.record(NewEvent::plain(EventKind::Suspended))
        .leave_within(0, now)
}

fn say(mut next: Transition, word: &Word, our_fault: bool, now: Timestamp) -> Transition {
    let cancelled = next.state.pending.cancel.is_some();
    if let Word::SuspendedUntil {
        checkpoint_id,
        state,
        ..
    } = word
        && !state.is_empty()
    {
        // Saved whatever becomes of the word.
        next.state.checkpoint_id = Some(checkpoint_id.clone());
    }
    let said = match word {
        Word::Acknowledged(SignalKind::Resume) => return next,
        Word::Completed { output } => next.complete(output.clone(), now),
        Word::Failed { .. } if our_fault && !cancelled && next.state.pending.pause.is_some() => {
            next.pause(now)
        }
        // As if it had been killed just before it said so: what waits for it decides.
        Word::Failed { .. } if our_fault && cancelled => next.cancel(now),
        Word::Failed { error } if our_fault => next.interrupt(error, now),
        Word::Failed { error } => next.fail(Reason::ApplicationError, error, now),
        Word::Acknowledged(SignalKind::Cancel) => next.cancel(now),
        Word::Acknowledged(SignalKind::Pause) | Word::Suspended | Word::SuspendedUntil { .. }
            if cancelled =>
        {
            next.cancel(now)
        }
        Word::Acknowledged(SignalKind::Pause) | Word::Suspended => next.pause(now),
        Word::SuspendedUntil { wake_at, .. } => {
            let next = progress(next, None);
            if next.state.pending.pause.is_some() {
                next.pause(now)
            } else {
                next.suspend(Some(Reason::Sleeping), Some(*wake_at))
                    .record(NewEvent::plain(EventKind::Suspended))
            }
        }
    };
    said.leave_within(limits::LEAVE_MS, now)
}
