//! The store in one SQLite file, for one server process.
//!
//! - `writer`: one thread owns the one connection that writes, and commits for all who write at the same time.
//! - `readers`: a few connections that only read, and never wait for the writer.
//! - `instances`, `calls`, `runs`, `images`, `nodes`, `removal`, `folding`: what is written, each as load, decide, write.
//! - `lists`, `history`: the questions.
//! - `state`, `write`: the row of an instance, and what one change of it writes; `tx`: several changes in one transaction.
//! - `redo`: what makes changes durable before SQLite commits them; `known`: what is kept in memory of instances that run.
//! - `sql`: statements and rows; `file`, `connect`: the file, its lock, its schema.

mod anchors;
mod calls;
mod connect;
mod failure;
mod file;
mod folding;
mod history;
mod images;
mod instances;
mod known;
mod limited;
mod lists;
mod liveness;
mod nodes;
mod numbered;
#[cfg(test)]
mod plans;
mod readers;
mod redo;
mod removal;
mod runs;
mod sql;
mod state;
mod tx;
mod write;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use runtara_domain::{
    Caller, Change, CheckpointId, Checkpointed, DatabaseId, ImageDigest, ImageId, ImageName,
    ImageRecord, InstanceId, NewEvent, NewImage, NewInstance, NodeId, RaisedSignal,
    RegistrationNumber, RunnerKind, SaveCheckpoint, SignalId, TenantId, TokenHash, Word,
};
use sqlx::Connection as _;
use tokio::sync::{Mutex, oneshot};

use self::anchors::Anchors;
use self::connect::WriterOptions;
use self::readers::Readers;
use self::redo::Redo;
use self::sql::Question;
use self::tx::Tx;
use self::writer::{Told, Writer};
use crate::{
    Changed, CheckpointFilter, CheckpointSummary, Claim, ClaimedRun, Clock, EndedInstance,
    EventFilter, Expired, ExpiredPage, Folded, HeldWait, ImageBytes, ImageDeletion, ImageFilter,
    InstanceFilter, InstanceOrder, InstanceRecord, InstanceSummary, InstanceValues, LiveRun,
    MetricsBucket, MetricsQuery, NextDue, NodeLease, NodeRecord, NodeRemoval, NodeStanding, Nudges,
    Overdue, Page, PageRequest, Purge, Remains, Scope, Started, StepFilter, StepSummary, Store,
    StoreResult, StoredCheckpoint, StoredEvent, SystemClock, TokenOwner, WaitRequest, Waiting,
};

/// How long a request waits for its turn: a store that stays busy for longer is told at once, while the caller still listens.
const TURN: Duration = Duration::from_secs(5);

/// How a [`SqliteStore`] is opened.
#[derive(Clone)]
pub struct SqliteOptions {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    nudges: Nudges,
    statement_timeout: Duration,
    max_pages: Option<u32>,
    several_nodes: bool,
    claims_by_tenant: bool,
}

impl SqliteOptions {
    /// Options for the database in a file: a path, or a URL such as `sqlite:data/runtara.db` or `sqlite:///var/lib/runtara.db`.
    ///
    /// # Errors
    /// [`crate::StoreError::Broken`] if the text names no file.
    pub fn new(url: &str) -> StoreResult<Self> {
        file::path_of(url).map(Self::at)
    }

    /// Options for the database in the file of this path.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            clock: Arc::new(SystemClock),
            nudges: Nudges::new(),
            statement_timeout: Duration::from_secs(30),
            max_pages: None,
            several_nodes: false,
            claims_by_tenant: false,
        }
    }

    /// Whether claims will say how many instances of one tenant may run at once: then there is an index for them, for which each start pays.
    /// Without it they mean the same, and read over all that is due.
    #[must_use]
    pub fn claims_by_tenant(mut self, claims_by_tenant: bool) -> Self {
        self.claims_by_tenant = claims_by_tenant;
        self
    }

    /// Decides by this clock instead of that of the machine.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Gives these nudges.
    #[must_use]
    pub fn nudges(mut self, nudges: Nudges) -> Self {
        self.nudges = nudges;
        self
    }

    /// How long a write and a question may take before the store is called unavailable: 30 seconds unless it is set. Either waits
    /// for its turn before that, but no longer than 5 seconds.
    #[must_use]
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.statement_timeout = timeout;
        self
    }

    /// Lets several nodes register, where all of them live in this process and share the store, as in a simulation. Otherwise a
    /// node is refused while another has a lease that lasts.
    #[must_use]
    pub fn several_nodes(mut self) -> Self {
        self.several_nodes = true;
        self
    }

    /// Lets the database grow to so many pages of 4 KiB: beyond that it answers as if the disk were full.
    #[must_use]
    pub fn max_pages(mut self, pages: u32) -> Self {
        self.max_pages = Some(pages);
        self
    }
}

/// Durable state in one SQLite file.
///
/// # Durability
/// What is answered with success was written and flushed (`fsync`) to a log beside the database (its name with `.redo`). Requests that
/// meet share a flush. SQLite commits a little later, at the latest after some tens of milliseconds; a question is answered from all
/// that was answered before it. After a crash the next [`SqliteStore::open`] runs again what SQLite had not committed, so the log belongs
/// to the database as SQLite's own `-wal` file does; a store that was closed leaves neither.
///
/// # One process
/// A lock file beside the database (its name with `.lock`) is held for the life of the store: a second process is refused. The
/// file must lie on a local disk; network file systems lock and flush as they like.
///
/// # Cancellation
/// Any future may be dropped: a write that was queued is carried out, a question is stopped.
pub struct SqliteStore {
    clock: Arc<dyn Clock>,
    nudges: Nudges,
    database_id: DatabaseId,
    anchors: Arc<Anchors>,
    writer: Writer,
    readers: Readers,
    several_nodes: bool,
    /// The last number that was given to a registration.
    registrations: AtomicU64,
    end: Mutex<Option<oneshot::Receiver<()>>>,
}

impl SqliteStore {
    /// Opens a database: makes its directory and file if there is none, takes its lock, and brings its schema up to date.
    ///
    /// # Errors
    /// [`crate::StoreError::Broken`] if another process has the database open (the text names it and the lock), if the file is no database
    /// of ours, or if it cannot be made.
    pub async fn open(options: SqliteOptions) -> StoreResult<Self> {
        let path = options.path.clone();
        let lock = tokio::task::spawn_blocking(move || file::prepare(&path))
            .await
            .map_err(|error| failure::broken_by("preparing the database's files", error))??;
        let writing = WriterOptions {
            path: options.path.clone(),
            max_pages: options.max_pages,
        };
        let mut connection = connect::at_the_start(&writing).await?;
        connect::refuse_foreign(&mut connection, &options.path).await?;
        // Before the schema is brought up to date: what was answered was written by the schema as it is.
        let writer = writing.open()?;
        redo::recover(&writer, &options.path)?;
        connect::migrate(&mut connection, &options.path).await?;
        connect::index_claims(&mut connection, options.claims_by_tenant).await?;
        let database_id = connect::database_id(&mut connection).await?;
        let registrations = images::last_registration(&mut connection).await?;
        let closed = connection.close().await;
        closed.map_err(|error| failure::failed("closing what was opened for the start", error))?;
        let anchors = Arc::new(Anchors::default());
        let (writer, end) = Writer::start(
            Tx::new(writer, Redo::open(&options.path)?, options.clock.clone()),
            writing,
            Told {
                anchors: Arc::clone(&anchors),
                nudges: options.nudges.clone(),
            },
            options.statement_timeout,
            lock,
        )?;
        Ok(Self {
            readers: Readers::new(connect::reader(&options.path), options.statement_timeout),
            clock: options.clock,
            nudges: options.nudges,
            database_id,
            anchors,
            writer,
            several_nodes: options.several_nodes,
            registrations: AtomicU64::new(registrations),
            end: Mutex::new(Some(end)),
        })
    }
}

/// Asks a question on a connection that reads, of all that was answered before.
macro_rules! ask {
    ($store:expr, |$connection:ident| $question:expr) => {{
        $store.writer.published().await?;
        let mut guard = $store.readers.get().await?;
        let $connection = guard.connection();
        let answer = $question.await;
        guard.judge(&answer);
        answer
    }};
}

impl SqliteStore {
    /// Asks about one instance. What other connections cannot see yet is not committed for that: the one that writes is asked.
    async fn look<T: Send + 'static>(&self, question: Question<T>) -> StoreResult<T> {
        if self.writer.is_ahead() {
            return self
                .writer
                .write(0, move |tx| question.ask_writer(tx))
                .await;
        }
        ask!(self, |connection| question.ask(connection))
    }
}

/// Does something in the thread that writes. `$bytes` is about how much it writes beside its row.
macro_rules! act {
    ($store:expr, $bytes:expr, |$tx:ident| $work:expr) => {
        $store.writer.write($bytes, move |$tx| $work).await
    };
}

#[async_trait]
impl Store for SqliteStore {
    fn nudges(&self) -> &Nudges {
        &self.nudges
    }

    async fn database_id(&self) -> StoreResult<DatabaseId> {
        Ok(self.database_id)
    }

    async fn ping(&self) -> StoreResult<()> {
        // An empty transaction: whether one can be begun and ended is what matters.
        act!(self, 0, |_tx| Ok(()))
    }

    async fn close(&self) {
        self.writer.close();
        if let Some(end) = self.end.lock().await.take() {
            self.readers.close().await;
            if end.await.is_err() {
                tracing::error!("the thread that writes did not end orderly");
            }
        }
    }

    async fn renew_node(&self, node: NodeLease) -> StoreResult<NodeStanding> {
        let several = self.several_nodes;
        act!(self, 0, |tx| nodes::renew(tx, &node, several))
    }

    async fn release_node(&self, node: NodeId) -> StoreResult<()> {
        act!(self, 0, |tx| nodes::release(tx, node))
    }

    async fn expire_nodes(&self, me: NodeId, limit: u32) -> StoreResult<Vec<InstanceId>> {
        act!(self, 0, |tx| runs::expire(tx, me, limit))
    }

    async fn nodes(&self) -> StoreResult<Vec<NodeRecord>> {
        act!(self, 0, |tx| nodes::list(tx))
    }

    async fn drain_node(&self, node: NodeId, hand_over_after_ms: Option<u64>) -> StoreResult<bool> {
        let drained = act!(self, 0, |tx| nodes::drain(tx, node, hand_over_after_ms))?;
        self.nudges.node_asked();
        Ok(drained)
    }

    async fn remove_node(&self, node: NodeId) -> StoreResult<NodeRemoval> {
        act!(self, 0, |tx| nodes::remove(tx, node))
    }

    async fn next_registration(&self) -> StoreResult<RegistrationNumber> {
        // This is the one process that has the database, and those that wait for their row end with it.
        let before = self.registrations.fetch_add(1, Ordering::Relaxed);
        Ok(RegistrationNumber(before + 1))
    }

    async fn register_image(&self, image: NewImage) -> StoreResult<ImageRecord> {
        act!(self, 0, |tx| images::register(tx, image))
    }

    async fn image_bytes(&self, tenant: &TenantId, sizes: (u64, u64)) -> StoreResult<ImageBytes> {
        let tenant = tenant.clone();
        act!(self, 0, |tx| images::bytes(tx, &tenant, sizes))
    }

    async fn image(&self, id: &ImageId) -> StoreResult<Option<ImageRecord>> {
        ask!(self, |connection| images::by_id(connection, id))
    }

    async fn image_even_deleted(&self, id: &ImageId) -> StoreResult<Option<ImageRecord>> {
        ask!(self, |connection| images::by_id_even_deleted(
            connection, id
        ))
    }

    async fn image_by_name(
        &self,
        tenant: &TenantId,
        name: &ImageName,
    ) -> StoreResult<Option<ImageRecord>> {
        ask!(self, |connection| images::by_name(connection, tenant, name))
    }

    async fn list_images(
        &self,
        filter: &ImageFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<ImageRecord>> {
        ask!(self, |connection| images::list(connection, filter, page))
    }

    async fn delete_image(&self, id: &ImageId) -> StoreResult<ImageDeletion> {
        let id = id.clone();
        act!(self, 0, |tx| images::delete(tx, &id))
    }

    async fn remove_unneeded_images(&self, limit: u32) -> StoreResult<Vec<ImageDigest>> {
        act!(self, 0, |tx| images::remove_unneeded(tx, limit))
    }

    async fn unneeded_images(&self, limit: u32) -> StoreResult<Vec<ImageRecord>> {
        ask!(self, |connection| images::unneeded(connection, limit))
    }

    async fn unused_images(&self, unused_ms: u64, limit: u32) -> StoreResult<Vec<ImageRecord>> {
        let now = self.clock.now();
        ask!(self, |connection| images::unused(
            connection, unused_ms, limit, now
        ))
    }

    async fn delete_unused_images(
        &self,
        unused_ms: u64,
        limit: u32,
    ) -> StoreResult<Vec<ImageRecord>> {
        act!(self, 0, |tx| images::delete_unused(tx, unused_ms, limit))
    }

    async fn is_content_needed(&self, digest: &ImageDigest) -> StoreResult<bool> {
        ask!(self, |connection| images::is_content_needed(
            connection, digest
        ))
    }

    async fn start_instance(&self, new: NewInstance) -> StoreResult<Started> {
        let bytes = new.input.len();
        act!(self, bytes, |tx| instances::start(tx, new))
    }

    async fn change(&self, id: &InstanceId, change: Change) -> StoreResult<Changed> {
        instances::check_stands_alone(&change)?;
        let id = id.clone();
        let bytes = match &change {
            Change::Exit { exit, .. } => exit.output.as_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        act!(self, bytes, |tx| instances::change(tx, &id, &change))
    }

    async fn send_signal(
        &self,
        id: &InstanceId,
        signal_id: &SignalId,
        payload: Option<Bytes>,
    ) -> StoreResult<()> {
        let (id, signal_id) = (id.clone(), signal_id.clone());
        let bytes = payload.as_ref().map_or(0, Bytes::len);
        act!(self, bytes, |tx| instances::send_signal(
            tx, &id, &signal_id, payload
        ))
    }

    async fn purge_instance(&self, id: &InstanceId) -> StoreResult<Purge> {
        let of_purge = id.clone();
        let (purged, left) = act!(self, 0, |tx| removal::purge(tx, &of_purge))?;
        if let Some(instance) = left {
            // Each piece is a request of its own, so that others have their turn between two.
            while act!(self, 0, |tx| removal::remove_piece_of(tx, instance))? {}
        }
        Ok(purged)
    }

    async fn overfull_instances(&self, ids: &[InstanceId]) -> StoreResult<Vec<InstanceId>> {
        ask!(self, |connection| folding::overfull(connection, ids))
    }

    async fn fold_events(&self, id: &InstanceId, limit: u32) -> StoreResult<Folded> {
        let id = id.clone();
        act!(self, 0, |tx| folding::fold_oldest(tx, &id, limit))
    }

    async fn expired_instances(&self, demand: &Expired) -> StoreResult<ExpiredPage> {
        let now = self.clock.now();
        ask!(self, |connection| removal::expired(connection, demand, now))
    }

    async fn remove_ended(&self, ended: &[EndedInstance]) -> StoreResult<Vec<InstanceId>> {
        let ended = ended.to_vec();
        act!(self, 0, |tx| removal::take_away(tx, &ended))
    }

    async fn remove_remains(&self, rows: u32) -> StoreResult<Remains> {
        act!(self, 0, |tx| removal::remove_remains(tx, rows))
    }

    async fn claim_due(&self, claim: Claim) -> StoreResult<Vec<ClaimedRun>> {
        act!(self, 0, |tx| runs::claim(tx, &claim))
    }

    async fn next_due(&self, kinds: &[RunnerKind]) -> StoreResult<NextDue> {
        let now = self.clock.now();
        self.look(runs::next_due(kinds, now)).await
    }

    async fn next_due_later(&self, kinds: &[RunnerKind]) -> StoreResult<NextDue> {
        let (question, now) = (kinds.to_vec(), self.clock.now());
        self.look(runs::next_due_later(&question, now)).await
    }

    async fn live_runs(
        &self,
        node: NodeId,
        after: Option<&InstanceId>,
        limit: u32,
    ) -> StoreResult<Vec<LiveRun>> {
        let now = self.clock.now();
        ask!(self, |connection| runs::live_runs(
            connection,
            (node, after, limit),
            now
        ))
    }

    async fn live_run(&self, id: &InstanceId) -> StoreResult<Option<LiveRun>> {
        let now = self.clock.now();
        self.look(runs::live_run(id, now)).await
    }

    async fn expire_due(&self, limit: u32) -> StoreResult<Overdue> {
        act!(self, 0, |tx| liveness::expire(tx, limit))
    }

    async fn lapse_silent(&self, timeout_ms: u64, limit: u32) -> StoreResult<Vec<InstanceId>> {
        act!(self, 0, |tx| liveness::lapse(tx, timeout_ms, limit))
    }

    async fn register_instance(
        &self,
        caller: &Caller,
        tenant: &TenantId,
        checkpoint_id: Option<CheckpointId>,
    ) -> StoreResult<()> {
        let (caller, tenant) = (caller.clone(), tenant.clone());
        act!(self, 0, |tx| calls::register(
            tx,
            &caller,
            &tenant,
            checkpoint_id
        ))
    }

    async fn save_checkpoint(
        &self,
        caller: &Caller,
        request: SaveCheckpoint,
    ) -> StoreResult<Checkpointed> {
        let caller = caller.clone();
        let bytes = request.state.len();
        act!(self, bytes, |tx| calls::save_checkpoint(
            tx, &caller, &request
        ))
    }

    async fn poll_signal(&self, caller: &Caller) -> StoreResult<Option<RaisedSignal>> {
        let caller = caller.clone();
        act!(self, 0, |tx| calls::poll_signal(tx, &caller))
    }

    async fn take_signal(
        &self,
        caller: &Caller,
        signal_id: &SignalId,
        request_id: Option<String>,
    ) -> StoreResult<Option<Option<Bytes>>> {
        let (caller, signal_id) = (caller.clone(), signal_id.clone());
        act!(self, 0, |tx| calls::take_signal(
            tx,
            &caller,
            &signal_id,
            request_id.as_deref()
        ))
    }

    async fn begin_wait(&self, caller: &Caller, request: WaitRequest) -> StoreResult<Waiting> {
        let caller = caller.clone();
        let bytes = request.state.len();
        act!(self, bytes, |tx| calls::begin_wait(tx, &caller, &request))
    }

    async fn continue_wait(
        &self,
        caller: &Caller,
        held: &HeldWait,
        park_now: bool,
    ) -> StoreResult<Waiting> {
        let (caller, held) = (caller.clone(), held.clone());
        act!(self, 0, |tx| calls::continue_wait(
            tx, &caller, &held, park_now
        ))
    }

    async fn record_event(
        &self,
        caller: &Caller,
        event: NewEvent,
        request_id: Option<String>,
    ) -> StoreResult<()> {
        let caller = caller.clone();
        let bytes = event.payload.as_ref().map_or(0, Bytes::len);
        act!(self, bytes, |tx| calls::record_event(
            tx,
            &caller,
            &event,
            request_id.as_deref()
        ))
    }

    async fn heartbeat(&self, caller: &Caller) -> StoreResult<()> {
        let caller = caller.clone();
        act!(self, 0, |tx| calls::heartbeat(tx, &caller))
    }

    async fn record_retry(
        &self,
        caller: &Caller,
        checkpoint_id: &CheckpointId,
        attempt: u32,
        error: Option<String>,
    ) -> StoreResult<()> {
        let (caller, checkpoint_id) = (caller.clone(), checkpoint_id.clone());
        act!(self, 0, |tx| calls::record_retry(
            tx,
            &caller,
            &checkpoint_id,
            attempt,
            error.as_deref()
        ))
    }

    async fn say(&self, caller: &Caller, word: Word, our_fault: bool) -> StoreResult<Changed> {
        let caller = caller.clone();
        let bytes = match &word {
            Word::Completed { output } => output.as_ref().map_or(0, Bytes::len),
            Word::SuspendedUntil { state, .. } => state.len(),
            _ => 0,
        };
        act!(self, bytes, |tx| calls::say(tx, &caller, &word, our_fault))
    }

    async fn run_of_token(&self, token: TokenHash) -> StoreResult<Option<TokenOwner>> {
        self.look(runs::owner(token)).await
    }

    /// Counts are kept with each change; here only the places within long lists are taken anew.
    async fn refresh_counts(&self) -> StoreResult<()> {
        ask!(self, |connection| lists::refresh(connection, &self.anchors))
    }

    async fn instance(&self, id: &InstanceId) -> StoreResult<Option<InstanceRecord>> {
        let now = self.clock.now();
        self.look(instances::record(id, now)).await
    }

    async fn instance_values(&self, id: &InstanceId) -> StoreResult<Option<InstanceValues>> {
        self.look(instances::values(id)).await
    }

    async fn instance_input(&self, id: &InstanceId) -> StoreResult<Option<Option<Bytes>>> {
        self.look(instances::input(id)).await
    }

    async fn list_instances(
        &self,
        filter: &InstanceFilter,
        order: InstanceOrder,
        page: &PageRequest,
    ) -> StoreResult<Page<InstanceSummary>> {
        ask!(self, |connection| lists::list(
            connection,
            &self.anchors,
            (filter, order),
            page
        ))
    }

    async fn list_checkpoints(
        &self,
        id: &InstanceId,
        filter: &CheckpointFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<CheckpointSummary>> {
        ask!(self, |connection| history::list_checkpoints(
            connection, id, filter, page
        ))
    }

    async fn checkpoint(
        &self,
        id: &InstanceId,
        checkpoint_id: &CheckpointId,
    ) -> StoreResult<Option<StoredCheckpoint>> {
        ask!(self, |connection| history::checkpoint(
            connection,
            id,
            checkpoint_id
        ))
    }

    async fn list_events(
        &self,
        id: &InstanceId,
        filter: &EventFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<StoredEvent>> {
        ask!(self, |connection| history::list_events(
            connection, id, filter, page
        ))
    }

    async fn list_steps(
        &self,
        id: &InstanceId,
        filter: &StepFilter,
        page: &PageRequest,
    ) -> StoreResult<Page<StepSummary>> {
        ask!(self, |connection| history::list_steps(
            connection, id, filter, page
        ))
    }

    async fn scope_ancestors(&self, id: &InstanceId, scope_id: &str) -> StoreResult<Vec<Scope>> {
        ask!(self, |connection| history::scope_ancestors(
            connection, id, scope_id
        ))
    }

    async fn tenant_metrics(&self, query: &MetricsQuery) -> StoreResult<Vec<MetricsBucket>> {
        ask!(self, |connection| history::metrics(connection, query))
    }
}
