//! How long an instance has stood where.

use crate::{InstanceState, Status, Timestamp};

/// Milliseconds that an instance has spent in each status that is not an end, over all its runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeInStates {
    /// Before its first run.
    pub pending_ms: u64,
    /// With a run that is live, starting, or just gone; sleeps and waits that are held in an open call count here. So it is more than the
    /// running time of its programs: what is done to make a run ready, and to record its end, belongs to it.
    pub running_ms: u64,
    /// Between two runs.
    pub suspended_ms: u64,
}

impl TimeInStates {
    /// What it is after so many more milliseconds in a status. An end lasts for ever and is not counted.
    #[must_use]
    pub fn after(mut self, status: Status, millis: u64) -> Self {
        let spent = match status {
            Status::Pending => &mut self.pending_ms,
            Status::Running => &mut self.running_ms,
            Status::Suspended => &mut self.suspended_ms,
            Status::Completed | Status::Failed | Status::Cancelled => return self,
        };
        *spent = spent.saturating_add(millis);
        self
    }
}

impl InstanceState {
    /// How long it has stood where by now, the time since its last change of status included. A clock that was set back in
    /// between adds nothing.
    #[must_use]
    pub fn time_in_states_by(&self, now: Timestamp) -> TimeInStates {
        let since = now.millis_since(self.status_since);
        self.time_in_states.after(self.status, since)
    }

    /// Counts the time in the status that this state has replaced. A change that leaves the status lets its time run on.
    pub(crate) fn count_time_of(&mut self, before: &Self, now: Timestamp) {
        if self.status != before.status {
            self.time_in_states = before.time_in_states_by(now);
            self.status_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InstanceId, TenantId};

    const BEGINNING: Timestamp = Timestamp(1_000);

    fn state() -> InstanceState {
        let id = InstanceId::new("i").unwrap();
        InstanceState::self_registered(id, TenantId::new("t").unwrap(), BEGINNING)
    }

    /// What comes of a state that stands so from a moment on.
    fn becomes(before: &InstanceState, status: Status, now: Timestamp) -> InstanceState {
        let mut after = before.clone();
        after.status = status;
        after.count_time_of(before, now);
        after
    }

    #[test]
    fn each_status_has_its_own_time() {
        let mut state = state();
        for (status, at) in [
            (Status::Running, 1_010),
            (Status::Suspended, 1_130),
            (Status::Running, 2_330),
            (Status::Completed, 2_333),
        ] {
            state = becomes(&state, status, Timestamp(at));
        }
        let expected = TimeInStates {
            pending_ms: 10,
            running_ms: 123,
            suspended_ms: 1_200,
        };
        assert_eq!(state.time_in_states_by(Timestamp(2_333)), expected);
        let later = Timestamp(1_000_000);
        assert_eq!(state.time_in_states_by(later), expected, "an end is none");
    }

    #[test]
    fn a_status_that_stays_counts_on() {
        let running = becomes(&state(), Status::Running, BEGINNING);
        let still = becomes(&running, Status::Running, Timestamp(1_500));
        assert_eq!(still.status_since, BEGINNING);
        assert_eq!(still.time_in_states, TimeInStates::default());
        assert_eq!(still.time_in_states_by(Timestamp(1_700)).running_ms, 700);
    }

    #[test]
    fn the_time_after_an_end_is_nobodys() {
        let failed = becomes(&state(), Status::Failed, Timestamp(1_004));
        let resumed = becomes(&failed, Status::Suspended, Timestamp(90_000));
        let running = becomes(&resumed, Status::Running, Timestamp(90_005));
        let expected = TimeInStates {
            pending_ms: 4,
            running_ms: 0,
            suspended_ms: 5,
        };
        assert_eq!(running.time_in_states, expected);
    }

    #[test]
    fn a_clock_that_goes_back_takes_nothing_away() {
        let running = becomes(&state(), Status::Running, Timestamp(-5));
        assert_eq!(running.time_in_states, TimeInStates::default());
        assert_eq!(running.status_since, Timestamp(-5));
        let before = running.time_in_states_by(Timestamp(i64::MIN));
        assert_eq!(before, TimeInStates::default());
        assert_eq!(running.time_in_states_by(Timestamp(5)).running_ms, 10);
    }

    #[test]
    fn time_beyond_all_numbers_is_the_most_there_is() {
        let much = TimeInStates::default().after(Status::Suspended, u64::MAX);
        assert_eq!(much.after(Status::Suspended, 1), much);
    }
}
