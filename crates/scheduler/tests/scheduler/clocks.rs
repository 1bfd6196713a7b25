//! Clocks that somebody sets.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use runtara_domain::{Change, Reason, Status, Timestamp};
use runtara_store::Clock;

use crate::soon;
use crate::world::World;

/// The clock of this machine, which somebody sets.
struct SetClock(AtomicI64);

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        let now = Timestamp::from_system(SystemTime::now());
        Timestamp(now.0 + self.0.load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_gives_a_run_no_more_time_to_leave() {
    let clock = Arc::new(SetClock(AtomicI64::new(0)));
    let world = World::at(Arc::clone(&clock) as Arc<dyn Clock>).await;
    world.runner.stubborn.store(true, Ordering::SeqCst);
    let scheduler = world.scheduler(1);
    let id = world.start("stubborn").await;
    world.runner.launched(1).await;
    let run = world.run_of(&id).await;
    let stop = Change::Stop {
        grace_ms: 700,
        reason: "enough".to_owned(),
    };
    world.store.change(&id, stop).await.unwrap();
    // So the minder knows by when it is to leave.
    run.told_to_leave().await;
    clock.0.store(-3_600_000, Ordering::SeqCst);
    world.store.nudges().look_at_run(&id);
    world
        .until(&id, |found| found.state.live_node.is_none())
        .await;
    let state = world.instance(&id).await.state;
    assert_eq!(
        (state.status, state.reason),
        (Status::Cancelled, Some(Reason::Cancelled))
    );
    scheduler.shutdown(soon()).await;
}
