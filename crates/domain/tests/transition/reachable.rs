//! Every state that any order of changes can lead to.

use std::collections::HashSet;

use runtara_domain::{
    Attempts, Due, ImageId, InstanceId, InstanceState, Labels, NewInstance, Origin, RunSettings,
    Status, Timestamp, limits,
};

use crate::changes::{Happening, tenant};
use crate::laws::{broken_law_of_states, step};

pub(crate) fn started(max_attempts: Option<u32>) -> InstanceState {
    let new = NewInstance {
        instance_id: InstanceId::new("i").unwrap(),
        tenant_id: tenant("t"),
        image_id: ImageId::new("image").unwrap(),
        input: bytes::Bytes::new(),
        env: Default::default(),
        args: Vec::new(),
        labels: Labels::default(),
        settings: RunSettings::default(),
        timeout_ms: limits::RUN_TIMEOUT_MS,
        max_attempts,
        max_events: None,
        due: Due::NOW,
        request_timeout_ms: None,
        heartbeat_timeout_ms: Some(10_000),
        expires: None,
        pending_allowed: None,
    };
    InstanceState::started(&new, Timestamp(0))
}

/// The same with an overall deadline.
pub(crate) fn started_to_end_by(at: Timestamp) -> InstanceState {
    InstanceState {
        expires_at: Some(at),
        ..started(None)
    }
}

pub(crate) fn self_registered() -> InstanceState {
    let id = InstanceId::new("i").unwrap();
    InstanceState::self_registered(id, tenant("t"), Timestamp(0))
}

/// Two states that differ in nothing else than this are told apart by no rule.
fn kind_of(state: &InstanceState, now: Timestamp) -> String {
    let run = &state.run;
    let due = state.due_at.map(|due| due <= now);
    let hold = run
        .hold
        .as_ref()
        .map(|hold| (hold.until.is_some(), hold.park));
    let pending = &state.pending;
    let pending = (
        pending.cancel.is_some(),
        pending.pause.is_some(),
        pending.resume,
    );
    let shown = (run.spoke, run.cancel_shown, run.pause_shown, run.stored_new);
    let leaving = (
        state.live_node.is_some(),
        run.leave_by.is_some(),
        run.asked_to_leave,
    );
    let counts = (
        state.attempts.crash_count,
        state.run_number.0 > 0,
        state.has_read_signals,
    );
    let end = (
        state.has_error,
        state.waiting_for.is_some(),
        state.started_at.is_some(),
        state.is_expired(now),
    );
    format!(
        "{:?} {:?} {due:?} {hold:?} {pending:?} {shown:?} {leaving:?} {counts:?} {end:?}",
        state.status, state.reason
    )
}

/// Interruptions have a ceiling of their own, which the random histories reach; here they would make endlessly many states.
fn without_counts(mut state: InstanceState) -> InstanceState {
    state.attempts = Attempts {
        interruptions: 0,
        relaunches: 0,
        ..state.attempts
    };
    state
}

fn walk(start: InstanceState) -> HashSet<String> {
    let mut seen = HashSet::from([kind_of(&start, Timestamp(0))]);
    let mut open = vec![(start, Timestamp(0))];
    while let Some((state, at)) = open.pop() {
        for happening in Happening::ALL {
            for later in [1, 30_000, 100_000] {
                let now = at.plus_millis(later);
                let Ok(next) = step(&state, happening, now) else {
                    continue;
                };
                let next = without_counts(next.state);
                if seen.insert(kind_of(&next, now)) {
                    open.push((next, now));
                }
            }
        }
    }
    seen
}

/// Every status is reached from each beginning, and the laws hold all the way.
#[test]
fn the_laws_hold_in_every_reachable_state() {
    for (start, least) in [
        (started(None), 1_000),
        (started(Some(1)), 500),
        (started_to_end_by(Timestamp(500_000)), 1_000),
        (self_registered(), 50),
    ] {
        // An instance that registers itself is pending for no longer than its registration takes.
        if start.origin == Origin::Launched {
            assert_eq!(broken_law_of_states(&start), None);
        }
        let seen = walk(start.clone());
        for status in Status::ALL {
            let reached = seen
                .iter()
                .any(|kind| kind.starts_with(&format!("{status:?} ")));
            assert!(reached, "{status} is not reached");
        }
        let found = seen.len();
        assert!(found >= least, "only {found} kinds of states were reached");
    }
}
