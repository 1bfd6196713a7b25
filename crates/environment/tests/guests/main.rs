//! Real guests under a scheduler and a core whose clock is the test's.

#![cfg(feature = "wasm")]
#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use runtara_domain::{Reason, RunNumber, Status, Timestamp};
use runtara_store::memory::MemoryStore;
use runtara_store::{ManualClock, Nudges, Store};
use tokio::time::Instant;

use crate::world::World;

const DAY_MS: u64 = 86_400_000;
const BEGIN: Timestamp = Timestamp(1_700_000_000_000);

/// Does nothing: a run that is launched and ends.
const QUICK: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_sleeps_for_a_day_in_memory() {
    let clock = Arc::new(ManualClock::at(BEGIN));
    let store = MemoryStore::new(Arc::clone(&clock) as _, Nudges::new());
    a_guest_sleeps_for_a_day(Arc::new(store), &clock).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_sleeps_for_a_day_on_sqlite() {
    use runtara_store::sqlite::{SqliteOptions, SqliteStore};
    let clock = Arc::new(ManualClock::at(BEGIN));
    let directory = tempfile::tempdir().unwrap();
    let options = SqliteOptions::at(directory.path().join("a.db")).clock(Arc::clone(&clock) as _);
    let store = Arc::new(SqliteStore::open(options).await.unwrap());
    a_guest_sleeps_for_a_day(Arc::clone(&store) as _, &clock).await;
    store.close().await;
}

/// There is room for one guest at a time. So the others, which run while the first one sleeps, show that it has given its place and its
/// memory back; and as the dispatcher takes what is due in its order, they show that it has looked for what is due.
async fn a_guest_sleeps_for_a_day(store: Arc<dyn Store>, clock: &ManualClock) {
    let world = World::new(store, 1).await;
    let sleeps = world.register(include_str!("sleeps_for_a_day.wat")).await;
    let quick = world.register(QUICK).await;
    let sleeper = world.start("sleeper", &sleeps).await;
    world
        .until(&sleeper, |state| {
            state.reason == Some(Reason::Sleeping) && state.live_node.is_none()
        })
        .await;
    let state = world.state(&sleeper).await;
    assert_eq!(state.status, Status::Suspended);
    assert_eq!(
        state.due_at,
        Some(Timestamp(BEGIN.0 + DAY_MS.cast_signed()))
    );
    world.completes("beside", &quick).await;

    clock.advance_millis(DAY_MS - 1);
    world.completes("almost-a-day-later", &quick).await;
    let state = world.state(&sleeper).await;
    assert_eq!(
        (state.reason, state.run_number),
        (Some(Reason::Sleeping), RunNumber(1)),
        "it was woken before its time"
    );

    clock.advance_millis(1);
    world.look_for_what_is_due();
    world
        .until(&sleeper, |state| {
            state.status == Status::Completed && state.live_node.is_none()
        })
        .await;
    let state = world.state(&sleeper).await;
    assert_eq!(state.run_number, RunNumber(2));
    assert_eq!(state.attempts.crash_count, 0);
    assert_eq!(world.output(&sleeper).await, r#""a day later""#);
    // Replayed, the first step was found; the sleep was over, and the second step was made a day later.
    let saved = world.checkpoints(&sleeper).await;
    let saved: Vec<_> = saved
        .iter()
        .map(|saved| {
            (
                saved.checkpoint_id.as_str(),
                saved.run_number.0,
                saved.created_at.0 - BEGIN.0,
            )
        })
        .collect();
    assert_eq!(
        saved,
        [("before", 1, 0), ("after", 2, DAY_MS.cast_signed())]
    );
    let end = Instant::now() + Duration::from_secs(5);
    world.scheduler.shutdown(end).await;
}
