//! The store on PostgreSQL: for production, and for several nodes.
//!
//! Rare changes of an instance are decided outside of the database and written by one statement if the instance is still as it was
//! read (`write`). What many instances write at once goes through queues and is written together (`lanes`, `batches`). A claim and a
//! start are statements of their own; what is removed goes in pieces (`removal`), and so are events folded (`folding`). Every decision uses the clock of the database, `runtara_now()`.

mod batches;
mod calls;
mod checkpoints;
mod claims;
mod connections;
mod counts;
mod error;
mod events;
mod folding;
mod herald;
mod images;
mod instances;
mod lanes;
mod limited;
mod listener;
mod lists;
mod liveness;
mod metrics;
mod migrate;
mod nodes;
mod numbered;
mod options;
mod queued;
mod removal;
mod row;
mod steady;
mod waits;
mod write;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use runtara_domain::{
    Caller, Change, CheckpointId, Checkpointed, DatabaseId, ImageDigest, ImageId, ImageName,
    ImageRecord, InstanceId, InstanceState, NewEvent, NewImage, NewInstance, NodeId, RaisedSignal,
    RegistrationNumber, RunNumber, RunnerKind, SaveCheckpoint, SignalId, Status, TenantId,
    TokenHash, Word,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Changed, CheckpointFilter, CheckpointSummary, Claim, ClaimedRun, EndedInstance, EventFilter,
    Expired, ExpiredPage, Folded, HeldWait, ImageBytes, ImageDeletion, ImageFilter, InstanceFilter,
    InstanceOrder, InstanceRecord, InstanceSummary, InstanceValues, LiveRun, MetricsBucket,
    MetricsQuery, NextDue, NodeLease, NodeRecord, NodeRemoval, NodeStanding, Nudges, Overdue, Page,
    PageRequest, Purge, Remains, Scope, Started, StepFilter, StepSummary, Store, StoreResult,
    StoredCheckpoint, StoredEvent, TokenOwner, WaitRequest, Waiting,
};

use connections::{Connections, Fetch as _, Losses};
use error::Fault;
pub use options::PostgresOptions;
use queued::Queues;
pub use sqlx::PgPool;

/// Durable state on PostgreSQL.
pub struct PostgresStore {
    connections: Arc<Connections>,
    nudges: Nudges,
    herald: herald::Herald,
    queues: Queues,
    closed: CancellationToken,
}

impl PostgresStore {
    /// Connects, brings the database to the schema of this build unless told not to, and starts the committers on the current
    /// runtime.
    ///
    /// # Errors
    /// [`crate::StoreError::Unavailable`] if the database cannot be reached; [`crate::StoreError::Broken`] if its URL is no URL, or if
    /// the database is not one that this server can use.
    pub async fn connect(options: PostgresOptions) -> StoreResult<Self> {
        let losses = Losses::default();
        let pool = options.pool(losses.clone()).await?;
        if options.migrate {
            migrate::run(&pool, options.schema.as_deref()).await?;
        }
        Ok(Self::with(pool, losses, options.nudges))
    }

    /// Brings a database to the schema of this build, in the schema that is named or else that of the connections. Several servers may do so at once,
    /// and whoever else has tables there: all of ours begin with `runtara_`.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn migrate(pool: &PgPool, schema: Option<&str>) -> StoreResult<()> {
        migrate::run(pool, schema).await
    }

    fn with(pool: PgPool, losses: Losses, nudges: Nudges) -> Self {
        let connections = Arc::new(Connections::new(pool.clone(), losses));
        let herald = herald::Herald::new(pool.clone());
        let closed = CancellationToken::new();
        let listening = listener::listen(pool, herald.clone(), nudges.clone(), closed.clone());
        tokio::spawn(listening);
        Self {
            herald,
            queues: Queues::start(&connections, &nudges),
            connections,
            nudges,
            closed,
        }
    }

    /// Gives the nudges that follow from an instance having come into this state.
    fn after(&self, state: &InstanceState) {
        self.nudges.after(state);
        if state.due_at.is_some() && state.live_node.is_none() {
            self.herald.due();
        }
        // Nobody elsewhere minds or awaits one that was just started.
        if state.run_number > RunNumber(0) || state.status != Status::Pending {
            self.herald.changed(&state.instance_id);
        }
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.closed.cancel();
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn nudges(&self) -> &Nudges {
        &self.nudges
    }

    async fn database_id(&self) -> StoreResult<DatabaseId> {
        let doing = "reading the id of the database";
        let id: String = sqlx::query_scalar("select database_id from runtara_meta")
            .one_on(&self.connections)
            .await
            .map_err(|error| Fault::from(error).during(doing))?;
        id.parse().map_err(|error| Fault::from(error).during(doing))
    }

    async fn ping(&self) -> StoreResult<()> {
        let asked = sqlx::query("select 1")
            .execute(&self.connections.pool)
            .await;
        asked
            .map(drop)
            .map_err(|error| Fault::from(error).during("asking whether the database answers"))
    }

    async fn close(&self) {
        self.closed.cancel();
        self.queues.close().await;
        self.connections.release();
        self.connections.pool.close().await;
    }

    async fn renew_node(&self, node: NodeLease) -> StoreResult<NodeStanding> {
        let renewed = nodes::renew(self, node).await;
        renewed.map_err(|fault| fault.during("renewing the lease of a node"))
    }

    async fn release_node(&self, node: NodeId) -> StoreResult<()> {
        let released = nodes::release(self, node).await;
        released.map_err(|fault| fault.during("releasing a node"))
    }

    async fn expire_nodes(&self, me: NodeId, limit: u32) -> StoreResult<Vec<InstanceId>> {
        let lost = nodes::expire(self, me, limit).await;
        lost.map_err(|fault| fault.during("taking runs of lost nodes for lost"))
    }

    async fn nodes(&self) -> StoreResult<Vec<NodeRecord>> {
        let listed = nodes::list(self).await;
        listed.map_err(|fault| fault.during("listing nodes"))
    }

    async fn drain_node(&self, node: NodeId, hand_over_after_ms: Option<u64>) -> StoreResult<bool> {
        let drained = nodes::drain(self, node, hand_over_after_ms).await;
        drained.map_err(|fault| fault.during("draining a node"))
    }

    async fn remove_node(&self, node: NodeId) -> StoreResult<NodeRemoval> {
        let removed = nodes::remove(self, node).await;
        removed.map_err(|fault| fault.during("removing a node"))
    }

    async fn next_registration(&self) -> StoreResult<RegistrationNumber> {
        let number = images::next_registration(self).await;
        number.map_err(|fault| fault.during("numbering a registration"))
    }

    async fn register_image(&self, image: NewImage) -> StoreResult<ImageRecord> {
        let registered = images::register(self, image).await;
        registered.map_err(|fault| fault.during("registering an image"))
    }

    async fn image_bytes(&self, tenant: &TenantId, sizes: (u64, u64)) -> StoreResult<ImageBytes> {
        let kept = images::bytes(self, tenant, sizes).await;
        kept.map_err(|fault| fault.during("adding up the images of a tenant"))
    }

    async fn image(&self, id: &ImageId) -> StoreResult<Option<ImageRecord>> {
        let found = images::by_id(self, id).await;
        found.map_err(|fault| fault.during("reading an image"))
    }

    async fn image_even_deleted(&self, id: &ImageId) -> StoreResult<Option<ImageRecord>> {
        let found = images::by_id_even_deleted(self, id).await;
        found.map_err(|fault| fault.during("reading an image"))
    }

    async fn image_by_name(
        &self,
        tenant: &TenantId,
        name: &ImageName,
    ) -> StoreResult<Option<ImageRecord>> {
        let found = images::by_name(self, tenant, name).await;
        found.map_err(|fault| fault.during("reading an image"))
    }

    async fn list_images(
        &self,
        filter: &ImageFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<ImageRecord>> {
        let listed = images::list(self, filter, page).await;
        listed.map_err(|fault| fault.during("listing images"))
    }

    async fn delete_image(&self, id: &ImageId) -> StoreResult<ImageDeletion> {
        let deleted = images::delete(self, id).await;
        deleted.map_err(|fault| fault.during("deleting an image"))
    }

    async fn remove_unneeded_images(&self, limit: u32) -> StoreResult<Vec<ImageDigest>> {
        let removed = images::remove_unneeded(self, limit).await;
        removed.map_err(|fault| fault.during("removing images that nothing needs"))
    }

    async fn unneeded_images(&self, limit: u32) -> StoreResult<Vec<ImageRecord>> {
        let unneeded = images::unneeded(self, limit).await;
        unneeded.map_err(|fault| fault.during("looking for images that nothing needs"))
    }

    async fn unused_images(&self, unused_ms: u64, limit: u32) -> StoreResult<Vec<ImageRecord>> {
        let unused = images::unused(self, unused_ms, limit).await;
        unused.map_err(|fault| fault.during("looking for images that are unused"))
    }

    async fn delete_unused_images(
        &self,
        unused_ms: u64,
        limit: u32,
    ) -> StoreResult<Vec<ImageRecord>> {
        let deleted = images::delete_unused(self, unused_ms, limit).await;
        deleted.map_err(|fault| fault.during("deleting images that are unused"))
    }

    async fn is_content_needed(&self, digest: &ImageDigest) -> StoreResult<bool> {
        let needed = images::is_content_needed(self, digest).await;
        needed.map_err(|fault| fault.during("looking for an image of a content"))
    }

    async fn start_instance(&self, new: NewInstance) -> StoreResult<Started> {
        let started = instances::start(self, new).await;
        started.map_err(|fault| fault.during("starting an instance"))
    }

    async fn change(&self, id: &InstanceId, change: Change) -> StoreResult<Changed> {
        let changed = instances::change(self, id, change).await;
        changed.map_err(|fault| fault.during("changing an instance"))
    }

    async fn send_signal(
        &self,
        id: &InstanceId,
        signal_id: &SignalId,
        payload: Option<Bytes>,
    ) -> StoreResult<()> {
        let sent = instances::send_signal(self, id, signal_id, payload).await;
        sent.map_err(|fault| fault.during("keeping a custom signal"))
    }

    async fn purge_instance(&self, id: &InstanceId) -> StoreResult<Purge> {
        let purged = removal::purge(self, id).await;
        purged.map_err(|fault| fault.during("removing an instance"))
    }

    async fn overfull_instances(&self, ids: &[InstanceId]) -> StoreResult<Vec<InstanceId>> {
        let overfull = folding::overfull(self, ids).await;
        overfull.map_err(|fault| fault.during("looking for instances with many events"))
    }

    async fn fold_events(&self, id: &InstanceId, limit: u32) -> StoreResult<Folded> {
        let folded = folding::fold_oldest(self, id, limit).await;
        folded.map_err(|fault| fault.during("folding events"))
    }

    async fn expired_instances(&self, demand: &Expired) -> StoreResult<ExpiredPage> {
        let expired = removal::expired(self, demand).await;
        expired.map_err(|fault| fault.during("looking for instances whose time is over"))
    }

    async fn remove_ended(&self, ended: &[EndedInstance]) -> StoreResult<Vec<InstanceId>> {
        let removed = removal::take_away(self, ended).await;
        removed.map_err(|fault| fault.during("removing instances whose time is over"))
    }

    async fn remove_remains(&self, rows: u32) -> StoreResult<Remains> {
        let removed = removal::remove_remains(self, None, rows).await;
        removed.map_err(|fault| fault.during("removing what is left of removed instances"))
    }

    async fn claim_due(&self, claim: Claim) -> StoreResult<Vec<ClaimedRun>> {
        let claimed = claims::claim(self, claim).await;
        claimed.map_err(|fault| fault.during("claiming what is due"))
    }

    async fn next_due(&self, kinds: &[RunnerKind]) -> StoreResult<NextDue> {
        let next = claims::next_due(self, kinds).await;
        next.map_err(|fault| fault.during("looking for what is due next"))
    }

    async fn next_due_later(&self, kinds: &[RunnerKind]) -> StoreResult<NextDue> {
        let next = claims::next_due_later(self, kinds).await;
        next.map_err(|fault| fault.during("looking for what is due later"))
    }

    async fn live_runs(
        &self,
        node: NodeId,
        after: Option<&InstanceId>,
        limit: u32,
    ) -> StoreResult<Vec<LiveRun>> {
        let runs = claims::live_runs(self, node, after, limit).await;
        runs.map_err(|fault| fault.during("reading the live runs of a node"))
    }

    async fn live_run(&self, id: &InstanceId) -> StoreResult<Option<LiveRun>> {
        let run = claims::live_run(self, id).await;
        run.map_err(|fault| fault.during("reading a live run"))
    }

    async fn expire_due(&self, limit: u32) -> StoreResult<Overdue> {
        let expired = liveness::expire(self, limit).await;
        expired.map_err(|fault| fault.during("ending what has outlived its deadline"))
    }

    async fn lapse_silent(&self, timeout_ms: u64, limit: u32) -> StoreResult<Vec<InstanceId>> {
        let lapsed = liveness::lapse(self, timeout_ms, limit).await;
        lapsed.map_err(|fault| fault.during("ending what registered itself and is silent"))
    }

    async fn register_instance(
        &self,
        caller: &Caller,
        tenant: &TenantId,
        checkpoint_id: Option<CheckpointId>,
    ) -> StoreResult<()> {
        let registered = queued::register(self, caller, tenant, checkpoint_id.as_ref()).await;
        registered.map_err(|fault| fault.during("registering a run"))
    }

    async fn save_checkpoint(
        &self,
        caller: &Caller,
        request: SaveCheckpoint,
    ) -> StoreResult<Checkpointed> {
        let saved = queued::save_checkpoint(self, caller, request).await;
        saved.map_err(|fault| fault.during("saving a checkpoint"))
    }

    async fn poll_signal(&self, caller: &Caller) -> StoreResult<Option<RaisedSignal>> {
        let signal = queued::poll_signal(self, caller).await;
        signal.map_err(|fault| fault.during("looking for a signal"))
    }

    async fn take_signal(
        &self,
        caller: &Caller,
        signal_id: &SignalId,
        request_id: Option<String>,
    ) -> StoreResult<Option<Option<Bytes>>> {
        let taken = calls::take_signal(self, caller, signal_id, request_id.as_deref()).await;
        taken.map_err(|fault| fault.during("taking a custom signal"))
    }

    async fn begin_wait(&self, caller: &Caller, request: WaitRequest) -> StoreResult<Waiting> {
        let waiting = waits::begin(self, caller, request).await;
        waiting.map_err(|fault| fault.during("beginning a wait"))
    }

    async fn continue_wait(
        &self,
        caller: &Caller,
        held: &HeldWait,
        park_now: bool,
    ) -> StoreResult<Waiting> {
        let waiting = waits::go_on(self, caller, held, park_now).await;
        waiting.map_err(|fault| fault.during("going on with a wait"))
    }

    async fn record_event(
        &self,
        caller: &Caller,
        event: NewEvent,
        request_id: Option<String>,
    ) -> StoreResult<()> {
        let recorded = queued::record_event(self, caller, event, request_id).await;
        recorded.map_err(|fault| fault.during("recording an event"))
    }

    async fn heartbeat(&self, caller: &Caller) -> StoreResult<()> {
        let noted = queued::heartbeat(self, caller).await;
        noted.map_err(|fault| fault.during("noting a sign of life"))
    }

    async fn record_retry(
        &self,
        caller: &Caller,
        checkpoint_id: &CheckpointId,
        attempt: u32,
        error: Option<String>,
    ) -> StoreResult<()> {
        let error = error.as_deref();
        let recorded = calls::record_retry(self, caller, checkpoint_id, attempt, error).await;
        recorded.map_err(|fault| fault.during("recording a retry"))
    }

    async fn say(&self, caller: &Caller, word: Word, our_fault: bool) -> StoreResult<Changed> {
        let said = calls::say(self, caller, &word, our_fault).await;
        said.map_err(|fault| fault.during("recording the last word of a run"))
    }

    async fn run_of_token(&self, token: TokenHash) -> StoreResult<Option<TokenOwner>> {
        let owner = claims::run_of_token(self, token).await;
        owner.map_err(|fault| fault.during("looking for the run of a token"))
    }

    async fn refresh_counts(&self) -> StoreResult<()> {
        let refreshed = counts::refresh(self).await;
        refreshed.map_err(|fault| fault.during("counting instances"))
    }

    async fn instance(&self, id: &InstanceId) -> StoreResult<Option<InstanceRecord>> {
        let found = instances::record(self, id).await;
        found.map_err(|fault| fault.during("reading an instance"))
    }

    async fn instance_at_its_end(
        &self,
        id: &InstanceId,
    ) -> StoreResult<Option<(InstanceRecord, Option<InstanceValues>)>> {
        let found = instances::record_at_its_end(self, id).await;
        found.map_err(|fault| fault.during("reading an instance"))
    }

    async fn instance_values(&self, id: &InstanceId) -> StoreResult<Option<InstanceValues>> {
        let found = instances::values(self, id).await;
        found.map_err(|fault| fault.during("reading the values of an instance"))
    }

    async fn instance_input(&self, id: &InstanceId) -> StoreResult<Option<Option<Bytes>>> {
        let found = instances::input(self, id).await;
        found.map_err(|fault| fault.during("reading the input of an instance"))
    }

    async fn list_instances(
        &self,
        filter: &InstanceFilter,
        order: InstanceOrder,
        page: &PageRequest,
    ) -> StoreResult<Page<InstanceSummary>> {
        let listed = lists::list(self, filter, order, page).await;
        listed.map_err(|fault| fault.during("listing instances"))
    }

    async fn list_checkpoints(
        &self,
        id: &InstanceId,
        filter: &CheckpointFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<CheckpointSummary>> {
        let listed = checkpoints::list(self, id, filter, page).await;
        listed.map_err(|fault| fault.during("listing checkpoints"))
    }

    async fn checkpoint(
        &self,
        id: &InstanceId,
        checkpoint_id: &CheckpointId,
    ) -> StoreResult<Option<StoredCheckpoint>> {
        let found = checkpoints::newest(self, id, checkpoint_id).await;
        found.map_err(|fault| fault.during("reading a checkpoint"))
    }

    async fn list_events(
        &self,
        id: &InstanceId,
        filter: &EventFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<StoredEvent>> {
        let listed = events::list(self, id, filter, page).await;
        listed.map_err(|fault| fault.during("listing events"))
    }

    async fn list_steps(
        &self,
        id: &InstanceId,
        filter: &StepFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<StepSummary>> {
        let listed = events::steps(self, id, filter, page).await;
        listed.map_err(|fault| fault.during("listing steps"))
    }

    async fn scope_ancestors(&self, id: &InstanceId, scope_id: &str) -> StoreResult<Vec<Scope>> {
        let scopes = events::scope_ancestors(self, id, scope_id).await;
        scopes.map_err(|fault| fault.during("reading the scopes around a scope"))
    }

    async fn tenant_metrics(&self, query: &MetricsQuery) -> StoreResult<Vec<MetricsBucket>> {
        let buckets = metrics::of_tenant(self, query).await;
        buckets.map_err(|fault| fault.during("counting how instances ended"))
    }
}
