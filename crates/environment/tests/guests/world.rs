//! A scheduler, a core and the runner of guests over a store, composed as a server composes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use runtara_core::{Core, CoreConfig};
use runtara_domain::{
    Due, ImageId, ImageName, InstanceId, InstanceState, Labels, NewImage, NewInstance, NodeId,
    RegistrationNumber, RunSettings, RunnerKind, Status, TenantId,
};
use runtara_http::core::RoutesWithin;
use runtara_images::{BlobOptions, BlobStore};
use runtara_runner::{CallTracker, InstanceCalls, RunDirectories};
use runtara_runner_wasm::{WasmConfig, WasmRunner};
use runtara_scheduler::{Scheduler, SchedulerConfig, SchedulerParts};
use runtara_store::{
    CheckpointFilter, CheckpointSummary, EventFilter, PageRequest, Started, Store,
};
use tempfile::TempDir;
use tokio::time::timeout;
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// How long anything may take that should happen soon.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    pub(crate) scheduler: Scheduler,
    store: Arc<dyn Store>,
    blobs: BlobStore,
    images: AtomicU32,
    _directory: TempDir,
}

impl World {
    /// A world over this store with room for so many guests at once.
    pub(crate) async fn new(store: Arc<dyn Store>, guests: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let blobs = BlobStore::open(place.join("blobs"), BlobOptions::default());
        let blobs = blobs.await.unwrap();
        let directories = Arc::new(RunDirectories::open(place).unwrap());
        let tracker = CallTracker::new();
        let core = Core::new(Arc::clone(&store), tracker.clone(), CoreConfig::default());
        let core: Arc<dyn InstanceCalls> = Arc::new(core);
        let routes = RoutesWithin::new(
            Arc::clone(&core),
            tracker.clone(),
            Arc::clone(&store),
            store.database_id().await.unwrap(),
        );
        let mut config = WasmConfig::new(place);
        config.max_instances = guests;
        config.max_memory_bytes = config.default_memory_bytes;
        let runner = WasmRunner::new(config, directories, core, Arc::new(routes), tracker.clone());
        let config = SchedulerConfig {
            node: NodeId::generate(),
            node_name: "here".to_owned(),
            data_dir: place.to_owned(),
            core_addr: "127.0.0.1:1".to_owned(),
            passed_env: Default::default(),
            kinds: vec![RunnerKind::Wasm],
            capacity: usize::try_from(guests).unwrap(),
            weights: Default::default(),
            max_runs_per_tenant: None,
            self_registered_timeout: None,
            other_core_addrs: Vec::new(),
            upkeep: Default::default(),
        };
        let parts = SchedulerParts {
            store: Arc::clone(&store),
            runners: vec![Arc::new(runner)],
            blobs: blobs.clone(),
            tracker,
            identity: Default::default(),
        };
        let scheduler = Scheduler::new(config, parts);
        scheduler.start();
        Self {
            scheduler,
            store,
            blobs,
            images: AtomicU32::new(0),
            _directory: directory,
        }
    }

    fn tenant() -> TenantId {
        TenantId::new("acme").unwrap()
    }

    /// Registers a command in WebAssembly text, which may import the durable operations.
    pub(crate) async fn register(&self, text: &str) -> ImageId {
        let mut module = wat::parse_str(text).unwrap();
        if text.contains("runtara:durable") {
            let mut resolve = Resolve::default();
            let wit = concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit");
            let (package, _) = resolve.push_path(wit).unwrap();
            let world = resolve.select_world(&[package], Some("imports")).unwrap();
            embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
        }
        let mut upload = self.blobs.upload().await.unwrap();
        upload.write(&module).await.unwrap();
        let content = upload.finish(None).await.unwrap();
        let number = self.images.fetch_add(1, Ordering::Relaxed);
        let image = NewImage {
            image_id: ImageId::generate(),
            number: RegistrationNumber(number.into()),
            tenant_id: Self::tenant(),
            name: ImageName::new(format!("image-{number}")).unwrap(),
            description: None,
            kind: RunnerKind::Wasm,
            digest: content.digest,
            base: None,
            size: content.size,
            metadata: None,
            labels: Labels::default(),
            settings: RunSettings::default(),
            container: None,
            tenant_bytes_allowed: None,
        };
        self.store.register_image(image).await.unwrap().image_id
    }

    pub(crate) async fn start(&self, id: &str, image: &ImageId) -> InstanceId {
        let new = NewInstance {
            instance_id: InstanceId::new(id).unwrap(),
            image_id: image.clone(),
            tenant_id: Self::tenant(),
            input: "{}".into(),
            env: Default::default(),
            args: Vec::new(),
            labels: Labels::default(),
            settings: RunSettings::default(),
            timeout_ms: 600_000,
            max_attempts: None,
            max_events: None,
            due: Due::NOW,
            request_timeout_ms: None,
            heartbeat_timeout_ms: None,
            expires: None,
            pending_allowed: None,
        };
        match self.store.start_instance(new).await.unwrap() {
            Started::New(state) => state.instance_id,
            other => panic!("{other:?}"),
        }
    }

    /// Starts an instance, and waits until it is completed.
    pub(crate) async fn completes(&self, id: &str, image: &ImageId) {
        let id = self.start(id, image).await;
        self.until(&id, |state| {
            state.status == Status::Completed && state.live_node.is_none()
        })
        .await;
    }

    /// Has the dispatcher look, as it does by itself in less than a minute: the clock was moved, and it waits by its own.
    pub(crate) fn look_for_what_is_due(&self) {
        self.store.nudges().due();
    }

    pub(crate) async fn state(&self, id: &InstanceId) -> InstanceState {
        self.store.instance(id).await.unwrap().unwrap().state
    }

    /// Waits until an instance is as wanted.
    pub(crate) async fn until(&self, id: &InstanceId, wanted: impl Fn(&InstanceState) -> bool) {
        let mut watch = self.store.nudges().watch(id);
        let arrived = timeout(PATIENCE, async {
            while !wanted(&self.state(id).await) {
                watch.changed().await;
            }
        });
        if arrived.await.is_err() {
            let (filter, page) = (EventFilter::default(), PageRequest::first(100));
            let events = self.store.list_events(id, &filter, &page).await.unwrap();
            panic!("not in time: {:?}, {events:?}", self.state(id).await);
        }
    }

    pub(crate) async fn output(&self, id: &InstanceId) -> String {
        let values = self.store.instance_values(id).await.unwrap().unwrap();
        String::from_utf8(values.output.unwrap().into()).unwrap()
    }

    /// What it has saved, in its order.
    pub(crate) async fn checkpoints(&self, id: &InstanceId) -> Vec<CheckpointSummary> {
        let (filter, page) = (CheckpointFilter::default(), PageRequest::first(100));
        let page = self.store.list_checkpoints(id, &filter, &page).await;
        let mut saved = page.unwrap().rows;
        saved.reverse();
        saved
    }
}
