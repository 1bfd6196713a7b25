//! The scheduler over the reference store and runs that do what the test says.

#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

mod clocks;
mod fairness;
mod faults;
mod files;
mod images;
mod liveness;
#[path = "../../../store/tests/postgres_support/mod.rs"]
mod postgres_support;
mod simulation;
mod throng;
mod upkeep;
mod world;

use std::time::Duration;

use runtara_domain::{Change, ExitCause, Reason, Status};
use runtara_runner::Runner as _;
use tokio::time::Instant;

use crate::world::World;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

#[tokio::test]
async fn a_started_instance_runs_and_its_exit_is_recorded() {
    let world = World::new().await;
    let scheduler = world.scheduler(10);
    let id = world.start("one").await;
    world.runner.launched(1).await;
    let run = world.run_of(&id).await;
    run.ends(ExitCause::Code(0));
    world
        .until(&id, |found| found.state.status == Status::Completed)
        .await;
    assert_eq!(world.instance(&id).await.state.live_node, None);
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn a_crash_is_launched_again_until_the_attempts_are_used_up() {
    let world = World::new().await;
    let scheduler = world.scheduler(10);
    let id = world.start("crashes").await;
    for launch in 1..=3 {
        world.runner.launched(launch).await;
        let run = world.run_of(&id).await;
        run.ends(ExitCause::Signal(11));
        world
            .until(&id, |found| found.state.live_node.is_none())
            .await;
    }
    let state = world.instance(&id).await.state;
    assert_eq!(
        (state.status, state.reason),
        (Status::Failed, Some(Reason::Crashed))
    );
    scheduler.shutdown(soon()).await;
}

#[tokio::test]
async fn no_more_runs_than_there_is_room_for() {
    let world = World::new().await;
    let scheduler = world.scheduler(2);
    let mut ids = Vec::new();
    for number in 0..4 {
        ids.push(world.start(&format!("i{number}")).await);
    }
    world.runner.launched(2).await;
    assert_eq!(scheduler.live_runs(), 2);
    let statuses = async || {
        let mut running = 0;
        for id in &ids {
            running += usize::from(world.instance(id).await.state.status == Status::Running);
        }
        running
    };
    assert_eq!(statuses().await, 2);
    let run = world.run_of(&ids[0]).await;
    run.ends(ExitCause::Code(0));
    world.runner.launched(3).await;
    assert_eq!(scheduler.live_runs(), 2);
    scheduler.end_runs();
    scheduler.shutdown(soon()).await;
    assert_eq!(scheduler.live_runs(), 0, "all runs were ended");
}

#[tokio::test]
async fn the_next_scheduler_adopts_what_lives_and_records_what_ended() {
    let world = World::new().await;
    let first = world.scheduler(10);
    let (lives, ends, vanishes) = (
        world.start("lives").await,
        world.start("ends").await,
        world.start("vanishes").await,
    );
    world.runner.launched(3).await;
    first.shutdown(soon()).await;
    let run = world.run_of(&ends).await;
    run.ends(ExitCause::Code(0));
    let lost = world.run_of(&vanishes).await.key.clone();
    world.runner.clean(&lost, true).await.unwrap();

    let second = world.scheduler(10);
    world
        .until(&ends, |found| found.state.status == Status::Completed)
        .await;
    world
        .until(&vanishes, |found| found.state.run_number.0 == 2)
        .await;
    let vanished = world.instance(&vanishes).await.state;
    assert_eq!(
        vanished.attempts.crash_count, 0,
        "a lost run is not counted"
    );
    let run = world.run_of(&lives).await;
    run.ends(ExitCause::Code(0));
    world
        .until(&lives, |found| found.state.status == Status::Completed)
        .await;
    second.end_runs();
    second.shutdown(soon()).await;
}

#[tokio::test]
async fn only_a_run_that_knows_no_served_address_is_launched_anew() {
    let world = World::new().await;
    let first = world.scheduler_at("127.0.0.1:2", 10);
    let old = world.start("old").await;
    world.runner.launched(1).await;
    first.shutdown(soon()).await;
    let second = world.scheduler_at("127.0.0.1:3", 10);
    let further = world.start("further").await;
    // The one of the first address is launched again.
    world.runner.launched(3).await;
    second.shutdown(soon()).await;

    let third = world.scheduler_at("127.0.0.1:2", 10);
    let new = world.start("new").await;
    world.runner.launched(4).await;
    world
        .until(&new, |found| found.state.run_number.0 == 1)
        .await;
    for (id, run_number) in [(&old, 2), (&further, 1), (&new, 1)] {
        let state = world.instance(id).await.state;
        assert_eq!(state.run_number.0, run_number, "{state:?}");
        assert_eq!(state.attempts.crash_count, 0);
        let run = world.run_of(id).await;
        run.ends(ExitCause::Code(0));
        world
            .until(id, |found| found.state.status == Status::Completed)
            .await;
    }
    third.end_runs();
    third.shutdown(soon()).await;
}

#[tokio::test]
async fn a_stop_reaches_the_process() {
    let world = World::new().await;
    let scheduler = world.scheduler(10);
    let id = world.start("stopped").await;
    world.runner.launched(1).await;
    let stop = Change::Stop {
        grace_ms: 5_000,
        reason: "enough".to_owned(),
    };
    world.store.change(&id, stop).await.unwrap();
    world
        .until(&id, |found| {
            found.state.status == Status::Cancelled && found.state.live_node.is_none()
        })
        .await;
    scheduler.shutdown(soon()).await;
}
