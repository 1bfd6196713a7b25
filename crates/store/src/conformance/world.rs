//! What the cases share: a tenant, a node and an image in an empty store, and short names for what instances do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use runtara_domain::{
    Caller, Change, Checkpointed, Due, Fence, ImageRecord, InstanceId, InstanceState, Labels,
    NewEvent, NewInstance, NodeId, Refusal, RunExit, RunNumber, RunSettings, RunToken,
    SaveCheckpoint, TenantId, Timestamp, TokenHash, Word, limits,
};

use super::Harness;
use super::make::{KINDS, checkpoint, instance, new_image, refusal, save, signal, tenant};
use crate::{
    Changed, Claim, ClaimedRun, EventFilter, InstanceRecord, InstanceValues, NodeLease,
    PageRequest, Started, Store, StoreResult, StoredEvent, WaitRequest,
};

/// How long the lease of the world's node lasts: longer than any case.
pub const LEASE_MS: u64 = 1_000 * 366 * 86_400_000;

/// An empty store with a tenant, a node and an image in it.
pub struct World<'a> {
    /// Where it is.
    pub harness: &'a dyn Harness,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The tenant.
    pub tenant: TenantId,
    /// The node that claims.
    pub node: NodeId,
    /// The image that is started unless another is named.
    pub image: ImageRecord,
    now: AtomicI64,
}

impl<'a> World<'a> {
    /// Makes the world in an empty store.
    pub async fn new(harness: &'a dyn Harness) -> Self {
        let store = harness.store();
        let node = NodeId::generate();
        let tenant = tenant("Tenant-ä");
        let image = new_image(&tenant, "program", b"program");
        let image = store
            .register_image(image)
            .await
            .expect("an image is registered");
        let now = AtomicI64::new(image.created_at.0);
        let world = Self {
            harness,
            store,
            tenant,
            node,
            image,
            now,
        };
        world.join(node).await;
        world
    }

    /// Registers a node.
    pub async fn join(&self, node: NodeId) {
        let lease = NodeLease::new(node, "node", LEASE_MS);
        self.store
            .renew_node(lease)
            .await
            .expect("a node is registered");
    }

    /// Moves the clock on.
    pub async fn advance(&self, millis: u64) {
        self.harness.advance(millis).await;
        let millis = i64::try_from(millis).expect("cases move by less than an age");
        self.now.fetch_add(millis, Ordering::SeqCst);
    }

    /// The time of the store.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::SeqCst))
    }

    /// An instance of the world's image that is to be started.
    pub fn new_instance(&self, id: &str) -> NewInstance {
        NewInstance {
            instance_id: instance(id),
            tenant_id: self.tenant.clone(),
            image_id: self.image.image_id.clone(),
            input: Bytes::from_static(br#"{"order":7}"#),
            env: BTreeMap::new(),
            args: Vec::new(),
            labels: Labels::default(),
            settings: RunSettings::default(),
            timeout_ms: limits::RUN_TIMEOUT_MS,
            max_attempts: None,
            max_events: None,
            due: Due::NOW,
            request_timeout_ms: None,
            heartbeat_timeout_ms: None,
            expires: None,
            pending_allowed: None,
        }
    }

    /// Starts an instance.
    pub async fn start(&self, id: &str) -> InstanceState {
        self.start_as(self.new_instance(id)).await
    }

    /// Starts an instance that must be new.
    pub async fn start_as(&self, new: NewInstance) -> InstanceState {
        let answer = self
            .store
            .start_instance(new)
            .await
            .expect("a start is answered");
        match answer {
            Started::New(state) => *state,
            other => panic!("not a new instance: {other:?}"),
        }
    }

    /// A demand for as many instances as there are tokens.
    pub fn claim_of(&self, tokens: usize) -> Claim {
        Claim {
            node: self.node,
            kinds: KINDS.to_vec(),
            tokens: (0..tokens).map(|_| RunToken::generate().hash()).collect(),
            without_tenants: Vec::new(),
            running_allowed: None,
        }
    }

    /// Claims what is due, at most so many.
    pub async fn claim(&self, most: usize) -> Vec<ClaimedRun> {
        self.store
            .claim_due(self.claim_of(most))
            .await
            .expect("a claim is answered")
    }

    /// Claims the one instance that is due.
    pub async fn claim_only(&self, id: &InstanceId) -> Run<'_> {
        let claimed = self.claim(2).await;
        let ids: Vec<_> = claimed.iter().map(|run| run.instance_id.as_str()).collect();
        assert_eq!(ids, [id.as_str()], "what is due");
        Run::of(self, &claimed[0])
    }

    /// Starts an instance and claims it; nothing else may be due.
    pub async fn launch(&self, id: &str) -> Run<'_> {
        let state = self.start(id).await;
        self.claim_only(&state.instance_id).await
    }

    /// An instance that registered itself.
    pub async fn self_registered(&self, id: &str) -> Run<'_> {
        let caller = Caller {
            instance_id: instance(id),
            fence: Fence::SelfRegistered,
        };
        self.store
            .register_instance(&caller, &self.tenant, None)
            .await
            .expect("an instance registers itself");
        Run {
            world: self,
            caller,
            run_number: RunNumber(1),
        }
    }

    /// Applies a change that must not be refused.
    pub async fn change(&self, id: &InstanceId, change: Change) -> Changed {
        let shown = format!("{change:?}");
        match self.store.change(id, change).await {
            Ok(changed) => changed,
            Err(error) => panic!("{shown}: {error}"),
        }
    }

    /// Applies a change that must be refused.
    pub async fn refused(&self, id: &InstanceId, change: Change) -> Refusal {
        let shown = format!("{change:?}");
        let answer = self.store.change(id, change).await;
        refusal(answer).unwrap_or_else(|| panic!("{shown} was not refused"))
    }

    /// Sends a cancel.
    pub async fn cancel(&self, id: &InstanceId) -> Changed {
        self.change(id, Change::Cancel { payload: None }).await
    }

    /// Sends a pause.
    pub async fn pause(&self, id: &InstanceId) -> Changed {
        self.change(id, Change::Pause { payload: None }).await
    }

    /// Sends a resume.
    pub async fn resume(&self, id: &InstanceId) -> Changed {
        self.change(id, Change::Resume).await
    }

    /// Sends a custom signal.
    pub async fn send(&self, id: &InstanceId, name: &str, payload: &[u8]) {
        let payload = Some(Bytes::copy_from_slice(payload));
        self.store
            .send_signal(id, &signal(name), payload)
            .await
            .expect("a signal is kept");
    }

    /// An instance, which must exist.
    pub async fn record(&self, id: &InstanceId) -> InstanceRecord {
        let found = self.store.instance(id).await.expect("an instance is read");
        found.unwrap_or_else(|| panic!("{id} does not exist"))
    }

    /// The state of an instance, which must exist.
    pub async fn state(&self, id: &InstanceId) -> InstanceState {
        self.record(id).await.state
    }

    /// The large values of an instance, which must exist.
    pub async fn values(&self, id: &InstanceId) -> InstanceValues {
        let found = self
            .store
            .instance_values(id)
            .await
            .expect("values are read");
        found.unwrap_or_else(|| panic!("{id} does not exist"))
    }

    /// The first thousand events of an instance, oldest first.
    pub async fn events(&self, id: &InstanceId) -> Vec<StoredEvent> {
        let oldest_first = EventFilter {
            ascending: true,
            ..EventFilter::default()
        };
        let page = PageRequest::first(limits::PAGE_ROWS);
        let page = self.store.list_events(id, &oldest_first, &page).await;
        page.expect("events are listed").rows
    }

    /// The types and subtypes of an instance's events, oldest first.
    pub async fn history(&self, id: &InstanceId) -> Vec<String> {
        let name = |event: StoredEvent| event.subtype.unwrap_or_else(|| event.kind.to_string());
        self.events(id).await.into_iter().map(name).collect()
    }

    /// The names and sizes of an instance's checkpoints, oldest first.
    pub async fn saved(&self, id: &InstanceId) -> Vec<(String, u64)> {
        let page = PageRequest::first(limits::PAGE_ROWS);
        let any = crate::CheckpointFilter::default();
        let list = self.store.list_checkpoints(id, &any, &page).await;
        let rows = list.expect("checkpoints are listed").rows;
        let row = |row: crate::CheckpointSummary| (row.checkpoint_id, row.size);
        rows.into_iter().rev().map(row).collect()
    }

    /// The newest state that was saved under a name.
    pub async fn state_saved(&self, id: &InstanceId, name: &str) -> Option<Bytes> {
        let found = self.store.checkpoint(id, &checkpoint(name)).await;
        found
            .expect("a checkpoint is read")
            .map(|found| found.state)
    }
}

/// One run of an instance, which calls.
#[derive(Clone)]
pub struct Run<'w> {
    world: &'w World<'w>,
    /// Who calls.
    pub caller: Caller,
    /// Which run it is.
    pub run_number: RunNumber,
}

impl<'w> Run<'w> {
    /// The run of a claim.
    pub fn of(world: &'w World<'w>, claimed: &ClaimedRun) -> Self {
        Self {
            world,
            caller: Caller {
                instance_id: claimed.instance_id.clone(),
                fence: Fence::Run(claimed.token),
            },
            run_number: claimed.run_number,
        }
    }

    /// The instance.
    pub fn id(&self) -> &InstanceId {
        &self.caller.instance_id
    }

    /// Its token.
    pub fn token(&self) -> TokenHash {
        match self.caller.fence {
            Fence::Run(token) => token,
            Fence::SelfRegistered => panic!("a run that we did not launch has no token"),
        }
    }

    fn store(&self) -> &dyn Store {
        self.world.store.as_ref()
    }

    /// Registers, and must be let.
    pub async fn register(&self) {
        self.try_register().await.expect("a run registers");
    }

    /// Registers.
    pub async fn try_register(&self) -> StoreResult<()> {
        let tenant = &self.world.tenant;
        self.store()
            .register_instance(&self.caller, tenant, None)
            .await
    }

    /// Asks for, or saves, a checkpoint, and must be let.
    pub async fn save(&self, name: &str, state: &[u8]) -> Checkpointed {
        self.save_as(save(name, state)).await
    }

    /// Asks for, or saves, a checkpoint, and must be let.
    pub async fn save_as(&self, request: SaveCheckpoint) -> Checkpointed {
        let answer = self.store().save_checkpoint(&self.caller, request).await;
        answer.expect("a save is answered")
    }

    /// Reports that a step is tried again, and must be let.
    pub async fn retry(&self, name: &str, attempt: u32, error: Option<&str>) {
        let (name, error) = (checkpoint(name), error.map(str::to_owned));
        let answer = self
            .store()
            .record_retry(&self.caller, &name, attempt, error);
        answer.await.expect("a retry is recorded");
    }

    /// Takes a custom signal, and must be let.
    pub async fn take(&self, name: &str) -> Option<Option<Bytes>> {
        self.take_as(name, None).await
    }

    /// Takes a custom signal with a call that names itself, and must be let.
    pub async fn take_as(&self, name: &str, request_id: Option<&str>) -> Option<Option<Bytes>> {
        let (id, request_id) = (signal(name), request_id.map(str::to_owned));
        let answer = self.store().take_signal(&self.caller, &id, request_id);
        answer.await.expect("a signal is asked for")
    }

    /// Polls for the instance-wide signal, and must be let.
    pub async fn poll(&self) -> Option<runtara_domain::RaisedSignal> {
        let answer = self.store().poll_signal(&self.caller).await;
        answer.expect("a poll is answered")
    }

    /// Waits, and must be let.
    pub async fn wait(&self, request: WaitRequest) -> crate::Waiting {
        let answer = self.store().begin_wait(&self.caller, request).await;
        answer.expect("a wait is answered")
    }

    /// Goes on with a held wait, and must be let.
    pub async fn go_on(&self, held: &crate::HeldWait, park_now: bool) -> crate::Waiting {
        let answer = self
            .store()
            .continue_wait(&self.caller, held, park_now)
            .await;
        answer.expect("a held wait is answered")
    }

    /// Records an event, and must be let.
    pub async fn event(&self, subtype: &str, payload: &[u8]) {
        let payload = Some(Bytes::copy_from_slice(payload));
        let event = NewEvent::custom(Some(subtype.to_owned()), None, payload);
        let answer = self.store().record_event(&self.caller, event, None).await;
        answer.expect("an event is recorded");
    }

    /// Gives a sign of life, and must be let.
    pub async fn heartbeat(&self) {
        let answer = self.store().heartbeat(&self.caller).await;
        answer.expect("a heartbeat is noted");
    }

    /// Says a word, and must be let.
    pub async fn say(&self, word: Word) -> Changed {
        let answer = self.store().say(&self.caller, word, false).await;
        answer.expect("a word is answered")
    }

    /// Completes with an output.
    pub async fn complete(&self, output: &[u8]) -> Changed {
        let output = Some(Bytes::copy_from_slice(output));
        self.say(Word::Completed { output }).await
    }

    /// The process of the run is gone.
    pub async fn exit(&self, exit: RunExit) -> Changed {
        let exit = Change::Exit {
            run_number: self.run_number,
            exit,
            our_fault: false,
        };
        self.world.change(self.id(), exit).await
    }

    /// The process of the run is lost; the instance is claimed again at once.
    pub async fn lose(&self) -> Run<'w> {
        self.exit(RunExit::lost()).await;
        let next = self.world.claim(1).await;
        let next = next.first().expect("a lost run is launched again at once");
        assert_eq!(&next.instance_id, self.id());
        Run::of(self.world, next)
    }
}
