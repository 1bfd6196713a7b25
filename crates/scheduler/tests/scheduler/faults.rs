//! What goes wrong around the scheduler: answers that are lost, calls that are still open.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use runtara_domain::{Change, ExitCause, Fence, Reason, Status};
use runtara_store::lossy::LossyStore;
use runtara_store::memory::MemoryStore;
use runtara_store::{InstanceRecord, Nudges, Store, SystemClock};
use tokio::time::timeout;

use crate::soon;
use crate::world::World;

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_found_and_launched_anew() {
    let memory = MemoryStore::new(Arc::new(SystemClock), Nudges::new());
    let store = Arc::new(LossyStore::new(Arc::new(memory)));
    let world = World::over(Arc::clone(&store) as Arc<dyn Store>).await;
    store.lose("claim_due", 1);
    let id = world.start("claimed in vain").await;
    let scheduler = world.scheduler(1);
    let launched = world.runner.launched(1).await;
    assert_eq!(store.to_lose("claim_due"), 0, "the first claim was lost");
    assert_eq!(launched.instance_id, id);
    assert_eq!(
        launched.run_number.0, 2,
        "nobody knows the token of the first run"
    );
    let state = world.instance(&id).await.state;
    assert_eq!(
        (state.status, state.attempts.crash_count),
        (Status::Running, 0)
    );
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn an_exit_whose_record_was_answered_in_vain_is_recorded_once() {
    let memory = MemoryStore::new(Arc::new(SystemClock), Nudges::new());
    let store = Arc::new(LossyStore::new(Arc::new(memory)));
    let world = World::over(Arc::clone(&store) as Arc<dyn Store>).await;
    let scheduler = world.scheduler(1);
    let id = world.start("crashes").await;
    let key = world.runner.launched(1).await;
    store.lose("change", 1);
    world.runner.run(&key).unwrap().ends(ExitCause::Signal(11));
    world.runner.launched(2).await;
    let state = world.instance(&id).await.state;
    assert_eq!((state.run_number.0, state.attempts.crash_count), (2, 1));
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn a_stop_between_a_claim_and_its_answer_reaches_the_run_that_was_claimed() {
    let memory = Arc::new(MemoryStore::new(Arc::new(SystemClock), Nudges::new()));
    let store = Arc::new(LossyStore::new(Arc::clone(&memory) as Arc<dyn Store>));
    let world = World::over(Arc::clone(&store) as Arc<dyn Store>).await;
    let scheduler = world.scheduler(2);
    let id = world.start("stopped").await;
    let key = world.runner.launched(1).await;
    // The run before it is known until it has heard that its exit is recorded.
    store.hold("change");
    store.hold("claim_due");
    world.runner.run(&key).unwrap().ends(ExitCause::Lost);
    world
        .until(&id, |found| found.state.run_number.0 == 2)
        .await;
    let stop = Change::Stop {
        grace_ms: 0,
        reason: "the test says so".to_owned(),
    };
    memory.change(&id, stop).await.unwrap();
    // All there is to hear of it has been heard.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    store.let_go();
    world
        .until(&id, |found| found.state.status == Status::Cancelled)
        .await;
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn an_exit_is_judged_after_the_open_calls_of_the_run() {
    let world = World::new().await;
    let scheduler = world.scheduler(1);
    let id = world.start("calls").await;
    let key = world.runner.launched(1).await;
    let state = world.instance(&id).await.state;
    let Some(Fence::Run(token)) = state.fence() else {
        panic!("a launched run has a token");
    };
    let open = world.tracker.begin(token, false);
    world.runner.run(&key).unwrap().ends(ExitCause::Code(1));
    let mut watch = world.store.nudges().watch(&id);
    let judged = timeout(Duration::from_millis(300), watch.changed()).await;
    assert!(
        judged.is_err(),
        "the exit was judged with a call still open"
    );
    // As when the store did not answer in time: published programs leave with 1 then.
    open.failed();
    world
        .until(&id, |found| found.state.run_number.0 == 2)
        .await;
    let state = world.instance(&id).await.state;
    assert_eq!(
        (state.attempts.crash_count, state.attempts.interruptions),
        (0, 1),
        "it left because we failed"
    );
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn what_is_not_allowed_any_more_waits_and_keeps_nobody_from_a_launch() {
    let world = World::new().await;
    world.runner.forbids.store(true, Ordering::SeqCst);
    let mut ids = Vec::new();
    for number in 0..40 {
        ids.push(world.start(&format!("waits-{number}")).await);
    }
    let scheduler = world.scheduler(1);
    for id in &ids {
        let waits = |found: &InstanceRecord| found.state.reason == Some(Reason::Interrupted);
        world.until(id, waits).await;
        let values = world.store.instance_values(id).await.unwrap();
        let error = values.and_then(|values| values.error).unwrap_or_default();
        assert!(error.contains("ask for at most 4"), "{error}");
    }
    assert_eq!(world.runner.prepared.load(Ordering::SeqCst), 0);
    world.runner.forbids.store(false, Ordering::SeqCst);
    let next = world.start("allowed").await;
    // Each makes room for the one after it, whichever comes first.
    for number in 1..=ids.len() + 1 {
        let key = world.runner.launched(number).await;
        let state = world.instance(&key.instance_id).await.state;
        assert_eq!(
            (state.attempts.crash_count, state.attempts.interruptions),
            (0, 0)
        );
        world.runner.run(&key).unwrap().ends(ExitCause::Code(0));
    }
    for id in ids.iter().chain([&next]) {
        let completed = |found: &InstanceRecord| found.state.status == Status::Completed;
        world.until(id, completed).await;
    }
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn an_image_that_was_cleaned_up_is_prepared_again() {
    let world = World::new().await;
    let scheduler = world.scheduler(1);
    let first = world.start("first").await;
    world.runner.launched(1).await;
    let prepared = || world.runner.prepared.load(Ordering::SeqCst);
    assert_eq!(prepared(), 1);
    world.run_of(&first).await.ends(ExitCause::Code(0));
    world.runner.image_is_gone.store(true, Ordering::SeqCst);
    let second = world.start("second").await;
    assert_eq!(world.runner.launched(2).await.instance_id, second);
    assert_eq!(prepared(), 2);
    let state = world.instance(&second).await.state;
    assert_eq!((state.run_number.0, state.attempts.crash_count), (1, 0));
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}
