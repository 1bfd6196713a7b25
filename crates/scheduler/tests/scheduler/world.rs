//! The reference store, and runs that do what the test says.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::{
    Due, EndedBy, ExitCause, ImageDigest, ImageId, ImageName, InstanceId, Labels, NewImage,
    NewInstance, NodeId, RegistrationNumber, RunExit, RunSettings, RunnerKind, TenantId, Usage,
};
use runtara_images::{BlobOptions, BlobStore, Stored};
use runtara_runner::{
    Adoption, AskedSettings, CallTracker, ImageFiles, LaunchError, LaunchObstacle, LaunchSpec,
    PrepareError, PreparedImage, Readiness, Run, RunDirectories, RunDirectory, RunKey, Runner,
    RunnerError,
};
use runtara_scheduler::{Scheduler, SchedulerConfig, SchedulerParts, UpkeepConfig};
use runtara_store::memory::MemoryStore;
use runtara_store::{Clock, InstanceRecord, Nudges, Started, Store, SystemClock};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

/// A run that ends when the test, or the scheduler, says so.
pub(crate) struct FakeRun {
    pub(crate) key: RunKey,
    core_addr: String,
    exit: watch::Sender<Option<RunExit>>,
    /// Whether the scheduler has told it to leave.
    told: watch::Sender<bool>,
    stubborn: bool,
    /// For how long it says that it has run.
    pub(crate) ran_ms: AtomicU64,
}

impl FakeRun {
    /// Ends as the test says.
    pub(crate) fn ends(&self, cause: ExitCause) {
        self.exit.send_replace(Some(exit(cause, None)));
    }

    /// Waits until the scheduler has told it to leave.
    pub(crate) async fn told_to_leave(&self) {
        let mut told = self.told.subscribe();
        let told = timeout(Duration::from_secs(10), told.wait_for(|told| *told)).await;
        told.expect("not told to leave in time").unwrap();
    }
}

pub(crate) fn exit(cause: ExitCause, ended_by: Option<EndedBy>) -> RunExit {
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

    fn core_addr(&self) -> Option<&str> {
        Some(&self.core_addr)
    }

    async fn wait(&self) -> Result<RunExit, RunnerError> {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await.unwrap();
        Ok(exit.clone().unwrap())
    }

    async fn terminate(&self, grace: Duration, by: EndedBy) -> Result<(), RunnerError> {
        self.told.send_replace(true);
        if self.stubborn && !grace.is_zero() {
            return Ok(());
        }
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
        Ok(Usage {
            running_ms: self.ran_ms.load(Ordering::SeqCst),
            ..Usage::default()
        })
    }
}

/// Keeps its runs although the scheduler that launched them goes away, as processes would.
#[derive(Default)]
pub(crate) struct FakeRunner {
    runs: Mutex<HashMap<RunKey, Arc<FakeRun>>>,
    /// Whether its runs leave only when they are killed.
    pub(crate) stubborn: AtomicBool,
    /// What was launched, in its order.
    launches: watch::Sender<Vec<RunKey>>,
    /// Where its runs have their files, and how many attempts to remove some fail.
    data_dir: OnceLock<PathBuf>,
    /// Whether the next launch finds that what was prepared is gone.
    pub(crate) image_is_gone: AtomicBool,
    /// Whether nothing is allowed that is asked for.
    pub(crate) forbids: AtomicBool,
    /// How often an image was prepared.
    pub(crate) prepared: AtomicUsize,
    pub(crate) unremovable: Mutex<u32>,
    /// What was taken away.
    pub(crate) forgotten: Mutex<Vec<ImageDigest>>,
    /// Whether giving back room lasts until this is unset.
    pub(crate) reclaims_slowly: watch::Sender<bool>,
    /// How often giving back room has begun.
    pub(crate) reclaims: watch::Sender<u32>,
}

impl FakeRunner {
    pub(crate) fn run(&self, key: &RunKey) -> Option<Arc<FakeRun>> {
        self.runs.lock().unwrap().get(key).cloned()
    }

    /// The launches after so many.
    pub(crate) fn launches_after(&self, count: usize) -> Vec<RunKey> {
        self.launches.borrow()[count..].to_vec()
    }

    /// Waits until there were so many launches, and gives the last of them.
    pub(crate) async fn launched(&self, count: usize) -> RunKey {
        let mut launches = self.launches.subscribe();
        let launched = launches.wait_for(|found| found.len() >= count);
        let launched = timeout(Duration::from_secs(10), launched).await;
        let launches = launched.expect("not launched in time").unwrap();
        launches[count - 1].clone()
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

    async fn prepare(&self, image: ImageFiles) -> Result<PreparedImage, PrepareError> {
        self.prepared.fetch_add(1, Ordering::SeqCst);
        Ok(PreparedImage {
            content: image.content,
            about: None,
            path: image.path,
        })
    }

    fn check(&self, _settings: &AskedSettings) -> Result<(), String> {
        match self.forbids.load(Ordering::SeqCst) {
            true => Err("5 is more than the operator allows; ask for at most 4".to_owned()),
            false => Ok(()),
        }
    }

    async fn forget(&self, digest: ImageDigest) -> Result<(), std::io::Error> {
        self.forgotten.lock().unwrap().push(digest);
        Ok(())
    }

    async fn reclaim(&self) -> Result<(), std::io::Error> {
        self.reclaims.send_modify(|reclaims| *reclaims += 1);
        let mut slowly = self.reclaims_slowly.subscribe();
        slowly.wait_for(|slowly| !slowly).await.unwrap();
        Ok(())
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Arc<dyn Run>, LaunchError> {
        if self.image_is_gone.swap(false, Ordering::SeqCst) {
            return Err(LaunchError {
                key: spec.key,
                obstacle: LaunchObstacle::NotPrepared,
                reason: "somebody has cleaned up".to_owned(),
            });
        }
        if let Some(data_dir) = self.data_dir.get() {
            let directories = RunDirectories::open(data_dir).unwrap();
            directories.create(&spec.key).unwrap();
        }
        let run = Arc::new(FakeRun {
            key: spec.key.clone(),
            core_addr: spec.core_addr,
            exit: watch::Sender::new(None),
            told: watch::Sender::new(false),
            stubborn: self.stubborn.load(Ordering::SeqCst),
            ran_ms: AtomicU64::new(3_600_000),
        });
        self.runs
            .lock()
            .unwrap()
            .insert(spec.key.clone(), Arc::clone(&run));
        self.launches
            .send_modify(|launches| launches.push(spec.key));
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

    async fn clean(&self, key: &RunKey, keep_logs: bool) -> Result<(), RunnerError> {
        let run_file = self
            .data_dir
            .get()
            .map(|data_dir| RunDirectory::of(data_dir, key).run_file());
        if let Some(run_file) = run_file.filter(|file| file.exists()) {
            let mut unremovable = self.unremovable.lock().unwrap();
            if *unremovable > 0 {
                *unremovable -= 1;
                return Err(RunnerError {
                    key: key.clone(),
                    context: "its files could not be removed".to_owned(),
                    source: std::io::ErrorKind::PermissionDenied.into(),
                });
            }
            std::fs::remove_file(run_file).unwrap();
        }
        if let Some(data_dir) = self.data_dir.get().filter(|_| !keep_logs) {
            let _none = std::fs::remove_dir_all(RunDirectory::of(data_dir, key).path());
        }
        self.runs.lock().unwrap().remove(key);
        Ok(())
    }
}

pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) runner: Arc<FakeRunner>,
    pub(crate) tracker: CallTracker,
    pub(crate) directory: TempDir,
    pub(crate) blobs: BlobStore,
    node: NodeId,
    content: Stored,
    images: Mutex<HashMap<TenantId, ImageId>>,
    pub(crate) max_runs_per_tenant: Option<u32>,
    /// What the next scheduler is told of what is kept.
    pub(crate) upkeep: Mutex<UpkeepConfig>,
    /// How many events are kept of what is started.
    pub(crate) max_events: Mutex<Option<u32>>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::at(Arc::new(SystemClock)).await
    }

    /// A world with this clock.
    pub(crate) async fn at(clock: Arc<dyn Clock>) -> Self {
        Self::over(Arc::new(MemoryStore::new(clock, Nudges::new()))).await
    }

    /// A world over this store.
    pub(crate) async fn over(store: Arc<dyn Store>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blobs = BlobStore::open(directory.path().join("blobs"), BlobOptions::default())
            .await
            .unwrap();
        let mut upload = blobs.upload().await.unwrap();
        upload.write(b"#!/bin/sh\n").await.unwrap();
        let content = upload.finish(None).await.unwrap();
        Self {
            store,
            runner: Arc::new(FakeRunner {
                data_dir: directory.path().to_owned().into(),
                ..FakeRunner::default()
            }),
            tracker: CallTracker::new(),
            directory,
            blobs,
            node: NodeId::generate(),
            content,
            images: Mutex::default(),
            max_runs_per_tenant: None,
            upkeep: Mutex::default(),
            max_events: Mutex::default(),
        }
    }

    async fn image_of(&self, tenant: &TenantId) -> ImageId {
        if let Some(known) = self.images.lock().unwrap().get(tenant) {
            return known.clone();
        }
        let image = NewImage {
            image_id: ImageId::generate(),
            number: RegistrationNumber(0),
            tenant_id: tenant.clone(),
            name: ImageName::new("image").unwrap(),
            description: None,
            kind: RunnerKind::Native,
            digest: self.content.digest,
            base: None,
            size: self.content.size,
            metadata: None,
            labels: Labels::default(),
            settings: RunSettings::default(),
            container: None,
            tenant_bytes_allowed: None,
        };
        let id = self.store.register_image(image).await.unwrap().image_id;
        self.images
            .lock()
            .unwrap()
            .insert(tenant.clone(), id.clone());
        id
    }

    pub(crate) async fn image_id(&self, tenant: &str) -> ImageId {
        self.image_of(&TenantId::new(tenant).unwrap()).await
    }

    pub(crate) fn scheduler(&self, capacity: usize) -> Scheduler {
        self.scheduler_at("127.0.0.1:1", capacity)
    }

    /// One whose runs are told this address of the core.
    pub(crate) fn scheduler_at(&self, core_addr: &str, capacity: usize) -> Scheduler {
        let config = SchedulerConfig {
            node: self.node,
            node_name: "here".to_owned(),
            data_dir: self.directory.path().to_owned(),
            core_addr: core_addr.to_owned(),
            passed_env: Default::default(),
            kinds: vec![RunnerKind::Native],
            capacity,
            weights: Default::default(),
            max_runs_per_tenant: self.max_runs_per_tenant,
            self_registered_timeout: None,
            other_core_addrs: vec!["127.0.0.1:3".to_owned()],
            upkeep: self.upkeep.lock().unwrap().clone(),
        };
        let parts = SchedulerParts {
            store: Arc::clone(&self.store),
            runners: vec![Arc::clone(&self.runner) as _],
            blobs: self.blobs.clone(),
            tracker: self.tracker.clone(),
            identity: Default::default(),
        };
        let scheduler = Scheduler::new(config, parts);
        scheduler.start();
        scheduler
    }

    pub(crate) async fn start(&self, id: &str) -> InstanceId {
        self.start_for("t", id).await
    }

    pub(crate) async fn start_for(&self, tenant: &str, id: &str) -> InstanceId {
        self.start_as(self.new_instance(tenant, id).await).await
    }

    pub(crate) async fn new_instance(&self, tenant: &str, id: &str) -> NewInstance {
        let tenant_id = TenantId::new(tenant).unwrap();
        NewInstance {
            instance_id: InstanceId::new(id).unwrap(),
            image_id: self.image_of(&tenant_id).await,
            tenant_id,
            input: "{}".into(),
            env: Default::default(),
            args: Vec::new(),
            labels: Labels::default(),
            settings: RunSettings::default(),
            timeout_ms: 60_000,
            max_attempts: None,
            max_events: *self.max_events.lock().unwrap(),
            due: Due::NOW,
            request_timeout_ms: None,
            heartbeat_timeout_ms: None,
            expires: None,
            pending_allowed: None,
        }
    }

    pub(crate) async fn start_as(&self, new: NewInstance) -> InstanceId {
        match self.store.start_instance(new).await.unwrap() {
            Started::New(state) => state.instance_id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn instance(&self, id: &InstanceId) -> InstanceRecord {
        self.store.instance(id).await.unwrap().unwrap()
    }

    /// Waits until an instance is as wanted.
    pub(crate) async fn until(&self, id: &InstanceId, wanted: impl Fn(&InstanceRecord) -> bool) {
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

    pub(crate) async fn run_of(&self, id: &InstanceId) -> Arc<FakeRun> {
        let state = self.instance(id).await.state;
        let key = RunKey {
            instance_id: id.clone(),
            run_number: state.run_number,
        };
        self.runner.run(&key).expect("the run is not there")
    }
}
