//! What holds of every state, and of every step from one to the next.

use runtara_domain::{
    Change, EventKind, InstanceState, Origin, Pending, Reason, Refusal, ResultChange, RunNumber,
    Status, Timestamp, Transition, transition,
};

use crate::changes::Happening;

/// Applies a happening and holds the laws. What a later step begins with comes back; a refusal changes nothing.
pub(crate) fn step(
    before: &InstanceState,
    happening: Happening,
    now: Timestamp,
) -> Result<Transition, Refusal> {
    let change = happening.change(before, now);
    let mut decided = transition(before, &change, now);
    assert_eq!(
        decided,
        transition(before, &change, now),
        "the same again is the same"
    );
    if let Ok(next) = &mut decided {
        if happening == Happening::ReadSignal && next.state.status == Status::Running {
            // As the plan of a call does that is given a signal.
            next.state.has_read_signals = true;
        }
        let what = || format!("{happening:?} at {now} of {before:#?}\ngave {next:#?}");
        if let Some(broken) = broken_law_of_states(&next.state) {
            panic!("{broken}: {}", what());
        }
        if let Some(broken) = broken_law_of_steps(before, happening, &change, next, now) {
            panic!("{broken}: {}", what());
        }
    }
    decided
}

macro_rules! laws {
    ($($law:literal: $holds:expr;)+) => {
        $(if !$holds { return Some($law); })+
    };
}

fn implies(premise: bool, conclusion: bool) -> bool {
    !premise || conclusion
}

pub(crate) fn broken_law_of_states(state: &InstanceState) -> Option<&'static str> {
    use Status as S;
    let (status, run) = (state.status, &state.run);
    let launched = state.origin == Origin::Launched;
    let live = state.live_node.is_some();
    laws! {
        "an end has a time, and nothing else has": status.is_end() == state.finished_at.is_some();
        "a due time is of who is pending or suspended":
            implies(state.due_at.is_some(), matches!(status, S::Pending | S::Suspended));
        "only what we launch has a process of ours": implies(live, launched);
        "a token lives as long as its process": run.token.is_some() == live;
        "who runs and was launched has a process": implies(launched && status == S::Running, live);
        "signals wait for who runs only":
            implies(status != S::Running, state.pending == Pending::default());
        "a call is held for who runs only": implies(run.hold.is_some(), status == S::Running);
        "what runs waits for nothing":
            implies(status == S::Running, state.reason.is_none() && state.waiting_for.is_none());
        "a process that may not stay is given a time":
            implies(live && status != S::Running, run.leave_by.is_some());
        "who is asked to leave is there": implies(run.asked_to_leave, live);
        "who must leave is there": implies(run.leave_by.is_some(), live);
        "who has a signal to wait for waits for it": implies(
            state.waiting_for.is_some(),
            status == S::Suspended && state.reason == Some(Reason::WaitingSignal)
        );
        "nobody waits for ever for nobody": implies(
            status == S::Suspended && state.due_at.is_none(),
            state.reason == Some(Reason::Paused) || state.waiting_for.is_some()
        );
        "who was never claimed has not begun":
            implies(state.run_number == RunNumber(0), state.started_at.is_none());
        "pending is who never ran": implies(status == S::Pending, state.run_number == RunNumber(0));
        "an error is of who failed": state.has_error == (status == S::Failed);
        "signals are read by who goes on": implies(state.has_read_signals, !status.is_end());
        "the reason fits the status": fits(status, state.reason, state.due_at.is_some());
        "crashes are below what is allowed, but at the end":
            implies(!status.is_end(), state.attempts.crash_count < state.attempts.allowed());
    }
    None
}

fn fits(status: Status, reason: Option<Reason>, due: bool) -> bool {
    use Reason as R;
    match (status, reason) {
        (Status::Pending | Status::Running, reason) => reason.is_none(),
        (Status::Suspended, None) => due,
        (
            Status::Suspended,
            Some(R::Sleeping | R::Crashed | R::Interrupted | R::HeartbeatTimeout),
        ) => due,
        (Status::Suspended, Some(R::Paused | R::WaitingSignal)) => true,
        (Status::Completed, Some(R::Completed)) | (Status::Cancelled, Some(R::Cancelled)) => true,
        (
            Status::Failed,
            Some(R::ApplicationError | R::Timeout | R::Crashed | R::HeartbeatTimeout),
        ) => true,
        _ => false,
    }
}

fn broken_law_of_steps(
    before: &InstanceState,
    happening: Happening,
    change: &Change,
    next: &Transition,
    now: Timestamp,
) -> Option<&'static str> {
    use Happening as H;
    let after = &next.state;
    let (was_end, is_end) = (before.status.is_end(), after.status.is_end());
    let registers = happening == H::Register && before.origin == Origin::SelfRegistered;
    let begins = happening == H::Claim || registers;
    let left = before.status == Status::Running && after.status != Status::Running;
    let launched = before.origin == Origin::Launched;
    let is_call = matches!(change, Change::Call(..));
    let interrupted = left && after.reason == Some(Reason::Interrupted);
    // It may go on so for months.
    let again_not_launched = happening == H::NotLaunched && after.attempts.backoff > 9;
    laws! {
        "an end is left by a resume only":
            implies(was_end && !is_end, happening == H::Resume);
        "what completed stays so":
            implies(before.status == Status::Completed, after.status == Status::Completed);
        "an end does not become another": implies(was_end && is_end, before.status == after.status);
        "a process is gone by its exit only": implies(
            before.live_node.is_some() && after.live_node.is_none(), happening.is_exit()
        );
        "an exit is the end of a process": implies(happening.is_exit(), after.live_node.is_none());
        "a process begins by a claim only": implies(
            before.live_node.is_none() && after.live_node.is_some(), happening == H::Claim
        );
        "runs are counted one by one": after.run_number == if begins {
            before.run_number.next()
        } else {
            before.run_number
        };
        "who it is does not change": same_identity(before, after);
        "the first run begins once":
            implies(before.started_at.is_some(), after.started_at == before.started_at);
        "use is summed at exits": implies(!happening.is_exit(), after.usage == before.usage);
        "who stays where it is has its time run on": implies(
            before.status == after.status,
            (after.status_since, after.time_in_states)
                == (before.status_since, before.time_in_states)
        );
        "who goes has its time counted": implies(
            before.status != after.status,
            after.status_since == now && counted(before, after) == standing(before, now)
        );
        "what is not applied changes nothing": implies(!next.applied, is_nothing(before, next));
        "signals are removed at the end, and then only":
            next.clear_signals == (!was_end && is_end);
        "signals are confirmed by what read them":
            implies(next.confirm_read_signals, before.has_read_signals && is_call);
        "a result is of who ends, and is taken from who goes on": match &next.result {
            ResultChange::Keep => was_end == is_end || after.status == Status::Cancelled,
            ResultChange::Clear => was_end && !is_end,
            ResultChange::Set { error, .. } => interrupted
                || (!was_end && is_end && error.is_some() == (after.status == Status::Failed)),
        };
        "who is interrupted is told why": implies(
            interrupted,
            matches!(&next.result, ResultChange::Set { output: None, error: Some(_) })
        );
        "an error is shown to who failed or waits for a relaunch that is nobody's fault":
            after.shows_error() == (after.status == Status::Failed
                || after.status == Status::Suspended && after.reason == Some(Reason::Interrupted));
        "who stops running has it recorded":
            implies(left, !next.events.is_empty() || again_not_launched);
        "an end has its event": implies(!was_end && is_end, next.events.iter().any(is_ending));
        "a call of who does not run changes nothing but by a registration": implies(
            is_call && before.status != Status::Running && happening != H::Register, !next.applied
        );
        "a run that ends its own work has little time to leave": implies(
            is_call && left && before.live_node.is_some(), after.run.leave_by.is_some()
        );
        "what has not been heard of for less than it may be silent goes on":
            implies(happening == H::SilenceUnheard, !next.applied);
        "who is over his deadline is not launched": implies(
            happening == H::Claim, before.expires_at.is_none_or(|at| at > now)
        );
        "who is over his deadline ends": implies(
            happening == H::Expire && before.expires_at.is_some_and(|at| at <= now), is_end
        );
        "who is not, or has ended, is left alone by it": implies(
            happening == H::Expire && (was_end || before.expires_at.is_none_or(|at| at > now)), !next.applied
        );
        "only what registered itself lapses": implies(happening == H::Lapse && launched, !next.applied);
        "progress forgets crashes": implies(
            after.run.stored_new && !before.run.stored_new, after.attempts.crash_count == 0
        );
        "crashes are forgotten by progress or a resume": implies(
            after.attempts.crash_count < before.attempts.crash_count,
            is_call || happening == H::Resume
        );
    }
    None
}

/// What a step has added to the time in each status: pending, running, suspended.
fn counted(before: &InstanceState, after: &InstanceState) -> [Option<u64>; 3] {
    let (before, after) = (before.time_in_states, after.time_in_states);
    [
        after.pending_ms.checked_sub(before.pending_ms),
        after.running_ms.checked_sub(before.running_ms),
        after.suspended_ms.checked_sub(before.suspended_ms),
    ]
}

/// How long an instance has stood where it stands, in the place of its status: nowhere once it has ended, and for no time if the clock
/// was set back.
fn standing(state: &InstanceState, now: Timestamp) -> [Option<u64>; 3] {
    let stood = u64::try_from(now.0 - state.status_since.0).unwrap_or(0);
    [Status::Pending, Status::Running, Status::Suspended]
        .map(|status| Some(if state.status == status { stood } else { 0 }))
}

fn same_identity(before: &InstanceState, after: &InstanceState) -> bool {
    before.instance_id == after.instance_id
        && before.tenant_id == after.tenant_id
        && before.image_id == after.image_id
        && before.origin == after.origin
        && before.created_at == after.created_at
        && before.timeout_ms == after.timeout_ms
        && before.request_timeout_ms == after.request_timeout_ms
        && before.heartbeat_timeout_ms == after.heartbeat_timeout_ms
        && before.expires_at == after.expires_at
        && before.attempts.max_attempts == after.attempts.max_attempts
}

fn is_nothing(before: &InstanceState, next: &Transition) -> bool {
    next.state == *before
        && next.events.is_empty()
        && next.result == ResultChange::Keep
        && next.stderr.is_none()
        && !next.clear_signals
        && !next.confirm_read_signals
}

fn is_ending(event: &runtara_domain::NewEvent) -> bool {
    matches!(event.kind, EventKind::Completed | EventKind::Failed)
        || event.subtype.as_deref() == Some(runtara_domain::subtype::CANCELLED)
}
