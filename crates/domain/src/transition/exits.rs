//! The end of a process.

use super::Transition;
use crate::{
    ExitCause, ExitFacts, InstanceState, Reason, Refusal, RunExit, RunNumber, Status, Timestamp,
    Verdict, judge, limits, tail,
};

pub(super) fn exited(
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
        if state.reason == Some(Reason::HeartbeatTimeout) {
            // That was a crash, and has been counted as one.
            return Ok(next);
        }
        // It could be launched, and left in good order: what comes of the next run has nothing to do with what came before this one.
        next.state.attempts.backoff = 0;
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
                Reason::Timeout if ended_by_expiry(state, exit, now) => {
                    format!("{}; {}", expiry(state), exit.describe())
                }
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
            // The host's doing, which may last.
            ExitCause::NotLaunched { .. } | ExitCause::OutputLost => {
                next.postpone(&exit.describe(), now)
            }
            _ => next.interrupt(&exit.describe(), now),
        },
    })
}

/// Whether a run that was ended for want of time had not used up its own: then it was the time of its instance. Both clocks are asked, for the
/// one by which its deadline was kept is another than that of the store.
fn ended_by_expiry(state: &InstanceState, exit: &RunExit, now: Timestamp) -> bool {
    let has_time = exit.usage.running_ms < state.timeout_ms;
    state.expires_at.is_some() && (has_time || state.is_expired(now))
}

/// Says that the overall deadline was over.
pub(super) fn expiry(state: &InstanceState) -> String {
    let at = state.expires_at.map(|at| format!(", {at},"));
    format!(
        "expired: the overall deadline of the instance{} was over (expires_at of its start)",
        at.unwrap_or_default()
    )
}
