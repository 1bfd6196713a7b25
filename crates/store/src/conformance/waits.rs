//! Durable sleeps and waits for signals: held when near, parked when far, and met again by a run that replays.

use bytes::Bytes;
use runtara_domain::{Reason, RunExit, SignalKind, Status, Word};

use super::Harness;
use super::make::{checkpoint, exit_code, refusal, signal, sleep, wait_for};
use super::world::{Run, World};
use crate::{HeldWait, WaitRequest, Waiting};

fn over() -> Waiting {
    Waiting::Over {
        signal: None,
        elapsed: true,
    }
}

fn called_away() -> Waiting {
    Waiting::Over {
        signal: None,
        elapsed: false,
    }
}

fn given(payload: &'static [u8]) -> Waiting {
    Waiting::Over {
        signal: Some(Some(Bytes::from_static(payload))),
        elapsed: false,
    }
}

fn held(answer: Waiting) -> HeldWait {
    match answer {
        Waiting::Held(held) => held,
        other => panic!("not held: {other:?}"),
    }
}

fn busy(request: WaitRequest) -> WaitRequest {
    let mut request = request;
    request.call.park = false;
    request
}

fn named(request: WaitRequest, request_id: &str) -> WaitRequest {
    let mut request = request;
    request.call.request_id = Some(request_id.to_owned());
    request.call.named = true;
    request
}

async fn next<'w>(world: &'w World<'w>, run: &Run<'w>) -> Run<'w> {
    run.exit(RunExit::lost()).await;
    world.claim_only(run.id()).await
}

/// A near sleep is held until its time, which does not count as running time.
pub async fn a_near_sleep_is_held(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let held = held(run.wait(sleep(Some("nap"), 4_000, b"s")).await);
    assert_eq!((held.n, held.remaining_ms), (1, Some(4_000)));
    let live = world.store.live_run(run.id()).await.unwrap().unwrap();
    assert_eq!(live.slept_ms, 4_000);
    world.advance(1_500).await;
    let Waiting::Held(again) = run.go_on(&held, false).await else {
        panic!("it is not over");
    };
    assert_eq!(again.remaining_ms, Some(2_500));
    world.advance(2_500).await;
    assert_eq!(run.go_on(&again, false).await, over());
    let state = world.state(run.id()).await;
    assert_eq!((state.status, state.run.hold), (Status::Running, None));
    assert_eq!(state.checkpoint_id, Some(checkpoint("nap")));
    assert_eq!(world.saved(run.id()).await, [("nap".to_owned(), 1)]);
}

/// A far sleep frees its process at once; the run after it is answered at once.
pub async fn a_far_sleep_frees_its_process(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    assert_eq!(
        run.wait(sleep(Some("nap"), 60_000, b"s")).await,
        Waiting::Parked
    );
    let state = world.state(run.id()).await;
    assert_eq!(
        (state.status, state.reason),
        (Status::Suspended, Some(Reason::Sleeping))
    );
    assert_eq!(state.due_at, Some(world.now().plus_millis(60_000)));
    let live = world.store.live_run(run.id()).await.unwrap().unwrap();
    assert_eq!(live.leave_in_ms, Some(0));
    run.exit(RunExit::lost()).await;
    world.advance(60_000).await;
    let run = world.claim_only(run.id()).await;
    assert_eq!(run.wait(sleep(Some("nap"), 60_000, b"s")).await, over());
    assert_eq!(world.saved(run.id()).await.len(), 1);
    let history = world.history(run.id()).await;
    assert_eq!(history, ["suspended"]);
}

/// A run that comes early meets its sleep with what is left of it.
pub async fn an_early_run_owes_the_remainder(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.wait(sleep(Some("nap"), 60_000, b"s")).await;
    world.resume(run.id()).await;
    run.exit(RunExit::lost()).await;
    world.advance(55_000).await;
    let run = world.claim_only(run.id()).await;
    let held = held(run.wait(sleep(Some("nap"), 60_000, b"s")).await);
    assert_eq!((held.n, held.remaining_ms), (1, Some(5_000)));
    let run = next(&world, &run).await;
    world.advance(5_000).await;
    assert_eq!(run.wait(sleep(Some("nap"), 60_000, b"s")).await, over());
}

/// A loop that sleeps again and again under one name sleeps each time, and its replay sleeps none of them again.
pub async fn a_loop_under_one_name_replays(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut run = world.launch("order-1").await;
    for done in 0..4 {
        for _ in 0..done {
            assert_eq!(run.wait(sleep(Some("nap"), 60_000, b"s")).await, over());
        }
        assert_eq!(
            run.wait(sleep(Some("nap"), 60_000, b"s")).await,
            Waiting::Parked
        );
        assert_eq!(world.saved(run.id()).await.len(), done + 1);
        run.exit(RunExit::lost()).await;
        world.advance(60_000).await;
        run = world.claim_only(&run.id().clone()).await;
    }
}

/// Another state under the same name is another sleep, and so is any sleep after something new was stored.
pub async fn a_new_state_or_progress_is_a_new_sleep(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.wait(sleep(Some("nap"), 1_000, b"s")).await;
    world.advance(1_000).await;
    let run = next(&world, &run).await;
    let other = held(run.wait(sleep(Some("nap"), 1_000, b"other")).await);
    assert_eq!(other.n, 2);
    let run = next(&world, &run).await;
    run.save("step", b"new").await;
    let after = held(run.wait(sleep(Some("nap"), 1_000, b"s")).await);
    assert_eq!(after.n, 3);
    let sizes: Vec<_> = world
        .saved(run.id())
        .await
        .into_iter()
        .map(|row| row.1)
        .collect();
    assert_eq!(sizes, [1, 5, 3, 1]);
    assert_eq!(
        world.state_saved(run.id(), "nap").await.as_deref(),
        Some(&b"s"[..])
    );
}

/// The repetition of a call is the same sleep, within its run.
pub async fn a_repeated_call_is_the_same_sleep(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let request = || named(sleep(Some("nap"), 5_000, b"s"), "r-1");
    held(run.wait(request()).await);
    world.advance(1_000).await;
    let again = held(run.wait(request()).await);
    assert_eq!((again.n, again.remaining_ms), (1, Some(4_000)));
    let other = held(
        run.wait(named(sleep(Some("nap"), 5_000, b"s"), "r-2"))
            .await,
    );
    assert_eq!(other.n, 2);
    assert_eq!(world.saved(run.id()).await.len(), 2);
    world.advance(9_000).await;
    assert_eq!(run.wait(request()).await, over());
}

/// A sleep that was never answered and is called again without a name is the same sleep, whatever was stored since; its end is
/// that of the first call.
pub async fn a_sleep_that_is_not_over_is_the_same_sleep(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.self_registered("outside").await;
    let nap = || sleep(Some("nap"), 40_000, b"s");
    held(run.wait(nap()).await);
    world.advance(30_000).await;
    run.save("step", b"new").await;
    held(run.wait(sleep(Some("other"), 1_000, b"s")).await);
    let again = held(run.wait(nap()).await);
    assert_eq!((again.n, again.remaining_ms), (1, Some(10_000)));
    let live = world.state(run.id()).await;
    assert_eq!(live.run.slept_ms, 40_000, "no more than one sleep of it");
    let shorter = held(run.wait(sleep(Some("nap"), 9_999, b"s")).await);
    assert_eq!(shorter.n, 2, "it asks for less than is left");
    world.advance(10_000).await;
    assert_eq!(run.go_on(&again, false).await, over());
    assert_eq!(held(run.wait(nap()).await).n, 3, "the next of a loop");
}

/// A replay that stores something new in the middle of its first sleeps still means the one that it met last.
pub async fn a_replayed_sleep_that_is_not_over_is_the_same_sleep(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let nap = || sleep(Some("nap"), 9_000, b"s");
    let run = world.launch("order-1").await;
    for n in 1..=3 {
        let call = named(nap(), &format!("r-{n}"));
        assert_eq!(held(run.wait(call).await).n, n);
    }
    world.advance(2_000).await;
    let run = next(&world, &run).await;
    assert_eq!(held(run.wait(nap()).await).n, 1);
    run.save("step", b"new").await;
    world.advance(3_000).await;
    let again = held(run.wait(nap()).await);
    assert_eq!((again.n, again.remaining_ms), (1, Some(4_000)));
    world.advance(4_000).await;
    assert_eq!(run.go_on(&again, false).await, over());
    assert_eq!(held(run.wait(nap()).await).n, 4);
}

/// A sleep that is met again stores nothing, so the last checkpoint is still the one that was stored last.
pub async fn a_sleep_that_is_met_again_is_not_the_last_checkpoint(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let near = || sleep(Some("near"), 9_000, b"s");
    let far = || sleep(Some("far"), 3_600_000, b"s");
    let run = world.launch("order-1").await;
    held(run.wait(near()).await);
    held(run.wait(busy(far())).await);
    run.save("step", b"new").await;
    let run = next(&world, &run).await;
    held(run.wait(near()).await);
    let state = world.state(run.id()).await;
    assert_eq!(state.checkpoint_id, Some(checkpoint("step")), "held");
    assert_eq!(run.wait(far()).await, Waiting::Parked);
    let state = world.state(run.id()).await;
    assert_eq!(state.checkpoint_id, Some(checkpoint("step")), "parked");
}

/// A busy run that was called away from its sleep to see a signal still owes the remainder.
pub async fn a_sleeper_that_was_called_away_owes_the_remainder(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let nap = || busy(sleep(Some("nap"), 3_600_000, b"s"));
    let wait = held(run.wait(nap()).await);
    run.save("step", b"new").await;
    world.advance(600_000).await;
    world.pause(run.id()).await;
    assert_eq!(run.go_on(&wait, false).await, called_away());
    assert_eq!(run.wait(nap()).await, called_away());
    world.resume(run.id()).await;
    let again = held(run.wait(nap()).await);
    assert_eq!((again.n, again.remaining_ms), (1, Some(3_000_000)));
    assert_eq!(world.saved(run.id()).await.len(), 2, "no second sleep");
}

/// Sleeps without a name are counted among themselves, and save nothing.
pub async fn a_sleep_needs_no_name(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    assert_eq!(held(run.wait(sleep(None, 1_000, b"s")).await).n, 1);
    assert_eq!(held(run.wait(sleep(Some("nap"), 1_000, b"")).await).n, 1);
    assert_eq!(held(run.wait(sleep(None, 1_000, b"s")).await).n, 2);
    assert!(world.saved(run.id()).await.is_empty());
    let state = world.state(run.id()).await;
    assert_eq!(state.checkpoint_id, None, "there is none to go on from");
    assert!(state.run.stored_new);
}

/// A run with other work keeps its process, however long it sleeps.
pub async fn a_busy_run_is_held(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let wait = held(run.wait(busy(sleep(Some("nap"), 3_600_000, b"s"))).await);
    assert_eq!(wait.remaining_ms, Some(3_600_000));
    let live = world.store.live_run(run.id()).await.unwrap().unwrap();
    assert_eq!(live.slept_ms, 0, "it is at work meanwhile");
    let Waiting::Held(_) = run.go_on(&wait, true).await else {
        panic!("a busy run is not parked");
    };
    world.pause(run.id()).await;
    assert_eq!(run.go_on(&wait, false).await, called_away());
    assert_eq!(world.state(run.id()).await.status, Status::Running);
}

/// Of branches that all wait, one says that there is nothing else to do. In whatever order they say so, that one counts: it is taken
/// off the running time, and its end is that of the run's rest.
pub async fn the_branch_that_may_park_decides(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for (id, busy_first) in [("a", true), ("b", false)] {
        let run = world.launch(id).await;
        let long = || named(busy(sleep(Some("long"), 3_600_000, b"l")), "r-1");
        let short = || named(sleep(Some("short"), 8_000, b"s"), "r-2");
        let (long, short) = if busy_first {
            let long = held(run.wait(long()).await);
            (long, held(run.wait(short()).await))
        } else {
            let short = held(run.wait(short()).await);
            (held(run.wait(long()).await), short)
        };
        assert_eq!(world.state(run.id()).await.run.slept_ms, 8_000, "{id}");
        let due = world.now().plus_millis(8_000);
        assert_eq!(held(run.go_on(&long, true).await).n, 1, "it is not parked");
        assert_eq!(run.go_on(&short, true).await, Waiting::Parked);
        let state = world.state(run.id()).await;
        assert_eq!((state.status, state.due_at), (Status::Suspended, Some(due)));
        run.exit(RunExit::lost()).await;
        world.cancel(run.id()).await;
    }
}

/// A branch that says that there is something else to do now takes back what it has said before.
pub async fn a_branch_takes_back_that_it_may_park(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let nap = || named(sleep(Some("nap"), 8_000, b"s"), "r-1");
    held(run.wait(nap()).await);
    world.advance(3_000).await;
    let nap = held(run.wait(busy(nap())).await);
    assert_eq!(world.state(run.id()).await.run.slept_ms, 3_000);
    assert_eq!(held(run.go_on(&nap, true).await).remaining_ms, Some(5_000));
    let go = held(run.wait(named(wait_for("go", Some(4_000)), "r-2")).await);
    assert_eq!(world.state(run.id()).await.run.slept_ms, 7_000);
    world.advance(1_000).await;
    let other_end = named(busy(wait_for("go", Some(60_000))), "r-3");
    held(run.wait(other_end).await);
    assert_eq!(world.state(run.id()).await.run.slept_ms, 4_000);
    assert_eq!(held(run.go_on(&go, true).await).n, 1, "nothing is parked");
}

/// What a client waits for an answer bounds how long it is held.
pub async fn an_impatient_client_is_parked_sooner(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let mut new = world.new_instance("order-1");
    new.request_timeout_ms = Some(9_000);
    let id = world.start_as(new).await.instance_id;
    let run = world.claim_only(&id).await;
    held(run.wait(sleep(Some("a"), 3_000, b"s")).await);
    assert_eq!(
        run.wait(sleep(Some("b"), 3_001, b"s")).await,
        Waiting::Parked
    );
}

/// An instance whose process is not ours to end is held to the end; one that is busy meanwhile is let go to see a signal.
pub async fn a_self_registered_instance_is_held(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.self_registered("outside").await;
    let wait = held(run.wait(sleep(Some("nap"), 3_600_000, b"s")).await);
    let Waiting::Held(_) = run.go_on(&wait, true).await else {
        panic!("it is not ours to park");
    };
    let idle = world.self_registered("idle").await;
    let nap = held(idle.wait(sleep(Some("nap"), 60_000, b"s")).await);
    world.cancel(idle.id()).await;
    let Waiting::Held(_) = idle.go_on(&nap, false).await else {
        panic!("it would take that for the end of its sleep");
    };
    let wait = held(run.wait(busy(sleep(Some("nap"), 3_600_000, b"t"))).await);
    world.cancel(run.id()).await;
    assert_eq!(run.go_on(&wait, false).await, called_away());
    assert_eq!(
        run.poll().await.map(|shown| shown.kind),
        Some(SignalKind::Cancel)
    );
}

/// Cancel and pause act on a held sleeper at once.
pub async fn a_signal_acts_on_a_held_sleeper(harness: &dyn Harness) {
    let world = World::new(harness).await;
    for (id, status) in [("a", Status::Cancelled), ("b", Status::Suspended)] {
        let run = world.launch(id).await;
        let wait = held(run.wait(sleep(Some("nap"), 5_000, b"s")).await);
        match status {
            Status::Cancelled => world.cancel(run.id()).await,
            _ => world.pause(run.id()).await,
        };
        let state = world.state(run.id()).await;
        assert_eq!(
            (state.status, state.run.leave_by),
            (status, Some(world.now()))
        );
        let late = world.store.continue_wait(&run.caller, &wait, false).await;
        let ended = runtara_domain::Refusal::InstanceEnded { status };
        assert_eq!(refusal(late), Some(ended));
    }
}

/// A signal that waits when a sleep begins acts on it at once, however near its end is.
pub async fn a_signal_acts_when_a_sleep_begins(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.register().await;
    world.pause(run.id()).await;
    assert_eq!(
        run.wait(sleep(Some("nap"), 5_000, b"s")).await,
        Waiting::Parked
    );
    let state = world.state(run.id()).await;
    assert_eq!((state.reason, state.due_at), (Some(Reason::Paused), None));
    run.exit(RunExit::lost()).await;
    world.resume(run.id()).await;
    world.advance(2_000).await;
    let run = world.claim_only(run.id()).await;
    let again = held(run.wait(sleep(Some("nap"), 5_000, b"s")).await);
    assert_eq!(again.remaining_ms, Some(3_000));
}

/// Cancel, pause and resume of an instance that sleeps without a process.
pub async fn a_sleeper_without_a_process_obeys(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.wait(sleep(Some("nap"), 60_000, b"s")).await;
    run.exit(RunExit::lost()).await;
    world.pause(run.id()).await;
    world.advance(90_000).await;
    assert!(world.claim(1).await.is_empty(), "a pause has no due time");
    world.resume(run.id()).await;
    let run = world.claim_only(run.id()).await;
    assert_eq!(run.wait(sleep(Some("nap"), 60_000, b"s")).await, over());
    run.wait(sleep(Some("nap"), 60_000, b"s")).await;
    run.exit(RunExit::lost()).await;
    let cancelled = world.cancel(run.id()).await;
    assert_eq!(cancelled.state.status, Status::Cancelled);
    world.advance(90_000).await;
    assert!(world.claim(1).await.is_empty());
}

/// When the server goes away, a held sleep becomes far and is met again.
pub async fn a_held_sleep_is_parked_when_the_server_leaves(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let wait = held(run.wait(sleep(Some("nap"), 5_000, b"s")).await);
    world.advance(1_000).await;
    assert_eq!(run.go_on(&wait, true).await, Waiting::Parked);
    let state = world.state(run.id()).await;
    assert_eq!(state.reason, Some(Reason::Sleeping));
    assert_eq!(state.due_at, Some(world.now().plus_millis(4_000)));
    run.exit(RunExit::lost()).await;
    world.advance(4_000).await;
    let run = world.claim_only(run.id()).await;
    assert_eq!(run.wait(sleep(Some("nap"), 5_000, b"s")).await, over());
}

/// A wait for a signal without an end is parked; the signal makes it due, and is given to the run that comes.
pub async fn a_signal_wakes_who_waits_for_it(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    assert_eq!(run.wait(wait_for("go", None)).await, Waiting::Parked);
    let state = world.state(run.id()).await;
    assert_eq!(
        (state.reason, state.due_at),
        (Some(Reason::WaitingSignal), None)
    );
    assert_eq!(state.waiting_for, Some(signal("go")));
    run.exit(RunExit::lost()).await;
    world.send(run.id(), "other", b"x").await;
    assert!(world.claim(1).await.is_empty());
    world.advance(500).await;
    world.send(run.id(), "go", b"now").await;
    assert_eq!(world.state(run.id()).await.due_at, Some(world.now()));
    let run = world.claim_only(run.id()).await;
    assert_eq!(run.wait(wait_for("go", None)).await, given(b"now"));
    assert_eq!(
        run.wait(wait_for("go", None)).await,
        Waiting::Parked,
        "it was delivered"
    );
}

/// A signal that has come before is given at once.
pub async fn a_signal_that_came_before_is_given_at_once(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.send(run.id(), "go", b"early").await;
    assert_eq!(run.wait(wait_for("go", Some(5_000))).await, given(b"early"));
    let state = world.state(run.id()).await;
    assert!(!state.run.stored_new, "a wait for a signal is no progress");
    assert!(state.has_read_signals);
}

/// A near wait for a signal is held; the signal answers it.
pub async fn a_signal_answers_a_held_wait(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let wait = held(run.wait(wait_for("go", Some(5_000))).await);
    world.advance(2_000).await;
    world.send(run.id(), "go", b"now").await;
    assert_eq!(run.go_on(&wait, false).await, given(b"now"));
    let state = world.state(run.id()).await;
    assert_eq!((state.run.hold, state.run.slept_ms), (None, 2_000));
}

/// A wait with an end ends without its signal, near or far, and once only.
pub async fn a_wait_ends_without_its_signal(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    let wait = held(run.wait(wait_for("near", Some(5_000))).await);
    world.advance(5_000).await;
    assert_eq!(run.go_on(&wait, false).await, over());
    assert_eq!(
        run.wait(wait_for("far", Some(60_000))).await,
        Waiting::Parked
    );
    let due_at = world.state(run.id()).await.due_at;
    assert_eq!(due_at, Some(world.now().plus_millis(60_000)));
    run.exit(RunExit::lost()).await;
    world.advance(60_000).await;
    let run = world.claim_only(run.id()).await;
    assert_eq!(run.wait(wait_for("near", Some(5_000))).await, over());
    assert_eq!(run.wait(wait_for("far", Some(60_000))).await, over());
    held(run.wait(wait_for("far", Some(5_000))).await);
}

/// A wait whose answer was lost is given its signal again, and only that wait.
pub async fn a_repeated_wait_is_given_its_signal_again(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    world.send(run.id(), "go", b"one").await;
    for _ in 0..2 {
        let answer = run.wait(named(wait_for("go", None), "r-1")).await;
        assert_eq!(answer, given(b"one"));
    }
    let second = || named(wait_for("go", Some(5_000)), "r-2");
    let wait = held(run.wait(second()).await);
    assert_eq!(
        held(run.wait(second()).await).n,
        wait.n,
        "the first one's signal is not its own"
    );
    world.send(run.id(), "go", b"two").await;
    for _ in 0..2 {
        assert_eq!(run.go_on(&wait, false).await, given(b"two"));
    }
    assert_eq!(run.wait(second()).await, given(b"two"));
}

/// A sleep is progress, a wait for a signal is none.
pub async fn a_sleep_is_progress(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let first = world.launch("order-1").await;
    first.register().await;
    first.exit(exit_code(1)).await;
    world.advance(120_000).await;
    let run = world.claim_only(first.id()).await;
    held(run.wait(wait_for("go", Some(1_000))).await);
    assert_eq!(world.state(run.id()).await.attempts.crash_count, 1);
    held(run.wait(sleep(None, 1_000, b"s")).await);
    assert_eq!(world.state(run.id()).await.attempts.crash_count, 0);
}

/// A sleep that was met again is no progress, however often.
pub async fn a_replayed_sleep_is_no_progress(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.wait(sleep(Some("nap"), 1_000, b"s")).await;
    world.advance(1_000).await;
    let run = next(&world, &run).await;
    assert_eq!(run.wait(sleep(Some("nap"), 1_000, b"s")).await, over());
    let state = world.state(run.id()).await;
    assert!(!state.run.stored_new);
    assert_eq!(state.attempts.interruptions, 1);
    assert_eq!(state.checkpoint_id, Some(checkpoint("nap")));
}

/// Records of waits outlive the end, until the purge: a resumed instance replays them.
pub async fn records_of_waits_outlive_the_end(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = world.launch("order-1").await;
    run.wait(sleep(Some("nap"), 1_000, b"s")).await;
    world.advance(1_000).await;
    run.say(Word::Failed { error: "no".into() }).await;
    run.exit(exit_code(1)).await;
    world.resume(run.id()).await;
    let run = world.claim_only(run.id()).await;
    assert_eq!(run.wait(sleep(Some("nap"), 1_000, b"s")).await, over());
}
