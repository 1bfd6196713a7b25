//! What is silent for too long, and what outlives its deadline.

use runtara_domain::{
    Change, Due, InstanceId, NewInstance, Reason, Refusal, Status, Timestamp, limits,
};

use super::Harness;
use super::make::{exit_code, refusal, wait_for};
use super::world::{Run, World};
use crate::{NextDue, NodeLease, Overdue};

/// The shortest heartbeat timeout there is, and how long silence must then be by what is noted.
const TIMEOUT_MS: u64 = limits::HEARTBEAT_TIMEOUT_MIN_MS;
const ALLOWED_MS: u64 = TIMEOUT_MS + limits::SIGN_OF_LIFE_MS;

async fn launch_watched<'w>(world: &'w World<'w>, id: &str) -> Run<'w> {
    let new = NewInstance {
        heartbeat_timeout_ms: Some(TIMEOUT_MS),
        ..world.new_instance(id)
    };
    let state = world.start_as(new).await;
    world.claim_only(&state.instance_id).await
}

async fn silent_in(world: &World<'_>, id: &InstanceId) -> Option<u64> {
    let live = world.store.live_run(id).await.expect("a run is read");
    live.expect("it is live").silent_in_ms
}

fn silence(run: &Run<'_>, unheard_ms: u64) -> Change {
    Change::Silent {
        run_number: run.run_number,
        unheard_ms,
    }
}

/// A run that lives and is silent is ended as if it had crashed; one that may be silent for ever is not.
pub async fn a_silent_run_is_ended(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = launch_watched(&world, "order-1").await;
    run.register().await;
    assert_eq!(silent_in(&world, run.id()).await, Some(ALLOWED_MS));
    world.advance(ALLOWED_MS - 1).await;
    assert_eq!(silent_in(&world, run.id()).await, Some(1));
    let early = world.change(run.id(), silence(&run, u64::MAX)).await;
    assert!(!early.applied);
    world.advance(1).await;
    assert_eq!(silent_in(&world, run.id()).await, Some(0));
    let unheard = silence(&run, ALLOWED_MS - 1);
    let unheard = world.change(run.id(), unheard).await;
    assert!(!unheard.applied, "whoever minds it found it again since");
    let ended = world.change(run.id(), silence(&run, u64::MAX)).await;
    let state = ended.state;
    assert_eq!(
        (state.status, state.reason, state.attempts.crash_count),
        (Status::Suspended, Some(Reason::HeartbeatTimeout), 1)
    );
    let live = world.store.live_run(run.id()).await.expect("it is read");
    assert_eq!(live.and_then(|live| live.leave_in_ms), Some(0));
    assert_eq!(
        world.history(run.id()).await,
        ["started", "runtara.crashed"]
    );
    let late = refusal(run.try_register().await);
    assert!(matches!(late, Some(Refusal::InstanceEnded { .. })));
    world.advance(3_600_000).await;
    assert!(world.claim(9).await.is_empty(), "its process is there");
    run.exit(exit_code(1)).await;
    let next = world.claim_only(run.id()).await;
    let superseded = world.refused(run.id(), silence(&run, u64::MAX)).await;
    assert_eq!(superseded, Refusal::RunSuperseded);
    next.complete(b"1").await;
    let unwatched = world.launch("order-2").await;
    world.advance(3_600_000).await;
    assert_eq!(silent_in(&world, unwatched.id()).await, None);
    let change = silence(&unwatched, u64::MAX);
    assert!(!world.change(unwatched.id(), change).await.applied);
}

/// Silence that uses up what is allowed fails the instance, and says so.
pub async fn silence_at_last_fails(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let new = NewInstance {
        heartbeat_timeout_ms: Some(TIMEOUT_MS),
        max_attempts: Some(1),
        ..world.new_instance("order-1")
    };
    let id = world.start_as(new).await.instance_id;
    let run = world.claim_only(&id).await;
    world.advance(ALLOWED_MS).await;
    let failed = world.change(&id, silence(&run, ALLOWED_MS)).await.state;
    assert_eq!(
        (failed.status, failed.reason),
        (Status::Failed, Some(Reason::HeartbeatTimeout))
    );
    let error = world.values(&id).await.error.expect("it says why");
    for told in ["never spoke", "15000 ms", "10000 ms"] {
        assert!(error.contains(told), "{error}");
    }
}

/// Every kind of call is a sign of life, also one that writes nothing else; and one that is held, for as long as it is.
pub async fn any_call_is_a_sign_of_life(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let run = launch_watched(&world, "order-1").await;
    run.register().await;
    for call in 0..5 {
        world.advance(ALLOWED_MS - 1).await;
        match call {
            0 => drop(run.poll().await),
            1 => run.heartbeat().await,
            2 => drop(run.save("step", b"1").await),
            3 => run.event("note", b"{}").await,
            _ => drop(run.save("step", b"").await),
        }
        let left = silent_in(&world, run.id()).await;
        assert_eq!(left, Some(ALLOWED_MS), "call {call}");
        assert!(
            !world
                .change(run.id(), silence(&run, u64::MAX))
                .await
                .applied
        );
    }
    let mut wait = wait_for("go", Some(9_000));
    wait.call.park = false;
    let held = run.wait(wait).await;
    assert!(matches!(held, crate::Waiting::Held(_)), "{held:?}");
    assert_eq!(silent_in(&world, run.id()).await, Some(9_000 + ALLOWED_MS));
    world.advance(ALLOWED_MS + 8_999).await;
    let held = silence(&run, u64::MAX);
    assert!(!world.change(run.id(), held).await.applied);
    assert_eq!(silent_in(&world, run.id()).await, Some(1));
}

async fn expire(world: &World<'_>, limit: u32) -> Vec<String> {
    let Overdue { instances, .. } = world.store.expire_due(limit).await.expect("answered");
    instances.iter().map(ToString::to_string).collect()
}

async fn next_over(world: &World<'_>) -> Option<u64> {
    let expired = world.store.expire_due(0).await.expect("it is answered");
    assert!(expired.instances.is_empty());
    expired.next_in_ms
}

fn ending_by(world: &World<'_>, id: &str, expires: Due) -> NewInstance {
    NewInstance {
        expires: Some(expires),
        ..world.new_instance(id)
    }
}

/// An instance ends by its overall deadline wherever it stands, and neither before nor twice.
pub async fn an_instance_ends_by_its_deadline(harness: &dyn Harness) {
    let world = World::new(harness).await;
    assert_eq!(next_over(&world).await, None);
    let by = |millis| Due::After(millis);
    for id in ["running", "sleeping", "paused", "done"] {
        world.start_as(ending_by(&world, id, by(60_000))).await;
    }
    let at = Due::At(world.now().plus_millis(60_001));
    let pending = NewInstance {
        due: Due::After(3_600_000),
        ..ending_by(&world, "pending", at)
    };
    let pending = world.start_as(pending).await;
    assert_eq!(pending.expires_at, Some(world.now().plus_millis(60_001)));
    world.start("for ever").await;
    let claimed = world.claim(9).await;
    assert_eq!(claimed.len(), 5);
    let run = |id: &str| {
        let found = claimed.iter().find(|run| run.instance_id.as_str() == id);
        Run::of(&world, found.expect("it was claimed"))
    };
    for claimed in &claimed {
        let limited = claimed.instance_id.as_str() != "for ever";
        assert_eq!(claimed.expires_in_ms, limited.then_some(60_000));
    }
    run("sleeping")
        .wait(super::make::sleep(Some("nap"), 3_600_000, b""))
        .await;
    run("sleeping").exit(exit_code(0)).await;
    run("paused").say(runtara_domain::Word::Suspended).await;
    run("paused").exit(exit_code(1)).await;
    run("done").complete(b"1").await;
    run("done").exit(exit_code(0)).await;
    run("running").register().await;

    world.advance(59_999).await;
    assert!(expire(&world, 9).await.is_empty());
    assert_eq!(next_over(&world).await, Some(1));
    world.advance(1).await;
    assert_eq!(next_over(&world).await, Some(0));
    assert_eq!(expire(&world, 2).await, ["paused", "running"]);
    assert_eq!(next_over(&world).await, Some(0));
    assert_eq!(expire(&world, 9).await, ["sleeping"]);
    assert_eq!(next_over(&world).await, Some(1));
    world.advance(1).await;
    assert_eq!(expire(&world, 9).await, ["pending"]);
    assert_eq!(next_over(&world).await, None);
    for id in ["running", "sleeping", "paused", "pending"] {
        let id = InstanceId::new(id).expect("it is valid");
        let state = world.state(&id).await;
        assert_eq!(
            (state.status, state.reason, state.due_at),
            (Status::Failed, Some(Reason::Timeout), None),
            "{id}"
        );
        let error = world.values(&id).await.error.expect("it says why");
        assert!(error.contains("overall deadline"), "{error}");
        let history = world.history(&id).await;
        assert_eq!(history.last().map(String::as_str), Some("failed"), "{id}");
        let at = state.expires_at.expect("it has one");
        let refused = world.refused(&id, Change::Resume).await;
        assert_eq!(refused, Refusal::Expired { at });
    }
    let running = run("running");
    let live = world.store.live_run(running.id()).await.expect("read");
    assert_eq!(live.and_then(|live| live.leave_in_ms), Some(0));
    running.exit(exit_code(1)).await;
    let done = world.state(run("done").id()).await;
    assert_eq!(done.status, Status::Completed);
}

/// What is over is not launched, however late the call that ends it comes.
pub async fn what_is_over_is_not_claimed(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let over = ending_by(&world, "over", Due::After(5_000));
    world.start_as(over).await;
    world.advance(5_000).await;
    world.start("other").await;
    let due = world.store.next_due(&super::make::KINDS).await;
    assert_eq!(due.expect("answered"), NextDue { in_ms: Some(0) });
    let mut without = world.claim_of(9);
    without.without_tenants = vec![super::make::tenant("another")];
    let claimed = world.store.claim_due(without).await.expect("answered");
    let ids: Vec<_> = claimed.iter().map(|run| run.instance_id.as_str()).collect();
    assert_eq!(ids, ["other"]);
    assert!(world.claim(9).await.is_empty());
    assert_eq!(expire(&world, 9).await, ["over"]);
    let overdue = Timestamp(world.now().0 - 1);
    let born_over = ending_by(&world, "born over", Due::At(overdue));
    world.start_as(born_over).await;
    assert!(world.claim(9).await.is_empty());
    assert_eq!(expire(&world, 9).await, ["born over"]);
}

/// What may be resumed before its deadline still ends by it.
pub async fn a_resume_leaves_the_deadline(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let new = ending_by(&world, "order-1", Due::After(60_000));
    let id = world.start_as(new).await.instance_id;
    world.cancel(&id).await;
    assert_eq!(next_over(&world).await, None, "it has ended");
    let resumed = world.resume(&id).await.state;
    assert_eq!(resumed.expires_at, Some(world.now().plus_millis(60_000)));
    assert_eq!(next_over(&world).await, Some(60_000));
    world.advance(60_000).await;
    assert_eq!(expire(&world, 9).await, ["order-1"]);
}

async fn lapse(world: &World<'_>, timeout_ms: u64, limit: u32) -> Vec<String> {
    let lapsed = world.store.lapse_silent(timeout_ms, limit).await;
    let lapsed = lapsed.expect("it is answered");
    lapsed.iter().map(ToString::to_string).collect()
}

/// What registered itself fails when its own signs of life stop; what we launched does not, nor what is held or waits.
pub async fn a_self_registered_instance_lapses(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let launched = launch_watched(&world, "launched").await;
    launched.register().await;
    let (a, b) = (
        world.self_registered("a").await,
        world.self_registered("b").await,
    );
    world.self_registered("c").await;
    let held = world.self_registered("held").await;
    held.wait(wait_for("go", None)).await;
    let asleep = world.self_registered("asleep").await;
    asleep.say(runtara_domain::Word::Suspended).await;
    world.advance(20_000).await;
    b.heartbeat().await;
    world.advance(44_999).await;
    assert!(lapse(&world, 60_000, 9).await.is_empty());
    world.advance(1).await;
    assert_eq!(lapse(&world, 60_000, 1).await, ["a"]);
    assert_eq!(lapse(&world, 60_000, 9).await, ["c"]);
    assert!(lapse(&world, 60_000, 9).await.is_empty());
    let state = world.state(a.id()).await;
    assert_eq!(
        (state.status, state.reason),
        (Status::Failed, Some(Reason::HeartbeatTimeout))
    );
    let error = world.values(a.id()).await.error.expect("it says why");
    assert!(error.contains("65000 ms"), "{error}");
    assert_eq!(world.history(a.id()).await, ["started", "failed"]);
    world.advance(20_000).await;
    assert_eq!(lapse(&world, 60_000, 9).await, ["b"]);
    assert_eq!(world.state(launched.id()).await.status, Status::Running);
}

/// What registered itself may have called a node that was not there: it lapses while none is away, and not before each has been there for long
/// enough. So no restart of a node fails it.
pub async fn nothing_lapses_for_want_of_a_node(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let other = runtara_domain::NodeId::generate();
    let renew = async |lease_ms| {
        let lease = NodeLease::new(other, "other", lease_ms);
        world
            .store
            .renew_node(lease)
            .await
            .expect("a lease is renewed");
    };
    renew(15_000).await;
    world.self_registered("a").await;
    world.advance(10_000).await;
    renew(15_000).await;
    world.advance(70_000).await;
    assert!(lapse(&world, 60_000, 9).await.is_empty(), "it is away");
    renew(1_000_000).await;
    world.advance(64_999).await;
    assert!(lapse(&world, 60_000, 9).await.is_empty(), "it came back");
    renew(1_000_000).await;
    world.advance(1).await;
    assert_eq!(lapse(&world, 60_000, 9).await, ["a"]);
    // One that has been dead for longer than that makes no difference any more.
    world.self_registered("b").await;
    world.advance(1_000_000 + 64_999).await;
    assert!(lapse(&world, 60_000, 9).await.is_empty());
    world.advance(1).await;
    assert_eq!(lapse(&world, 60_000, 9).await, ["b"]);
}
