//! What is recorded of an instance's life.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::CheckpointId;
use crate::status::{TrimComma as _, UnknownWord, words};

words! {
    /// The type of an event.
    EventKind, "event type" {
        /// A run began to speak.
        Started = "started",
        /// A run gave a sign of life (the first of each run only).
        Heartbeat = "heartbeat",
        /// The instance completed.
        Completed = "completed",
        /// The instance failed.
        Failed = "failed",
        /// The instance was suspended.
        Suspended = "suspended",
        /// Anything else; the subtype says what.
        Custom = "custom",
    }
}

/// Subtypes of custom events that have a meaning here.
pub mod subtype {
    /// A program began a step.
    pub const STEP_START: &str = "step_debug_start";
    /// A program ended a step.
    pub const STEP_END: &str = "step_debug_end";
    /// A program entered a scope.
    pub const SCOPE_ENTER: &str = "scope_enter";
    /// A run crashed and is launched again.
    pub const CRASHED: &str = "runtara.crashed";
    /// A run ended through no fault of its own and is launched again.
    pub const INTERRUPTED: &str = "runtara.interrupted";
    /// The instance was cancelled.
    pub const CANCELLED: &str = "runtara.cancelled";
    /// Someone asked for a stop.
    pub const STOP_REQUESTED: &str = "runtara.stop_requested";
    /// Someone resumed the instance.
    pub const RESUMED: &str = "runtara.resumed";
    /// A program reported that it tries a step again.
    pub const RETRY: &str = "runtara.retry";
    /// Stands for the oldest events of a program, which were too many.
    pub const FOLDED: &str = "runtara.folded";
    /// What instances may not write themselves: every subtype that begins so is written by the server.
    pub const RESERVED: &str = "runtara.";
}

/// Those keys of an event's JSON payload by which events are found again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScopeKeys {
    /// `scope_id`, if it is a text.
    pub scope_id: Option<String>,
    /// `parent_scope_id`, if it is a text.
    pub parent_scope_id: Option<String>,
    /// `step_id`, if it is a text.
    pub step_id: Option<String>,
    /// `step_type`, if it is a text.
    pub step_type: Option<String>,
}

impl ScopeKeys {
    /// Reads the keys of a payload. A payload that is no JSON object has none, whatever its bytes; a key over 255 bytes or
    /// with a NUL counts as missing, for it could not be indexed.
    #[must_use]
    pub fn of_payload(payload: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Keys {
            #[serde(default)]
            scope_id: serde_json::Value,
            #[serde(default)]
            parent_scope_id: serde_json::Value,
            #[serde(default)]
            step_id: serde_json::Value,
            #[serde(default)]
            step_type: serde_json::Value,
        }
        let text = |value: serde_json::Value| match value {
            serde_json::Value::String(text) if text.len() <= 255 && !text.contains('\0') => {
                Some(text)
            }
            _ => None,
        };
        if payload.first() != Some(&b'{') && !payload.trim_ascii_start().starts_with(b"{") {
            return Self::default();
        }
        serde_json::from_slice::<Keys>(payload).map_or_else(
            |_| Self::default(),
            |keys| Self {
                scope_id: text(keys.scope_id),
                parent_scope_id: text(keys.parent_scope_id),
                step_id: text(keys.step_id),
                step_type: text(keys.step_type),
            },
        )
    }
}

/// An event as it is to be recorded. Its number and time come from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Its type.
    pub kind: EventKind,
    /// Its subtype; custom events have one.
    pub subtype: Option<String>,
    /// The checkpoint it belongs to.
    pub checkpoint_id: Option<CheckpointId>,
    /// What it says.
    pub payload: Option<Bytes>,
    /// The keys of the payload by which it is found.
    pub keys: ScopeKeys,
}

impl NewEvent {
    /// An event that says nothing but its type.
    #[must_use]
    pub fn plain(kind: EventKind) -> Self {
        Self {
            kind,
            subtype: None,
            checkpoint_id: None,
            payload: None,
            keys: ScopeKeys::default(),
        }
    }

    /// An event with a payload. Payloads over the limit for events are left out: the value is kept elsewhere (a result with
    /// its instance, a state with its checkpoint).
    #[must_use]
    pub fn with_payload(kind: EventKind, payload: Option<Bytes>) -> Self {
        let payload = payload.filter(|p| p.len() <= crate::limits::EVENT_PAYLOAD_BYTES);
        Self {
            payload,
            ..Self::plain(kind)
        }
    }

    /// A custom event that the server writes about an instance.
    #[must_use]
    pub fn by_server(subtype: &str, payload: &serde_json::Value) -> Self {
        Self {
            subtype: Some(subtype.to_owned()),
            ..Self::with_payload(EventKind::Custom, Some(payload.to_string().into()))
        }
    }

    /// A custom event of a program, with the keys of its payload.
    #[must_use]
    pub fn custom(
        subtype: Option<String>,
        checkpoint_id: Option<CheckpointId>,
        payload: Option<Bytes>,
    ) -> Self {
        Self {
            kind: EventKind::Custom,
            subtype,
            checkpoint_id,
            keys: payload
                .as_deref()
                .map(ScopeKeys::of_payload)
                .unwrap_or_default(),
            payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_json_objects_only() {
        let keys =
            ScopeKeys::of_payload(br#" {"scope_id":"s","step_id":7,"parent_scope_id":null}"#);
        assert_eq!(keys.scope_id.as_deref(), Some("s"));
        assert_eq!((keys.step_id, keys.parent_scope_id), (None, None));
        for payload in [&b"plain text"[..], b"\xff\xfe", b"[1]", b"{broken", b""] {
            assert_eq!(ScopeKeys::of_payload(payload), ScopeKeys::default());
        }
    }
}
