//! What people ask of the environment: images, instances, signals, lists.
//!
//! Operations are plain functions on [`Control`], in the order of the protocol. They speak domain values and know neither HTTP nor
//! SQL; they never launch or end a run: what they change in the store is what the scheduler follows. What can be run at all, they ask
//! [`Programs`].
//!
//! Where a caller names a tenant ([`Scope`]), it must match what it asks for; what belongs to another tenant is answered like something
//! that does not exist.

mod base;
mod error;
mod images;
mod input;
mod instances;
mod known_images;
mod logs;
mod nodes;
mod programs;
mod questions;
mod registration;
mod signals;
mod start;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtara_domain::{InstanceId, NodeId, RunnerKind, TenantId};
use runtara_images::BlobStore;
use runtara_store::{InstanceRecord, InstanceValues, Store};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use known_images::KnownImages;

pub use error::{ControlError, ControlResult};
pub use images::RegisterImage;
pub use instances::{InstanceView, StopOutcome};
pub use logs::{Log, LogPlace};
pub use nodes::Drain;
pub use programs::Programs;
pub use questions::{Ancestor, Step};
pub use registration::ImageRegistration;
pub use start::{StartInstance, StartOutcome};

/// What the control plane needs to know of its server.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// This node.
    pub node: NodeId,
    /// The kinds of images that this server can run.
    pub kinds: Vec<RunnerKind>,
    /// Of other kinds, what is missing and what to do.
    pub unavailable: BTreeMap<RunnerKind, String>,
    /// Whether a plain binary that is declared `oci` (as published clients do unless told otherwise) runs as a native process here.
    pub native_for_oci: bool,
    /// How many events of an instance are kept where its start does not say; `None` for all.
    pub max_events: Option<u32>,
    /// Where the server keeps its files.
    pub data_dir: PathBuf,
    /// How long what was made of an image is kept if its client went away before it was ready: a client that waits for less time than that
    /// takes, and asks again, finds it made.
    pub kept_for_another_try: Duration,
    /// Most instances of one tenant that are pending; any number if it is not said.
    pub max_pending_per_tenant: Option<u64>,
    /// Most bytes of all images of one tenant, each content counted once; any number if it is not said.
    pub max_image_bytes_per_tenant: Option<u64>,
}

/// The operations of the environment protocol.
#[derive(Clone)]
pub struct Control {
    store: Arc<dyn Store>,
    blobs: BlobStore,
    programs: Arc<dyn Programs>,
    config: Arc<ControlConfig>,
    images: Arc<KnownImages>,
    preparing: Arc<Semaphore>,
    closing: CancellationToken,
}

/// For whom an operation is done: a tenant, or whoever may see all.
pub type Scope = Option<TenantId>;

impl Control {
    /// The operations over a store and the content of images, by what can be run here.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        blobs: BlobStore,
        programs: Arc<dyn Programs>,
        config: ControlConfig,
    ) -> Self {
        Self {
            store,
            blobs,
            programs,
            config: Arc::new(config),
            images: Arc::default(),
            preparing: Arc::new(Semaphore::new(registration::PREPARED_AT_ONCE)),
            closing: CancellationToken::new(),
        }
    }

    /// Prepares for the end of this process: operations that wait for an instance answer at once with where it stands, and outputs that
    /// are followed break off. Whatever is asked from here on does not wait either.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// The store, for questions that need no operation of their own.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What this server can do.
    #[must_use]
    pub fn config(&self) -> &ControlConfig {
        &self.config
    }

    /// An instance that the scope may see.
    async fn find(&self, scope: &Scope, id: &InstanceId) -> ControlResult<InstanceRecord> {
        let found = self.store.instance(id).await?;
        found
            .filter(|found| is_seen(scope, found))
            .ok_or_else(|| ControlError::instance_not_found(id))
    }

    /// The same, with its large values if it has ended.
    async fn find_at_its_end(
        &self,
        scope: &Scope,
        id: &InstanceId,
    ) -> ControlResult<(InstanceRecord, Option<InstanceValues>)> {
        let found = self.store.instance_at_its_end(id).await?;
        found
            .filter(|(found, _)| is_seen(scope, found))
            .ok_or_else(|| ControlError::instance_not_found(id))
    }
}

fn is_seen(scope: &Scope, found: &InstanceRecord) -> bool {
    scope
        .as_ref()
        .is_none_or(|tenant| found.state.tenant_id == *tenant)
}
