//! What goes over the wire between an instance and the core.

use runtara_domain::{RaisedSignal, SignalKind};
use serde::{Deserialize, Serialize};

use crate::extract::encode;

#[derive(Deserialize)]
pub(super) struct RegisterBody {
    pub(super) tenant_id: String,
    pub(super) checkpoint_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct CheckpointBody {
    pub(super) checkpoint_id: String,
    pub(super) state: Option<String>,
    pub(super) request_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct SleepBody {
    pub(super) duration_ms: u64,
    pub(super) checkpoint_id: Option<String>,
    pub(super) state: Option<String>,
    pub(super) park: Option<bool>,
    pub(super) request_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct SignalWaitBody {
    pub(super) signal_id: String,
    pub(super) timeout_ms: Option<u64>,
    pub(super) park: Option<bool>,
    pub(super) request_id: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct AcknowledgeBody {
    pub(super) signal_type: String,
}

#[derive(Deserialize)]
pub(super) struct EventBody {
    pub(super) event_type: String,
    pub(super) checkpoint_id: Option<String>,
    pub(super) payload: Option<String>,
    pub(super) subtype: Option<String>,
    pub(super) request_id: Option<String>,
}

/// The payload of a `suspended` event that asks to be woken.
#[derive(Deserialize)]
pub(super) struct WakePayload {
    pub(super) wake_at_ms: i64,
    #[serde(default)]
    pub(super) state: String,
}

#[derive(Deserialize)]
pub(super) struct CompletedBody {
    pub(super) output: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct FailedBody {
    pub(super) error: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct RetryBody {
    pub(super) checkpoint_id: String,
    pub(super) attempt: u32,
    pub(super) error_message: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Success {
    success: bool,
}

impl Success {
    pub(super) const fn yes() -> Self {
        Self { success: true }
    }
}

#[derive(Serialize)]
pub(super) struct WireSignal {
    signal_type: SignalKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

impl From<RaisedSignal> for WireSignal {
    fn from(signal: RaisedSignal) -> Self {
        Self {
            signal_type: signal.kind,
            payload: signal.payload.map(encode),
        }
    }
}

#[derive(Serialize)]
pub(super) struct WireCustomSignal {
    /// The id of the signal, under the name by which published clients read it.
    checkpoint_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
}

impl WireCustomSignal {
    pub(super) fn new(id: &str, payload: Option<bytes::Bytes>) -> Self {
        Self {
            checkpoint_id: id.to_owned(),
            payload: payload.map(encode),
        }
    }
}

#[derive(Serialize)]
pub(super) struct CheckpointAnswer {
    pub(super) found: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signal: Option<WireSignal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) custom_signal: Option<WireCustomSignal>,
}

#[derive(Serialize)]
pub(super) struct SignalAnswer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) signal: Option<WireSignal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) custom_signal: Option<WireCustomSignal>,
}

#[derive(Serialize)]
pub(super) struct WaitedSignal {
    pub(super) signal_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) payload: Option<String>,
}

#[derive(Serialize)]
pub(super) struct SignalWaitAnswer {
    pub(super) signal: Option<WaitedSignal>,
    pub(super) timed_out: bool,
}

#[derive(Serialize)]
pub(super) struct InputAnswer {
    pub(super) found: bool,
    pub(super) instance_id: String,
    pub(super) input: Option<String>,
}

#[derive(Serialize)]
pub(super) struct StatusAnswer {
    pub(super) found: bool,
    pub(super) instance_id: String,
    pub(super) status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) checkpoint_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) due_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run_number: Option<u32>,
}
