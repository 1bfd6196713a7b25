//! What is left on disk of runs.

use std::time::Duration;

use runtara_domain::{ExitCause, InstanceId};
use tokio::time::timeout;

use crate::soon;
use crate::world::World;

#[tokio::test]
async fn nothing_but_logs_stays_of_runs_that_are_over() {
    let world = World::new().await;
    let first = world.scheduler(10);
    let (over, empty, lives) = (
        world.start("over").await,
        world.start("empty").await,
        world.start("lives").await,
    );
    world.runner.launched(3).await;
    for id in [&over, &empty] {
        let run = world.run_of(id).await;
        run.ends(ExitCause::Code(0));
        world
            .until(id, |found| found.state.live_node.is_none())
            .await;
    }
    first.shutdown(soon()).await;
    // The server was killed between the record and the removal.
    let files = |id: &InstanceId| world.directory.path().join("runs").join(id.letters());
    for id in [&over, &lives] {
        std::fs::create_dir_all(files(id).join("1")).unwrap();
        // The first scheduler may have taken it for the directory of an instance without runs.
        std::fs::write(files(id).join("instance"), id.as_str()).unwrap();
        std::fs::write(files(id).join("1/run.json"), "secret").unwrap();
    }
    std::fs::create_dir_all(files(&empty)).unwrap();
    std::fs::write(files(&empty).join("instance"), empty.as_str()).unwrap();
    let _gone = std::fs::remove_dir(files(&empty).join("1"));
    *world.runner.unremovable.lock().unwrap() = 1;
    let second = world.scheduler(10);
    let first_try = timeout(Duration::from_secs(10), async {
        while files(&empty).exists() || *world.runner.unremovable.lock().unwrap() > 0 {
            tokio::task::yield_now().await;
        }
    });
    first_try.await.expect("the empty directory is still there");
    second.shutdown(soon()).await;
    assert!(files(&over).join("1/run.json").exists(), "it failed");

    let third = world.scheduler(10);
    let gone = timeout(Duration::from_secs(10), async {
        while files(&over).join("1/run.json").exists() {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("the secrets are still there");
    assert!(files(&lives).join("1/run.json").exists());
    assert!(world.runner.run(&world.run_of(&lives).await.key).is_some());
    third.end_runs();
    third.shutdown(soon()).await;
}

#[tokio::test]
async fn files_of_runs_go_with_their_instance() {
    let world = World::new().await;
    let first = world.scheduler(10);
    let (kept, removed) = (world.start("kept").await, world.start("removed").await);
    world.runner.launched(2).await;
    for id in [&kept, &removed] {
        let run = world.run_of(id).await;
        run.ends(ExitCause::Code(0));
        world
            .until(id, |found| found.state.live_node.is_none())
            .await;
    }
    first.shutdown(soon()).await;
    world.store.purge_instance(&removed).await.unwrap();

    let second = world.scheduler(10);
    let files = |id: &InstanceId| world.directory.path().join("runs").join(id.letters());
    let gone = timeout(Duration::from_secs(10), async {
        while files(&removed).exists() {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("the files are still there");
    assert!(files(&kept).exists());
    second.shutdown(soon()).await;
}
