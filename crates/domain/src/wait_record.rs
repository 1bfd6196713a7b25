//! Records of durable sleeps and waits.

use crate::{RunNumber, Timestamp, WaitKind};

/// One durable sleep, or one wait for a signal: the n-th of its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitRecord {
    /// Whether it sleeps or waits for a signal.
    pub kind: WaitKind,
    /// Which one of its id it is, from 1.
    pub n: u32,
    /// When it is over; `None` for a wait without an end.
    pub until: Option<Timestamp>,
    /// SHA-256 of what the program gave with it: two calls are the same sleep only if this is equal.
    pub state_hash: [u8; 32],
    /// The run that called it last.
    pub met_by: RunNumber,
    /// What that call named itself, if it did: a call that is repeated after a lost answer.
    pub request_id: Option<String>,
}
