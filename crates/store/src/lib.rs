//! The only door to durable state.
//!
//! [`Store`] has three implementations with one meaning: PostgreSQL for production and several nodes, SQLite as the embedded
//! default, and [`memory`], the reference model. Each method is one whole domain change, atomic, and says in its answer what
//! happened. What a change does is decided by the pure functions of `runtara-domain` and of [`plan`]; a store loads, asks them, and
//! writes, in one transaction.

mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod folding;
pub mod lossy;
pub mod memory;
mod node_types;
mod nudge;
pub mod paging;
pub mod plan;
#[cfg(feature = "postgres")]
pub mod postgres;
mod removal;
#[cfg(feature = "sqlite")]
pub mod sqlite;
mod types;

use async_trait::async_trait;
use bytes::Bytes;
use runtara_domain::{
    Caller, Change, CheckpointId, Checkpointed, DatabaseId, ImageDigest, ImageId, ImageName,
    ImageRecord, InstanceId, NewEvent, NewImage, NewInstance, NodeId, RaisedSignal,
    RegistrationNumber, SaveCheckpoint, SignalId, TenantId, Word,
};

pub use clock::{Clock, ManualClock, SystemClock};
pub use error::{StoreError, StoreResult};
pub use folding::Folded;
pub use node_types::{NodeLease, NodeRecord, NodeRemoval, NodeStanding};
pub use nudge::{Nudges, Watch};
pub use removal::{EndPlace, EndedInstance, Expired, ExpiredPage, Owners, Remains};
pub use types::*;

/// Durable state.
///
/// Every method is atomic: it happens whole or not at all, whatever dies meanwhile. What is answered with success is durable.
/// All methods may answer [`StoreError::Unavailable`] (the store is away or busy beyond its deadline; what was asked did not
/// happen, or may be asked again) and [`StoreError::Broken`] (the log says what); beyond these, a method's docs name the
/// [`runtara_domain::Refusal`]s it may answer in [`StoreError::Refused`].
///
/// After a change is durable the store gives the [`Nudges`] that follow from it.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Whom this store tells that something changed.
    fn nudges(&self) -> &Nudges;

    /// Tells this database from every other: an id that was written into it when it was made.
    async fn database_id(&self) -> StoreResult<DatabaseId>;

    /// Asks for the least there is to ask, to see whether the store answers.
    async fn ping(&self) -> StoreResult<()>;

    /// Finishes what is under way, then closes all connections. Later calls answer [`StoreError::Unavailable`].
    async fn close(&self);

    // Nodes -----------------------------------------------------------------------------------------------------------

    /// Registers a node, or renews its lease, by the store's clock.
    async fn renew_node(&self, node: NodeLease) -> StoreResult<NodeStanding>;

    /// Takes a node off the list, if no run is recorded as live on it. One that is drained stays on it, with its lease over: it is drained still when
    /// it comes back.
    async fn release_node(&self, node: NodeId) -> StoreResult<()>;

    /// Takes the runs of other nodes whose lease is over for lost ([`Change::Exit`] with an exit of which nothing is known), at most
    /// `limit`, and says which. Takes nodes off the list on which no run is recorded as live, if they were removed, or if their lease has
    /// been over for [`runtara_domain::limits::NODE_KEPT_MS`]: they have died and do not come back.
    ///
    /// A node that was not guarded when it renewed its lease last thought that it was alone, and its runs may go on without a server. They
    /// are taken only after `me` has been registered for [`runtara_domain::limits::NODE_LEASE_MS`]: a node that lives, and reaches the
    /// store, has renewed its lease by then.
    async fn expire_nodes(&self, me: NodeId, limit: u32) -> StoreResult<Vec<InstanceId>>;

    /// All nodes, by name, at most [`runtara_domain::limits::NODES_LISTED`].
    async fn nodes(&self) -> StoreResult<Vec<NodeRecord>>;

    /// Has a node drained: it claims nothing any more, and hands over what still runs on it after so many milliseconds. Without a time
    /// the node goes on as usual. False if there is none of that id.
    async fn drain_node(&self, node: NodeId, hand_over_after_ms: Option<u64>) -> StoreResult<bool>;

    /// Takes a node whose lease is over for one that does not come back, because somebody who knows says so. Its runs may be taken over at
    /// once. One that comes back all the same is registered anew.
    async fn remove_node(&self, node: NodeId) -> StoreResult<NodeRemoval>;

    // Images ----------------------------------------------------------------------------------------------------------

    /// A number for a registration whose content has arrived: higher than all that were given before, by whichever server of this
    /// database. One that is not used harms nothing.
    async fn next_registration(&self) -> StoreResult<RegistrationNumber>;

    /// Registers an image. One of its name with the same number or a lower one leaves the list and keeps its id. If there is one with a
    /// higher number, deleted or not, that one keeps the name, and this image is known by its id alone, as if it had been replaced.
    ///
    /// Refused with [`runtara_domain::Refusal::TooManyImageBytes`] if its tenant would have more than is allowed; content that the tenant
    /// has already adds nothing.
    async fn register_image(&self, image: NewImage) -> StoreResult<ImageRecord>;

    /// What is kept of a tenant's images, and whether the content of one has a size between these two, both included.
    async fn image_bytes(&self, tenant: &TenantId, sizes: (u64, u64)) -> StoreResult<ImageBytes>;

    /// An image that is not deleted, current or not.
    async fn image(&self, id: &ImageId) -> StoreResult<Option<ImageRecord>>;

    /// An image, deleted or not, as long as an instance needs it.
    async fn image_even_deleted(&self, id: &ImageId) -> StoreResult<Option<ImageRecord>>;

    /// The current image of a name.
    async fn image_by_name(
        &self,
        tenant: &TenantId,
        name: &ImageName,
    ) -> StoreResult<Option<ImageRecord>>;

    /// Current images, newest first.
    async fn list_images(
        &self,
        filter: &ImageFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<ImageRecord>>;

    /// Deletes an image unless an instance of it has not ended. Its content is needed until the ended ones are gone.
    async fn delete_image(&self, id: &ImageId) -> StoreResult<ImageDeletion>;

    /// Removes images that are deleted or replaced and that no instance needs, at most `limit`, and answers with the digests that
    /// no remaining image has.
    async fn remove_unneeded_images(&self, limit: u32) -> StoreResult<Vec<ImageDigest>>;

    /// Images that [`Store::remove_unneeded_images`] would remove, at most `limit`.
    async fn unneeded_images(&self, limit: u32) -> StoreResult<Vec<ImageRecord>>;

    /// Current images that are unused, at most `limit`, oldest first: registered at least so many milliseconds ago, and since then nothing
    /// was started from them, nor does anything need them. An instance needs its image until it is completed or gone, for it may be resumed
    /// before; and an image needs the one that it is laid on.
    async fn unused_images(&self, unused_ms: u64, limit: u32) -> StoreResult<Vec<ImageRecord>>;

    /// Deletes images that are unused, at most `limit`, as [`Store::delete_image`] does. A start that comes at the same time either keeps its
    /// image or does not find it.
    async fn delete_unused_images(
        &self,
        unused_ms: u64,
        limit: u32,
    ) -> StoreResult<Vec<ImageRecord>>;

    /// Whether an image, deleted or not, has this content.
    async fn is_content_needed(&self, digest: &ImageDigest) -> StoreResult<bool>;

    // Instances: what is asked of them -----------------------------------------------------------------------------------

    /// Starts an instance: it is pending and due. A repetition (same id, tenant, image and input) is told the same instance, also where no
    /// more may be pending.
    ///
    /// How many are is counted in the same statement. On PostgreSQL starts of one tenant do not wait for each other: each that is under way
    /// at the same moment may take the last place, so that there may be as many too many as there are connections, less one.
    async fn start_instance(&self, new: NewInstance) -> StoreResult<Started>;

    /// Applies a change to one instance: load, [`runtara_domain::transition()`], write.
    ///
    /// For cancel, pause, resume, stop, silence, expiry and exit. A resume also needs the image: [`runtara_domain::Refusal::NoImage`].
    /// What calls and claims bring with them has methods of its own; those changes are refused here.
    async fn change(&self, id: &InstanceId, change: Change) -> StoreResult<Changed>;

    /// Keeps a custom signal for an instance; one of the same id that was not read, or only by an earlier run, is replaced.
    /// Makes an instance due that waits for it.
    async fn send_signal(
        &self,
        id: &InstanceId,
        signal_id: &SignalId,
        payload: Option<Bytes>,
    ) -> StoreResult<()>;

    /// Removes an ended instance with everything that belongs to it. It is gone for everybody at once; if that is much, it takes as long
    /// as it takes to remove it in pieces, and [`Store::remove_remains`] goes on where this was cut off.
    async fn purge_instance(&self, id: &InstanceId) -> StoreResult<Purge>;

    /// Looks for ended instances whose time is over, along the order in which they ended. Changes nothing.
    async fn expired_instances(&self, demand: &Expired) -> StoreResult<ExpiredPage>;

    /// Takes ended instances away, all or those of them that are as they were found: what was resumed since, or has a process again, stays.
    /// Answers with those that are gone, for everybody and at once; what belonged to them is left to [`Store::remove_remains`], but for
    /// what it takes to serve them. An id may be used again when nothing of it is left, which a start sees to.
    async fn remove_ended(&self, ended: &[EndedInstance]) -> StoreResult<Vec<InstanceId>>;

    /// Removes what belonged to instances that were taken away: at most so many rows, large ones counting for several.
    async fn remove_remains(&self, rows: u32) -> StoreResult<Remains>;

    /// Those of these instances that have more events than their starts allow.
    async fn overfull_instances(&self, ids: &[InstanceId]) -> StoreResult<Vec<InstanceId>>;

    /// Folds the oldest events that the program of an instance has reported into one, at most so many at once, if there are more events
    /// than its start allows: an event [`runtara_domain::subtype::FOLDED`] in the place of the last of them, which says how many there were,
    /// their numbers and their times. Nothing is done to others.
    async fn fold_events(&self, id: &InstanceId, limit: u32) -> StoreResult<Folded>;

    // Instances: runs ----------------------------------------------------------------------------------------------------

    /// Claims instances that are due, oldest due time first, one for each token at most. Two claimers never get one instance. A node
    /// whose lease is over, or that is being drained, gets none.
    async fn claim_due(&self, claim: Claim) -> StoreResult<Vec<ClaimedRun>>;

    /// How long until another instance of these kinds is due that is not yet, as far as none of its runs is live.
    async fn next_due_later(&self, kinds: &[runtara_domain::RunnerKind]) -> StoreResult<NextDue>;

    /// How long until the next instance of these kinds is due, as far as none of its runs is live.
    async fn next_due(&self, kinds: &[runtara_domain::RunnerKind]) -> StoreResult<NextDue>;

    /// The instances whose run is recorded as live on a node, ordered by id, after one id, at most `limit`.
    async fn live_runs(
        &self,
        node: NodeId,
        after: Option<&InstanceId>,
        limit: u32,
    ) -> StoreResult<Vec<LiveRun>>;

    /// The live run of one instance, if it has one.
    async fn live_run(&self, id: &InstanceId) -> StoreResult<Option<LiveRun>>;

    // Instances: what is silent or over ------------------------------------------------------------------------------------

    /// Ends instances whose overall deadline is over ([`Change::Expire`]), at most `limit`, the earliest deadlines first, each as one
    /// change of its own. Several nodes may ask at once.
    async fn expire_due(&self, limit: u32) -> StoreResult<Overdue>;

    /// Ends instances that registered themselves and gave no sign of life for so long ([`Change::Lapse`]), at most `limit`, each as one
    /// change of its own, and says which. Several nodes may ask at once.
    ///
    /// They may have called a node that was not there. So none is ended before it is as long as an instance may be silent since the lease of
    /// a node was over, and since each that is on the list has come to be on it.
    async fn lapse_silent(&self, timeout_ms: u64, limit: u32) -> StoreResult<Vec<InstanceId>>;

    // Instances: what their runs say -------------------------------------------------------------------------------------

    /// Notes that a run is there. An unknown instance without a fence is made, under that tenant.
    async fn register_instance(
        &self,
        caller: &Caller,
        tenant: &TenantId,
        checkpoint_id: Option<CheckpointId>,
    ) -> StoreResult<()>;

    /// Gets a checkpoint, or saves it if its name is free and the state is not empty. Two savers of one name: one saves, the
    /// other is told what was saved. See [`plan::save_checkpoint`].
    async fn save_checkpoint(
        &self,
        caller: &Caller,
        request: SaveCheckpoint,
    ) -> StoreResult<Checkpointed>;

    /// The instance-wide signal that waits. Notes that it was shown.
    async fn poll_signal(&self, caller: &Caller) -> StoreResult<Option<RaisedSignal>>;

    /// Takes the custom signal of this id if one is visible to the run: its payload. A repetition with the same request id is given
    /// what it took.
    async fn take_signal(
        &self,
        caller: &Caller,
        signal_id: &SignalId,
        request_id: Option<String>,
    ) -> StoreResult<Option<Option<Bytes>>>;

    /// Begins, or goes on with, a durable sleep or a wait for a custom signal. See [`plan::wait`].
    async fn begin_wait(&self, caller: &Caller, request: WaitRequest) -> StoreResult<Waiting>;

    /// Looks again at a call that is held: whether it is over now. With `park_now` (the server goes away) what is not over
    /// becomes far, if the run has nothing else to do.
    async fn continue_wait(
        &self,
        caller: &Caller,
        held: &HeldWait,
        park_now: bool,
    ) -> StoreResult<Waiting>;

    /// Appends a custom event. A repetition with the same request id is recognised.
    async fn record_event(
        &self,
        caller: &Caller,
        event: NewEvent,
        request_id: Option<String>,
    ) -> StoreResult<()>;

    /// Notes a sign of life. The first of each run is an event.
    async fn heartbeat(&self, caller: &Caller) -> StoreResult<()>;

    /// Keeps a record that a step is tried again, in the list of checkpoints, as `<id>::retry::<attempt>` of size 0, and an event
    /// with the error. A repetition of the same attempt is recorded once. The record is no checkpoint: neither a save nor
    /// [`Store::checkpoint`] finds it. See [`plan::record_retry`].
    async fn record_retry(
        &self,
        caller: &Caller,
        checkpoint_id: &CheckpointId,
        attempt: u32,
        error: Option<String>,
    ) -> StoreResult<()>;

    /// Records the last word of a run. A further word of the same run changes nothing and records nothing.
    async fn say(&self, caller: &Caller, word: Word, our_fault: bool) -> StoreResult<Changed>;

    /// The instance whose current run has this token, and which run that is.
    async fn run_of_token(
        &self,
        token: runtara_domain::TokenHash,
    ) -> StoreResult<Option<TokenOwner>>;

    /// Brings the kept counts behind large totals up to date, if anything has changed. A chore; costs little when called in vain.
    async fn refresh_counts(&self) -> StoreResult<()> {
        Ok(())
    }

    // Questions ----------------------------------------------------------------------------------------------------------

    /// An instance without its large values.
    async fn instance(&self, id: &InstanceId) -> StoreResult<Option<InstanceRecord>>;

    /// An instance, with its large values if it has ended.
    async fn instance_at_its_end(
        &self,
        id: &InstanceId,
    ) -> StoreResult<Option<(InstanceRecord, Option<InstanceValues>)>> {
        let Some(record) = self.instance(id).await? else {
            return Ok(None);
        };
        let values = match record.state.status.is_end() {
            true => self.instance_values(id).await?,
            false => None,
        };
        Ok(Some((record, values)))
    }

    /// The large values of an instance.
    async fn instance_values(&self, id: &InstanceId) -> StoreResult<Option<InstanceValues>>;

    /// The input of an instance: the inner `None` for one that registered itself.
    async fn instance_input(&self, id: &InstanceId) -> StoreResult<Option<Option<Bytes>>>;

    /// Instances.
    async fn list_instances(
        &self,
        filter: &InstanceFilter,
        order: InstanceOrder,
        page: &PageRequest,
    ) -> StoreResult<Page<InstanceSummary>>;

    /// Checkpoints of an instance without their states, newest first. Retry records are among them.
    async fn list_checkpoints(
        &self,
        id: &InstanceId,
        filter: &CheckpointFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<CheckpointSummary>>;

    /// The newest state that was saved under a name; without one, the record of a retry that has this name, whose state is empty.
    async fn checkpoint(
        &self,
        id: &InstanceId,
        checkpoint_id: &CheckpointId,
    ) -> StoreResult<Option<StoredCheckpoint>>;

    /// Events of an instance, by their number.
    async fn list_events(
        &self,
        id: &InstanceId,
        filter: &EventFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<StoredEvent>>;

    /// Steps of an instance, derived from its events: each start with the first end of the same step and scope that follows it before
    /// the next start of the same. A start that names no step is none.
    async fn list_steps(
        &self,
        id: &InstanceId,
        filter: &StepFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<StepSummary>>;

    /// A scope and those around it, outward, at most 1,000: of each the event by which it was entered last. Ends where a scope is met
    /// again.
    async fn scope_ancestors(&self, id: &InstanceId, scope_id: &str) -> StoreResult<Vec<Scope>>;

    /// How a tenant's instances ended, by the time they finished: those buckets that are not empty.
    async fn tenant_metrics(&self, query: &MetricsQuery) -> StoreResult<Vec<MetricsBucket>>;
}
