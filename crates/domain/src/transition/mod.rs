//! The one function that changes the state of an instance.

mod calls;
mod exits;
mod liveness;
mod outcome;
mod relaunch;
mod requests;

use bytes::Bytes;

use self::calls::call_of_run;
use self::exits::exited;
use self::liveness::{expire, lapse, silent};
use self::requests::{cancel, pause, resume, signal_arrived, stop};
use crate::{
    CheckpointId, Fence, Hold, InstanceState, NewEvent, NodeId, Origin, Reason, Refusal, RunExit,
    RunMarks, RunNumber, SignalId, SignalKind, Status, TenantId, Timestamp, TokenHash, check_fence,
};

/// Something that happens to an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A node takes it to give it a run.
    Claim {
        /// The node.
        node: NodeId,
        /// What the new run will show for itself.
        token: TokenHash,
    },
    /// Its run calls.
    Call(Fence, Call),
    /// Somebody asks it to end.
    Cancel {
        /// What is told with it.
        payload: Option<Bytes>,
    },
    /// Somebody asks it to leave and wait.
    Pause {
        /// What is told with it.
        payload: Option<Bytes>,
    },
    /// Somebody lets it go on.
    Resume,
    /// Somebody ends it, with time to leave.
    Stop {
        /// How much time, in milliseconds.
        grace_ms: u64,
        /// Why, in their words.
        reason: String,
    },
    /// A custom signal has come for it.
    SignalArrived {
        /// Its id.
        signal_id: SignalId,
    },
    /// Nothing was heard of a run for long: it is ended if that is longer than its instance allows.
    Silent {
        /// Which run.
        run_number: RunNumber,
        /// For how long the server that minds it has heard nothing of it, in milliseconds: no call of it has begun or ended there, it was not
        /// launched or found again, and no call is open. The run counts as silent for no longer, whatever its row says: of what
        /// was before, that server does not know whether a call could not be answered.
        unheard_ms: u64,
    },
    /// Nothing was heard of an instance that registered itself: it failed if that is longer than the operator allows.
    Lapse {
        /// For how long it may be silent, in milliseconds.
        timeout_ms: u64,
    },
    /// The overall deadline of an instance may be over: then it fails, wherever it stands.
    Expire,
    /// The process of a run is gone.
    Exit {
        /// Which run.
        run_number: RunNumber,
        /// How it ended.
        exit: RunExit,
        /// Whether one of its calls could not be answered through our fault, and none has been answered since.
        our_fault: bool,
    },
}

/// What a run says that changes its instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// It is there.
    Register {
        /// Whose it is.
        tenant_id: TenantId,
        /// The checkpoint it says it goes on from; the store has seen that it exists.
        checkpoint_id: Option<CheckpointId>,
    },
    /// It has saved a checkpoint that did not exist.
    Saved {
        /// The name.
        checkpoint_id: CheckpointId,
    },
    /// It gave a sign of life with any other call that is answered; pending signals are shown to it if `shows_signal`.
    Seen {
        /// Whether the answer shows the pending signal.
        shows_signal: bool,
        /// Whether it was a heartbeat, the first of which is recorded.
        heartbeat: bool,
    },
    /// It waits in a call that is held.
    Hold {
        /// How; `None` if it is held beside the one that is recorded, which stands: see [`crate::is_beside`].
        hold: Option<Hold>,
        /// Whether the wait is a new one, not one that an earlier run had begun.
        new: bool,
        /// The checkpoint that was stored with it.
        checkpoint_id: Option<CheckpointId>,
    },
    /// Its held call is answered.
    EndHold,
    /// It waits for so long that its process is ended.
    Park {
        /// [`Reason::Sleeping`] or [`Reason::WaitingSignal`].
        reason: Reason,
        /// When it is due again; `None` if only the signal makes it so.
        until: Option<Timestamp>,
        /// The signal it waits for.
        waiting_for: Option<SignalId>,
        /// Whether the wait is a new one, not one that an earlier run had begun.
        new: bool,
        /// The checkpoint that was stored with it.
        checkpoint_id: Option<CheckpointId>,
    },
    /// It says its last word.
    Say {
        /// The word.
        word: Word,
        /// Whether one of its calls could not be answered through our fault, and none has been answered since.
        our_fault: bool,
    },
}

/// The last word of a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// It is done, with this output.
    Completed {
        /// JSON text, usually.
        output: Option<Bytes>,
    },
    /// It cannot go on.
    Failed {
        /// Why.
        error: String,
    },
    /// It leaves and wants to be resumed.
    Suspended,
    /// It leaves and wants to be woken.
    SuspendedUntil {
        /// When.
        wake_at: Timestamp,
        /// The checkpoint that is saved with it.
        checkpoint_id: CheckpointId,
        /// What is saved.
        state: Bytes,
    },
    /// It acknowledges a signal.
    Acknowledged(SignalKind),
}

/// What happens to the stored result of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResultChange {
    /// Nothing.
    Keep,
    /// It is removed: the instance goes on.
    Clear,
    /// It is replaced.
    Set {
        /// The output.
        output: Option<Bytes>,
        /// The error text.
        error: Option<String>,
    },
}

/// A change that was decided: the new state, and what is to be recorded in the same atomic step.
#[derive(Debug, Clone, PartialEq)]
pub struct Transition {
    /// The state after the change.
    pub state: InstanceState,
    /// What is appended to the instance's events.
    pub events: Vec<NewEvent>,
    /// What happens to the stored result.
    pub result: ResultChange,
    /// The end of the standard error of the run, if there is one to be kept.
    pub stderr: Option<String>,
    /// Whether custom signals that wait for the instance are removed, because it ended.
    pub clear_signals: bool,
    /// Whether custom signals that the current run has read are removed, because it has saved something new since.
    pub confirm_read_signals: bool,
    /// Whether anything changed: a word that comes late is answered, and changes nothing.
    pub applied: bool,
}

/// Decides what a change does to an instance: the whole table of its life.
///
/// Pure: the same state, change and time give the same answer in every store.
///
/// # Errors
/// [`Refusal`] if the change does not apply. Nothing is to be recorded then.
pub fn transition(
    state: &InstanceState,
    change: &Change,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    let mut decided = decide(state, change, now)?;
    decided.state.count_time_of(state, now);
    Ok(decided)
}

fn decide(state: &InstanceState, change: &Change, now: Timestamp) -> Result<Transition, Refusal> {
    match change {
        Change::Claim { node, token } => claim(state, *node, *token, now),
        Change::Call(fence, call) => {
            check_fence(state, *fence)?;
            call_of_run(state, call, now)
        }
        Change::Cancel { payload } => cancel(state, payload.as_ref(), now),
        Change::Pause { payload } => pause(state, payload.as_ref(), now),
        Change::Resume => resume(state, now),
        Change::Stop { grace_ms, reason } => stop(state, *grace_ms, reason, now),
        Change::SignalArrived { signal_id } => signal_arrived(state, signal_id, now),
        Change::Silent {
            run_number,
            unheard_ms,
        } => silent(state, *run_number, *unheard_ms, now),
        Change::Lapse { timeout_ms } => Ok(lapse(state, *timeout_ms, now)),
        Change::Expire => Ok(expire(state, now)),
        Change::Exit {
            run_number,
            exit,
            our_fault,
        } => exited(state, *run_number, exit, *our_fault, now),
    }
}

fn wrong_state(operation: &'static str, state: &InstanceState) -> Refusal {
    Refusal::WrongState {
        operation,
        status: state.status,
    }
}

fn claim(
    state: &InstanceState,
    node: NodeId,
    token: TokenHash,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    let due = state.due_at.is_some_and(|due| due <= now) && state.live_node.is_none();
    // The process of an instance that registered itself is not ours to launch, whatever it said about its wake.
    let due = due && state.origin == Origin::Launched && !state.is_expired(now);
    if !due || !matches!(state.status, Status::Pending | Status::Suspended) {
        return Err(wrong_state("claim", state));
    }
    let mut next = Transition::of(state.clone());
    next.state.status = Status::Running;
    next.state.reason = None;
    next.state.due_at = None;
    next.state.waiting_for = None;
    next.state.live_node = Some(node);
    next.state.run_number = state.run_number.next();
    next.state.started_at = state.started_at.or(Some(now));
    next.state.run = RunMarks {
        token: Some(token),
        claimed_at: Some(now),
        ..RunMarks::default()
    };
    Ok(next)
}
