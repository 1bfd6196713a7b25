//! The instance protocol as domain calls.

use async_trait::async_trait;
use bytes::Bytes;
use runtara_domain::{
    Caller, CheckpointId, Checkpointed, InstanceId, InstanceStatus, NewEvent, RaisedSignal,
    Refusal, SaveCheckpoint, SignalId, SignalWait, Sleep, TenantId, Waited, Word,
};

/// Why a call of an instance was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The call does not apply; a repetition would not either.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What was sent is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// The store is away, or too busy; nothing was changed, or the change may be repeated.
    #[error("the store cannot be reached")]
    Unavailable,
    /// Something is wrong here; the log says what.
    #[error("internal error")]
    Internal,
}

/// What a running instance may ask and say. Each call is fenced in its own statement: a run that was superseded changes
/// nothing. Calls of launched runs wait while the store is away (bounded); they do not fail for it.
#[async_trait]
pub trait InstanceCalls: Send + Sync {
    /// Notes that the run is there. An unknown instance that we did not launch is made.
    ///
    /// # Errors
    /// [`Refusal::InstanceEnded`] for a finished instance, [`Refusal::TenantMismatch`], [`Refusal::CheckpointUnknown`].
    async fn register(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        checkpoint_id: Option<CheckpointId>,
    ) -> Result<(), CallError>;

    /// Whose instance the caller is.
    ///
    /// # Errors
    /// [`Refusal::RunSuperseded`], [`Refusal::InstanceUnknown`], [`Refusal::TokenRequired`].
    async fn tenant(&self, caller: &Caller) -> Result<TenantId, CallError>;

    /// The stored input, for the whole life of the instance.
    ///
    /// # Errors
    /// [`Refusal::InstanceUnknown`].
    async fn input(&self, caller: &Caller) -> Result<Option<Bytes>, CallError>;

    /// Gets a checkpoint, or saves it if its name is free.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the run may not write any more.
    async fn checkpoint(
        &self,
        caller: &Caller,
        request: SaveCheckpoint,
    ) -> Result<Checkpointed, CallError>;

    /// The signal that waits, not consumed.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the run is superseded.
    async fn poll_signal(&self, caller: &Caller) -> Result<Option<RaisedSignal>, CallError>;

    /// Takes the custom signal of this id: its payload, if it is there.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the run may not write any more.
    async fn take_signal(
        &self,
        caller: &Caller,
        signal_id: &SignalId,
    ) -> Result<Option<Option<Bytes>>, CallError>;

    /// Waits for a custom signal: answers when it comes, when the time is over, or when a signal for the whole instance waits.
    /// While the wait is far from its end the instance has no process, and this future does not end before it is dropped.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the run may not write any more.
    async fn wait_signal(&self, caller: &Caller, request: SignalWait) -> Result<Waited, CallError>;

    /// Sleeps durably and answers when the sleep is over. While that is far the instance has no process, and this future
    /// does not end before it is dropped.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the run may not write any more.
    async fn sleep(&self, caller: &Caller, request: Sleep) -> Result<(), CallError>;

    /// Records an event.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the run may not write any more.
    async fn record(
        &self,
        caller: &Caller,
        event: NewEvent,
        request_id: Option<String>,
    ) -> Result<(), CallError>;

    /// Notes a sign of life.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the run may not write any more.
    async fn heartbeat(&self, caller: &Caller) -> Result<(), CallError>;

    /// Records that a step is tried again: the attempt that begins and why the one before failed.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the run may not write any more.
    async fn record_retry(
        &self,
        caller: &Caller,
        checkpoint_id: CheckpointId,
        attempt: u32,
        error: Option<String>,
    ) -> Result<(), CallError>;

    /// Says the run's last word. A further word of the same run is answered and changes nothing.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the run is superseded.
    async fn say(&self, caller: &Caller, word: Word) -> Result<(), CallError>;

    /// Where an instance stands: the caller's own, or another one of the same tenant.
    ///
    /// # Errors
    /// [`CallError::Refused`] if the caller's run is superseded.
    async fn status(
        &self,
        caller: &Caller,
        of: &InstanceId,
    ) -> Result<Option<InstanceStatus>, CallError>;
}
