//! What the calls of a run do, decided without a store.
//!
//! The functions here are pure: a store loads what they ask for under its own lock, asks, and writes what they answer. So all
//! stores mean the same.

use bytes::Bytes;
use runtara_domain::{
    Call, Caller, Change, CheckpointId, Checkpointed, Hold, InstanceState, Meeting, NewEvent,
    RaisedSignal, Reason, Refusal, RunNumber, SaveCheckpoint, Timestamp, Transition, WaitDecision,
    WaitRecord, Word, check_fence, decide_wait, is_beside, meet, subtype, transition,
};
use serde_json::json;

use crate::{HeldWait, WaitKey, WaitRequest, Waiting};

/// A custom signal that is kept for an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptSignal {
    /// What was sent with it.
    pub payload: Option<Bytes>,
    /// The run that read it last, if one did.
    pub read_by: Option<RunNumber>,
    /// What the call by which that run read it named itself, if it did.
    pub read_request: Option<String>,
}

impl KeptSignal {
    /// Whether a run may take it: not if it did so before. A later run sees it again, because the run that read it may not
    /// have come to save what it did with it.
    #[must_use]
    pub fn is_visible_to(&self, run: RunNumber) -> bool {
        self.read_by.is_none_or(|reader| reader < run)
    }

    /// Whether this very call of a run has read it: the answer to its first try was lost, and with it the signal.
    #[must_use]
    pub fn was_read_by(&self, run: RunNumber, request_id: Option<&str>) -> bool {
        self.read_by == Some(run)
            && request_id.is_some()
            && self.read_request.as_deref() == request_id
    }

    fn is_given_to(&self, run: RunNumber, request_id: Option<&str>) -> bool {
        self.is_visible_to(run) || self.was_read_by(run, request_id)
    }
}

/// The signal that a call of a run is about, of those of one id in the order in which they came: the one that this very call has
/// read before, else the first that is visible to the run.
///
/// Several of one id are kept while the current run has read one of them: another that comes then does not replace what a later
/// run is to see again.
#[must_use]
pub fn signal_for<'a>(
    kept: &'a [KeptSignal],
    run: RunNumber,
    request_id: Option<&str>,
) -> Option<&'a KeptSignal> {
    kept.iter()
        .find(|kept| kept.was_read_by(run, request_id))
        .or_else(|| kept.iter().find(|kept| kept.is_visible_to(run)))
}

/// Applies a call of a run.
///
/// # Errors
/// [`Refusal`] as [`transition`] says.
pub fn call(
    state: &InstanceState,
    caller: &Caller,
    call: Call,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    transition(state, &Change::Call(caller.fence, call), now)
}

/// What a save of a checkpoint does.
#[derive(Debug)]
pub struct SavePlan {
    /// The new state.
    pub transition: Transition,
    /// Whether the state that was sent is to be stored.
    pub store: bool,
    /// Whether the custom signal of the same name is to be noted as read by the current run and this request, after those read
    /// before are confirmed.
    pub take_signal: bool,
    /// What the run is answered.
    pub answer: Checkpointed,
}

/// Decides what a save does, given what is saved under the name (and the request id of whoever saved it) and the custom signal of the
/// same name ([`signal_for`] this request).
///
/// | saved before | state sent | answer | stored | custom signal |
/// |---|---|---|---|---|
/// | yes | any | found, what was saved | nothing | taken |
/// | yes, by this very request | any | not found: it saved | nothing | taken |
/// | no | empty | not found | nothing | left |
/// | no | something | not found | the state | taken |
///
/// # Errors
/// [`Refusal`] if the run may not call any more.
pub fn save_checkpoint(
    state: &InstanceState,
    caller: &Caller,
    request: &SaveCheckpoint,
    saved: Option<(Bytes, Option<String>)>,
    kept: Option<&KeptSignal>,
    now: Timestamp,
) -> Result<SavePlan, Refusal> {
    let store = saved.is_none() && !request.state.is_empty();
    let made = if store {
        Call::Saved {
            checkpoint_id: request.checkpoint_id.clone(),
        }
    } else {
        Call::Seen {
            shows_signal: true,
            heartbeat: false,
        }
    };
    let mut transition = call(state, caller, made, now)?;
    let takes = saved.is_some() || store;
    let repeated = saved
        .as_ref()
        .is_some_and(|(_, by)| by.is_some() && *by == request.request_id);
    let request_id = request.request_id.as_deref();
    let taken = kept
        .filter(|kept| takes && kept.is_given_to(state.run_number, request_id))
        .map(|kept| kept.payload.clone());
    transition.state.has_read_signals |= taken.is_some();
    let found = saved.filter(|_| !repeated).map(|(saved, _)| saved);
    Ok(SavePlan {
        store,
        take_signal: taken.is_some(),
        answer: Checkpointed {
            found,
            signal: visible_signal(&transition.state),
            custom_signal: taken,
        },
        transition,
    })
}

/// The signal that a run in this state is shown.
#[must_use]
pub fn visible_signal(state: &InstanceState) -> Option<RaisedSignal> {
    state
        .pending
        .visible()
        .map(|(kind, payload)| RaisedSignal { kind, payload })
}

/// What taking a custom signal does.
#[derive(Debug)]
pub struct TakePlan {
    /// The new state.
    pub transition: Transition,
    /// The payload, if a signal was taken; it is to be noted as read by the current run and this request.
    pub taken: Option<Option<Bytes>>,
}

/// Decides what taking a custom signal does, given the signal of that id ([`signal_for`] this request).
///
/// # Errors
/// [`Refusal`] if the run may not call any more.
pub fn take_signal(
    state: &InstanceState,
    caller: &Caller,
    kept: Option<&KeptSignal>,
    request_id: Option<&str>,
    now: Timestamp,
) -> Result<TakePlan, Refusal> {
    let seen = Call::Seen {
        shows_signal: false,
        heartbeat: false,
    };
    let mut transition = call(state, caller, seen, now)?;
    let taken = kept
        .filter(|kept| kept.is_given_to(state.run_number, request_id))
        .map(|kept| kept.payload.clone());
    transition.state.has_read_signals |= taken.is_some();
    Ok(TakePlan { transition, taken })
}

/// Decides what a report of a retry does. `known` says whether the same attempt of the same name was reported before: a replay, or
/// a repetition after a lost answer, which is not recorded again.
///
/// # Errors
/// [`Refusal`] if the run may not call any more.
pub fn record_retry(
    state: &InstanceState,
    caller: &Caller,
    checkpoint_id: &CheckpointId,
    attempt: u32,
    error: Option<&str>,
    known: bool,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    let seen = Call::Seen {
        shows_signal: false,
        heartbeat: false,
    };
    let mut transition = call(state, caller, seen, now)?;
    if !known {
        let payload = json!({
            "checkpoint_id": checkpoint_id.as_str(),
            "attempt": attempt,
            "error": error,
        });
        let event = NewEvent::by_server(subtype::RETRY, &payload);
        transition.events.push(event);
    }
    Ok(transition)
}

/// The state that is stored with the last word of a run, if it brings one and is the first: under the name if that is free, else as
/// its newest version, as with a sleep.
#[must_use]
pub fn state_of_word<'a>(
    word: &'a Word,
    transition: &Transition,
) -> Option<(&'a CheckpointId, &'a Bytes)> {
    match word {
        Word::SuspendedUntil {
            checkpoint_id,
            state,
            ..
        } if transition.applied && !state.is_empty() => Some((checkpoint_id, state)),
        _ => None,
    }
}

/// What becomes of the records of waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordChange {
    /// Nothing.
    None,
    /// This one is added.
    Insert(WaitRecord),
    /// The one of this number is noted as met by the current run, with this request id.
    Met {
        /// Its number.
        n: u32,
        /// What the call named itself.
        request_id: Option<String>,
    },
}

/// What a wait does.
#[derive(Debug)]
pub struct WaitPlan {
    /// The new state.
    pub transition: Transition,
    /// What becomes of the records.
    pub record: RecordChange,
    /// The state to be stored as the newest version of this checkpoint.
    pub store: Option<(CheckpointId, Bytes)>,
    /// Whether the custom signal that was waited for is to be noted as read by the current run and the request of the wait.
    pub take_signal: bool,
    /// How the wait stands.
    pub answer: Waiting,
}

/// Decides what a wait does, given the records of its key in the order of their numbers, and the custom signal that it waits for
/// ([`signal_for`] this request).
///
/// # Errors
/// [`Refusal`] if the run may not call any more.
pub fn wait(
    state: &InstanceState,
    caller: &Caller,
    request: &WaitRequest,
    records: &[WaitRecord],
    kept: Option<&KeptSignal>,
    now: Timestamp,
) -> Result<WaitPlan, Refusal> {
    check_fence(state, caller.fence)?;
    let wait = &request.call;
    let run = state.run_number;
    let meeting = meet(records, run, state.run.stored_new, wait, now);
    let (n, until, record, new) = match meeting {
        Meeting::Existing(n) => {
            let until = records
                .iter()
                .find(|record| record.n == n)
                .and_then(|record| record.until);
            let request_id = wait.request_id.clone();
            (n, until, RecordChange::Met { n, request_id }, false)
        }
        Meeting::New(n) => {
            let until = wait.duration_ms.map(|ms| now.plus_millis(ms));
            let record = WaitRecord {
                kind: wait.kind,
                n,
                until,
                state_hash: wait.state_hash,
                met_by: run,
                request_id: wait.request_id.clone(),
            };
            (n, until, RecordChange::Insert(record), true)
        }
    };
    // Without a state nothing is saved, and so there is no checkpoint that the instance could go on from.
    let checkpoint_id = match &request.key {
        WaitKey::Sleep(Some(id)) if !request.state.is_empty() => Some(id.clone()),
        _ => None,
    };
    // A wait for a signal is not something that the program would see differently on replay: only sleeps are progress.
    let progress = new && matches!(request.key, WaitKey::Sleep(_));
    let held = HeldWait {
        key: request.key.clone(),
        n,
        remaining_ms: until.map(|until| until.millis_since(now)),
    };
    let view = View {
        until,
        park: wait.park,
        busy: !wait.park,
        beside: is_beside(state.run.hold.as_ref(), records, run, wait, now),
        hold_ms: request.hold_ms,
        new: progress,
        checkpoint_id: checkpoint_id.clone(),
    };
    let kept = kept.filter(|kept| kept.is_given_to(run, wait.request_id.as_deref()));
    let (transition, take_signal, answer) = stand(state, caller, held, &view, kept, now)?;
    let store = checkpoint_id
        .filter(|_| new)
        .map(|id| (id, request.state.clone()));
    Ok(WaitPlan {
        transition,
        record,
        store,
        take_signal,
        answer,
    })
}

/// Decides how a held call stands now, given its record and the custom signal that it waits for ([`signal_for`] the request of the
/// record). With `park_now`, what would be held on becomes far, if the run has nothing else to do.
///
/// # Errors
/// [`Refusal`] if the run may not call any more.
pub fn continue_wait(
    state: &InstanceState,
    caller: &Caller,
    held: &HeldWait,
    record: Option<&WaitRecord>,
    kept: Option<&KeptSignal>,
    park_now: bool,
    now: Timestamp,
) -> Result<WaitPlan, Refusal> {
    check_fence(state, caller.fence)?;
    let until = record.and_then(|record| record.until);
    // The hold of another call says nothing about this one.
    let recorded = state.run.hold.as_ref();
    let park = recorded.is_some_and(|hold| hold.park && hold.until == until);
    let view = View {
        until,
        park: park && park_now,
        busy: !park,
        beside: false,
        hold_ms: if park_now { 0 } else { u64::MAX },
        new: false,
        checkpoint_id: None,
    };
    let held = HeldWait {
        remaining_ms: until.map(|until| until.millis_since(now)),
        ..held.clone()
    };
    let request_id = record.and_then(|record| record.request_id.as_deref());
    let kept = kept.filter(|kept| kept.is_given_to(state.run_number, request_id));
    let (mut transition, take_signal, answer) = stand(state, caller, held, &view, kept, now)?;
    if matches!(answer, Waiting::Held(_)) {
        // The hold that is recorded stands as it is.
        transition.state = state.clone();
        transition.applied = false;
    }
    Ok(WaitPlan {
        transition,
        record: RecordChange::None,
        store: None,
        take_signal,
        answer,
    })
}

struct View {
    until: Option<Timestamp>,
    park: bool,
    /// Whether the program has other things to do meanwhile, so that it can be let go to see a signal.
    busy: bool,
    /// Whether the hold that is recorded stands: see [`is_beside`].
    beside: bool,
    hold_ms: u64,
    new: bool,
    checkpoint_id: Option<CheckpointId>,
}

fn stand(
    state: &InstanceState,
    caller: &Caller,
    held: HeldWait,
    view: &View,
    kept: Option<&KeptSignal>,
    now: Timestamp,
) -> Result<(Transition, bool, Waiting), Refusal> {
    let is_signal = matches!(held.key, WaitKey::Signal(_));
    let taken = kept.filter(|_| is_signal).map(|kept| kept.payload.clone());
    let elapsed = view.until.is_some_and(|until| until <= now);
    // A run that is busy elsewhere is let go to see the signal that waits for it. One that has nothing else to do would take that for
    // the end of its wait: it is ended, or, where its process is not ours to end, held to the end.
    let called_away = view.busy && state.pending.visible().is_some();
    if taken.is_some() || elapsed || called_away {
        let mut transition = if view.new {
            let hold = Hold {
                until: Some(now),
                park: view.park,
            };
            let begun = Call::Hold {
                hold: Some(hold),
                new: true,
                checkpoint_id: view.checkpoint_id.clone(),
            };
            let begun = call(state, caller, begun, now)?;
            let confirm = begun.confirm_read_signals;
            let mut ended = call(&begun.state, caller, Call::EndHold, now)?;
            ended.confirm_read_signals = confirm;
            ended
        } else {
            call(state, caller, Call::EndHold, now)?
        };
        let take_signal = taken.is_some();
        transition.state.has_read_signals |= take_signal;
        let answer = Waiting::Over {
            signal: taken,
            elapsed: elapsed && !take_signal,
        };
        return Ok((transition, take_signal, answer));
    }
    // A signal that waits for a parked run acts on it at once, however near the end of its wait is.
    let acts_at_once = view.park && state.pending.visible().is_some();
    let hold_ms = if acts_at_once { 0 } else { view.hold_ms };
    match decide_wait(state, view.until, view.park, hold_ms, now) {
        WaitDecision::Over | WaitDecision::Hold { .. } => {
            let hold = Hold {
                until: view.until,
                park: view.park,
            };
            let begun = Call::Hold {
                hold: Some(hold).filter(|_| !view.beside),
                new: view.new,
                checkpoint_id: view.checkpoint_id.clone(),
            };
            Ok((call(state, caller, begun, now)?, false, Waiting::Held(held)))
        }
        WaitDecision::Far { until } => {
            let (reason, waiting_for) = match held.key {
                WaitKey::Sleep(_) => (Reason::Sleeping, None),
                WaitKey::Signal(id) => (Reason::WaitingSignal, Some(id)),
            };
            let parked = Call::Park {
                reason,
                until,
                waiting_for,
                new: view.new,
                checkpoint_id: view.checkpoint_id.clone(),
            };
            Ok((call(state, caller, parked, now)?, false, Waiting::Parked))
        }
    }
}
