//! What instances ask, and what they are answered.

use bytes::Bytes;

use crate::{
    CheckpointId, Fence, InstanceId, RunNumber, SignalId, SignalKind, Status, TenantId, Timestamp,
};

/// Who calls, and for which instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The instance that the call is about.
    pub instance_id: InstanceId,
    /// What the caller shows for itself.
    pub fence: Fence,
}

/// A signal as an instance is shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaisedSignal {
    /// Its type.
    pub kind: SignalKind,
    /// What was sent with it.
    pub payload: Option<Bytes>,
}

/// A demand to get a checkpoint, or to save it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaveCheckpoint {
    /// Its name.
    pub checkpoint_id: CheckpointId,
    /// What is to be saved; empty to look only.
    pub state: Bytes,
    /// What the call names itself, so that its repetition after a lost answer is told that it saved.
    pub request_id: Option<String>,
}

/// The answer to [`SaveCheckpoint`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checkpointed {
    /// What was saved under the name before, if something was. What was sent is dropped then.
    pub found: Option<Bytes>,
    /// The signal that waits for the instance, not consumed.
    pub signal: Option<RaisedSignal>,
    /// The payload of the custom signal of the same name, taken; not for a mere look at a name that is free.
    pub custom_signal: Option<Option<Bytes>>,
}

/// A durable sleep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sleep {
    /// How long, in milliseconds.
    pub duration_ms: u64,
    /// The checkpoint that is saved with it, if it is named.
    pub checkpoint_id: Option<CheckpointId>,
    /// What is saved.
    pub state: Bytes,
    /// Whether the run has nothing else to do meanwhile.
    pub park: bool,
    /// What the call names itself, so that its repetition after a lost answer is recognised.
    pub request_id: Option<String>,
}

/// A wait for a custom signal without a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalWait {
    /// Its id.
    pub signal_id: SignalId,
    /// How long at most, in milliseconds.
    pub timeout_ms: Option<u64>,
    /// Whether the run has nothing else to do meanwhile.
    pub park: bool,
    /// What the call names itself, so that its repetition after a lost answer is recognised.
    pub request_id: Option<String>,
}

/// How a wait for a custom signal ended. If neither holds, a signal for the whole instance waits: the run is let go to see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waited {
    /// The payload of the custom signal, if it came.
    pub signal: Option<Option<Bytes>>,
    /// Whether the time was over.
    pub timed_out: bool,
}

/// Where an instance stands, as instances are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceStatus {
    /// Whose it is.
    pub tenant_id: TenantId,
    /// Where it stands.
    pub status: Status,
    /// The number of its current or last run.
    pub run_number: RunNumber,
    /// The checkpoint it saved last.
    pub checkpoint_id: Option<CheckpointId>,
    /// Its output.
    pub output: Option<Bytes>,
    /// Its error text.
    pub error: Option<String>,
    /// When it is due again.
    pub due_at: Option<Timestamp>,
}
