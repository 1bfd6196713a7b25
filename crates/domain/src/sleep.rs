//! Durable sleeps and waits: which of them a call means, and how it is answered.

use crate::status::{TrimComma as _, UnknownWord, words};
use crate::{Hold, InstanceState, Origin, RunNumber, Timestamp, WaitRecord};
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
    /// Whether the program gave the wait an id. Without one nothing says which of its waits a call means but their order.
    pub identified: bool,
    /// How long at most, in milliseconds; `None` for a wait without an end.
    pub duration_ms: Option<u64>,
    /// SHA-256 of what the program gave with it.
    pub state_hash: [u8; 32],
    /// What the call names itself, so that its repetition after a lost answer is recognised.
    pub request_id: Option<String>,
    /// Whether the program gave that name. If the server did, another name does not say that it is another call.
    pub named: bool,
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
///
/// Repetitions do not count. A call that names itself is repeated under its name. A sleep that does not is repeated as long as
/// the newest sleep of this id in this run, with the same state, is not over: no call of it can have been answered to the end,
/// so a client whose own time-out cut the call, or whose server went away, owes the remainder and not the whole again, whatever
/// it has stored since. That holds as well for a busy run that was called away from its sleep to see a signal. A call never waits
/// longer than it asks to: one that would be over sooner than that sleep is a sleep of its own. So is one without an id, since
/// branches side by side may sleep like that for different times. Waits for signals are answered before their time, so another
/// call of one is another wait.
#[must_use]
pub fn meet(
    records: &[WaitRecord],
    run: RunNumber,
    stored_new: bool,
    call: &WaitCall,
    now: Timestamp,
) -> Meeting {
    let repeated = call.request_id.as_ref().and_then(|id| {
        let same =
            |record: &&WaitRecord| record.met_by == run && record.request_id.as_ref() == Some(id);
        records.iter().find(same)
    });
    if let Some(record) = repeated.or_else(|| unanswered(records, run, call, now)) {
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

/// The sleep of this run that a call without a name of its own repeats.
fn unanswered<'a>(
    records: &'a [WaitRecord],
    run: RunNumber,
    call: &WaitCall,
    now: Timestamp,
) -> Option<&'a WaitRecord> {
    if call.kind != WaitKind::Sleep || !call.identified || call.named {
        return None;
    }
    let asked_until = now.plus_millis(call.duration_ms?);
    let newest = records.iter().rfind(|record| record.met_by == run)?;
    let until = newest.until?;
    let owed = now < until && until <= asked_until;
    (owed && newest.state_hash == call.state_hash).then_some(newest)
}

/// Whether a call is held beside another, given the hold that is recorded and the records of its id and kind.
///
/// With several branches that all wait, one call says that the run has nothing else to do meanwhile, and the others say that it
/// has, for it is that one by which the process may be ended. They come over connections of their own, in any order: so a call that
/// does not let the process be ended leaves the hold of one that does, unless that is its own, of which it now says something
/// else. Its own is one that ends when the newest wait of its id in this run does, or the one that it repeats under its name.
#[must_use]
pub fn is_beside(
    recorded: Option<&Hold>,
    records: &[WaitRecord],
    run: RunNumber,
    call: &WaitCall,
    now: Timestamp,
) -> bool {
    let of_run = || records.iter().filter(|record| record.met_by == run);
    let repeated =
        |record: &&WaitRecord| record.request_id.is_some() && record.request_id == call.request_id;
    let mut own = of_run()
        .next_back()
        .into_iter()
        .chain(of_run().find(repeated));
    let others = |hold: &Hold| {
        let lasts = hold.until.is_none_or(|until| until > now);
        hold.park && lasts && !own.any(|record| record.until == hold.until)
    };
    !call.park && recorded.is_some_and(others)
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

    const OVER: Timestamp = Timestamp(1_000);
    const NOW: Timestamp = OVER;

    fn record(n: u32, met_by: u32, state: u8) -> WaitRecord {
        WaitRecord {
            kind: WaitKind::Sleep,
            n,
            until: Some(OVER),
            state_hash: [state; 32],
            met_by: RunNumber(met_by),
            request_id: Some(format!("{met_by}-{n}")),
        }
    }

    fn call(state: u8) -> WaitCall {
        WaitCall {
            kind: WaitKind::Sleep,
            identified: true,
            duration_ms: Some(1),
            state_hash: [state; 32],
            request_id: None,
            named: false,
            park: true,
        }
    }

    /// A sleep of 40 seconds that has ten left, and a call of it.
    fn under_way() -> (WaitRecord, WaitCall) {
        let record = WaitRecord {
            until: Some(NOW.plus_millis(10_000)),
            ..record(1, 1, 7)
        };
        let call = WaitCall {
            duration_ms: Some(40_000),
            ..call(7)
        };
        (record, call)
    }

    #[test]
    fn a_replay_meets_its_sleeps_one_after_the_other() {
        let mut records = vec![record(1, 1, 7), record(2, 1, 8)];
        assert_eq!(
            meet(&records, RunNumber(2), false, &call(7), NOW),
            Meeting::Existing(1)
        );
        records[0].met_by = RunNumber(2);
        assert_eq!(
            meet(&records, RunNumber(2), false, &call(8), NOW),
            Meeting::Existing(2)
        );
        records[1].met_by = RunNumber(2);
        assert_eq!(
            meet(&records, RunNumber(2), false, &call(8), NOW),
            Meeting::New(3)
        );
    }

    #[test]
    fn a_run_that_has_stored_something_new_sleeps_anew() {
        let records = vec![record(1, 1, 7), record(2, 1, 8)];
        assert_eq!(
            meet(&records, RunNumber(2), true, &call(7), NOW),
            Meeting::New(3)
        );
    }

    #[test]
    fn another_state_is_another_sleep() {
        let records = vec![record(1, 1, 7)];
        assert_eq!(
            meet(&records, RunNumber(2), false, &call(9), NOW),
            Meeting::New(2)
        );
    }

    #[test]
    fn a_repeated_call_is_no_second_sleep_but_only_within_its_run() {
        let records = vec![record(1, 1, 7)];
        let repeated = WaitCall {
            request_id: Some("1-1".to_owned()),
            named: true,
            ..call(7)
        };
        assert_eq!(
            meet(&records, RunNumber(1), true, &repeated, NOW),
            Meeting::Existing(1)
        );
        assert_eq!(
            meet(&records, RunNumber(2), true, &repeated, NOW),
            Meeting::New(2)
        );
    }

    #[test]
    fn a_sleep_that_is_not_over_is_meant_again_by_its_run() {
        let (record, call) = under_way();
        for stored_new in [false, true] {
            let met = meet(
                std::slice::from_ref(&record),
                RunNumber(1),
                stored_new,
                &call,
                NOW,
            );
            assert_eq!(met, Meeting::Existing(1));
        }
        let unlike = |change: fn(&mut WaitRecord, &mut WaitCall)| {
            let (mut record, mut call) = (record.clone(), call.clone());
            change(&mut record, &mut call);
            meet(&[record], RunNumber(1), true, &call, NOW)
        };
        let new = Meeting::New(2);
        assert_eq!(unlike(|record, _| record.until = Some(NOW)), new, "over");
        assert_eq!(unlike(|_, call| call.state_hash = [8; 32]), new, "another");
        assert_eq!(
            unlike(|record, _| record.met_by = RunNumber(0)),
            new,
            "an earlier run may have gone past it"
        );
        assert_eq!(
            unlike(|_, call| call.duration_ms = Some(9_999)),
            new,
            "it asks for less than is left"
        );
        let other_name = unlike(|_, call| {
            call.request_id = Some("other".to_owned());
            call.named = true;
        });
        assert_eq!(other_name, new, "it says that it is another call");
        let name_of_the_server = unlike(|_, call| call.request_id = Some("other".to_owned()));
        assert_eq!(name_of_the_server, Meeting::Existing(1));
        assert_eq!(
            unlike(|_, call| call.identified = false),
            new,
            "another branch may sleep"
        );
        let signal = unlike(|record, call| {
            (record.kind, call.kind) = (WaitKind::Signal, WaitKind::Signal);
        });
        assert_eq!(signal, new, "it may have been answered");
    }

    #[test]
    fn only_the_newest_sleep_of_a_run_is_meant_again() {
        let (first, call) = under_way();
        let second = WaitRecord {
            n: 2,
            until: Some(NOW),
            ..first.clone()
        };
        let of_before = WaitRecord {
            n: 3,
            met_by: RunNumber(0),
            ..first.clone()
        };
        let records = [first, second, of_before];
        let met = |records: &[WaitRecord]| meet(records, RunNumber(1), true, &call, NOW);
        assert_eq!(met(&records), Meeting::New(4), "the first was followed");
        let replayed = [records[0].clone(), records[2].clone()];
        assert_eq!(met(&replayed), Meeting::Existing(1));
    }

    #[test]
    fn a_busy_call_leaves_the_hold_of_another_and_not_its_own() {
        let until = Some(NOW.plus_millis(5));
        let hold = |park, until| Hold { until, park };
        let (one, mut busy) = under_way();
        busy.park = false;
        let own = WaitRecord {
            until,
            ..one.clone()
        };
        let beside = |hold: Option<Hold>, record: &WaitRecord, call: &WaitCall| {
            is_beside(
                hold.as_ref(),
                std::slice::from_ref(record),
                RunNumber(1),
                call,
                NOW,
            )
        };
        assert!(beside(Some(hold(true, until)), &one, &busy));
        assert!(!beside(Some(hold(true, until)), &own, &busy), "its own");
        let of_before = WaitRecord {
            met_by: RunNumber(0),
            ..own
        };
        assert!(beside(Some(hold(true, until)), &of_before, &busy));
        assert!(!beside(None, &one, &busy), "there is none");
        assert!(!beside(Some(hold(false, until)), &one, &busy), "busy, too");
        assert!(!beside(Some(hold(true, Some(NOW))), &one, &busy), "over");
        let idle = WaitCall { park: true, ..busy };
        assert!(
            !beside(Some(hold(true, until)), &one, &idle),
            "the last one to say so counts"
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
