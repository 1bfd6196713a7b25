//! The scheduler over the reference store and runs that do what the test says.

#![expect(clippy::unwrap_used, reason = "a test fails where it cannot go on")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::{
    Change, EndedBy, ExitCause, ImageDigest, ImageId, ImageName, InstanceId, Labels, NewImage,
    NewInstance, NodeId, Reason, RunExit, RunnerKind, Status, TenantId, Usage,
};
use runtara_images::{BlobOptions, BlobStore};
use runtara_runner::{
    Adoption, CallTracker, LaunchError, LaunchSpec, PrepareError, PreparedImage, Readiness, Run,
    RunKey, Runner, RunnerError,
};
use runtara_scheduler::{Scheduler, SchedulerConfig, SchedulerParts};
use runtara_store::memory::MemoryStore;
use runtara_store::{InstanceRecord, Nudges, Started, Store, SystemClock};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// A run that ends when the test, or the scheduler, says so.
struct FakeRun {
    key: RunKey,
    exit: watch::Sender<Option<RunExit>>,
}

fn exit(cause: ExitCause, ended_by: Option<EndedBy>) -> RunExit {
    RunExit {
        cause,
        ended_by,
        ..RunExit::lost()
    }
}

#[async_trait]
impl Run for FakeRun {
    fn key(&self) -> &RunKey {
        &self.key
    }

    async fn wait(&self) -> Result<RunExit, RunnerError> {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await.unwrap();
        Ok(exit.clone().unwrap())
    }

    async fn terminate(&self, _grace: Duration, by: EndedBy) -> Result<(), RunnerError> {
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some(exit(ExitCause::Signal(9), Some(by)));
            }
            first
        });
        Ok(())
    }

    async fn set_slept(&self, _slept: Duration) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, RunnerError> {
        Ok(Usage::default())
    }
}

/// Keeps its runs although the scheduler that launched them goes away, as processes would.
#[derive(Default)]
struct FakeRunner {
    runs: Mutex<HashMap<RunKey, Arc<FakeRun>>>,
    launches: watch::Sender<usize>,
}

impl FakeRunner {
    fn run(&self, key: &RunKey) -> Option<Arc<FakeRun>> {
        self.runs.lock().unwrap().get(key).cloned()
    }

    async fn launched(&self, count: usize) {
        let mut launches = self.launches.subscribe();
        timeout(
            Duration::from_secs(10),
            launches.wait_for(|found| *found >= count),
        )
        .await
        .expect("not launched in time")
        .unwrap();
    }
}

#[async_trait]
impl Runner for FakeRunner {
    fn kind(&self) -> RunnerKind {
        RunnerKind::Native
    }

    async fn readiness(&self) -> Readiness {
        Readiness::Ready("fake".to_owned())
    }

    async fn prepare(
        &self,
        digest: ImageDigest,
        content: &Path,
    ) -> Result<PreparedImage, PrepareError> {
        Ok(PreparedImage {
            digest,
            path: content.to_owned(),
        })
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Run>, LaunchError> {
        let run = Arc::new(FakeRun {
            key: spec.key.clone(),
            exit: watch::Sender::new(None),
        });
        self.runs.lock().unwrap().insert(spec.key, Arc::clone(&run));
        self.launches.send_modify(|count| *count += 1);
        Ok(run)
    }

    async fn adopt(&self, key: &RunKey) -> Result<Adoption, RunnerError> {
        Ok(match self.run(key) {
            None => Adoption::Gone,
            Some(run) => {
                let exit = run.exit.borrow().clone();
                match exit {
                    Some(exit) => Adoption::Exited(exit),
                    None => Adoption::Alive(run),
                }
            }
        })
    }

    async fn clean(&self, key: &RunKey, _keep_logs: bool) -> Result<(), RunnerError> {
        self.runs.lock().unwrap().remove(key);
        Ok(())
    }
}

struct World {
    store: Arc<dyn Store>,
    runner: Arc<FakeRunner>,
    blobs: BlobStore,
    node: NodeId,
    image: ImageId,
    directory: TempDir,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = MemoryStore::new(Arc::new(SystemClock), Nudges::new());
        let blobs = BlobStore::open(directory.path().join("blobs"), BlobOptions::default())
            .await
            .unwrap();
        let mut upload = blobs.upload().await.unwrap();
        upload.write(b"#!/bin/sh\n").await.unwrap();
        let stored = upload.finish(None).await.unwrap();
        let image = NewImage {
            image_id: ImageId::generate(),
            tenant_id: TenantId::new("t").unwrap(),
            name: ImageName::new("image").unwrap(),
            description: None,
            kind: RunnerKind::Native,
            digest: stored.digest,
            size: stored.size,
            metadata: None,
            labels: Labels::default(),
        };
        let image = store.register_image(image).await.unwrap().image_id;
        Self {
            store: Arc::new(store),
            runner: Arc::new(FakeRunner::default()),
            blobs,
            node: NodeId::generate(),
            image,
            directory,
        }
    }

    fn scheduler(&self, capacity: usize) -> Scheduler {
        let config = SchedulerConfig {
            node: self.node,
            node_name: "here".to_owned(),
            data_dir: self.directory.path().to_owned(),
            core_addr: "127.0.0.1:1".to_owned(),
            passed_env: Default::default(),
            capacity,
            lease: Duration::from_secs(15),
            relaunch_adopted: false,
        };
        let parts = SchedulerParts {
            store: Arc::clone(&self.store),
            runners: vec![Arc::clone(&self.runner) as _],
            blobs: self.blobs.clone(),
            tracker: CallTracker::new(),
        };
        let scheduler = Scheduler::new(config, parts);
        scheduler.start();
        scheduler
    }

    async fn start(&self, id: &str) -> InstanceId {
        let new = NewInstance {
            instance_id: InstanceId::new(id).unwrap(),
            tenant_id: TenantId::new("t").unwrap(),
            image_id: self.image.clone(),
            input: "{}".into(),
            env: Default::default(),
            args: Vec::new(),
            labels: Labels::default(),
            timeout_ms: 60_000,
            max_attempts: None,
            due_at: None,
            request_timeout_ms: None,
        };
        match self.store.start_instance(new).await.unwrap() {
            Started::New(state) => state.instance_id,
            other => panic!("{other:?}"),
        }
    }

    async fn instance(&self, id: &InstanceId) -> InstanceRecord {
        self.store.instance(id).await.unwrap().unwrap()
    }

    /// Waits until an instance is as wanted.
    async fn until(&self, id: &InstanceId, wanted: impl Fn(&InstanceRecord) -> bool) {
        let mut watch = self.store.nudges().watch(id);
        let arrived = timeout(Duration::from_secs(10), async {
            while !wanted(&self.instance(id).await) {
                watch.changed().await;
            }
        });
        if arrived.await.is_err() {
            panic!("not as wanted in time: {:?}", self.instance(id).await.state);
        }
    }

    async fn run_of(&self, id: &InstanceId) -> Arc<FakeRun> {
        let state = self.instance(id).await.state;
        let key = RunKey {
            instance_id: id.clone(),
            run_number: state.run_number,
        };
        self.runner.run(&key).expect("the run is not there")
    }
}

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
    run.exit.send_replace(Some(exit(ExitCause::Code(0), None)));
    world
        .until(&id, |found| found.state.status == Status::Completed)
        .await;
    assert_eq!(world.instance(&id).await.state.live_node, None);
    scheduler.shutdown(false, soon()).await;
}

#[tokio::test]
async fn a_crash_is_launched_again_until_the_attempts_are_used_up() {
    let world = World::new().await;
    let scheduler = world.scheduler(10);
    let id = world.start("crashes").await;
    for launch in 1..=3 {
        world.runner.launched(launch).await;
        let run = world.run_of(&id).await;
        run.exit
            .send_replace(Some(exit(ExitCause::Signal(11), None)));
        world
            .until(&id, |found| found.state.live_node.is_none())
            .await;
    }
    let state = world.instance(&id).await.state;
    assert_eq!(
        (state.status, state.reason),
        (Status::Failed, Some(Reason::Crashed))
    );
    scheduler.shutdown(false, soon()).await;
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
    run.exit.send_replace(Some(exit(ExitCause::Code(0), None)));
    world.runner.launched(3).await;
    assert_eq!(scheduler.live_runs(), 2);
    scheduler.shutdown(true, soon()).await;
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
    first.shutdown(false, soon()).await;
    let run = world.run_of(&ends).await;
    run.exit.send_replace(Some(exit(ExitCause::Code(0), None)));
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
    run.exit.send_replace(Some(exit(ExitCause::Code(0), None)));
    world
        .until(&lives, |found| found.state.status == Status::Completed)
        .await;
    second.shutdown(true, soon()).await;
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
    scheduler.shutdown(false, soon()).await;
}

#[tokio::test]
async fn files_of_runs_go_with_their_instance() {
    let world = World::new().await;
    let first = world.scheduler(10);
    let (kept, removed) = (world.start("kept").await, world.start("removed").await);
    world.runner.launched(2).await;
    for id in [&kept, &removed] {
        let run = world.run_of(id).await;
        run.exit.send_replace(Some(exit(ExitCause::Code(0), None)));
        world
            .until(id, |found| found.state.live_node.is_none())
            .await;
    }
    first.shutdown(false, soon()).await;
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
    second.shutdown(false, soon()).await;
}
