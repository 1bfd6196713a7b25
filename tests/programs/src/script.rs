//! What the two programs that speak the protocol are told to do.
//!
//! The input is a list of actions, each an object with one key, done one after the other:
//!
//! ```json
//! {"effects_file": "/tmp/effects", "actions": [
//!   {"checkpoint": "a"}, {"sleep": {"id": "s", "ms": 40000}}, {"wait_signal": {"id": "go", "timeout_ms": 5000}},
//!   {"on_run": 1, "do": {"abort": true}}, {"repeat": 3, "do": [{"checkpoint": "step-{i}"}]}, {"complete": "done"}
//! ]}
//! ```
//!
//! | object | |
//! |---|---|
//! | `{"on_run": n, "do": …}` | only in run n; `do` is an action or a list of them |
//! | `{"from_run": n, "do": …}` | in run n and all after it |
//! | `{"repeat": n, "do": …}` | n times, with `{i}` in any text replaced by 1, 2, … |
//! | `{"branches": [[…], […]]}` | side by side (only `uses_the_sdk`) |
//! | any other | one [`Action`] |
//!
//! or a short form for the commonest script, `{"steps": 10}`: checkpoints `step-1` to `step-10` with the values 1 to 10, and, where
//! given, `step_ms` of work in each, a sleep of `sleep_ms` (id `sleep`) after step `sleep_at`, a wait for the signal `signal`
//! before the last step, failure before step `fail_at`, and in the first run an abort before step `crash_at`.
//!
//! A script that does not end otherwise completes with `{"sum": …, "run": …, "seen": {…}}`: the sum of the values of checkpoints,
//! the number of the last run, and what each checkpoint and signal gave. Each effect (a checkpoint's work that is really done)
//! appends a line `<id> <run>` to the file `effects_file`.
//!
//! A guest, `tests/guests/speaks_the_protocol.c`, plays the same scripts, but for what guests cannot do.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{abort, exit};
use std::thread::sleep;
use std::time::{Duration, Instant};

#[cfg(unix)]
use nix::sys::signal::{Signal, raise};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::sleep_forever;

/// How long a script waits for a file.
const PATIENCE: Duration = Duration::from_secs(120);

/// One thing to do.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A step.
    Checkpoint(Checkpoint),
    /// A durable sleep.
    Sleep(Sleep),
    /// Asks for a custom signal again and again until it is there.
    Signal(String),
    /// Asks once for a custom signal, and goes on without it (not `uses_the_sdk`).
    TakeSignal(String),
    /// Waits for a custom signal in one call, which parks.
    WaitSignal(WaitSignal),
    /// Looks for a cancel or a pause once.
    Poll(bool),
    /// Looks for a cancel or a pause until one is there.
    AwaitOrder(bool),
    /// Records an event.
    Event(Event),
    /// Tells how far the work is.
    Progress(Progress),
    /// Gives a sign of life.
    Heartbeat(bool),
    /// Records that a step is tried again.
    Retry(Retry),
    /// Asks where an instance stands, and notes the answer under its id (not `uses_the_sdk`).
    StatusOf(String),
    /// Any call, its status and body noted under its path (not `uses_the_sdk`).
    Call(RawCall),
    /// Says `suspended` and leaves (not `uses_the_sdk`).
    Suspend(bool),
    /// Says `suspended` with a wake time, as an event, and leaves (not `uses_the_sdk`).
    SuspendUntil(Sleep),
    /// Says `completed` with this output, and leaves.
    Complete(Value),
    /// Says `failed`, and leaves with 1.
    Fail(String),
    /// Works for that many milliseconds, without a call.
    Work(u64),
    /// Writes a line to standard output.
    Print(String),
    /// Writes a line to standard error.
    PrintError(String),
    /// Makes a file.
    Touch(String),
    /// Waits until there is such a file.
    UntilFile(String),
    /// Exits without a word.
    Exit(i32),
    /// Dies by SIGABRT.
    Abort(bool),
    /// Dies by the signal of this number, where there are such signals.
    Die(i32),
    /// Does nothing for ever.
    Hang(bool),
    /// Lists of actions side by side.
    #[serde(skip)]
    Branches(Vec<Vec<Action>>),
}

/// A step; as a mere text, its id.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "CheckpointForm")]
pub struct Checkpoint {
    /// Its id.
    pub id: String,
    /// What is saved; the number of the run unless given.
    pub value: Option<Value>,
    /// How long its work takes, in milliseconds.
    pub work_ms: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum CheckpointForm {
    Id(String),
    Whole {
        id: String,
        value: Option<Value>,
        #[serde(default)]
        work_ms: u64,
    },
}

impl From<CheckpointForm> for Checkpoint {
    fn from(form: CheckpointForm) -> Self {
        match form {
            CheckpointForm::Id(id) => Self {
                id,
                value: None,
                work_ms: 0,
            },
            CheckpointForm::Whole { id, value, work_ms } => Self { id, value, work_ms },
        }
    }
}

/// A sleep.
#[derive(Debug, Clone, Deserialize)]
pub struct Sleep {
    /// Its checkpoint.
    pub id: String,
    /// How long, in milliseconds.
    pub ms: u64,
    /// What is saved with it.
    #[serde(default = "asleep")]
    pub state: String,
}

fn asleep() -> String {
    "asleep".to_owned()
}

/// A wait for a custom signal.
#[derive(Debug, Clone, Deserialize)]
pub struct WaitSignal {
    /// The signal.
    pub id: String,
    /// How long at most, in milliseconds.
    pub timeout_ms: Option<u64>,
}

/// An event.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// Its kind.
    pub subtype: String,
    /// What it tells.
    #[serde(default)]
    pub payload: Value,
}

/// How far the work is.
#[derive(Debug, Clone, Deserialize)]
pub struct Progress {
    /// For people.
    pub message: String,
    /// 0 to 100.
    pub percent: f64,
}

/// An attempt.
#[derive(Debug, Clone, Deserialize)]
pub struct Retry {
    /// Of which step.
    pub id: String,
    /// Which one.
    pub attempt: u32,
    /// Why the one before failed.
    pub error: String,
}

/// Any call.
#[derive(Debug, Clone, Deserialize)]
pub struct RawCall {
    /// `GET` or `POST`.
    pub method: String,
    /// With `{id}` for the id of the instance; what stands in front of every path is put there.
    pub path: String,
    /// JSON.
    #[serde(default)]
    pub body: Value,
}

/// A script for one run.
#[derive(Debug, Default)]
pub struct Script {
    /// What to do.
    pub actions: Vec<Action>,
    effects_file: Option<String>,
    run: u32,
}

impl Script {
    /// Reads the script for the run of this number.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(input: &Value, run: u32) -> Result<Self, String> {
        let mut actions = Vec::new();
        match input.get("steps") {
            Some(steps) => flatten(&short_form(input, steps)?, run, &mut actions)?,
            None => flatten(&input["actions"], run, &mut actions)?,
        }
        let effects_file = input.get("effects_file").and_then(Value::as_str);
        Ok(Self {
            actions,
            effects_file: effects_file.map(str::to_owned),
            run,
        })
    }

    /// Does the work of a step: notes the effect and gives the value to save.
    ///
    /// # Errors
    /// If the effect cannot be noted.
    pub fn effect(&self, step: &Checkpoint) -> io::Result<Value> {
        if let Some(file) = &self.effects_file {
            let mut file = OpenOptions::new().create(true).append(true).open(file)?;
            // One write, so that lines of several processes do not mix.
            file.write_all(format!("{} {}\n", step.id, self.run).as_bytes())?;
        }
        Ok(step.value.clone().unwrap_or_else(|| json!(self.run)))
    }
}

/// What the checkpoints and signals gave.
#[derive(Debug, Default, Clone)]
pub struct Seen(Map<String, Value>);

impl Seen {
    /// Notes what one gave.
    pub fn note(&mut self, id: &str, value: Value) {
        self.0.insert(id.to_owned(), value);
    }

    /// Notes all that a branch has seen.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The output of a script that has none of its own.
    #[must_use]
    pub fn output(&self, run: u32) -> Value {
        let sum: i64 = self.0.values().filter_map(Value::as_i64).sum();
        json!({"sum": sum, "run": run, "seen": self.0})
    }
}

/// The number of this run.
#[must_use]
pub fn run_number() -> u32 {
    let number = std::env::var("RUNTARA_RUN_NUMBER").ok();
    number.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Does an action that needs no server.
///
/// # Errors
/// If a file cannot be made, or does not come.
pub fn act_alone(action: &Action) -> io::Result<()> {
    match action {
        Action::Work(millis) => sleep(Duration::from_millis(*millis)),
        Action::Print(text) => println!("{text}"),
        Action::PrintError(text) => eprintln!("{text}"),
        Action::Touch(path) => fs::write(path, b"")?,
        Action::UntilFile(path) => {
            let deadline = Instant::now() + PATIENCE;
            while !Path::new(path).exists() {
                if Instant::now() > deadline {
                    return Err(io::Error::other(format!("{path} did not come")));
                }
                sleep(Duration::from_millis(5));
            }
        }
        Action::Exit(code) => exit(*code),
        Action::Abort(_) => abort(),
        #[cfg(unix)]
        Action::Die(number) => {
            let signal = Signal::try_from(*number)?;
            raise(signal)?;
            sleep_forever()
        }
        Action::Hang(_) => sleep_forever(),
        other => return Err(io::Error::other(format!("cannot do {other:?} here"))),
    }
    Ok(())
}

fn flatten(value: &Value, run: u32, actions: &mut Vec<Action>) -> Result<(), String> {
    if let Some(list) = value.as_array() {
        return list.iter().try_for_each(|one| flatten(one, run, actions));
    }
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    if let Some(only) = number("on_run") {
        return if only == u64::from(run) {
            flatten(&value["do"], run, actions)
        } else {
            Ok(())
        };
    }
    if let Some(first) = number("from_run") {
        return if u64::from(run) >= first {
            flatten(&value["do"], run, actions)
        } else {
            Ok(())
        };
    }
    if let Some(times) = number("repeat") {
        let text = value["do"].to_string();
        return (1..=times).try_for_each(|i| {
            let text = text.replace("{i}", &i.to_string());
            let once = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            flatten(&once, run, actions)
        });
    }
    if let Some(lists) = value.get("branches").and_then(Value::as_array) {
        let branches = lists.iter().map(|list| {
            let mut branch = Vec::new();
            flatten(list, run, &mut branch).map(|()| branch)
        });
        actions.push(Action::Branches(branches.collect::<Result<_, _>>()?));
        return Ok(());
    }
    let action = Action::deserialize(value).map_err(|error| format!("{error} in {value}"))?;
    actions.push(action);
    Ok(())
}

fn short_form(input: &Value, steps: &Value) -> Result<Value, String> {
    let number = |key: &str| input.get(key).and_then(Value::as_u64);
    let steps = steps.as_u64().ok_or("steps is not a number")?;
    let mut actions = Vec::new();
    for step in 1..=steps {
        if number("crash_at") == Some(step) {
            actions.push(json!({"on_run": 1, "do": {"abort": true}}));
        }
        if number("fail_at") == Some(step) {
            actions.push(json!({"fail": format!("failed before step {step}, as told")}));
        }
        if let Some(signal) = input.get("signal").filter(|_| step == steps) {
            actions.push(json!({"signal": signal}));
        }
        let work_ms = number("step_ms").unwrap_or(0);
        actions.push(
            json!({"checkpoint": {"id": format!("step-{step}"), "value": step, "work_ms": work_ms}}),
        );
        if number("sleep_at") == Some(step) {
            let ms = number("sleep_ms").unwrap_or(1_000);
            actions.push(json!({"sleep": {"id": "sleep", "ms": ms}}));
        }
    }
    Ok(Value::Array(actions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(input: &Value, run: u32) -> Vec<String> {
        let script = Script::read(input, run).unwrap();
        let name = |action: &Action| match action {
            Action::Checkpoint(step) => step.id.clone(),
            other => format!("{other:?}"),
        };
        script.actions.iter().map(name).collect()
    }

    #[test]
    fn runs_and_repetitions_are_resolved() {
        let input = json!({"actions": [
            {"repeat": 2, "do": [{"checkpoint": "a-{i}"}]},
            {"on_run": 1, "do": {"checkpoint": "first"}},
            {"from_run": 2, "do": {"checkpoint": {"id": "later"}}},
        ]});
        assert_eq!(names(&input, 1), ["a-1", "a-2", "first"]);
        assert_eq!(names(&input, 3), ["a-1", "a-2", "later"]);
    }

    #[test]
    fn the_short_form_is_a_script_too() {
        let input =
            json!({"steps": 2, "crash_at": 2, "signal": "go", "sleep_at": 1, "sleep_ms": 5});
        assert_eq!(
            names(&input, 1),
            [
                "step-1",
                r#"Sleep(Sleep { id: "sleep", ms: 5, state: "asleep" })"#,
                "Abort(true)",
                r#"Signal("go")"#,
                "step-2"
            ]
        );
        assert_eq!(names(&input, 2).len(), 4);
    }

    #[test]
    fn an_unknown_action_is_named() {
        let error = Script::read(&json!({"actions": [{"dance": true}]}), 1).unwrap_err();
        assert!(error.contains("dance"), "{error}");
    }

    #[test]
    fn the_output_sums_what_was_seen() {
        let mut seen = Seen::default();
        seen.note("a", json!(2));
        seen.note("b", json!("text"));
        seen.note("c", json!(3));
        assert_eq!(seen.output(4)["sum"], 5);
        assert_eq!(seen.output(4)["run"], 4);
    }
}
