//! The one function that changes the state of an instance.

use bytes::Bytes;
use serde_json::json;

use crate::{
    Attempts, CheckpointId, EventKind, ExitCause, ExitFacts, Fence, Hold, InstanceState, NewEvent,
    NodeId, Origin, Pending, PendingSignal, Reason, Refusal, RunExit, RunMarks, RunNumber,
    SignalId, SignalKind, Status, TenantId, Timestamp, TokenHash, Verdict, check_fence, judge,
    limits, subtype, tail,
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
        /// How.
        hold: Hold,
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

impl Transition {
    fn of(state: InstanceState) -> Self {
        Self {
            state,
            events: Vec::new(),
            result: ResultChange::Keep,
            stderr: None,
            clear_signals: false,
            confirm_read_signals: false,
            applied: true,
        }
    }

    fn unchanged(state: &InstanceState) -> Self {
        Self {
            applied: false,
            ..Self::of(state.clone())
        }
    }

    fn record(mut self, event: NewEvent) -> Self {
        self.events.push(event);
        self
    }

    fn end(mut self, status: Status, reason: Reason, now: Timestamp) -> Self {
        let state = &mut self.state;
        state.status = status;
        state.reason = Some(reason);
        state.finished_at = Some(now);
        state.due_at = None;
        state.waiting_for = None;
        state.pending = Pending::default();
        state.has_read_signals = false;
        self.clear_signals = true;
        self
    }

    fn suspend(mut self, reason: Option<Reason>, due_at: Option<Timestamp>) -> Self {
        let state = &mut self.state;
        state.status = Status::Suspended;
        state.reason = reason;
        state.due_at = due_at;
        state.waiting_for = None;
        state.pending = Pending::default();
        self
    }

    /// Gives the process of the run, if there is one, this long to leave.
    fn leave_within(mut self, millis: u64, now: Timestamp) -> Self {
        let run = &mut self.state.run;
        run.hold = None;
        if self.state.live_node.is_some() {
            let by = now.plus_millis(millis);
            run.leave_by = Some(run.leave_by.map_or(by, |earlier| earlier.min(by)));
        }
        self
    }

    fn set_result(mut self, output: Option<Bytes>, error: Option<String>) -> Self {
        self.state.has_error = error.is_some();
        self.result = ResultChange::Set { output, error };
        self
    }

    fn complete(self, output: Option<Bytes>, now: Timestamp) -> Self {
        let event = NewEvent::with_payload(EventKind::Completed, output.clone());
        self.end(Status::Completed, Reason::Completed, now)
            .set_result(output, None)
            .record(event)
    }

    fn fail(self, reason: Reason, error: &str, now: Timestamp) -> Self {
        let error = tail(error, limits::ERROR_BYTES);
        let payload = Bytes::from(error.clone().into_bytes());
        let event = NewEvent::with_payload(EventKind::Failed, Some(payload));
        self.end(Status::Failed, reason, now)
            .set_result(None, Some(error))
            .record(event)
    }

    fn cancel(self, now: Timestamp) -> Self {
        let run = self.state.run_number.0;
        self.end(Status::Cancelled, Reason::Cancelled, now)
            .record(NewEvent::by_server(
                subtype::CANCELLED,
                &json!({ "run": run }),
            ))
    }

    /// Suspends at the program's own wish or for a pause, due at once if a resume has already come.
    fn pause(self, now: Timestamp) -> Self {
        let due = self.state.pending.resume.then_some(now);
        let reason = due.is_none().then_some(Reason::Paused);
        self.suspend(reason, due)
            .record(NewEvent::plain(EventKind::Suspended))
    }

    /// Has the instance launched again without counting it as a crash, or ends it if that has happened too often: it may be the program
    /// that brings our process down.
    fn interrupt(mut self, cause: &str, now: Timestamp) -> Self {
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
    fn postpone(mut self, cause: &str, now: Timestamp) -> Self {
        let due = next_attempt(&mut self.state, now);
        self.relaunch_uncounted(cause, due)
    }

    fn relaunch_uncounted(self, cause: &str, due: Timestamp) -> Self {
        let payload = json!({
            "run": self.state.run_number.0,
            "cause": tail(cause, limits::STDERR_BYTES),
            "due_at_ms": due.0,
        });
        self.suspend(Some(Reason::Interrupted), Some(due))
            .record(NewEvent::by_server(subtype::INTERRUPTED, &payload))
    }

    /// Counts a crash and has the instance launched again after a pause, or ends it if that has happened too often.
    fn crash(mut self, exit: &RunExit, now: Timestamp) -> Self {
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
    let due = due && state.origin == Origin::Launched;
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

fn call_of_run(state: &InstanceState, call: &Call, now: Timestamp) -> Result<Transition, Refusal> {
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
            put_back_unslept(&mut next.state, now);
            let until = hold.until.filter(|_| hold.park);
            let slept = until.map_or(0, |until| until.millis_since(now));
            next.state.run.slept_ms = next.state.run.slept_ms.saturating_add(slept);
            next.state.run.hold = Some(hold.clone());
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

fn progress_if(
    mut next: Transition,
    new: bool,
    checkpoint_id: Option<&CheckpointId>,
) -> Transition {
    if new {
        return progress(next, checkpoint_id);
    }
    if let Some(id) = checkpoint_id {
        next.state.checkpoint_id = Some(id.clone());
    }
    next
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

/// Whether the run is in a held call with nothing else to do, so that a signal can act on it at once.
fn is_parked(state: &InstanceState) -> bool {
    state.origin == Origin::Launched && state.run.hold.as_ref().is_some_and(|hold| hold.park)
}

fn cancel(
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

fn pause(
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

fn resume(state: &InstanceState, now: Timestamp) -> Result<Transition, Refusal> {
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

fn stop(
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

fn signal_arrived(
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

fn exited(
    state: &InstanceState,
    run_number: RunNumber,
    exit: &RunExit,
    our_fault: bool,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    if state.run_number != run_number || state.live_node.is_none() {
        return Err(Refusal::RunSuperseded);
    }
    let mut next = Transition::of(state.clone());
    next.state.live_node = None;
    next.state.usage = state.usage.and(exit.usage);
    next.state.exit_code = match exit.cause {
        ExitCause::Code(code) => Some(code),
        _ => None,
    };
    next.stderr = (!exit.stderr.is_empty()).then(|| tail(&exit.stderr, limits::STDERR_BYTES));
    let spoke = state.run.spoke;
    next.state.run.token = None;
    next.state.run.hold = None;
    next.state.run.leave_by = None;
    next.state.run.asked_to_leave = false;
    if state.status != Status::Running {
        return Ok(next);
    }
    let facts = ExitFacts {
        spoke,
        cancel_pending: state.pending.cancel.is_some(),
        pause_pending: state.pending.pause.is_some(),
        our_fault,
        max_attempts_given: state.attempts.max_attempts.is_some(),
    };
    Ok(match judge(exit, &facts) {
        Verdict::Complete => next.complete(exit.output.clone(), now),
        Verdict::Fail(reason) => {
            let error = match reason {
                Reason::Timeout => format!(
                    "timed out: the run took longer than its {} ms; {}",
                    state.timeout_ms,
                    exit.describe()
                ),
                _ => exit.describe(),
            };
            next.fail(reason, &error, now)
        }
        Verdict::Cancel => next.cancel(now),
        Verdict::Pause => next.pause(now),
        Verdict::Crash => next.crash(exit, now),
        Verdict::Interrupt => match exit.cause {
            ExitCause::NotLaunched { .. } => next.postpone(&exit.describe(), now),
            _ => next.interrupt(&exit.describe(), now),
        },
    })
}
