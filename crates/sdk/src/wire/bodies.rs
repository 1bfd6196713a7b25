//! What travels: bodies and answers of the instance protocol.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Byte strings travel as base64.
pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn decode(text: &str) -> Result<Vec<u8>, String> {
    STANDARD
        .decode(text)
        .map_err(|error| format!("it holds no base64: {error}"))
}

#[derive(Serialize)]
pub(crate) struct Register<'a> {
    pub(crate) tenant_id: &'a str,
    pub(crate) checkpoint_id: Option<&'a str>,
}

#[derive(Serialize)]
pub(crate) struct Save<'a> {
    pub(crate) checkpoint_id: &'a str,
    /// Empty to look only.
    pub(crate) state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Saved {
    pub(crate) found: bool,
    pub(crate) state: Option<String>,
    pub(crate) signal: Option<Signal>,
    pub(crate) custom_signal: Option<CustomSignal>,
}

#[derive(Deserialize)]
pub(crate) struct Signal {
    pub(crate) signal_type: String,
}

/// A custom signal, whichever of the two words for its id the route uses.
#[derive(Deserialize)]
pub(crate) struct CustomSignal {
    #[serde(alias = "checkpoint_id")]
    pub(crate) signal_id: String,
    pub(crate) payload: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Signals {
    pub(crate) signal: Option<Signal>,
}

#[derive(Serialize)]
pub(crate) struct Sleep<'a> {
    pub(crate) duration_ms: u64,
    pub(crate) checkpoint_id: &'a str,
    pub(crate) state: String,
    pub(crate) park: bool,
    pub(crate) request_id: &'a str,
}

#[derive(Serialize)]
pub(crate) struct AwaitSignal<'a> {
    pub(crate) signal_id: &'a str,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) park: bool,
    pub(crate) request_id: &'a str,
}

#[derive(Deserialize)]
pub(crate) struct AwaitedSignal {
    pub(crate) signal: Option<CustomSignal>,
}

#[derive(Serialize)]
pub(crate) struct Acknowledge {
    pub(crate) signal_type: &'static str,
}

#[derive(Serialize)]
pub(crate) struct Event<'a> {
    pub(crate) event_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) subtype: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payload: Option<String>,
    pub(crate) request_id: String,
}

#[derive(Serialize)]
pub(crate) struct Retry<'a> {
    pub(crate) checkpoint_id: &'a str,
    pub(crate) attempt: u32,
    pub(crate) error_message: &'a str,
    pub(crate) request_id: String,
}

#[derive(Serialize)]
pub(crate) struct Completed {
    pub(crate) output: String,
}

#[derive(Serialize)]
pub(crate) struct Failed<'a> {
    pub(crate) error: &'a str,
}

#[derive(Serialize)]
pub(crate) struct Empty {}

#[derive(Deserialize)]
pub(crate) struct Input {
    pub(crate) input: Option<String>,
}

/// An answer that says nothing but that the call was done.
#[derive(Deserialize)]
pub(crate) struct Done {}
