//! What goes into a store and comes out of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use runtara_domain::{
    CheckpointId, Cursor, EventKind, ImageId, ImageRecord, InstanceId, InstanceState, LabelFilter,
    Labels, NodeId, RunNumber, RunSettings, RunnerKind, SignalId, Status, TenantId, TimeInStates,
    Timestamp, TokenHash, WaitCall,
};

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageStart {
    /// So many rows after the first.
    Offset(u64),
    /// Right after the row where the page before ended.
    After(Cursor),
}

/// Which page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// Where it begins.
    pub start: PageStart,
    /// Most rows, at most [`runtara_domain::limits::PAGE_ROWS`]; 0 gives an empty page with its total.
    pub limit: u32,
}

impl PageRequest {
    /// The first page.
    #[must_use]
    pub fn first(limit: u32) -> Self {
        Self {
            start: PageStart::Offset(0),
            limit,
        }
    }
}

/// How many rows match, over all pages.
///
/// Up to [`runtara_domain::limits::EXACT_TOTAL`] the number is counted and exact. Above it, a list of instances by tenant and
/// status alone gives the kept count, which is brought up to date in the background; any other list gives the least number that is
/// certain. Both are marked as not exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    /// The number.
    pub count: u64,
    /// Whether it is exact.
    pub exact: bool,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// Its rows.
    pub rows: Vec<T>,
    /// Where the next page begins; `None` if this is the last.
    pub next: Option<Cursor>,
    /// How many rows match, over all pages.
    pub total: Total,
}

impl<T> Page<T> {
    /// The page of a list without rows.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            rows: Vec::new(),
            next: None,
            total: Total {
                count: 0,
                exact: true,
            },
        }
    }
}

/// What is kept of a tenant's images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageBytes {
    /// The bytes of their contents, each counted once, however many images have it. Images that were replaced or deleted count for as long
    /// as they are kept.
    pub bytes: u64,
    /// Whether the content of one of them is of a size that was asked for.
    pub has_size: bool,
}

/// Which images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageFilter {
    /// Of this tenant.
    pub tenant_id: Option<TenantId>,
    /// Of this name.
    pub name: Option<String>,
    /// With all these labels.
    pub labels: Vec<LabelFilter>,
}

/// What came of a demand to delete an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageDeletion {
    /// It is deleted.
    Deleted,
    /// There is none of that id.
    NotFound,
    /// Instances of it have not ended: so many (counted up to 1,000).
    InUse(u32),
}

/// What came of a start.
#[derive(Debug, Clone, PartialEq)]
pub enum Started {
    /// The instance is made.
    New(Box<InstanceState>),
    /// The same start came before; this is its instance.
    Same(Box<InstanceState>),
    /// Another instance has that id. `same_tenant` says whether it belongs to the tenant of this start.
    Taken {
        /// Whether it belongs to the tenant of this start.
        same_tenant: bool,
    },
    /// The image is unknown, deleted, or another tenant's.
    ImageNotFound,
    /// As many instances of the tenant are pending as may be.
    TooManyPending {
        /// How many are.
        pending: u64,
    },
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// The state after it.
    pub state: InstanceState,
    /// Whether it changed anything.
    pub applied: bool,
}

/// What came of a demand to remove an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purge {
    /// It is gone.
    Purged,
    /// There is none of that id.
    NotFound,
    /// It has not ended.
    NotEnded(Status),
    /// It ended, but its process has not left yet.
    ProcessLeaving,
}

/// A demand for instances that are due.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Who claims.
    pub node: NodeId,
    /// Of these kinds.
    pub kinds: Vec<RunnerKind>,
    /// What the new runs will show for themselves; the number of tokens bounds the claim.
    pub tokens: Vec<TokenHash>,
    /// Not of these tenants, because they have more than their share.
    pub without_tenants: Vec<TenantId>,
    /// So many instances of one tenant may be running at once, wherever; any number if it is not said. Those that registered themselves
    /// count.
    pub running_allowed: Option<u32>,
}

/// A claimed instance: what its launch needs.
#[derive(Clone)]
pub struct ClaimedRun {
    /// The token that it was given.
    pub token: TokenHash,
    /// The instance.
    pub instance_id: InstanceId,
    /// Its owner.
    pub tenant_id: TenantId,
    /// The number of the new run.
    pub run_number: RunNumber,
    /// When it was due.
    pub due_at: Timestamp,
    /// What it runs.
    pub image: ImageRecord,
    /// Its input, if it has at most 64 KiB; ask for it otherwise.
    pub input: Option<Bytes>,
    /// Variables of the start. Secrets.
    pub env: BTreeMap<String, String>,
    /// Arguments of the start.
    pub args: Vec<String>,
    /// What the start asks of the box in which its program runs.
    pub settings: RunSettings,
    /// The checkpoint it saved last.
    pub checkpoint_id: Option<CheckpointId>,
    /// How long the run may take, in milliseconds.
    pub timeout_ms: u64,
    /// For how long the run may be silent, in milliseconds, where the start said so.
    pub heartbeat_timeout_ms: Option<u64>,
    /// How long it is until the overall deadline of its instance, in milliseconds by the store's clock, if it has one.
    pub expires_in_ms: Option<u64>,
}

impl std::fmt::Debug for ClaimedRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClaimedRun")
            .field("instance_id", &self.instance_id)
            .field("run_number", &self.run_number)
            .field("image_id", &self.image.image_id)
            .finish_non_exhaustive()
    }
}

/// The largest input that a claim brings along, in bytes.
pub const CLAIMED_INPUT_BYTES: usize = 64 * 1024;

/// When the next instance is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextDue {
    /// Milliseconds from now by the store's clock, 0 if one is due already; `None` if none has a due time.
    pub in_ms: Option<u64>,
}

/// Which instances outlived their overall deadline, and when the next one does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overdue {
    /// Those that failed for it now.
    pub instances: Vec<InstanceId>,
    /// Milliseconds from now by the store's clock until the next one, 0 if there are more already; `None` if none has a deadline.
    pub next_in_ms: Option<u64>,
}

/// A run that is recorded as live, and what is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveRun {
    /// The instance.
    pub instance_id: InstanceId,
    /// Which run.
    pub run_number: RunNumber,
    /// What it shows for itself.
    pub token: TokenHash,
    /// What runs it.
    pub kind: RunnerKind,
    /// Where it runs.
    pub node: NodeId,
    /// Where the instance stands.
    pub status: Status,
    /// Milliseconds until its process is killed, 0 if at once; `None` if it may stay.
    pub leave_in_ms: Option<u64>,
    /// Whether the process is to be asked to leave before.
    pub asked_to_leave: bool,
    /// Milliseconds that it slept in held calls.
    pub slept_ms: u64,
    /// For how long it may be silent, in milliseconds, where the start said so.
    pub heartbeat_timeout_ms: Option<u64>,
    /// Milliseconds until it was silent for too long, if it stays silent from now on; `None` if it may be silent for ever. See
    /// [`runtara_domain::Liveness::silent_in_ms`].
    pub silent_in_ms: Option<u64>,
}

/// What a wait is for, within its instance.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WaitKey {
    /// A sleep, under the name of its checkpoint if it has one.
    Sleep(Option<CheckpointId>),
    /// A custom signal.
    Signal(SignalId),
}

impl WaitKey {
    /// The text of the key: the name of the checkpoint (empty if there is none) or the id of the signal.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Sleep(id) => id.as_ref().map_or("", CheckpointId::as_str),
            Self::Signal(id) => id.as_str(),
        }
    }
}

/// A demand to wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitRequest {
    /// What for. Its kind is that of `call`.
    pub key: WaitKey,
    /// How.
    pub call: WaitCall,
    /// What is saved with a new sleep under its checkpoint's name; nothing if it is empty.
    pub state: Bytes,
    /// Up to how many milliseconds a call is held.
    pub hold_ms: u64,
}

/// A call that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldWait {
    /// What it waits for.
    pub key: WaitKey,
    /// Which record.
    pub n: u32,
    /// Milliseconds until it is over by time; `None` if it is not.
    pub remaining_ms: Option<u64>,
}

/// How a wait stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// It is over: by time, by the signal that it waited for, or because an instance-wide signal waits for the run.
    Over {
        /// The payload of the custom signal that it waited for, if that came.
        signal: Option<Option<Bytes>>,
        /// Whether the time was over.
        elapsed: bool,
    },
    /// It is held, for so long at most; look again then, and whenever the instance changes.
    Held(HeldWait),
    /// The instance is suspended and its process is ended: this call is never answered.
    Parked,
}

/// Whose a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenOwner {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// The run.
    pub run_number: RunNumber,
}

/// An instance without its large values.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceRecord {
    /// Its state.
    pub state: InstanceState,
    /// How long it had stood where when it was read, by the clock of the store.
    pub time_in_states: TimeInStates,
    /// The name of its image.
    pub image_name: Option<String>,
    /// Its labels.
    pub labels: Labels,
}

/// The large values of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstanceValues {
    /// Its input.
    pub input: Option<Bytes>,
    /// Its output.
    pub output: Option<Bytes>,
    /// Its error text: how it failed, or why it was interrupted last, see [`runtara_domain::InstanceState::shows_error`].
    pub error: Option<String>,
    /// The end of the standard error of its last run that wrote any.
    pub stderr: Option<String>,
}

/// Which instances. All demands must be met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InstanceFilter {
    /// Of this tenant.
    pub tenant_id: Option<TenantId>,
    /// In this status.
    pub status: Option<Status>,
    /// Of this image.
    pub image_id: Option<ImageId>,
    /// Of images whose name begins so; the text is literal.
    pub image_name_prefix: Option<String>,
    /// Started at this time or later.
    pub created_after: Option<Timestamp>,
    /// Started before this time.
    pub created_before: Option<Timestamp>,
    /// Ended at this time or later.
    pub finished_after: Option<Timestamp>,
    /// Ended before this time.
    pub finished_before: Option<Timestamp>,
    /// With all these labels.
    pub labels: Vec<LabelFilter>,
}

/// The order of a list of instances. Ties are settled by id, in the same direction; rows without a finish time come last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InstanceOrder {
    /// Newest first.
    #[default]
    CreatedDescending,
    /// Oldest first.
    CreatedAscending,
    /// Ended last, first.
    FinishedDescending,
    /// Ended first, first.
    FinishedAscending,
}

impl InstanceOrder {
    /// Whether it goes by the time of the end, not by that of the start.
    #[must_use]
    pub fn is_by_finish(self) -> bool {
        matches!(self, Self::FinishedDescending | Self::FinishedAscending)
    }

    /// Whether the latest comes first.
    #[must_use]
    pub fn is_descending(self) -> bool {
        matches!(self, Self::CreatedDescending | Self::FinishedDescending)
    }
}

/// One row of a list of instances.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceSummary {
    /// Its id.
    pub instance_id: InstanceId,
    /// Its owner.
    pub tenant_id: TenantId,
    /// What it runs.
    pub image_id: Option<ImageId>,
    /// The name of that.
    pub image_name: Option<String>,
    /// Where it stands.
    pub status: Status,
    /// Why it is suspended, or how it ended.
    pub reason: Option<runtara_domain::Reason>,
    /// When it is due.
    pub due_at: Option<Timestamp>,
    /// When it was started.
    pub created_at: Timestamp,
    /// When its first run began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Whether an error text is stored.
    pub has_error: bool,
    /// Its labels.
    pub labels: Labels,
}

/// Which checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckpointFilter {
    /// Of this name.
    pub checkpoint_id: Option<String>,
    /// Saved at this time or later.
    pub created_after: Option<Timestamp>,
    /// Saved before this time.
    pub created_before: Option<Timestamp>,
}

/// A checkpoint without its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointSummary {
    /// Its number: it grows with each checkpoint that its instance saves, though not always by one.
    pub seq: u64,
    /// Its name.
    pub checkpoint_id: String,
    /// When it was saved.
    pub created_at: Timestamp,
    /// The size of its state in bytes.
    pub size: u64,
    /// The run that saved it.
    pub run_number: RunNumber,
}

/// A checkpoint with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCheckpoint {
    /// What was saved.
    pub state: Bytes,
    /// When.
    pub created_at: Timestamp,
}

/// Which events. All demands must be met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// Of this type.
    pub kind: Option<EventKind>,
    /// Of this subtype.
    pub subtype: Option<String>,
    /// Recorded at this time or later.
    pub created_after: Option<Timestamp>,
    /// Recorded before this time.
    pub created_before: Option<Timestamp>,
    /// Whose payload, taken as UTF-8 where it is, holds this text; ASCII letters match in either case.
    pub payload_contains: Option<String>,
    /// In this scope.
    pub scope_id: Option<String>,
    /// In scopes inside this one.
    pub parent_scope_id: Option<String>,
    /// In no scope inside another.
    pub root_scopes_only: bool,
    /// Oldest first.
    pub ascending: bool,
}

/// An event as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its number within its instance: the order in which they were recorded. Numbers have no gap but where events were folded, which the
    /// event in the place of the last of them says.
    pub seq: u64,
    /// Its type.
    pub kind: EventKind,
    /// Its subtype.
    pub subtype: Option<String>,
    /// The checkpoint it belongs to.
    pub checkpoint_id: Option<CheckpointId>,
    /// What it says.
    pub payload: Option<Bytes>,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// The run that it belongs to.
    pub run_number: RunNumber,
}

/// How a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepStatus {
    /// It has not ended.
    Running,
    /// It ended without an error.
    Completed,
    /// It ended with an error.
    Failed,
}

/// Which steps. All demands must be met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StepFilter {
    /// Standing so.
    pub status: Option<StepStatus>,
    /// Of this type.
    pub step_type: Option<String>,
    /// In this scope.
    pub scope_id: Option<String>,
    /// In scopes inside this one.
    pub parent_scope_id: Option<String>,
    /// In no scope inside another.
    pub root_scopes_only: bool,
    /// With one of these ids, if any are named.
    pub step_ids: Vec<String>,
    /// Oldest first.
    pub ascending: bool,
}

/// A step of a program, from the events by which it began and ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepSummary {
    /// The number of the event by which it began.
    pub seq: u64,
    /// The payload of that event.
    pub start: Bytes,
    /// When it began.
    pub started_at: Timestamp,
    /// The payload of the event by which it ended.
    pub end: Option<Bytes>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it stands.
    pub status: StepStatus,
}

/// A scope that a program entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The payload of the event by which it was entered.
    pub payload: Bytes,
    /// When.
    pub created_at: Timestamp,
}

/// Which endings are counted, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsQuery {
    /// Whose.
    pub tenant_id: TenantId,
    /// Ended at this time or later.
    pub start: Timestamp,
    /// Ended before this time.
    pub end: Timestamp,
    /// The width of a bucket in milliseconds: an hour or a day. Buckets begin at whole multiples of it since the epoch (UTC).
    pub bucket_ms: u64,
}

/// How instances ended within a bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsBucket {
    /// When it begins.
    pub start: Timestamp,
    /// Completed.
    pub completed: u64,
    /// Failed.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// From the start of the first run to the end, in milliseconds, averaged over those that ran.
    pub avg_duration_ms: Option<f64>,
    /// The shortest.
    pub min_duration_ms: Option<f64>,
    /// The longest.
    pub max_duration_ms: Option<f64>,
    /// Peak memory in bytes, averaged over those of which it is known.
    pub avg_memory_bytes: Option<f64>,
    /// The largest.
    pub max_memory_bytes: Option<u64>,
}
