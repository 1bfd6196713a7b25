//! The reference model: a store in memory.
//!
//! [`Model`] is the meaning of the [`Store`] written down as plainly as possible: ordinary maps, one synchronous method for each
//! of the trait's, the time given as a value. It is the oracle against which the other stores are tested, and the ground of
//! simulations; so it searches and sorts where a database has an index. [`MemoryStore`] puts it behind a lock and gives the nudges.

mod calls;
mod folding;
mod images;
mod instances;
mod lists;
mod liveness;
mod model;
mod nodes;
mod removal;
mod runs;
mod steps;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use runtara_domain::{
    Caller, Change, CheckpointId, Checkpointed, DatabaseId, ImageDigest, ImageId, ImageName,
    ImageRecord, InstanceId, NewEvent, NewImage, NewInstance, NodeId, RaisedSignal,
    RegistrationNumber, RunnerKind, SaveCheckpoint, SignalId, TenantId, Timestamp, TokenHash, Word,
};

pub use model::{Model, Told};

use crate::{
    Changed, CheckpointFilter, CheckpointSummary, Claim, ClaimedRun, Clock, EndedInstance,
    EventFilter, Expired, ExpiredPage, Folded, HeldWait, ImageBytes, ImageDeletion, ImageFilter,
    InstanceFilter, InstanceOrder, InstanceRecord, InstanceSummary, InstanceValues, LiveRun,
    MetricsBucket, MetricsQuery, NextDue, NodeLease, NodeRecord, NodeRemoval, NodeStanding, Nudges,
    Overdue, Page, PageRequest, Purge, Remains, Scope, Started, StepFilter, StepSummary, Store,
    StoreError, StoreResult, StoredCheckpoint, StoredEvent, TokenOwner, WaitRequest, Waiting,
};

/// A [`Model`] behind a lock. What it knows is gone with it.
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    nudges: Nudges,
    /// `None` once it is closed.
    model: Mutex<Option<Model>>,
}

impl MemoryStore {
    /// An empty store that decides by this clock and gives these nudges.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, nudges: Nudges) -> Self {
        Self {
            clock,
            nudges,
            model: Mutex::new(Some(Model::new())),
        }
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Model, Timestamp) -> T) -> StoreResult<T> {
        let (answer, told) = {
            // A change is decided before anything of it is written, so a panic leaves the model as it was.
            let mut model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
            let model = model.as_mut().ok_or_else(|| StoreError::Unavailable {
                context: "the store was closed".to_owned(),
                source: None,
            })?;
            // The time is taken under the lock: what is decided later is not decided by an earlier time.
            let answer = ask(model, self.clock.now());
            (answer, model.take_told())
        };
        for told in told {
            match told {
                Told::State(state) => self.nudges.after(&state),
                Told::Changed(id) => self.nudges.changed(&id),
            }
        }
        Ok(answer)
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn nudges(&self) -> &Nudges {
        &self.nudges
    }

    async fn database_id(&self) -> StoreResult<DatabaseId> {
        self.with(|model, _| model.database_id())
    }

    async fn ping(&self) -> StoreResult<()> {
        self.with(|_, _| ())
    }

    async fn close(&self) {
        let _model = self
            .model
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    async fn renew_node(&self, node: NodeLease) -> StoreResult<NodeStanding> {
        self.with(|model, now| model.renew_node(&node, now))
    }

    async fn release_node(&self, node: NodeId) -> StoreResult<()> {
        self.with(|model, now| model.release_node(node, now))
    }

    async fn expire_nodes(&self, me: NodeId, limit: u32) -> StoreResult<Vec<InstanceId>> {
        self.with(|model, now| model.expire_nodes(me, limit, now))
    }

    async fn nodes(&self) -> StoreResult<Vec<NodeRecord>> {
        self.with(|model, now| model.nodes(now))
    }

    async fn drain_node(&self, node: NodeId, hand_over_after_ms: Option<u64>) -> StoreResult<bool> {
        let drained = self.with(|model, now| model.drain_node(node, hand_over_after_ms, now))?;
        self.nudges.node_asked();
        Ok(drained)
    }

    async fn remove_node(&self, node: NodeId) -> StoreResult<NodeRemoval> {
        self.with(|model, now| model.remove_node(node, now))
    }

    async fn next_registration(&self) -> StoreResult<RegistrationNumber> {
        self.with(|model, _| model.next_registration())
    }

    async fn register_image(&self, image: NewImage) -> StoreResult<ImageRecord> {
        Ok(self.with(|model, now| model.register_image(image, now))??)
    }

    async fn image_bytes(&self, tenant: &TenantId, sizes: (u64, u64)) -> StoreResult<ImageBytes> {
        self.with(|model, _| model.image_bytes(tenant, sizes))
    }

    async fn image(&self, id: &ImageId) -> StoreResult<Option<ImageRecord>> {
        self.with(|model, _| model.image(id))
    }

    async fn image_even_deleted(&self, id: &ImageId) -> StoreResult<Option<ImageRecord>> {
        self.with(|model, _| model.image_even_deleted(id))
    }

    async fn image_by_name(
        &self,
        tenant: &TenantId,
        name: &ImageName,
    ) -> StoreResult<Option<ImageRecord>> {
        self.with(|model, _| model.image_by_name(tenant, name))
    }

    async fn list_images(
        &self,
        filter: &ImageFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<ImageRecord>> {
        self.with(|model, _| model.list_images(filter, page))
    }

    async fn delete_image(&self, id: &ImageId) -> StoreResult<ImageDeletion> {
        self.with(|model, _| model.delete_image(id))
    }

    async fn remove_unneeded_images(&self, limit: u32) -> StoreResult<Vec<ImageDigest>> {
        self.with(|model, _| model.remove_unneeded_images(limit))
    }

    async fn unneeded_images(&self, limit: u32) -> StoreResult<Vec<ImageRecord>> {
        self.with(|model, _| model.unneeded_images(limit))
    }

    async fn unused_images(&self, unused_ms: u64, limit: u32) -> StoreResult<Vec<ImageRecord>> {
        self.with(|model, now| model.unused_images(unused_ms, limit, now))
    }

    async fn delete_unused_images(
        &self,
        unused_ms: u64,
        limit: u32,
    ) -> StoreResult<Vec<ImageRecord>> {
        self.with(|model, now| model.delete_unused_images(unused_ms, limit, now))
    }

    async fn is_content_needed(&self, digest: &ImageDigest) -> StoreResult<bool> {
        self.with(|model, _| model.is_content_needed(digest))
    }

    async fn start_instance(&self, new: NewInstance) -> StoreResult<Started> {
        self.with(|model, now| model.start_instance(new, now))
    }

    async fn change(&self, id: &InstanceId, change: Change) -> StoreResult<Changed> {
        self.with(|model, now| model.change(id, &change, now))?
    }

    async fn send_signal(
        &self,
        id: &InstanceId,
        signal_id: &SignalId,
        payload: Option<Bytes>,
    ) -> StoreResult<()> {
        Ok(self.with(|model, now| model.send_signal(id, signal_id, payload, now))??)
    }

    async fn purge_instance(&self, id: &InstanceId) -> StoreResult<Purge> {
        self.with(|model, _| model.purge_instance(id))
    }

    async fn overfull_instances(&self, ids: &[InstanceId]) -> StoreResult<Vec<InstanceId>> {
        self.with(|model, _| model.overfull_instances(ids))
    }

    async fn fold_events(&self, id: &InstanceId, limit: u32) -> StoreResult<Folded> {
        self.with(|model, _| model.fold_events(id, limit))
    }

    async fn expired_instances(&self, demand: &Expired) -> StoreResult<ExpiredPage> {
        self.with(|model, now| model.expired_instances(demand, now))
    }

    async fn remove_ended(&self, ended: &[EndedInstance]) -> StoreResult<Vec<InstanceId>> {
        self.with(|model, _| model.remove_ended(ended))
    }

    async fn remove_remains(&self, _rows: u32) -> StoreResult<Remains> {
        // What belongs to an instance goes with it.
        self.with(|_, _| Remains::default())
    }

    async fn claim_due(&self, claim: Claim) -> StoreResult<Vec<ClaimedRun>> {
        self.with(|model, now| model.claim_due(&claim, now))
    }

    async fn next_due(&self, kinds: &[RunnerKind]) -> StoreResult<NextDue> {
        self.with(|model, now| model.next_due(kinds, now))
    }

    async fn next_due_later(&self, kinds: &[RunnerKind]) -> StoreResult<NextDue> {
        self.with(|model, now| model.next_due_later(kinds, now))
    }

    async fn live_runs(
        &self,
        node: NodeId,
        after: Option<&InstanceId>,
        limit: u32,
    ) -> StoreResult<Vec<LiveRun>> {
        self.with(|model, now| model.live_runs(node, after, limit, now))
    }

    async fn live_run(&self, id: &InstanceId) -> StoreResult<Option<LiveRun>> {
        self.with(|model, now| model.live_run(id, now))
    }

    async fn expire_due(&self, limit: u32) -> StoreResult<Overdue> {
        self.with(|model, now| model.expire_due(limit, now))
    }

    async fn lapse_silent(&self, timeout_ms: u64, limit: u32) -> StoreResult<Vec<InstanceId>> {
        self.with(|model, now| model.lapse_silent(timeout_ms, limit, now))
    }

    async fn register_instance(
        &self,
        caller: &Caller,
        tenant: &TenantId,
        checkpoint_id: Option<CheckpointId>,
    ) -> StoreResult<()> {
        Ok(self.with(|model, now| model.register_instance(caller, tenant, checkpoint_id, now))??)
    }

    async fn save_checkpoint(
        &self,
        caller: &Caller,
        request: SaveCheckpoint,
    ) -> StoreResult<Checkpointed> {
        Ok(self.with(|model, now| model.save_checkpoint(caller, &request, now))??)
    }

    async fn poll_signal(&self, caller: &Caller) -> StoreResult<Option<RaisedSignal>> {
        Ok(self.with(|model, now| model.poll_signal(caller, now))??)
    }

    async fn take_signal(
        &self,
        caller: &Caller,
        signal_id: &SignalId,
        request_id: Option<String>,
    ) -> StoreResult<Option<Option<Bytes>>> {
        let request_id = request_id.as_deref();
        Ok(self.with(|model, now| model.take_signal(caller, signal_id, request_id, now))??)
    }

    async fn begin_wait(&self, caller: &Caller, request: WaitRequest) -> StoreResult<Waiting> {
        Ok(self.with(|model, now| model.begin_wait(caller, &request, now))??)
    }

    async fn continue_wait(
        &self,
        caller: &Caller,
        held: &HeldWait,
        park_now: bool,
    ) -> StoreResult<Waiting> {
        Ok(self.with(|model, now| model.continue_wait(caller, held, park_now, now))??)
    }

    async fn record_event(
        &self,
        caller: &Caller,
        event: NewEvent,
        request_id: Option<String>,
    ) -> StoreResult<()> {
        Ok(self.with(|model, now| model.record_event(caller, event, request_id, now))??)
    }

    async fn heartbeat(&self, caller: &Caller) -> StoreResult<()> {
        Ok(self.with(|model, now| model.heartbeat(caller, now))??)
    }

    async fn record_retry(
        &self,
        caller: &Caller,
        checkpoint_id: &CheckpointId,
        attempt: u32,
        error: Option<String>,
    ) -> StoreResult<()> {
        Ok(self.with(|model, now| {
            model.record_retry(caller, checkpoint_id, attempt, error.as_deref(), now)
        })??)
    }

    async fn say(&self, caller: &Caller, word: Word, our_fault: bool) -> StoreResult<Changed> {
        Ok(self.with(|model, now| model.say(caller, &word, our_fault, now))??)
    }

    async fn run_of_token(&self, token: TokenHash) -> StoreResult<Option<TokenOwner>> {
        self.with(|model, _| model.run_of_token(token))
    }

    async fn instance(&self, id: &InstanceId) -> StoreResult<Option<InstanceRecord>> {
        self.with(|model, now| model.instance(id, now))
    }

    async fn instance_values(&self, id: &InstanceId) -> StoreResult<Option<InstanceValues>> {
        self.with(|model, _| model.instance_values(id))
    }

    async fn instance_input(&self, id: &InstanceId) -> StoreResult<Option<Option<Bytes>>> {
        self.with(|model, _| model.instance_input(id))
    }

    async fn list_instances(
        &self,
        filter: &InstanceFilter,
        order: InstanceOrder,
        page: &PageRequest,
    ) -> StoreResult<Page<InstanceSummary>> {
        self.with(|model, _| model.list_instances(filter, order, page))
    }

    async fn list_checkpoints(
        &self,
        id: &InstanceId,
        filter: &CheckpointFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<CheckpointSummary>> {
        self.with(|model, _| model.list_checkpoints(id, filter, page))
    }

    async fn checkpoint(
        &self,
        id: &InstanceId,
        checkpoint_id: &CheckpointId,
    ) -> StoreResult<Option<StoredCheckpoint>> {
        self.with(|model, _| model.checkpoint(id, checkpoint_id))
    }

    async fn list_events(
        &self,
        id: &InstanceId,
        filter: &EventFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<StoredEvent>> {
        self.with(|model, _| model.list_events(id, filter, page))
    }

    async fn list_steps(
        &self,
        id: &InstanceId,
        filter: &StepFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<StepSummary>> {
        self.with(|model, _| model.list_steps(id, filter, page))
    }

    async fn scope_ancestors(&self, id: &InstanceId, scope_id: &str) -> StoreResult<Vec<Scope>> {
        self.with(|model, _| model.scope_ancestors(id, scope_id))
    }

    async fn tenant_metrics(&self, query: &MetricsQuery) -> StoreResult<Vec<MetricsBucket>> {
        self.with(|model, _| model.tenant_metrics(query))
    }
}
