//! Nudges: whoever waits for a change hears of it after it is durable.

use std::time::Duration;

use runtara_domain::{RunExit, Status, Word};
use tokio::time::timeout;

use super::Harness;
use super::make::{instance, sleep};
use super::world::World;

/// Longer than any nudge takes, so that a lost one fails the case and does not hang it.
const LONG: Duration = Duration::from_secs(20);

async fn heard<T>(what: &str, nudge: impl Future<Output = T>) -> T {
    let heard = timeout(LONG, nudge).await;
    heard.unwrap_or_else(|_| panic!("no nudge came: {what}"))
}

/// Who waits for due instances hears of a start, of a resume, of a signal and of an exit that lets an instance be launched again.
pub async fn a_due_instance_is_told(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let nudges = world.store.nudges();
    world.start("order-1").await;
    heard("a start", nudges.due_came()).await;
    let run = world.claim_only(&instance("order-1")).await;
    run.exit(RunExit::lost()).await;
    heard("an interrupted run", nudges.due_came()).await;
    let run = world.claim_only(run.id()).await;
    run.wait(super::make::wait_for("go", None)).await;
    run.exit(RunExit::lost()).await;
    world.send(run.id(), "go", b"x").await;
    heard("a signal", nudges.due_came()).await;
    let run = world.claim_only(run.id()).await;
    run.say(Word::Suspended).await;
    run.exit(RunExit::lost()).await;
    world.resume(run.id()).await;
    heard("a resume", nudges.due_came()).await;
    world.claim_only(run.id()).await;
}

/// Who minds a live run hears when it should leave.
pub async fn a_run_that_should_leave_is_told(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let nudges = world.store.nudges();
    let run = world.launch("order-1").await;
    run.register().await;
    run.wait(sleep(None, 60_000, b"s")).await;
    let told = timeout(LONG, nudges.runs_to_look_at()).await;
    assert_eq!(told.expect("a nudge came"), [run.id().clone()]);
}

/// Who watches an instance hears of every change of its standing, and of its signals. What its run records may be heard of or not.
pub async fn a_watcher_hears_of_every_change(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let id = world.start("order-1").await.instance_id;
    let mut watch = world.store.nudges().watch(&id);
    let run = world.claim_only(&id).await;
    heard("a claim", watch.changed()).await;
    run.register().await;
    run.save("step", b"s").await;
    run.event("x", b"{}").await;
    world.send(&id, "go", b"x").await;
    heard("a signal", watch.changed()).await;
    world.pause(&id).await;
    heard("a pause", watch.changed()).await;
    run.complete(b"1").await;
    let status = heard("the end", watch.changed()).await;
    assert!(
        matches!(status, None | Some(Status::Completed)),
        "{status:?}"
    );
    run.exit(RunExit::lost()).await;
    heard("an exit", watch.changed()).await;
    world.store.purge_instance(&id).await.unwrap();
    heard("a purge", watch.changed()).await;
}

/// A watcher that waits while the change is made is woken by it.
pub async fn a_waiting_watcher_is_woken(harness: &dyn Harness) {
    let world = World::new(harness).await;
    let id = world.start("order-1").await.instance_id;
    let mut watch = world.store.nudges().watch(&id);
    let (store, watched) = (world.store.clone(), id.clone());
    let watcher = tokio::spawn(async move {
        loop {
            let found = store.instance(&watched).await.expect("it is read");
            if found.is_some_and(|found| found.state.status.is_end()) {
                return;
            }
            heard("a cancel", watch.changed()).await;
        }
    });
    world.cancel(&id).await;
    timeout(LONG, watcher)
        .await
        .expect("it is woken")
        .expect("no watcher panics");
}
