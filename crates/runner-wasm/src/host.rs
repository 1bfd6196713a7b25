//! What guests import as `runtara:durable`: each function is one call of the instance protocol.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use runtara_domain::{
    Caller, CheckpointId, Checkpointed, EventKind, NewEvent, RaisedSignal, Refusal, SaveCheckpoint,
    ScopeKeys, SignalId, SignalKind, SignalWait, Sleep, Word,
};
use runtara_runner::shim::LogStream;
use runtara_runner::{CallError, InstanceCalls};
use tokio_util::task::AbortOnDropHandle;

use crate::guest::Guest;

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "imports",
        imports: { default: async | trappable },
    });
}

pub(crate) use bindings::Imports;
use bindings::runtara::durable::{checkpoints, instance, outcome, report, signals, sleep, types};

type Answer<T> = wasmtime::Result<Result<T, types::Error>>;

/// The longest line that a guest writes to its log at once, in bytes.
const LOG_BYTES: usize = 64 * 1024;

impl Guest {
    /// Carries a call to the core, as one of a run that speaks. A run that is to be parked is, when the call is durable.
    async fn call<T, F>(
        &mut self,
        waits: bool,
        call: impl FnOnce(Arc<dyn InstanceCalls>, Arc<Caller>) -> F,
    ) -> Answer<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        if !self.registered {
            match self.register().await {
                Ok(()) => self.registered = true,
                Err(error) => return self.told(Err(error)).await,
            }
        }
        let answer = self.carry(waits, call).await;
        self.told(answer).await
    }

    async fn register(&mut self) -> Result<(), CallError> {
        let (tenant, checkpoint) = (self.tenant_id.clone(), self.checkpoint_id.clone());
        let register = |calls: Arc<dyn InstanceCalls>, caller: Arc<Caller>| async move {
            calls.register(&caller, tenant, checkpoint).await
        };
        self.carry(false, register).await
    }

    /// Carries a call to the core, and notes whether it was answered properly.
    async fn carry<T, F>(
        &mut self,
        waits: bool,
        call: impl FnOnce(Arc<dyn InstanceCalls>, Arc<Caller>) -> F,
    ) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let open = self.core.tracker.begin(self.token, waits);
        let answer = call(Arc::clone(&self.core.calls), Arc::clone(&self.caller));
        let answer = off_the_stack(answer).await;
        match &answer {
            Err(CallError::Unavailable | CallError::Internal) => open.failed(),
            _ => open.answered(),
        }
        answer
    }

    async fn told<T>(&mut self, answer: Result<T, CallError>) -> Answer<T> {
        self.door.pass().await;
        Ok(answer.map_err(|error| match error {
            CallError::Refused(refusal @ Refusal::RunSuperseded) => {
                types::Error::Superseded(refusal.to_string())
            }
            CallError::Refused(refusal) => types::Error::Refused(refusal.to_string()),
            CallError::Invalid(text) => types::Error::Invalid(text),
            other => types::Error::Unavailable(other.to_string()),
        }))
    }
}

/// Has a call carried out in a task of its own, which ends with the guest. What the core and the store do goes deep, and every page of
/// its stack that a guest has once used stays with it for as long as it lives.
async fn off_the_stack<T: Send + 'static>(
    call: impl Future<Output = Result<T, CallError>> + Send + 'static,
) -> Result<T, CallError> {
    let answer = AbortOnDropHandle::new(tokio::spawn(call)).await;
    answer.unwrap_or_else(|error| {
        tracing::error!(%error, "a call of a guest was not carried out");
        Err(CallError::Internal)
    })
}

fn invalid<T>(error: impl std::fmt::Display) -> Answer<T> {
    Ok(Err(types::Error::Invalid(error.to_string())))
}

/// The value, or the answer that it is not acceptable.
macro_rules! accept {
    ($value:expr) => {
        match $value {
            Ok(value) => value,
            Err(error) => return invalid(error),
        }
    };
}

fn shown(signal: RaisedSignal) -> types::Signal {
    types::Signal {
        kind: match signal.kind {
            SignalKind::Cancel => types::SignalKind::Cancel,
            SignalKind::Pause => types::SignalKind::Pause,
            SignalKind::Resume => types::SignalKind::Resume,
        },
        payload: signal.payload.map(Vec::from),
    }
}

impl types::Host for Guest {}

impl instance::Host for Guest {
    async fn id(&mut self) -> wasmtime::Result<String> {
        Ok(self.key.instance_id.to_string())
    }

    async fn tenant_id(&mut self) -> wasmtime::Result<String> {
        Ok(self.tenant_id.to_string())
    }

    async fn run_number(&mut self) -> wasmtime::Result<u32> {
        Ok(self.key.run_number.0)
    }

    async fn input(&mut self) -> Answer<Option<Vec<u8>>> {
        let input = self
            .call(
                false,
                |calls, caller| async move { calls.input(&caller).await },
            )
            .await?;
        Ok(input.map(|input| input.map(Vec::from)))
    }
}

impl Guest {
    async fn checkpoint(&mut self, name: String, state: Bytes) -> Answer<checkpoints::Saved> {
        let request = SaveCheckpoint {
            checkpoint_id: accept!(CheckpointId::new(name)),
            state,
            request_id: None,
        };
        let saved = self
            .call(false, |calls, caller| async move {
                calls.checkpoint(&caller, request).await
            })
            .await?;
        Ok(saved.map(|answer: Checkpointed| checkpoints::Saved {
            found: answer.found.map(Vec::from),
            signal: answer.signal.map(shown),
            custom_signal: answer.custom_signal.map(|payload| payload.map(Vec::from)),
        }))
    }
}

impl checkpoints::Host for Guest {
    async fn get(&mut self, name: String) -> Answer<checkpoints::Saved> {
        self.checkpoint(name, Bytes::new()).await
    }

    async fn save(&mut self, name: String, state: Vec<u8>) -> Answer<checkpoints::Saved> {
        if state.is_empty() {
            return invalid("the state is empty, and a saved state has at least one byte");
        }
        self.checkpoint(name, state.into()).await
    }
}

impl sleep::Host for Guest {
    async fn sleep(&mut self, milliseconds: u64, save: Option<sleep::State>) -> Answer<()> {
        let (checkpoint_id, state) = match save {
            Some(save) => {
                let name = accept!(CheckpointId::new(save.name));
                (Some(name), Bytes::from(save.state))
            }
            None => (None, Bytes::new()),
        };
        let request = Sleep {
            duration_ms: milliseconds,
            checkpoint_id,
            state,
            park: true,
            request_id: None,
        };
        self.call(true, |calls, caller| async move {
            calls.sleep(&caller, request).await
        })
        .await
    }
}

impl signals::Host for Guest {
    async fn poll(&mut self) -> Answer<Option<types::Signal>> {
        let signal = self
            .call(false, |calls, caller| async move {
                calls.poll_signal(&caller).await
            })
            .await?;
        Ok(signal.map(|signal| signal.map(shown)))
    }

    async fn acknowledge(&mut self, kind: types::SignalKind) -> Answer<()> {
        let kind = match kind {
            types::SignalKind::Cancel => SignalKind::Cancel,
            types::SignalKind::Pause => SignalKind::Pause,
            types::SignalKind::Resume => SignalKind::Resume,
        };
        self.say(Word::Acknowledged(kind)).await
    }

    async fn take(&mut self, id: String) -> Answer<Option<Option<Vec<u8>>>> {
        let id = accept!(SignalId::new(id));
        let taken = self
            .call(false, |calls, caller| async move {
                calls.take_signal(&caller, &id).await
            })
            .await?;
        Ok(taken.map(|taken| taken.map(|payload| payload.map(Vec::from))))
    }

    async fn wait(&mut self, id: String, milliseconds: Option<u64>) -> Answer<signals::Waited> {
        let request = SignalWait {
            signal_id: accept!(SignalId::new(id)),
            timeout_ms: milliseconds,
            park: true,
            request_id: None,
        };
        let waited = self
            .call(true, |calls, caller| async move {
                calls.wait_signal(&caller, request).await
            })
            .await?;
        Ok(waited.map(|waited| match waited.signal {
            Some(payload) => signals::Waited::Came(payload.map(Vec::from)),
            None if waited.timed_out => signals::Waited::TimedOut,
            None => signals::Waited::Interrupted,
        }))
    }
}

impl report::Host for Guest {
    async fn heartbeat(&mut self) -> Answer<()> {
        self.call(false, |calls, caller| async move {
            calls.heartbeat(&caller).await
        })
        .await
    }

    async fn event(&mut self, subtype: String, payload: Option<Vec<u8>>) -> Answer<()> {
        let event = NewEvent {
            kind: EventKind::Custom,
            subtype: Some(subtype),
            checkpoint_id: None,
            keys: payload
                .as_deref()
                .map(ScopeKeys::of_payload)
                .unwrap_or_default(),
            payload: payload.map(Bytes::from),
        };
        self.call(false, |calls, caller| async move {
            calls.record(&caller, event, None).await
        })
        .await
    }

    async fn retry(&mut self, name: String, attempt: u32, error: Option<String>) -> Answer<()> {
        let name = accept!(CheckpointId::new(name));
        self.call(false, |calls, caller| async move {
            calls.record_retry(&caller, name, attempt, error).await
        })
        .await
    }

    async fn log(&mut self, level: report::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            report::Level::Debug => "debug",
            report::Level::Info => "info",
            report::Level::Warn => "warn",
            report::Level::Error => "error",
        };
        let message = &message[..message.floor_char_boundary(LOG_BYTES)];
        let line = format!("{level}: {message}\n");
        self.outputs.write(LogStream::Stderr, line.as_bytes());
        Ok(())
    }
}

impl Guest {
    async fn say(&mut self, word: Word) -> Answer<()> {
        self.call(false, |calls, caller| async move {
            calls.say(&caller, word).await
        })
        .await
    }
}

impl outcome::Host for Guest {
    async fn complete(&mut self, output: Option<Vec<u8>>) -> Answer<()> {
        let output = output.map(Bytes::from);
        self.say(Word::Completed { output }).await
    }

    async fn fail(&mut self, error: String) -> Answer<()> {
        self.say(Word::Failed { error }).await
    }

    async fn suspend(&mut self) -> Answer<()> {
        self.say(Word::Suspended).await
    }
}
