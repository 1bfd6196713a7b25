//! Durable sleeps and waits: which of them a call means, and how it is answered.

use crate::status::{TrimComma as _, UnknownWord, words};
use crate::{InstanceState, Origin, RunNumber, Timestamp, WaitRecord};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

words! {
    /// What a run waits for.
    WaitKind, "wait kind" {
        /// A moment.
        Sleep = "sleep",
        /// A custom signal.
        Signal = "signal",
    }
}

/// One call of a run that is to be answered later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitCall {
    /// What it waits for.
    pub kind: WaitKind,
    /// How long at most, in milliseconds; `None` for a wait without an end.
    pub duration_ms: Option<u64>,
    /// SHA-256 of what the program gave with it.
    pub state_hash: [u8; 32],
    /// What the call names itself, so that its repetition after a lost answer is recognised.
    pub request_id: Option<String>,
    /// Whether the run has nothing else to do meanwhile, so that its process may be ended.
    pub park: bool,
}

/// Which record a call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// The record of this number, which is already under way or over.
    Existing(u32),
    /// A new one, of this number.
    New(u32),
}

/// Finds the record that a call means among those of its id and kind, in the order of their numbers.
///
/// Programs use one id again and again in a loop, and replay all of it after a relaunch. So calls are counted: the n-th call
/// of an id in a run means record n, if what the program gave with it is the same and the run has stored nothing new yet (no
/// new checkpoint, no new sleep). Once it has, it is past the point where the run before it ended, and every further call is
/// a new sleep.
#[must_use]
pub fn meet(records: &[WaitRecord], run: RunNumber, stored_new: bool, call: &WaitCall) -> Meeting {
    let repeated = call.request_id.as_ref().and_then(|id| {
        let same =
            |record: &&WaitRecord| record.met_by == run && record.request_id.as_ref() == Some(id);
        records.iter().find(same)
    });
    if let Some(record) = repeated {
        return Meeting::Existing(record.n);
    }
    let calls_before = records.iter().filter(|record| record.met_by == run).count();
    match records.get(calls_before) {
        Some(record) if !stored_new && record.state_hash == call.state_hash => {
            Meeting::Existing(record.n)
        }
        _ => Meeting::New(records.last().map_or(1, |record| record.n + 1)),
    }
}

/// How a call that waits is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitDecision {
    /// At once: the wait is over.
    Over,
    /// Later: the call is held until then (or until what it waits for comes).
    Hold {
        /// The end of the wait; `None` if it has none.
        until: Option<Timestamp>,
    },
    /// Not at all: the instance is suspended and its process ended; a later run is answered.
    Far {
        /// When the instance is due again; `None` if only the signal makes it so.
        until: Option<Timestamp>,
    },
}

/// Decides how a wait that is over at `until` is answered. A near one is held, a far one frees the process.
///
/// Near means within `hold_ms` and within a third of the client's own time-out. A run with other threads at work, and an
/// instance whose process is not ours to end, are held to the end.
#[must_use]
pub fn decide_wait(
    state: &InstanceState,
    until: Option<Timestamp>,
    park: bool,
    hold_ms: u64,
    now: Timestamp,
) -> WaitDecision {
    if until.is_some_and(|until| until <= now) {
        return WaitDecision::Over;
    }
    let by_client = state.request_timeout_ms.map_or(u64::MAX, |ms| ms / 3);
    let hold_ms = hold_ms.min(by_client);
    let near = until.is_some_and(|until| until.millis_since(now) <= hold_ms);
    if near || !park || state.origin == Origin::SelfRegistered {
        WaitDecision::Hold { until }
    } else {
        WaitDecision::Far { until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InstanceId, TenantId};

    fn record(n: u32, met_by: u32, state: u8) -> WaitRecord {
        WaitRecord {
            kind: WaitKind::Sleep,
            n,
            until: Some(Timestamp(0)),
            state_hash: [state; 32],
            met_by: RunNumber(met_by),
            request_id: Some(format!("{met_by}-{n}")),
        }
    }

    fn call(state: u8) -> WaitCall {
        WaitCall {
            kind: WaitKind::Sleep,
            duration_ms: Some(1),
            state_hash: [state; 32],
            request_id: None,
            park: true,
        }
    }

    #[test]
    fn a_replay_meets_its_sleeps_one_after_the_other() {
        let mut records = vec![record(1, 1, 7), record(2, 1, 8)];
        assert_eq!(
            meet(&records, RunNumber(2), false, &call(7)),
            Meeting::Existing(1)
        );
        records[0].met_by = RunNumber(2);
        assert_eq!(
            meet(&records, RunNumber(2), false, &call(8)),
            Meeting::Existing(2)
        );
        records[1].met_by = RunNumber(2);
        assert_eq!(
            meet(&records, RunNumber(2), false, &call(8)),
            Meeting::New(3)
        );
    }

    #[test]
    fn a_run_that_has_stored_something_new_sleeps_anew() {
        let records = vec![record(1, 1, 7), record(2, 1, 8)];
        assert_eq!(
            meet(&records, RunNumber(2), true, &call(7)),
            Meeting::New(3)
        );
    }

    #[test]
    fn another_state_is_another_sleep() {
        let records = vec![record(1, 1, 7)];
        assert_eq!(
            meet(&records, RunNumber(2), false, &call(9)),
            Meeting::New(2)
        );
    }

    #[test]
    fn a_repeated_call_is_no_second_sleep_but_only_within_its_run() {
        let records = vec![record(1, 1, 7)];
        let repeated = WaitCall {
            request_id: Some("1-1".to_owned()),
            ..call(7)
        };
        assert_eq!(
            meet(&records, RunNumber(1), true, &repeated),
            Meeting::Existing(1)
        );
        assert_eq!(
            meet(&records, RunNumber(2), true, &repeated),
            Meeting::New(2)
        );
    }

    #[test]
    fn near_is_held_and_far_frees_the_process() {
        let id = InstanceId::new("i").unwrap();
        let tenant = TenantId::new("t").unwrap();
        let mut state = InstanceState::self_registered(id, tenant, Timestamp(0));
        let now = Timestamp(1_000);
        let decide = |state: &InstanceState, ms: u64, park| {
            decide_wait(state, Some(now.plus_millis(ms)), park, 10_000, now)
        };
        let hold = |ms| WaitDecision::Hold {
            until: Some(now.plus_millis(ms)),
        };
        assert_eq!(
            decide(&state, 90_000, true),
            hold(90_000),
            "not ours to end"
        );
        state.origin = Origin::Launched;
        assert_eq!(decide(&state, 0, true), WaitDecision::Over);
        assert_eq!(decide(&state, 10_000, true), hold(10_000));
        assert!(matches!(
            decide(&state, 10_001, true),
            WaitDecision::Far { .. }
        ));
        assert_eq!(
            decide(&state, 90_000, false),
            hold(90_000),
            "other branches are busy"
        );
        state.request_timeout_ms = Some(3_000);
        assert!(matches!(
            decide(&state, 1_001, true),
            WaitDecision::Far { .. }
        ));
        assert_eq!(
            decide_wait(&state, None, true, 10_000, now),
            WaitDecision::Far { until: None }
        );
    }
}
