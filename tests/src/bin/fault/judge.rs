//! What the server tells of an instance at the end, and whether that is as promised.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::ledger::{Broken, Line, What};
use crate::plan::{Expected, Planned};

/// What is told of an instance.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) status: String,
    pub(crate) error: String,
    /// What it gave, if it is JSON.
    pub(crate) output: Value,
    pub(crate) run_number: u32,
    pub(crate) checkpoints: Vec<Checkpoint>,
    pub(crate) events: Vec<Event>,
}

#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    pub(crate) id: String,
    pub(crate) run: u32,
    pub(crate) value: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) run: u32,
    pub(crate) kind: String,
    pub(crate) subtype: String,
    pub(crate) payload: String,
}

/// The name of the events by which programs without the ledger tell of their effects.
pub(crate) const EFFECTS: &str = "effects";

/// The name of the event by which an instance is cancelled.
const CANCELLED: &str = "runtara.cancelled";

/// Finds what of an instance is not as promised.
pub(crate) fn broken(planned: &Planned, told: &Told, lines: &[Line]) -> Vec<Broken> {
    let mut broken = Vec::new();
    let mut note = |what: String| broken.push(Broken::of(&planned.id, what));
    if let Err(what) = end(planned, told) {
        note(what);
    }
    let mut saved: BTreeMap<&str, &Checkpoint> = BTreeMap::new();
    for checkpoint in told
        .checkpoints
        .iter()
        .filter(|it| planned.steps.contains(&it.id))
    {
        if let Some(other) = saved.insert(&checkpoint.id, checkpoint) {
            note(format!(
                "step {} is saved twice, by run {} and run {}",
                checkpoint.id, other.run, checkpoint.run
            ));
        }
    }
    for (id, run) in effects(told, lines) {
        if let Some(checkpoint) = saved.get(id.as_str()).filter(|it| it.run < run) {
            note(format!(
                "step {id} was saved by run {}, and run again by run {run}",
                checkpoint.run
            ));
        }
    }
    for line in lines {
        let (What::Saved(id, value) | What::Found(id, value)) = &line.what else {
            continue;
        };
        match saved.get(id.as_str()) {
            None => note(format!(
                "step {id} is lost, which run {} was told is saved",
                line.run
            )),
            Some(checkpoint) if checkpoint.value != *value => note(format!(
                "step {id} is {}, and run {} was told {value}",
                checkpoint.value, line.run
            )),
            Some(_) => {}
        }
    }
    if told.status == "completed" {
        for id in &planned.steps {
            let value = saved.get(id.as_str()).map(|it| it.value.clone());
            let given = told.output["seen"].get(id).map(Value::to_string);
            if value.is_none() || value != given {
                note(format!(
                    "step {id} is saved as {value:?}, and the output says {given:?}"
                ));
            }
        }
        if let Some(output) = planned.output.as_ref().filter(|it| **it != told.output) {
            note(format!(
                "its output is {}, and should be {output}",
                told.output
            ));
        }
        for (id, payload) in &planned.signals {
            let given = &told.output["seen"][id];
            if given != payload {
                note(format!(
                    "signal {id} was {payload}, and the output says {given}"
                ));
            }
        }
    }
    if let Some(line) = lines.iter().find(|line| line.run > told.run_number) {
        note(format!(
            "run {} wrote to the ledger, and the server knows of {} runs",
            line.run, told.run_number
        ));
    }
    for what in history(told) {
        note(what);
    }
    broken
}

/// Whether the end is the right one.
fn end(planned: &Planned, told: &Told) -> Result<(), String> {
    let is_right = match &planned.expected {
        Expected::Completed => told.status == "completed",
        Expected::Failed(why) => told.status == "failed" && told.error.contains(why),
        // Who is faster wins.
        Expected::Cancelled => ["cancelled", "completed"].contains(&told.status.as_str()),
    };
    if is_right {
        return Ok(());
    }
    Err(format!(
        "it is {} ({}) after {} runs, and should be {:?}",
        told.status, told.error, told.run_number, planned.expected
    ))
}

/// The effects that are known: step and run.
fn effects(told: &Told, lines: &[Line]) -> BTreeSet<(String, u32)> {
    let of_ledger = lines.iter().filter_map(|line| match &line.what {
        What::Step(id) => Some((id.clone(), line.run)),
        _ => None,
    });
    let events = told.events.iter().filter(|event| event.subtype == EFFECTS);
    let of_events = events.filter_map(|event| {
        let text: String = serde_json::from_str(&event.payload).ok()?;
        let (id, run) = text.rsplit_once(' ')?;
        Some((id.to_owned(), run.parse().ok()?))
    });
    of_ledger.chain(of_events).collect()
}

/// What of the events cannot be: nothing follows the end, of which there is one, and runs follow each other.
fn history(told: &Told) -> Vec<String> {
    let mut broken = Vec::new();
    let ends = told
        .events
        .iter()
        .filter_map(|event| match event.kind.as_str() {
            "completed" | "failed" => Some(event.kind.as_str()),
            _ => (event.subtype == CANCELLED).then_some("cancelled"),
        });
    let names: Vec<_> = ends.collect();
    if names.len() != 1 {
        broken.push(format!("its events have the ends {names:?}"));
    }
    let runs: Vec<_> = told.events.iter().map(|it| it.run).collect();
    if !runs.is_sorted() {
        broken.push(format!(
            "its events are of the runs {runs:?}, in this order"
        ));
    }
    broken
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ledger::Ledger;

    fn planned() -> Planned {
        Planned {
            id: "a".to_owned(),
            steps: vec!["one".to_owned(), "two".to_owned()],
            signals: vec![("go".to_owned(), json!("now"))],
            ..Planned::default()
        }
    }

    fn event(run: u32, kind: &str, subtype: &str, payload: &str) -> Event {
        Event {
            run,
            kind: kind.to_owned(),
            subtype: subtype.to_owned(),
            payload: payload.to_owned(),
        }
    }

    fn saved(id: &str, run: u32, value: &str) -> Checkpoint {
        Checkpoint {
            id: id.to_owned(),
            run,
            value: value.to_owned(),
        }
    }

    fn told() -> Told {
        Told {
            status: "completed".to_owned(),
            output: json!({"seen": {"one": 1, "two": 2, "go": "now"}}),
            run_number: 2,
            checkpoints: vec![saved("two", 2, "2"), saved("one", 1, "1")],
            events: vec![
                event(1, "custom", EFFECTS, "\"one 1\""),
                event(2, "custom", EFFECTS, "\"two 2\""),
                event(2, "completed", "", ""),
            ],
            ..Told::default()
        }
    }

    const LINES: &str =
        "1 a 1 7 step one\n2 a 1 7 saved one 1\n3 a 2 8 step two\n4 a 2 8 saved two 2\n";

    /// What is found when one thing is not as it should be.
    fn found(spoil: impl FnOnce(&mut Told), more: &str) -> Vec<String> {
        let mut told = told();
        spoil(&mut told);
        let ledger = Ledger::read(&format!("{LINES}{more}")).unwrap_or_else(|it| panic!("{it}"));
        let broken = broken(&planned(), &told, ledger.of("a"));
        broken.into_iter().map(|it| it.what).collect()
    }

    fn finds(what: &str, spoil: impl FnOnce(&mut Told), more: &str) {
        let found = found(spoil, more);
        assert!(
            found.iter().any(|it| it.contains(what)),
            "{what}: {found:?}"
        );
    }

    #[test]
    fn nothing_is_found_where_all_is_right() {
        assert_eq!(found(|_| {}, ""), [""; 0]);
    }

    #[test]
    fn each_wrong_thing_is_found() {
        finds("should be Completed", |it| it.status = "failed".into(), "");
        finds(
            "should be Completed",
            |it| it.status = "suspended".into(),
            "",
        );
        let twice = |it: &mut Told| it.checkpoints.push(saved("one", 2, "1"));
        finds("step one is saved twice", twice, "");
        finds(
            "step one was saved by run 1, and run again",
            |_| {},
            "5 a 2 8 step one\n",
        );
        let again = |it: &mut Told| {
            it.events
                .insert(1, event(2, "custom", EFFECTS, "\"one 2\""));
        };
        finds("step one was saved by run 1, and run again", again, "");
        finds("step one is lost", |it| drop(it.checkpoints.pop()), "");
        let other = |it: &mut Told| it.checkpoints[1].value = "9".into();
        finds("step one is 9, and run 1 was told 1", other, "");
        finds("the output says", other, "");
        finds(
            "signal go was",
            |it| it.output["seen"]["go"] = json!(null),
            "",
        );
        finds("the server knows of 2 runs", |_| {}, "5 a 3 9 begin\n");
        let ends = |it: &mut Told| it.events.push(event(2, "failed", "", ""));
        finds("the ends [\"completed\", \"failed\"]", ends, "");
        let ends = |it: &mut Told| it.events.push(event(2, "custom", CANCELLED, ""));
        finds("the ends [\"completed\", \"cancelled\"]", ends, "");
        finds("the ends []", |it| drop(it.events.pop()), "");
        finds("in this order", |it| it.events[0].run = 5, "");
    }

    #[test]
    fn a_failure_must_be_the_one_that_was_told() {
        let planned = Planned {
            expected: Expected::Failed("as told".to_owned()),
            ..planned()
        };
        let mut told = told();
        told.status = "failed".to_owned();
        told.error = "run 3: HTTP request failed".to_owned();
        assert!(end(&planned, &told).is_err());
        told.error = "as told".to_owned();
        assert!(end(&planned, &told).is_ok());
    }

    #[test]
    fn a_cancelled_one_may_have_been_faster_and_nothing_else() {
        let planned = Planned {
            expected: Expected::Cancelled,
            ..planned()
        };
        for (status, is_right) in [("cancelled", true), ("completed", true), ("failed", false)] {
            let told = Told {
                status: status.to_owned(),
                ..told()
            };
            assert_eq!(end(&planned, &told).is_ok(), is_right, "{status}");
        }
    }
}
