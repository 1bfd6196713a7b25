//! A store that loses answers or is late with them, for tests of those who call one.
//!
//! The answer of a commit may be lost with the connection: the change is durable, and whoever asked for it is told that the store is
//! away.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use runtara_domain::{
    Caller, Change, CheckpointId, Checkpointed, DatabaseId, ImageDigest, ImageId, ImageName,
    ImageRecord, InstanceId, NewEvent, NewImage, NewInstance, NodeId, RaisedSignal,
    RegistrationNumber, RunnerKind, SaveCheckpoint, SignalId, TenantId, TokenHash, Word,
};
use tokio::sync::watch;

use crate::{
    Changed, CheckpointFilter, CheckpointSummary, Claim, ClaimedRun, EndedInstance, EventFilter,
    Expired, ExpiredPage, Folded, HeldWait, ImageBytes, ImageDeletion, ImageFilter, InstanceFilter,
    InstanceOrder, InstanceRecord, InstanceSummary, InstanceValues, LiveRun, MetricsBucket,
    MetricsQuery, NextDue, NodeLease, NodeRecord, NodeRemoval, NodeStanding, Nudges, Overdue, Page,
    PageRequest, Purge, Remains, Scope, Started, StepFilter, StepSummary, Store, StoreError,
    StoreResult, StoredCheckpoint, StoredEvent, TokenOwner, WaitRequest, Waiting,
};

/// Another store, of whose methods some do what they are asked and then lose the answer, or keep it to themselves for a while.
pub struct LossyStore {
    inner: Arc<dyn Store>,
    /// How many answers of which method are yet to be lost.
    losing: Mutex<HashMap<&'static str, usize>>,
    /// The methods whose answers are held back.
    holding: watch::Sender<HashSet<&'static str>>,
    /// Whether nobody is answered any more.
    is_cut_off: AtomicBool,
}

impl LossyStore {
    /// Loses nothing of this store yet.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            losing: Mutex::default(),
            holding: watch::Sender::default(),
            is_cut_off: AtomicBool::new(false),
        }
    }

    /// Answers nobody from now on, and changes nothing for them: as if whoever asks had been killed. A change that is under way
    /// may be made.
    pub fn cut_off(&self) {
        self.is_cut_off.store(true, Ordering::SeqCst);
    }

    /// Goes on, unless nobody is answered any more.
    async fn connected(&self) {
        if self.is_cut_off.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    /// Loses the next so many answers of a method, by its name in [`Store`].
    pub fn lose(&self, method: &'static str, answers: usize) {
        let mut losing = self.losing.lock().unwrap_or_else(PoisonError::into_inner);
        losing.insert(method, answers);
    }

    /// How many answers of a method are yet to be lost.
    #[must_use]
    pub fn to_lose(&self, method: &str) -> usize {
        let losing = self.losing.lock().unwrap_or_else(PoisonError::into_inner);
        losing.get(method).copied().unwrap_or_default()
    }

    /// Holds back the answers of a method, by its name in [`Store`]. What it is asked to do is done.
    pub fn hold(&self, method: &'static str) {
        self.holding.send_modify(|holding| {
            holding.insert(method);
        });
    }

    /// Gives the answers of all methods, those that were held back too.
    pub fn let_go(&self) {
        self.holding.send_modify(HashSet::clear);
    }

    /// Goes on as soon as this method's answers are not held back.
    async fn let_gone(&self, method: &str) {
        let mut holding = self.holding.subscribe();
        // The sender lives as long as `self`.
        let _closed = holding.wait_for(|held| !held.contains(method)).await;
    }

    fn pass<T>(&self, method: &'static str, answer: StoreResult<T>) -> StoreResult<T> {
        let mut losing = self.losing.lock().unwrap_or_else(PoisonError::into_inner);
        match losing.get_mut(method).filter(|left| **left > 0) {
            Some(left) if answer.is_ok() => {
                *left -= 1;
                Err(StoreError::Unavailable {
                    context: format!("the answer of {method} was lost"),
                    source: None,
                })
            }
            _ => answer,
        }
    }
}

/// Passes methods on.
macro_rules! passing {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $answer:ty;)+) => {
        #[async_trait]
        impl Store for LossyStore {
            fn nudges(&self) -> &Nudges {
                self.inner.nudges()
            }

            async fn close(&self) {
                self.inner.close().await;
            }

            $(
                async fn $name(&self, $($argument: $kind),*) -> StoreResult<$answer> {
                    self.connected().await;
                    let answer = self.inner.$name($($argument),*).await;
                    self.let_gone(stringify!($name)).await;
                    self.connected().await;
                    self.pass(stringify!($name), answer)
                }
            )+
        }
    };
}

passing! {
    database_id() -> DatabaseId;
    ping() -> ();
    renew_node(node: NodeLease) -> NodeStanding;
    release_node(node: NodeId) -> ();
    expire_nodes(me: NodeId, limit: u32) -> Vec<InstanceId>;
    nodes() -> Vec<NodeRecord>;
    drain_node(node: NodeId, hand_over_after_ms: Option<u64>) -> bool;
    remove_node(node: NodeId) -> NodeRemoval;
    next_due_later(kinds: &[RunnerKind]) -> NextDue;
    expire_due(limit: u32) -> Overdue;
    lapse_silent(timeout_ms: u64, limit: u32) -> Vec<InstanceId>;
    next_registration() -> RegistrationNumber;
    register_image(image: NewImage) -> ImageRecord;
    image_bytes(tenant: &TenantId, sizes: (u64, u64)) -> ImageBytes;
    image(id: &ImageId) -> Option<ImageRecord>;
    image_even_deleted(id: &ImageId) -> Option<ImageRecord>;
    image_by_name(tenant: &TenantId, name: &ImageName) -> Option<ImageRecord>;
    list_images(filter: &ImageFilter, page: &PageRequest) -> Page<ImageRecord>;
    delete_image(id: &ImageId) -> ImageDeletion;
    remove_unneeded_images(limit: u32) -> Vec<ImageDigest>;
    unneeded_images(limit: u32) -> Vec<ImageRecord>;
    unused_images(unused_ms: u64, limit: u32) -> Vec<ImageRecord>;
    delete_unused_images(unused_ms: u64, limit: u32) -> Vec<ImageRecord>;
    is_content_needed(digest: &ImageDigest) -> bool;
    start_instance(new: NewInstance) -> Started;
    change(id: &InstanceId, change: Change) -> Changed;
    send_signal(id: &InstanceId, signal_id: &SignalId, payload: Option<Bytes>) -> ();
    purge_instance(id: &InstanceId) -> Purge;
    overfull_instances(ids: &[InstanceId]) -> Vec<InstanceId>;
    fold_events(id: &InstanceId, limit: u32) -> Folded;
    expired_instances(demand: &Expired) -> ExpiredPage;
    remove_ended(ended: &[EndedInstance]) -> Vec<InstanceId>;
    remove_remains(rows: u32) -> Remains;
    claim_due(claim: Claim) -> Vec<ClaimedRun>;
    next_due(kinds: &[RunnerKind]) -> NextDue;
    live_runs(node: NodeId, after: Option<&InstanceId>, limit: u32) -> Vec<LiveRun>;
    live_run(id: &InstanceId) -> Option<LiveRun>;
    register_instance(caller: &Caller, tenant: &TenantId, checkpoint_id: Option<CheckpointId>) -> ();
    save_checkpoint(caller: &Caller, request: SaveCheckpoint) -> Checkpointed;
    poll_signal(caller: &Caller) -> Option<RaisedSignal>;
    take_signal(caller: &Caller, signal_id: &SignalId, request_id: Option<String>) -> Option<Option<Bytes>>;
    begin_wait(caller: &Caller, request: WaitRequest) -> Waiting;
    continue_wait(caller: &Caller, held: &HeldWait, park_now: bool) -> Waiting;
    record_event(caller: &Caller, event: NewEvent, request_id: Option<String>) -> ();
    heartbeat(caller: &Caller) -> ();
    record_retry(caller: &Caller, checkpoint_id: &CheckpointId, attempt: u32, error: Option<String>) -> ();
    say(caller: &Caller, word: Word, our_fault: bool) -> Changed;
    run_of_token(token: TokenHash) -> Option<TokenOwner>;
    refresh_counts() -> ();
    instance(id: &InstanceId) -> Option<InstanceRecord>;
    instance_values(id: &InstanceId) -> Option<InstanceValues>;
    instance_input(id: &InstanceId) -> Option<Option<Bytes>>;
    list_instances(filter: &InstanceFilter, order: InstanceOrder, page: &PageRequest) -> Page<InstanceSummary>;
    list_checkpoints(id: &InstanceId, filter: &CheckpointFilter, page: &PageRequest) -> Page<CheckpointSummary>;
    checkpoint(id: &InstanceId, checkpoint_id: &CheckpointId) -> Option<StoredCheckpoint>;
    list_events(id: &InstanceId, filter: &EventFilter, page: &PageRequest) -> Page<StoredEvent>;
    list_steps(id: &InstanceId, filter: &StepFilter, page: &PageRequest) -> Page<StepSummary>;
    scope_ancestors(id: &InstanceId, scope_id: &str) -> Vec<Scope>;
    tenant_metrics(query: &MetricsQuery) -> Vec<MetricsBucket>;
}
