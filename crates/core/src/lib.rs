//! The instance protocol: what a running instance may ask and say.
//!
//! [`Core`] turns the calls of [`InstanceCalls`] into single changes of the store. It knows neither HTTP nor SQL, and it never calls a
//! runner: what must happen to a process follows from the row.

mod retry;
mod wait;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use runtara_domain::{
    Caller, CheckpointId, Checkpointed, Fence, InstanceId, InstanceStatus, NewEvent, Origin,
    RaisedSignal, Refusal, SaveCheckpoint, SignalId, SignalWait, Sleep, TenantId, Waited, Word,
    limits, redact_tokens,
};
use runtara_runner::{CallError, CallTracker, InstanceCalls};
use runtara_store::Store;
use tokio::sync::watch;
use uuid::Uuid;

use crate::retry::Patience;

/// How the core treats calls.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// Up to how many milliseconds from its end a sleep is held.
    pub hold_ms: u64,
    /// How long a call of a launched run waits for a store that is away.
    pub patience: Duration,
    /// How long a call of an instance that registered itself does: its client gives up after 30 seconds by default.
    pub patience_self_registered: Duration,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            hold_ms: limits::HOLD_MS,
            // A little less than the ten minutes that launched programs are told to wait for an answer.
            patience: Duration::from_secs(570),
            patience_self_registered: Duration::from_secs(20),
        }
    }
}

/// The instance protocol over a store.
pub struct Core {
    store: Arc<dyn Store>,
    tracker: CallTracker,
    config: CoreConfig,
    closing: watch::Sender<bool>,
    held: watch::Sender<usize>,
    names: CallNames,
}

impl Core {
    /// A core over a store. The tracker is shared with whoever judges exits.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, tracker: CallTracker, config: CoreConfig) -> Self {
        Self {
            store,
            tracker,
            config,
            closing: watch::Sender::new(false),
            held: watch::Sender::new(0),
            names: CallNames::new(),
        }
    }

    /// Prepares for the end of this process: held sleeps become far ones, so that their instances are woken by whoever comes
    /// next, and calls that wait for a store are given up.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Waits until no call is held any more, after [`Core::close`]. Callers bound this by a deadline of their own.
    pub async fn settled(&self) {
        let mut held = self.held.subscribe();
        // The sender lives as long as `self`.
        let _closed = held.wait_for(|held| *held == 0).await;
    }

    /// What a call is called by: by the name that it was given, or by a new one.
    fn request_id(&self, given: Option<String>) -> Option<String> {
        given.or_else(|| Some(self.names.next()))
    }

    fn patience(&self, caller: &Caller) -> Patience<'_> {
        let limit = match caller.fence {
            Fence::Run(_) => self.config.patience,
            Fence::SelfRegistered => self.config.patience_self_registered,
        };
        Patience::new(limit, &self.closing)
    }

    /// Checks that a caller may read what belongs to its instance.
    async fn check_reader(&self, caller: &Caller) -> Result<(), CallError> {
        match caller.fence {
            Fence::Run(token) => {
                let patience = self.patience(caller);
                let owner = patience.repeat(|| self.store.run_of_token(token)).await?;
                match owner {
                    Some(owner) if owner.instance_id == caller.instance_id => Ok(()),
                    _ => Err(Refusal::RunSuperseded.into()),
                }
            }
            Fence::SelfRegistered => {
                let patience = self.patience(caller);
                let id = &caller.instance_id;
                match patience.repeat(|| self.store.instance(id)).await? {
                    Some(found) if found.state.origin == Origin::SelfRegistered => Ok(()),
                    Some(_) => Err(Refusal::TokenRequired.into()),
                    None => Err(Refusal::InstanceUnknown.into()),
                }
            }
        }
    }

    /// The tenant for which a caller may see the status of other instances.
    async fn tenant_of(&self, caller: &Caller) -> Result<TenantId, CallError> {
        let patience = self.patience(caller);
        if let Fence::Run(token) = caller.fence {
            return match patience.repeat(|| self.store.run_of_token(token)).await? {
                Some(owner) => Ok(owner.tenant_id),
                None => Err(Refusal::RunSuperseded.into()),
            };
        }
        let id = &caller.instance_id;
        match patience.repeat(|| self.store.instance(id)).await? {
            Some(found) if found.state.origin == Origin::SelfRegistered => {
                Ok(found.state.tenant_id)
            }
            Some(_) => Err(Refusal::TokenRequired.into()),
            None => Err(Refusal::InstanceUnknown.into()),
        }
    }
}

/// Names for calls that have none of their own, so that their repetition within this process is recognised by the store.
///
/// One random number for all and a count: asking the kernel for randomness with each call costs as much as a tenth of the call.
struct CallNames {
    random: u64,
    given: AtomicU64,
}

impl CallNames {
    fn new() -> Self {
        let (random, _) = Uuid::new_v4().as_u64_pair();
        Self {
            random,
            given: AtomicU64::new(0),
        }
    }

    fn next(&self) -> String {
        let n = self.given.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}-{n:x}", self.random)
    }
}

fn redact(bytes: Bytes) -> Bytes {
    match redact_tokens(&bytes) {
        Cow::Borrowed(_) => bytes,
        Cow::Owned(clean) => clean.into(),
    }
}

fn redact_text(text: String) -> String {
    match redact_tokens(text.as_bytes()) {
        Cow::Borrowed(_) => text,
        Cow::Owned(clean) => String::from_utf8_lossy(&clean).into_owned(),
    }
}

fn check_size(what: &str, size: usize, limit: usize) -> Result<(), CallError> {
    if size > limit {
        return Err(CallError::Invalid(format!(
            "{what} has {size} bytes; at most {limit} are allowed"
        )));
    }
    Ok(())
}

#[async_trait]
impl InstanceCalls for Core {
    async fn register(
        &self,
        caller: &Caller,
        tenant_id: TenantId,
        checkpoint_id: Option<CheckpointId>,
    ) -> Result<(), CallError> {
        self.patience(caller)
            .repeat(|| {
                self.store
                    .register_instance(caller, &tenant_id, checkpoint_id.clone())
            })
            .await
    }

    async fn tenant(&self, caller: &Caller) -> Result<TenantId, CallError> {
        self.tenant_of(caller).await
    }

    async fn input(&self, caller: &Caller) -> Result<Option<Bytes>, CallError> {
        self.check_reader(caller).await?;
        let patience = self.patience(caller);
        let id = &caller.instance_id;
        let input = patience.repeat(|| self.store.instance_input(id)).await?;
        Ok(input.ok_or(Refusal::InstanceUnknown)?)
    }

    async fn checkpoint(
        &self,
        caller: &Caller,
        request: SaveCheckpoint,
    ) -> Result<Checkpointed, CallError> {
        check_size("the state", request.state.len(), limits::STATE_BYTES)?;
        let request = SaveCheckpoint {
            request_id: self.request_id(request.request_id),
            ..request
        };
        self.patience(caller)
            .repeat(|| self.store.save_checkpoint(caller, request.clone()))
            .await
    }

    async fn poll_signal(&self, caller: &Caller) -> Result<Option<RaisedSignal>, CallError> {
        self.patience(caller)
            .repeat(|| self.store.poll_signal(caller))
            .await
    }

    async fn take_signal(
        &self,
        caller: &Caller,
        signal_id: &SignalId,
    ) -> Result<Option<Option<Bytes>>, CallError> {
        let request_id = self.request_id(None);
        self.patience(caller)
            .repeat(|| {
                self.store
                    .take_signal(caller, signal_id, request_id.clone())
            })
            .await
    }

    async fn wait_signal(&self, caller: &Caller, request: SignalWait) -> Result<Waited, CallError> {
        self.wait_for_signal(caller, request).await
    }

    async fn sleep(&self, caller: &Caller, request: Sleep) -> Result<(), CallError> {
        check_size("the state", request.state.len(), limits::STATE_BYTES)?;
        self.sleep_durably(caller, request).await
    }

    async fn record(
        &self,
        caller: &Caller,
        event: NewEvent,
        given: Option<String>,
    ) -> Result<(), CallError> {
        let payload = event.payload.as_ref().map_or(0, Bytes::len);
        check_size("the payload", payload, limits::EVENT_PAYLOAD_BYTES)?;
        let subtype = event.subtype.as_deref().unwrap_or_default();
        check_size("the subtype", subtype.len(), limits::EVENT_SUBTYPE_BYTES)?;
        if subtype.starts_with(runtara_domain::subtype::RESERVED) {
            return Err(CallError::Invalid(format!(
                "the subtype {subtype:?} begins with {:?}, which only the server writes",
                runtara_domain::subtype::RESERVED
            )));
        }
        let payload = event.payload.map(redact);
        let event = NewEvent { payload, ..event };
        let request_id = self.request_id(given);
        self.patience(caller)
            .repeat(|| {
                self.store
                    .record_event(caller, event.clone(), request_id.clone())
            })
            .await
    }

    async fn heartbeat(&self, caller: &Caller) -> Result<(), CallError> {
        self.patience(caller)
            .repeat(|| self.store.heartbeat(caller))
            .await
    }

    async fn record_retry(
        &self,
        caller: &Caller,
        checkpoint_id: CheckpointId,
        attempt: u32,
        error: Option<String>,
    ) -> Result<(), CallError> {
        let error = error.map(|text| runtara_domain::tail(&redact_text(text), limits::ERROR_BYTES));
        self.patience(caller)
            .repeat(|| {
                self.store
                    .record_retry(caller, &checkpoint_id, attempt, error.clone())
            })
            .await
    }

    async fn say(&self, caller: &Caller, word: Word) -> Result<(), CallError> {
        match &word {
            Word::Completed {
                output: Some(output),
            } => check_size("the output", output.len(), limits::STATE_BYTES)?,
            Word::SuspendedUntil { state, .. } => {
                check_size("the state", state.len(), limits::STATE_BYTES)?;
            }
            _ => {}
        }
        let word = match word {
            Word::Failed { error } => Word::Failed {
                error: redact_text(error),
            },
            other => other,
        };
        let our_fault = match caller.fence {
            Fence::Run(token) => self.tracker.excuses(token),
            Fence::SelfRegistered => false,
        };
        self.patience(caller)
            .repeat(|| self.store.say(caller, word.clone(), our_fault))
            .await
            .map(drop)
    }

    async fn status(
        &self,
        caller: &Caller,
        of: &InstanceId,
    ) -> Result<Option<InstanceStatus>, CallError> {
        // First who asks: a run that is over is told so, whatever it asks for.
        let tenant = self.tenant_of(caller).await?;
        let patience = self.patience(caller);
        let Some(found) = patience.repeat(|| self.store.instance(of)).await? else {
            return Ok(None);
        };
        let state = found.state;
        if tenant != state.tenant_id {
            // Not told from an unknown one: whether another tenant has such an id is nobody's business.
            return Ok(None);
        }
        let mut values = None;
        if state.status.is_end() {
            values = patience.repeat(|| self.store.instance_values(of)).await?;
        }
        let values = values.unwrap_or_default();
        Ok(Some(InstanceStatus {
            tenant_id: state.tenant_id,
            status: state.status,
            run_number: state.run_number,
            checkpoint_id: state.checkpoint_id,
            output: values.output,
            error: values.error,
            due_at: state.due_at,
        }))
    }
}
