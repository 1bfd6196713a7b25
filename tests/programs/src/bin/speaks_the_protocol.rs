//! Plays a script as a program with the published blocking client does: one connection, never a repetition, and at the first call
//! that does not get through it reports `failed` and exits with 1. A cancel is acknowledged and left with 1, a pause is
//! acknowledged, reported as suspended, and left with 0.

use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use runtara_test_programs::blocking::{Failure, Instance};
use runtara_test_programs::script::{
    Action, Checkpoint, Script, Seen, Sleep, act_alone, run_number,
};
use serde_json::{Value, json};

/// How often it asks for a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Why a script is over before its last action.
enum Stop {
    /// The last word is said.
    Leave(u8),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn main() -> ExitCode {
    let mut instance = match Instance::from_env() {
        Ok(instance) => instance,
        Err(failure) => {
            eprintln!("{failure}");
            return ExitCode::FAILURE;
        }
    };
    let run = run_number();
    match play(&mut instance, run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Leave(code)) => ExitCode::from(code),
        Err(Stop::Failed(failure)) => {
            let text = format!("run {run}: {failure}");
            eprintln!("{text}");
            if let Err(failure) = instance.failed(&text) {
                eprintln!("could not report it either: {failure}");
            }
            ExitCode::FAILURE
        }
    }
}

fn play(instance: &mut Instance, run: u32) -> Result<(), Stop> {
    instance.connect()?;
    let input = instance.input()?;
    let script = Script::read(&input, run).map_err(Failure::Other)?;
    let mut seen = Seen::default();
    for action in &script.actions {
        act(instance, &script, action, &mut seen)?;
    }
    instance.completed(&seen.output(run))?;
    Ok(())
}

fn act(
    instance: &mut Instance,
    script: &Script,
    action: &Action,
    seen: &mut Seen,
) -> Result<(), Stop> {
    match action {
        Action::Checkpoint(step) => {
            let value = checkpoint(instance, script, step)?;
            seen.note(&step.id, value);
        }
        Action::Sleep(Sleep { id, ms, state }) => instance.sleep(id, *ms, state.as_bytes())?,
        Action::Signal(id) => {
            let value = loop {
                if let Some(value) = instance.take_signal(id)? {
                    break value;
                }
                poll(instance)?;
                sleep(POLL_INTERVAL);
            };
            seen.note(id, value);
        }
        Action::TakeSignal(id) => {
            let value = instance.take_signal(id)?;
            seen.note(id, json!(value));
        }
        Action::WaitSignal(wait) => {
            let value = instance.wait_signal(&wait.id, wait.timeout_ms)?;
            seen.note(&wait.id, json!(value));
            poll(instance)?;
        }
        Action::Poll(_) => poll(instance)?,
        Action::AwaitOrder(_) => loop {
            poll(instance)?;
            sleep(POLL_INTERVAL);
        },
        Action::Event(event) => instance.event(&event.subtype, &event.payload)?,
        Action::Progress(progress) => {
            let payload = json!({"message": progress.message, "percent": progress.percent});
            instance.event("progress", &payload)?;
        }
        Action::Heartbeat(_) => instance.heartbeat(),
        Action::Retry(retry) => instance.retry(&retry.id, retry.attempt, &retry.error),
        Action::StatusOf(id) => {
            let status = instance.status_of(id)?;
            seen.note(id, status);
        }
        Action::Call(call) => {
            let answer = instance.call(&call.method, &call.path, &call.body)?;
            seen.note(&call.path, answer);
        }
        _ => last_word(instance, action)?,
    }
    Ok(())
}

/// Says the last word that the action demands, or does what needs no server.
fn last_word(instance: &mut Instance, action: &Action) -> Result<(), Stop> {
    match action {
        Action::Suspend(_) => {
            instance.suspended()?;
            Err(Stop::Leave(0))
        }
        Action::SuspendUntil(Sleep { id, ms, state }) => {
            let now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .expect("1970 is over");
            let wake = now + Duration::from_millis(*ms);
            let wake = i64::try_from(wake.as_millis()).expect("the year is below 292 million");
            instance.suspended_until(id, wake, state.as_bytes())?;
            Err(Stop::Leave(0))
        }
        Action::Complete(output) => {
            instance.completed(output)?;
            Err(Stop::Leave(0))
        }
        Action::Fail(error) => {
            instance.failed(error)?;
            Err(Stop::Leave(1))
        }
        other => Ok(act_alone(other).map_err(|error| Failure::Other(error.to_string()))?),
    }
}

/// Looks whether the step is done; if not, does it and saves it.
fn checkpoint(instance: &mut Instance, script: &Script, step: &Checkpoint) -> Result<Value, Stop> {
    let probe = instance.checkpoint(&step.id, b"")?;
    obey(instance, probe.signal.as_deref())?;
    let read = |state: &[u8]| {
        serde_json::from_slice(state)
            .map_err(|error| Failure::Other(format!("checkpoint {}: {error}", step.id)))
    };
    if let Some(state) = probe.found {
        return Ok(read(&state)?);
    }
    let effect = script.effect(step);
    let value = effect.map_err(|error| Failure::Other(error.to_string()))?;
    sleep(Duration::from_millis(step.work_ms));
    let saved = instance.checkpoint(&step.id, value.to_string().as_bytes())?;
    obey(instance, saved.signal.as_deref())?;
    match saved.found {
        Some(state) => Ok(read(&state)?),
        None => Ok(value),
    }
}

fn poll(instance: &mut Instance) -> Result<(), Stop> {
    let signal = instance.poll_signal()?;
    obey(instance, signal.as_deref())
}

fn obey(instance: &mut Instance, signal: Option<&str>) -> Result<(), Stop> {
    match signal {
        None | Some("resume") => Ok(()),
        Some("pause") => {
            instance.acknowledge("pause")?;
            instance.suspended()?;
            Err(Stop::Leave(0))
        }
        // The published client reads every type that it does not know as a cancel.
        Some(_) => {
            instance.acknowledge("cancel")?;
            Err(Stop::Leave(1))
        }
    }
}
