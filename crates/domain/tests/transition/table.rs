//! Every change in every situation, written out.

use std::fmt::Write as _;

use runtara_domain::{InstanceState, Refusal, Timestamp, Transition, transition};

use crate::changes::Happening as H;
use crate::laws::step;
use crate::reachable::{self_registered, started, started_to_end_by};

const NOW: Timestamp = Timestamp(1_000_000);

/// An instance to which all this has happened.
fn after(start: InstanceState, happenings: &[H]) -> InstanceState {
    happenings.iter().fold(start, |state, happening| {
        let next = step(&state, *happening, NOW);
        next.unwrap_or_else(|refusal| panic!("{happening:?}: {refusal}"))
            .state
    })
}

fn situations() -> Vec<(&'static str, InstanceState)> {
    let new = || started(None);
    let late = NOW.plus_millis(60_000);
    let limited = |more: &[H]| after(started_to_end_by(late), more);
    let run = |more: &[H]| after(new(), &[&[H::Claim, H::Register], more].concat());
    vec![
        ("pending", new()),
        ("pending, paused", after(new(), &[H::Pause])),
        ("running, never spoke", after(new(), &[H::Claim])),
        ("running", run(&[])),
        ("running, held", run(&[H::HoldAlone])),
        ("running, held, busy", run(&[H::HoldBusy])),
        ("running, cancel waits", run(&[H::Cancel])),
        ("running, pause waits", run(&[H::Pause])),
        ("running, pause seen", run(&[H::Pause, H::Poll])),
        (
            "running, resume waits",
            run(&[H::Pause, H::Poll, H::Resume]),
        ),
        ("running, stopping", run(&[H::Stop])),
        ("sleeping, leaving", run(&[H::Sleep])),
        ("sleeping", run(&[H::Sleep, H::ExitLost])),
        (
            "waiting for a signal",
            run(&[H::WaitForSignal, H::ExitLost]),
        ),
        ("paused, leaving", run(&[H::Suspend])),
        ("paused", run(&[H::Suspend, H::ExitZero])),
        ("crashed", run(&[H::ExitOne])),
        ("interrupted", run(&[H::ExitLost])),
        ("completed, leaving", run(&[H::Complete])),
        ("completed", run(&[H::Complete, H::ExitZero])),
        ("failed, leaving", run(&[H::Fail])),
        ("failed", run(&[H::Fail, H::ExitOne])),
        ("cancelled", run(&[H::AckCancel, H::ExitOne])),
        ("resumed, leaving", run(&[H::Fail, H::Resume])),
        ("itself", after(self_registered(), &[H::Register])),
        (
            "itself, paused",
            after(self_registered(), &[H::Register, H::Suspend]),
        ),
        (
            "itself, failed",
            after(self_registered(), &[H::Register, H::Fail]),
        ),
        ("pending, to end by a time", limited(&[])),
        ("running, to end by a time", limited(&[H::Claim])),
        (
            "sleeping, leaving, to end by a time",
            limited(&[H::Claim, H::Sleep]),
        ),
        (
            "paused, to end by a time",
            limited(&[H::Claim, H::Suspend, H::ExitZero]),
        ),
        (
            "failed, to end by a time",
            limited(&[H::Claim, H::Fail, H::ExitOne]),
        ),
    ]
}

fn in_seconds(at: Timestamp) -> u64 {
    at.millis_since(NOW) / 1_000
}

/// One cell: where the instance stands then, or why not.
fn cell(before: &InstanceState, decided: Result<Transition, Refusal>) -> String {
    let next = match decided {
        Ok(next) => next,
        Err(Refusal::WrongState { operation, .. }) => return format!("- cannot {operation}"),
        Err(refusal) => return format!("- {}", name(&refusal)),
    };
    if !next.applied {
        return "nothing".to_owned();
    }
    let state = &next.state;
    let mut cell = state.status.to_string();
    if let Some(reason) = state.reason {
        let _ = write!(cell, " {reason}");
    }
    if let Some(due) = state.due_at {
        let _ = write!(cell, ", due {}", in_seconds(due));
    }
    let pending = &state.pending;
    for (waits, what) in [
        (pending.cancel.is_some(), "cancel"),
        (pending.pause.is_some(), "pause"),
        (pending.resume, "resume"),
    ] {
        if waits {
            let _ = write!(cell, ", {what} waits");
        }
    }
    if state.run.hold.is_some() {
        cell.push_str(", held");
    }
    if before.live_node.is_some() && state.live_node.is_none() {
        cell.push_str(", gone");
    }
    if let Some(by) = state.run.leave_by {
        let asked = if state.run.asked_to_leave {
            "asked to leave"
        } else {
            "leaves"
        };
        let _ = write!(cell, ", {asked} in {}", in_seconds(by));
    }
    cell
}

fn name(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::InstanceUnknown => "unknown",
        Refusal::RunSuperseded => "superseded",
        Refusal::InstanceEnded { .. } => "ended",
        Refusal::TokenRequired => "token required",
        Refusal::TenantMismatch => "another tenant",
        Refusal::CheckpointUnknown { .. } => "checkpoint unknown",
        Refusal::NoImage => "no image",
        Refusal::Expired { .. } => "expired",
        _ => "else",
    }
}

fn table() -> String {
    let mut table = String::new();
    for (situation, state) in situations() {
        let _ = writeln!(table, "{situation}");
        let mut rows: Vec<(String, Vec<String>)> = Vec::new();
        for happening in H::ALL {
            let now = happening.moment(NOW);
            let decided = transition(&state, &happening.change(&state, now), now);
            let cell = cell(&state, decided);
            let happening = format!("{happening:?}");
            match rows.iter_mut().find(|(known, _)| *known == cell) {
                Some((_, happenings)) => happenings.push(happening),
                None => rows.push((cell, vec![happening])),
            }
        }
        for (cell, happenings) in rows {
            let _ = writeln!(table, "    {cell}: {}", happenings.join(" "));
        }
    }
    table
}

/// The table is as it is written down beside this file; who changes a rule changes it there, and reads what else changed.
#[test]
fn the_table_is_as_written() {
    let written = include_str!("table.txt");
    let found = table();
    let place = concat!(env!("CARGO_TARGET_TMPDIR"), "/table.txt");
    std::fs::write(place, &found).expect("the directory for what tests write is there");
    let mut situation = "";
    for (line, (found, written)) in found.lines().zip(written.lines()).enumerate() {
        if !found.starts_with(' ') {
            situation = found;
        }
        let line = line + 1;
        assert_eq!(
            found, written,
            "line {line} ({situation}); the table as it is: {place}"
        );
    }
    assert_eq!(found, written, "the table as it is: {place}");
}
