//! The state of an instance, as far as it decides what may happen next.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    CheckpointId, Fence, ImageId, InstanceId, Labels, NodeId, Reason, RunNumber, RunSettings,
    SignalId, SignalKind, Status, TenantId, TimeInStates, Timestamp, TokenHash, Usage, limits,
};

/// Who brought an instance to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// We launch its runs.
    Launched,
    /// Its process registered itself; we have no process of it to end or to launch.
    SelfRegistered,
}

/// When the first run of a new instance is due.
///
/// A delay is added to the time at which the store makes the instance: the clock of whoever asks may be another than the one by which
/// the store later decides that the instance is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// At this time, or at once if it is over.
    At(Timestamp),
    /// So many milliseconds after the start, [`limits::SLEEP_MAX_MS`] at most.
    After(u64),
}

impl Due {
    /// At once.
    pub const NOW: Self = Self::After(0);

    /// The due time of an instance that is made now.
    #[must_use]
    pub fn of_start_at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::After(millis) => now.plus_millis(millis.min(limits::SLEEP_MAX_MS)),
        }
    }
}

/// An instance as it is to be started.
#[derive(Clone)]
pub struct NewInstance {
    /// Its id.
    pub instance_id: InstanceId,
    /// Its owner.
    pub tenant_id: TenantId,
    /// What it runs.
    pub image_id: ImageId,
    /// Its input: JSON text.
    pub input: Bytes,
    /// Variables for its program. Values are secrets: they reach no list and no log.
    pub env: BTreeMap<String, String>,
    /// Arguments for its program.
    pub args: Vec<String>,
    /// Labels to find it by.
    pub labels: Labels,
    /// What it asks of the box in which its program runs.
    pub settings: RunSettings,
    /// Running time of each of its runs, in milliseconds.
    pub timeout_ms: u64,
    /// Launches without progress that are allowed; `None` if the start did not say.
    pub max_attempts: Option<u32>,
    /// How many of its events are kept, where they are bounded: the oldest that its program has reported are folded into one.
    pub max_events: Option<u32>,
    /// When its first run is due.
    pub due: Due,
    /// How long its client waits for an answer, in milliseconds, where the start says so in `env`.
    pub request_timeout_ms: Option<u64>,
    /// For how long a run may be silent before it is ended, in milliseconds; for ever if the start does not say.
    pub heartbeat_timeout_ms: Option<u64>,
    /// When it has ended at the latest, wherever it stands; never if the start does not say.
    pub expires: Option<Due>,
    /// How many instances of its tenant may be pending with it; any number if the operator does not say. Not kept.
    pub pending_allowed: Option<u64>,
}

impl std::fmt::Debug for NewInstance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewInstance")
            .field("instance_id", &self.instance_id)
            .field("tenant_id", &self.tenant_id)
            .field("image_id", &self.image_id)
            .finish_non_exhaustive()
    }
}

/// A signal that waits to be seen or acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingSignal {
    /// What was sent with it.
    pub payload: Option<Bytes>,
    /// When it was sent.
    pub at: Timestamp,
}

/// The instance-wide signals that wait. Cancel and pause have a place each, so that neither erases the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pending {
    /// A cancel that is not yet acknowledged.
    pub cancel: Option<PendingSignal>,
    /// A pause that is not yet acknowledged.
    pub pause: Option<PendingSignal>,
    /// A resume that came after the run had seen the pause: the instance is due again as soon as it has suspended itself.
    pub resume: bool,
}

impl Pending {
    /// The signal that a run is shown: a cancel hides everything else.
    #[must_use]
    pub fn visible(&self) -> Option<(SignalKind, Option<Bytes>)> {
        let show = |kind, signal: &PendingSignal| (kind, signal.payload.clone());
        self.cancel
            .as_ref()
            .map(|signal| show(SignalKind::Cancel, signal))
            .or_else(|| {
                let pause = self.pause.as_ref().filter(|_| !self.resume);
                pause.map(|signal| show(SignalKind::Pause, signal))
            })
    }
}

/// A call that a run has open and that is answered at a later time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// When it is answered at the latest; `None` for a wait without an end.
    pub until: Option<Timestamp>,
    /// Whether the run has nothing else to do meanwhile, so that its process may be ended in the middle of it.
    pub park: bool,
}

/// What the current run, or the last one, has done so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunMarks {
    /// What it shows for itself; `None` once its exit is recorded.
    pub token: Option<TokenHash>,
    /// When it was claimed. Its running time begins later, with its program, and is told by its exit.
    pub claimed_at: Option<Timestamp>,
    /// Whether it has spoken the instance protocol.
    pub spoke: bool,
    /// Whether it has sent a heartbeat.
    pub heartbeat_seen: bool,
    /// Whether it has stored a new checkpoint or a new sleep.
    pub stored_new: bool,
    /// Whether a pending cancel was shown to it.
    pub cancel_shown: bool,
    /// Whether a pending pause was shown to it.
    pub pause_shown: bool,
    /// When its process is killed at the latest: set once it said its last word, or once somebody else ended, suspended or
    /// stopped the instance under it.
    pub leave_by: Option<Timestamp>,
    /// Whether its process is to be asked to leave (SIGTERM) before that, because somebody asked for a stop.
    pub asked_to_leave: bool,
    /// The call it has open; of several, the one that says that the run has nothing else to do meanwhile.
    pub hold: Option<Hold>,
    /// Milliseconds of its life that it slept in held calls: they do not count as running time.
    pub slept_ms: u64,
}

/// How often an instance was launched again, and what that is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempts {
    /// Crashes without progress in between.
    pub crash_count: u32,
    /// Launches without progress that are allowed, if the start said so.
    pub max_attempts: Option<u32>,
    /// Relaunches with a pause in a row, each of which has doubled it: after crashes, and launches that could not be made.
    pub backoff: u32,
    /// Uncounted relaunches without progress in between.
    pub interruptions: u32,
    /// Relaunches after crashes and interruptions in all.
    pub relaunches: u32,
}

impl Attempts {
    /// Launches without progress that are allowed.
    #[must_use]
    pub fn allowed(&self) -> u32 {
        self.max_attempts.unwrap_or(limits::MAX_ATTEMPTS)
    }

    /// Relaunches without progress that are allowed after crashes.
    #[must_use]
    pub fn allowed_retries(&self) -> u32 {
        self.allowed().saturating_sub(1)
    }

    /// Relaunches after crashes without progress in between, one that is still waited for included. The crash that used up what was allowed
    /// is followed by none, so this is never more than [`Self::allowed_retries`].
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.crash_count.min(self.allowed_retries())
    }
}

/// All that decides what may happen to an instance next. Stores load it, apply [`crate::transition()`], and write it back, each as
/// one atomic change.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceState {
    /// Its id.
    pub instance_id: InstanceId,
    /// Its owner.
    pub tenant_id: TenantId,
    /// What it runs; `None` for an instance that registered itself.
    pub image_id: Option<ImageId>,
    /// Who brought it to life.
    pub origin: Origin,
    /// Where it stands.
    pub status: Status,
    /// When it came to stand there: a change that leaves the status leaves this as it is.
    pub status_since: Timestamp,
    /// Why it is suspended, or how it ended.
    pub reason: Option<Reason>,
    /// When it must have a run. Only ever set while it is pending or suspended.
    pub due_at: Option<Timestamp>,
    /// The signal whose arrival makes it due.
    pub waiting_for: Option<SignalId>,
    /// The node that has, or had, a process of it whose exit is not recorded yet. Nothing claims the instance while it is set.
    pub live_node: Option<NodeId>,
    /// The number of the current or last run.
    pub run_number: RunNumber,
    /// What that run has done.
    pub run: RunMarks,
    /// Signals that wait.
    pub pending: Pending,
    /// How often it was launched again.
    pub attempts: Attempts,
    /// Running time of each run, in milliseconds.
    pub timeout_ms: u64,
    /// How long its client waits for an answer, where the start said so.
    pub request_timeout_ms: Option<u64>,
    /// For how long a run may be silent, in milliseconds, where the start said so.
    pub heartbeat_timeout_ms: Option<u64>,
    /// When it fails if it has not ended, wherever it stands, where the start said so.
    pub expires_at: Option<Timestamp>,
    /// When it was started.
    pub created_at: Timestamp,
    /// When its first run was claimed or registered itself.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// When its run last called, or a little earlier: a call within [`limits::SIGN_OF_LIFE_MS`] of this time leaves it.
    pub last_seen_at: Option<Timestamp>,
    /// The checkpoint it saved last.
    pub checkpoint_id: Option<CheckpointId>,
    /// The exit code of its last process.
    pub exit_code: Option<i32>,
    /// Whether it failed, and an error text is stored with it.
    pub has_error: bool,
    /// Whether a custom signal was read by a run and is kept until that run has saved something new.
    pub has_read_signals: bool,
    /// What all its runs used together.
    pub usage: Usage,
    /// How long it had stood where when it came to its status; see [`InstanceState::time_in_states_by`].
    pub time_in_states: TimeInStates,
}

impl InstanceState {
    /// The state of an instance that was just started.
    #[must_use]
    pub fn started(new: &NewInstance, now: Timestamp) -> Self {
        Self {
            due_at: Some(new.due.of_start_at(now)),
            timeout_ms: new.timeout_ms,
            request_timeout_ms: new.request_timeout_ms,
            heartbeat_timeout_ms: new.heartbeat_timeout_ms,
            expires_at: new.expires.map(|expires| expires.of_start_at(now)),
            image_id: Some(new.image_id.clone()),
            attempts: Attempts {
                max_attempts: new.max_attempts,
                ..Attempts::default()
            },
            ..Self::blank(
                new.instance_id.clone(),
                new.tenant_id.clone(),
                Origin::Launched,
                now,
            )
        }
    }

    /// The state of an instance that is about to register itself for the first time.
    #[must_use]
    pub fn self_registered(id: InstanceId, tenant: TenantId, now: Timestamp) -> Self {
        Self::blank(id, tenant, Origin::SelfRegistered, now)
    }

    fn blank(
        instance_id: InstanceId,
        tenant_id: TenantId,
        origin: Origin,
        created_at: Timestamp,
    ) -> Self {
        Self {
            instance_id,
            tenant_id,
            image_id: None,
            origin,
            status: Status::Pending,
            status_since: created_at,
            reason: None,
            due_at: None,
            waiting_for: None,
            live_node: None,
            run_number: RunNumber(0),
            run: RunMarks::default(),
            pending: Pending::default(),
            attempts: Attempts::default(),
            timeout_ms: limits::RUN_TIMEOUT_MS,
            request_timeout_ms: None,
            heartbeat_timeout_ms: None,
            expires_at: None,
            created_at,
            started_at: None,
            finished_at: None,
            last_seen_at: None,
            checkpoint_id: None,
            exit_code: None,
            has_error: false,
            has_read_signals: false,
            usage: Usage::default(),
            time_in_states: TimeInStates::default(),
        }
    }

    /// Whether the error text that is stored with it is about where it stands: how it failed, or why it waits to be launched again. Else it
    /// is of an earlier time.
    #[must_use]
    pub fn shows_error(&self) -> bool {
        self.has_error
            || (self.status == Status::Suspended && self.reason == Some(Reason::Interrupted))
    }

    /// What a caller must show to speak for the current run.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        match self.origin {
            Origin::Launched => self.run.token.map(Fence::Run),
            Origin::SelfRegistered => Some(Fence::SelfRegistered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_crash_is_followed_by_no_relaunch() {
        for (max_attempts, crash_count, retries) in [
            (None, 0, 0),
            (None, 1, 1),
            (None, 2, 2),
            (None, 3, 2),
            (Some(1), 1, 0),
            (Some(2), 2, 1),
        ] {
            let attempts = Attempts {
                crash_count,
                max_attempts,
                ..Attempts::default()
            };
            assert_eq!(attempts.retries(), retries, "{attempts:?}");
        }
    }
}
