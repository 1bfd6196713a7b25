//! Long random histories.

use proptest::prelude::*;
use runtara_domain::{
    Change, InstanceState, Reason, Refusal, Status, TimeInStates, Timestamp, limits, transition,
};

use crate::changes::Happening;
use crate::laws::step;
use crate::reachable::{self_registered, started, started_to_end_by};

fn histories() -> impl Strategy<Value = Vec<(Happening, u64)>> {
    let happenings = proptest::sample::select(Happening::ALL.to_vec());
    // Claims and registrations come often, or histories would end at once.
    let often = prop_oneof![
        3 => happenings,
        1 => Just(Happening::Claim),
        1 => Just(Happening::Register),
        1 => Just(Happening::ExitLost),
    ];
    let pauses = prop_oneof![0..10_u64, 0..200_000_u64];
    proptest::collection::vec((often, pauses), 1..200)
}

fn play(mut state: InstanceState, history: &[(Happening, u64)]) {
    let mut now = Timestamp(0);
    for (happening, pause) in history {
        now = now.plus_millis(*pause);
        if let Ok(next) = step(&state, *happening, now) {
            state = next.state;
        }
    }
}

/// Plays a history by a clock that may be set back, and counts the time in each status from the outside. The moments at which an
/// instance is looked at make no difference.
fn count(mut state: InstanceState, history: &[(Happening, i64)]) {
    let mut now = Timestamp(0);
    let (mut stood, mut since) = (TimeInStates::default(), now);
    for (happening, pause) in history {
        now = Timestamp(now.0 + pause);
        let Ok(next) = step(&state, *happening, now) else {
            continue;
        };
        if next.state.status != state.status {
            let spent = u64::try_from(now.0 - since.0).unwrap_or(0);
            match state.status {
                Status::Pending => stood.pending_ms += spent,
                Status::Running => stood.running_ms += spent,
                Status::Suspended => stood.suspended_ms += spent,
                Status::Completed | Status::Failed | Status::Cancelled => {}
            }
            since = now;
        }
        state = next.state;
        assert_eq!(state.time_in_states, stood, "after {happening:?} at {now}");
        assert_eq!(state.time_in_states_by(since), stood);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_laws_hold_through_any_history(history in histories(), attempts in proptest::option::of(1..5_u32)) {
        play(started(attempts), &history);
        play(self_registered(), &history);
        play(started_to_end_by(Timestamp(2_000_000)), &history);
    }

    #[test]
    fn time_is_counted_where_it_is_spent(history in histories(), back in 0..100_000_u64) {
        let by_a_bad_clock: Vec<_> = history
            .into_iter()
            .map(|(happening, pause)| (happening, pause.cast_signed() - back.cast_signed() / 2))
            .collect();
        count(started(None), &by_a_bad_clock);
        count(self_registered(), &by_a_bad_clock);
    }
}

/// Of a life whose clock only goes on, no moment is lost and none is counted twice.
#[test]
fn a_whole_life_is_counted() {
    let mut state = started(None);
    for (happening, at) in [
        (Happening::Claim, 7),
        (Happening::Register, 9),
        (Happening::Save, 50),
        (Happening::Sleep, 107),
        (Happening::ExitLost, 110),
        (Happening::Claim, 60_200),
        (Happening::ExitKilled, 60_300),
        (Happening::Pause, 60_400),
        (Happening::Resume, 70_000),
        (Happening::Claim, 70_001),
        (Happening::ExitZero, 70_501),
    ] {
        let next = step(&state, happening, Timestamp(at));
        state = next
            .unwrap_or_else(|refusal| panic!("{happening:?}: {refusal}"))
            .state;
    }
    assert_eq!(state.status, Status::Completed);
    let expected = TimeInStates {
        pending_ms: 7,
        running_ms: 100 + 100 + 500,
        suspended_ms: 60_093 + 9_701,
    };
    assert_eq!(state.time_in_states, expected);
    assert_eq!(state.time_in_states_by(Timestamp(1_000_000)), expected);
}

/// Plays one happening between claims, as often as it is allowed, and says how often it was.
fn until_the_end(of: Happening, speaks: bool) -> (InstanceState, u32) {
    let mut state = started(None);
    let mut now = Timestamp(0);
    for runs in 0..10_000 {
        now = now.plus_millis(120_000);
        if state.status.is_end() {
            return (state, runs);
        }
        for happening in [Happening::Claim, Happening::Register, of] {
            if happening == Happening::Register && !speaks {
                continue;
            }
            let next = step(&state, happening, now);
            state = next
                .unwrap_or_else(|refusal| panic!("{happening:?}: {refusal}"))
                .state;
        }
    }
    panic!("{of:?} goes on for ever");
}

/// A program that always crashes, or always takes the server down with it, comes to its end.
#[test]
fn no_history_relaunches_for_ever() {
    let (crashed, runs) = until_the_end(Happening::ExitOne, true);
    assert_eq!(
        (crashed.status, runs),
        (Status::Failed, limits::MAX_ATTEMPTS)
    );
    let (killed, runs) = until_the_end(Happening::ExitKilled, false);
    assert_eq!(
        (killed.status, runs),
        (Status::Failed, limits::MAX_ATTEMPTS)
    );
    for of in [Happening::ExitLost, Happening::ExitOneByOurFault] {
        let (interrupted, runs) = until_the_end(of, of == Happening::ExitOneByOurFault);
        assert_eq!(interrupted.status, Status::Failed, "{of:?}");
        assert_eq!(runs, limits::INTERRUPTIONS + 1, "{of:?}");
    }
}

/// A host that cannot launch uses up nothing of the instance: it is launched when the host can again, however long that takes, and
/// has then what it had before.
#[test]
fn a_host_that_cannot_launch_is_waited_for() {
    let mut state = started(None);
    let mut now = Timestamp(0);
    let mut recorded = Vec::new();
    for time in 1..=u64::from(limits::RELAUNCHES) + 100 {
        for happening in [Happening::Claim, Happening::NotLaunched] {
            let next = step(&state, happening, now).unwrap();
            recorded.extend(next.events.iter().map(|_| time));
            state = next.state;
        }
        assert_eq!(state.status, Status::Suspended, "time {time}");
        let due = state.due_at.expect("it is launched again");
        let pause = due.millis_since(now);
        let least = ((limits::BACKOFF_MS << time.min(10)) / 2).min(limits::POSTPONED_MAX_MS);
        assert!(
            (least..=limits::POSTPONED_MAX_MS * 5 / 4).contains(&pause),
            "time {time}: a pause of {pause} ms"
        );
        now = due;
    }
    let attempts = &state.attempts;
    assert_eq!(
        (
            attempts.crash_count,
            attempts.interruptions,
            attempts.relaunches
        ),
        (0, 0, 0)
    );
    let expected = [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 32, 64, 128, 256, 512, 1024];
    assert_eq!(recorded, expected, "months of it fill no table");
}

/// What could not be launched for long, and then ran and left in good order, begins with short pauses and with an event again.
#[test]
fn a_run_that_leaves_in_good_order_ends_a_row_of_pauses() {
    let mut state = started(None);
    let mut now = Timestamp(0);
    for _ in 0..20 {
        for happening in [Happening::Claim, Happening::NotLaunched] {
            state = step(&state, happening, now).unwrap().state;
        }
        now = state.due_at.expect("it is launched again");
    }
    for happening in [Happening::Claim, Happening::Sleep, Happening::ExitZero] {
        state = step(&state, happening, now).unwrap().state;
    }
    now = state.due_at.expect("it sleeps");
    state = step(&state, Happening::Claim, now).unwrap().state;
    let next = step(&state, Happening::NotLaunched, now).unwrap();
    assert_eq!(next.events.len(), 1);
    let pause = next.state.due_at.expect("it is launched again");
    let pause = pause.millis_since(now);
    assert!(pause < 2 * limits::BACKOFF_MS, "{pause} ms");
}

/// Progress in each run lets a program crash again and again, up to the ceiling of all relaunches.
#[test]
fn progress_lasts_up_to_the_ceiling_of_relaunches() {
    let mut state = started(None);
    let mut now = Timestamp(0);
    for relaunch in 1..=limits::RELAUNCHES {
        now = now.plus_millis(120_000);
        for happening in [Happening::Claim, Happening::Save, Happening::ExitOne] {
            state = step(&state, happening, now).unwrap().state;
        }
        assert_eq!(state.status, Status::Suspended, "relaunch {relaunch}");
    }
    now = now.plus_millis(120_000);
    for happening in [Happening::Claim, Happening::Save, Happening::ExitOne] {
        state = step(&state, happening, now).unwrap().state;
    }
    assert_eq!(state.status, Status::Failed);
}

/// The pause before a relaunch doubles from a second to a minute, each with up to a quarter more, and begins anew after a long run. How long it
/// took to make a run ready is nothing of it.
#[test]
fn pauses_double_up_to_a_minute() {
    let mut state = started(Some(100));
    let mut now = Timestamp(0);
    let mut pauses = Vec::new();
    let quick = (0, 1);
    for (ready_ms, running_ms) in [
        quick,
        quick,
        quick,
        quick,
        (70_000, 1),
        quick,
        quick,
        quick,
        (0, 70_000),
        quick,
    ] {
        state = step(&state, Happening::Claim, now).unwrap().state;
        now = now.plus_millis(ready_ms);
        state = step(&state, Happening::Register, now).unwrap().state;
        now = now.plus_millis(running_ms);
        let mut exit = Happening::ExitOne.change(&state, now);
        let Change::Exit { exit: told, .. } = &mut exit else {
            panic!("{exit:?} is no exit");
        };
        told.usage.running_ms = running_ms;
        state = transition(&state, &exit, now).unwrap().state;
        let due = state.due_at.expect("it is launched again");
        pauses.push(due.millis_since(now));
        now = due;
    }
    let plain = [1, 2, 4, 8, 16, 32, 60, 60, 1, 2].map(|seconds| seconds * 1_000);
    for (n, (found, plain)) in pauses.iter().zip(plain).enumerate() {
        assert!(
            (plain..=plain + plain / 4).contains(found),
            "{n}: {found} beside {plain}"
        );
    }
}

/// A run that lives and is silent is ended as one that crashes: after pauses that double, and at last for good. Its exit, which comes
/// later, counts for nothing more.
#[test]
fn silence_is_a_crash() {
    let mut state = started(None);
    let mut now = Timestamp(0);
    let mut pauses = Vec::new();
    for run in 1..=limits::MAX_ATTEMPTS {
        for happening in [Happening::Claim, Happening::Register] {
            state = step(&state, happening, now).unwrap().state;
        }
        let early = step(&state, Happening::Silence, now.plus_millis(14_999)).unwrap();
        assert!(!early.applied, "a call may not be noted for five seconds");
        now = now.plus_millis(15_000);
        let ended = step(&state, Happening::Silence, now).unwrap();
        let payload: serde_json::Value =
            serde_json::from_slice(ended.events[0].payload.as_ref().unwrap_or(&"{}".into()))
                .unwrap_or_default();
        state = ended.state;
        assert_eq!(state.reason, Some(Reason::HeartbeatTimeout), "run {run}");
        assert_eq!(state.run.leave_by, Some(now), "its process is ended");
        if let Some(due) = state.due_at {
            assert_eq!(payload["silent_ms"], 15_000, "{payload}");
            pauses.push(due.millis_since(now) / limits::BACKOFF_MS);
        }
        state = step(&state, Happening::ExitKilled, now).unwrap().state;
        now = state.due_at.unwrap_or(now);
    }
    assert_eq!(state.status, Status::Failed);
    assert_eq!(pauses, [1, 2]);
}

/// An instance whose overall deadline is over is neither launched nor resumed any more.
#[test]
fn who_has_expired_does_not_come_back() {
    let deadline = Timestamp(60_000);
    let pending = started_to_end_by(deadline);
    assert!(step(&pending, Happening::Claim, deadline).is_err());
    let expired = step(&pending, Happening::Expire, deadline).unwrap().state;
    assert_eq!(
        (expired.status, expired.reason),
        (Status::Failed, Some(Reason::Timeout))
    );
    assert_eq!(
        step(&expired, Happening::Resume, deadline),
        Err(Refusal::Expired { at: deadline })
    );
    let running = step(&pending, Happening::Claim, Timestamp(1))
        .unwrap()
        .state;
    let cut = step(&running, Happening::ExitTimeout, Timestamp(59_990)).unwrap();
    let runtara_domain::ResultChange::Set { error, .. } = cut.result else {
        panic!("an end has a result");
    };
    let error = error.unwrap_or_default();
    assert!(
        error.starts_with("expired: the overall deadline"),
        "{error}"
    );
}
