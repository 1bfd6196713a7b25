//! For how long a run has been silent, and whether an instance has outlived its deadline.

use crate::{InstanceState, Status, Timestamp, limits};

/// What tells for how long the current run of an instance has been silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// Where the instance stands.
    pub status: Status,
    /// For how long a run may be silent, in milliseconds, where the start said so.
    pub heartbeat_timeout_ms: Option<u64>,
    /// When the run was claimed.
    pub claimed_at: Option<Timestamp>,
    /// When it was seen last, if it has spoken.
    pub seen_at: Option<Timestamp>,
    /// Whether a call of it is held.
    pub is_held: bool,
    /// Until when, if not without an end.
    pub held_until: Option<Timestamp>,
}

impl Liveness {
    /// For how many milliseconds the run has given no sign of life that is noted. A call that is held is one, until its time or without an
    /// end. A run that never spoke is silent since it was claimed; where nothing runs, nothing is silent.
    ///
    /// A sign of life is noted only each [`limits::SIGN_OF_LIFE_MS`]: the run may have called so much later than this says.
    #[must_use]
    pub fn silent_ms(&self, now: Timestamp) -> u64 {
        let held_without_end = self.is_held && self.held_until.is_none();
        if self.status != Status::Running || held_without_end {
            return 0;
        }
        let signs = [self.claimed_at, self.seen_at, self.held_until];
        let last = signs.into_iter().flatten().max();
        last.map_or(0, |last| now.millis_since(last))
    }

    /// How long it is until the run has been silent for too long, in milliseconds, if it stays so from now on; `None` if it may be
    /// silent for ever. A run that is held without an end is looked at again after as long as it may be silent.
    #[must_use]
    pub fn silent_in_ms(&self, now: Timestamp) -> Option<u64> {
        let allowed = silence_allowed_ms(self.heartbeat_timeout_ms?);
        let held = self.held_until.map_or(0, |until| until.millis_since(now));
        let left = allowed.saturating_sub(self.silent_ms(now));
        (self.status == Status::Running).then(|| left.saturating_add(held))
    }
}

impl InstanceState {
    /// Whether its overall deadline is over.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// What tells for how long its current run has been silent.
    #[must_use]
    pub fn liveness(&self) -> Liveness {
        let (run, hold) = (&self.run, self.run.hold.as_ref());
        Liveness {
            status: self.status,
            heartbeat_timeout_ms: self.heartbeat_timeout_ms,
            claimed_at: run.claimed_at,
            // What was seen before the claim was another run.
            seen_at: self.last_seen_at.filter(|_| run.spoke),
            is_held: hold.is_some(),
            held_until: hold.and_then(|hold| hold.until),
        }
    }
}

/// How long it takes, by what is noted, until a run has surely been silent for as long as this.
#[must_use]
pub fn silence_allowed_ms(timeout_ms: u64) -> u64 {
    timeout_ms.saturating_add(limits::SIGN_OF_LIFE_MS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hold, InstanceId, TenantId};

    fn running(claimed_at: i64) -> InstanceState {
        let mut state = InstanceState::self_registered(
            InstanceId::new("i").unwrap(),
            TenantId::new("t").unwrap(),
            Timestamp(0),
        );
        state.status = Status::Running;
        state.run.claimed_at = Some(Timestamp(claimed_at));
        state.heartbeat_timeout_ms = Some(10_000);
        state
    }

    #[test]
    fn a_run_that_never_spoke_is_silent_since_its_claim() {
        let mut state = running(100_000);
        // Of the run before.
        state.last_seen_at = Some(Timestamp(50_000));
        assert_eq!(state.liveness().silent_ms(Timestamp(103_000)), 3_000);
        assert_eq!(
            state.liveness().silent_in_ms(Timestamp(103_000)),
            Some(12_000)
        );
        state.run.spoke = true;
        state.last_seen_at = Some(Timestamp(102_000));
        assert_eq!(state.liveness().silent_ms(Timestamp(103_000)), 1_000);
        assert_eq!(
            state.liveness().silent_ms(Timestamp(90_000)),
            0,
            "a clock set back"
        );
    }

    #[test]
    fn a_call_that_is_held_is_a_sign_of_life_for_as_long_as_it_is() {
        let mut state = running(0);
        let hold = |until| Some(Hold { until, park: false });
        state.run.hold = hold(Some(Timestamp(60_000)));
        assert_eq!(state.liveness().silent_ms(Timestamp(50_000)), 0);
        assert_eq!(
            state.liveness().silent_in_ms(Timestamp(50_000)),
            Some(25_000)
        );
        assert_eq!(state.liveness().silent_ms(Timestamp(61_000)), 1_000);
        state.run.hold = hold(None);
        assert_eq!(state.liveness().silent_ms(Timestamp(1_000_000)), 0);
        assert_eq!(
            state.liveness().silent_in_ms(Timestamp(1_000_000)),
            Some(15_000)
        );
    }

    #[test]
    fn who_may_be_silent_for_ever_is_never_silent_for_too_long() {
        let mut state = running(0);
        state.heartbeat_timeout_ms = None;
        assert_eq!(state.liveness().silent_in_ms(Timestamp(i64::MAX)), None);
    }
}
