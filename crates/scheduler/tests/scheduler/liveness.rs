//! Runs that are silent, and instances that outlive their deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use runtara_domain::{
    Due, Fence, InstanceId, NewInstance, Reason, Status, Timestamp, TokenHash, limits,
};
use runtara_store::ManualClock;
use tokio::time::timeout;

use crate::soon;
use crate::world::{FakeRun, World};

/// As long as a run with the shortest timeout that a store takes must be silent, by what is noted.
const ALLOWED: Duration = Duration::from_millis(limits::SIGN_OF_LIFE_MS);

impl World {
    async fn start_watched(&self, id: &str) -> InstanceId {
        let new = NewInstance {
            heartbeat_timeout_ms: Some(0),
            ..self.new_instance("t", id).await
        };
        self.start_as(new).await
    }

    async fn token_of(&self, id: &InstanceId) -> TokenHash {
        match self.instance(id).await.state.fence() {
            Some(Fence::Run(token)) => token,
            other => panic!("a launched run has a token: {other:?}"),
        }
    }
}

async fn is_left_alone(run: &FakeRun, time: Duration) {
    let told = timeout(time, run.told_to_leave()).await;
    assert!(told.is_err(), "it was told to leave");
}

#[tokio::test]
async fn a_silent_run_is_ended_and_launched_again() {
    let world = World::new().await;
    let scheduler = world.scheduler(10);
    let began = Instant::now();
    let id = world.start_watched("silent").await;
    world.runner.launched(2).await;
    assert!(began.elapsed() >= ALLOWED, "{:?}", began.elapsed());
    let state = world.instance(&id).await.state;
    assert_eq!(
        (state.status, state.attempts.crash_count),
        (Status::Running, 1)
    );
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

/// The row says that it has been silent for an hour. But this process has only just found it, then a call of it is open, and then its program
/// has only just begun: each time the silence begins anew.
#[tokio::test]
async fn a_run_is_silent_only_while_it_could_have_been_heard() {
    let clock = Arc::new(ManualClock::at(Timestamp(1_700_000_000_000)));
    let world = World::at(Arc::clone(&clock) as _).await;
    let before = world.scheduler(10);
    let id = world.start_watched("found again").await;
    let key = world.runner.launched(1).await;
    let run = world.runner.run(&key).unwrap();
    before.shutdown(soon()).await;
    clock.advance_millis(3_600_000);

    let scheduler = world.scheduler(10);
    is_left_alone(&run, ALLOWED / 2).await;
    let token = world.token_of(&id).await;
    let open = world.tracker.begin(token, true);
    is_left_alone(&run, ALLOWED).await;
    run.ran_ms.store(0, Ordering::SeqCst);
    open.answered();
    is_left_alone(&run, ALLOWED + ALLOWED / 2).await;
    run.ran_ms.store(3_600_000, Ordering::SeqCst);
    run.told_to_leave().await;
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn an_instance_ends_on_time_by_its_deadline() {
    let world = World::new().await;
    let scheduler = world.scheduler(10);
    let began = Instant::now();
    let ending = |new: NewInstance| NewInstance {
        expires: Some(Due::After(700)),
        ..new
    };
    let runs = world.new_instance("t", "runs").await;
    let runs = world.start_as(ending(runs)).await;
    let waits = NewInstance {
        due: Due::After(3_600_000),
        ..world.new_instance("t", "waits").await
    };
    let waits = world.start_as(ending(waits)).await;
    let key = world.runner.launched(1).await;
    world.runner.run(&key).unwrap().told_to_leave().await;
    for id in [runs, waits] {
        world.until(&id, |found| found.state.status.is_end()).await;
        let state = world.instance(&id).await.state;
        assert_eq!(
            (state.status, state.reason),
            (Status::Failed, Some(Reason::Timeout))
        );
    }
    let took = began.elapsed();
    assert!(
        (Duration::from_millis(700)..Duration::from_secs(10)).contains(&took),
        "it sleeps until then and no longer: {took:?}"
    );
    scheduler.shutdown(soon()).await;
}
