//! Ids, values and the state machine of durable instances.
//!
//! Everything here is pure: no I/O, no async, no clock. Time comes in as a value, randomness is made in one place
//! ([`RunToken::generate`], [`ImageId::generate`], …), and every rule that decides what happens to an instance is a function
//! from a state to a state, so that each store applies exactly the same one.
//!
//! ```text
//!              claim                      word `completed`, exit 0
//!  pending ─────────────▶ running ───────────────────────────────────▶ completed
//!     │                   ▲     │ word `failed`, crashes, time-out
//!     │             claim │     ├────────────────────────────────────▶ failed ────┐
//!     │                   │     │ cancel acknowledged, stop                       │
//!     │                   │     ├────────────────────────────────────▶ cancelled ─┤
//!     │                   │     │ pause, sleep, wait, crash, interruption         │
//!     │                   │     ▼                                                 │ explicit
//!     └──────────────▶ suspended ◀────────────────────────────────────────────────┘ resume
//!          pause          (cancel and stop end a pending or suspended instance at once)
//! ```
//!
//! - [`Status`] and [`Reason`] say where an instance stands; [`InstanceState`] is all that decides what may happen next.
//! - [`transition`] is the one function that changes it: given a [`Change`], it answers with the new state and what is to be
//!   recorded with it, or with the [`Refusal`].
//! - [`judge`] says what the end of a process means.
//! - [`meet`] says whether a durable sleep is a new one or one that is already under way.

mod call;
mod cursor;
mod event;
mod exit;
mod fence;
mod hosts;
mod id;
mod image;
mod instance;
mod labels;
pub mod limits;
mod liveness;
mod network;
mod node;
mod platform;
mod refusal;
mod retention;
mod run_settings;
mod secret;
mod sleep;
mod status;
mod text;
mod time;
mod time_in_states;
mod token;
mod transition;
mod wait_record;

pub use call::{
    Caller, Checkpointed, InstanceStatus, RaisedSignal, SaveCheckpoint, SignalWait, Sleep, Waited,
};
pub use cursor::{Cursor, CursorError};
pub use event::{EventKind, NewEvent, ScopeKeys, subtype};
pub use exit::{EndedBy, ExitCause, ExitFacts, RunExit, Usage, Verdict, judge};
pub use fence::{Fence, check_fence};
pub use hosts::{HostRule, NoHost};
pub use id::{
    CheckpointId, DatabaseId, IdError, ImageDigest, ImageId, ImageName, InstanceId, NodeId,
    RunNumber, SignalId, TenantId,
};
pub use image::{ImageContent, ImageRecord, NewImage, RegistrationNumber, RunnerKind};
pub use instance::{
    Attempts, Due, Hold, InstanceState, NewInstance, Origin, Pending, PendingSignal, RunMarks,
};
pub use labels::{LabelError, LabelFilter, Labels};
pub use liveness::{Liveness, silence_allowed_ms};
pub use network::{NetworkMode, UnknownNetworkMode};
pub use node::NodeKey;
pub use platform::{Platform, UnknownPlatform};
pub use refusal::Refusal;
pub use retention::{Keep, Retention, RetentionClass, RetentionError};
pub use run_settings::{ResourceLimits, RunSettings};
pub use sleep::{Meeting, WaitCall, WaitDecision, WaitKind, decide_wait, is_beside, meet};
pub use status::{Reason, SignalKind, Status, UnknownWord};
pub use text::tail;
pub use time::Timestamp;
pub use time_in_states::TimeInStates;
pub use token::{RunToken, TokenHash, redact_tokens};
pub use transition::{Call, Change, ResultChange, Transition, Word, transition};
pub use wait_record::WaitRecord;
