//! Plays a script as `speaks_the_protocol` does, and keeps a ledger of it outside of the server: one line for each thing that it does,
//! and one every so often to say that it lives.
//!
//! ```text
//! <nanoseconds of CLOCK_BOOTTIME> <instance> <run> <process> begin|alive|step|saved|found|end [<id> [<value>]]
//! ```
//!
//! `step` is the effect of a step, written before it is saved; `saved` and `found` follow the answer of the server, with what is saved.
//! Where the input names no `ledger_file` it leaves an event of the kind `effects_event` for each effect instead, with `"<id> <run>"`.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use runtara_test_programs::blocking::{Failure, Instance};
use runtara_test_programs::script::{Action, Checkpoint, Script, Seen, act_alone, run_number};
use serde_json::{Value, json};

/// How often it asks for a signal.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How often it says that it lives.
const SIGN_OF_LIFE: Duration = Duration::from_millis(100);

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

/// Where it is told what was done.
struct Ledger {
    file: Option<File>,
    event: Option<String>,
    instance: String,
    run: u32,
}

impl Ledger {
    fn of(input: &Value, run: u32) -> Result<Self, Failure> {
        let text = |key: &str| input.get(key).and_then(Value::as_str).map(str::to_owned);
        let open = |path: String| {
            let file = OpenOptions::new().append(true).open(&path);
            file.map_err(|error| Failure::Other(format!("the ledger {path}: {error}")))
        };
        Ok(Self {
            file: text("ledger_file").map(open).transpose()?,
            event: text("effects_event"),
            instance: std::env::var("RUNTARA_INSTANCE_ID").unwrap_or_default(),
            run,
        })
    }

    fn write(&self, what: &str) {
        if let Some(file) = &self.file {
            write_line(file, &self.instance, self.run, what);
        }
    }

    /// Says every so often that this process lives.
    fn live_on(&self) -> Result<(), Failure> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let file = file.try_clone();
        let file = file.map_err(|error| Failure::Other(error.to_string()))?;
        let (instance, run) = (self.instance.clone(), self.run);
        std::thread::spawn(move || {
            loop {
                write_line(&file, &instance, run, "alive");
                sleep(SIGN_OF_LIFE);
            }
        });
        Ok(())
    }
}

fn write_line(mut file: &File, instance: &str, run: u32, what: &str) {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock");
    let nanoseconds = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
    let line = format!(
        "{nanoseconds} {instance} {run} {} {what}\n",
        std::process::id()
    );
    // One write, so that lines of several processes do not mix. A ledger that cannot be written proves nothing.
    file.write_all(line.as_bytes())
        .expect("the ledger can be written");
}

fn main() -> ExitCode {
    let run = run_number();
    let mut instance = match Instance::from_env() {
        Ok(instance) => instance,
        Err(failure) => {
            eprintln!("{failure}");
            return ExitCode::FAILURE;
        }
    };
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
    // Before the first call: a run that cannot reach the server lives as well. The input is on standard input, too.
    let input = std::io::read_to_string(std::io::stdin());
    let input = input.map_err(|error| Failure::Other(error.to_string()))?;
    let input: Value =
        serde_json::from_str(&input).map_err(|error| Failure::Other(error.to_string()))?;
    let ledger = Ledger::of(&input, run)?;
    ledger.write("begin");
    ledger.live_on()?;
    instance.connect()?;
    let script = Script::read(&input, run).map_err(Failure::Other)?;
    let mut seen = Seen::default();
    for action in &script.actions {
        act(instance, &ledger, action, &mut seen)?;
    }
    instance.completed(&seen.output(run))?;
    ledger.write("end");
    Ok(())
}

fn act(
    instance: &mut Instance,
    ledger: &Ledger,
    action: &Action,
    seen: &mut Seen,
) -> Result<(), Stop> {
    match action {
        Action::Checkpoint(step) => {
            let value = checkpoint(instance, ledger, step)?;
            seen.note(&step.id, value);
        }
        Action::Sleep(it) => instance.sleep(&it.id, it.ms, it.state.as_bytes())?,
        Action::Signal(id) => {
            let value = received(instance, id, |instance| {
                loop {
                    if let Some(value) = instance.take_signal(id)? {
                        return Ok(value);
                    }
                    poll(instance)?;
                    sleep(POLL_INTERVAL);
                }
            })?;
            seen.note(id, value);
        }
        Action::WaitSignal(wait) => {
            let value = received(instance, &wait.id, |instance| {
                Ok(json!(instance.wait_signal(&wait.id, wait.timeout_ms)?))
            })?;
            seen.note(&wait.id, value);
            poll(instance)?;
        }
        Action::Poll(_) => poll(instance)?,
        Action::Heartbeat(_) => instance.heartbeat(),
        Action::Event(event) => instance.event(&event.subtype, &event.payload)?,
        Action::Fail(error) => {
            instance.failed(error)?;
            return Err(Stop::Leave(1));
        }
        other => act_alone(other).map_err(|error| Failure::Other(error.to_string()))?,
    }
    Ok(())
}

/// Gives what a signal brought: what is saved of it, else what comes. It is saved before anything else is, for a signal that was read is
/// shown again only until the run that has read it saves something.
fn received(
    instance: &mut Instance,
    id: &str,
    wait: impl FnOnce(&mut Instance) -> Result<Value, Stop>,
) -> Result<Value, Stop> {
    let name = format!("signal-{id}");
    let read = |state: &[u8]| -> Result<Value, Failure> {
        serde_json::from_slice(state)
            .map_err(|error| Failure::Other(format!("checkpoint {name}: {error}")))
    };
    if let Some(state) = instance.checkpoint(&name, b"")?.found {
        return Ok(read(&state)?);
    }
    let value = wait(instance)?;
    let saved = instance.checkpoint(&name, value.to_string().as_bytes())?;
    match saved.found {
        Some(state) => Ok(read(&state)?),
        None => Ok(value),
    }
}

/// Looks whether the step is done; if not, does it and saves it.
fn checkpoint(instance: &mut Instance, ledger: &Ledger, step: &Checkpoint) -> Result<Value, Stop> {
    let probe = instance.checkpoint(&step.id, b"")?;
    obey(instance, probe.signal.as_deref())?;
    let read = |state: &[u8]| -> Result<Value, Failure> {
        serde_json::from_slice(state)
            .map_err(|error| Failure::Other(format!("checkpoint {}: {error}", step.id)))
    };
    if let Some(state) = probe.found {
        let value = read(&state)?;
        ledger.write(&format!("found {} {value}", step.id));
        return Ok(value);
    }
    ledger.write(&format!("step {}", step.id));
    if let Some(event) = &ledger.event {
        instance.event(event, &json!(format!("{} {}", step.id, ledger.run)))?;
    }
    sleep(Duration::from_millis(step.work_ms));
    let value = step.value.clone().unwrap_or_else(|| json!(ledger.run));
    let saved = instance.checkpoint(&step.id, value.to_string().as_bytes())?;
    let value = match saved.found {
        Some(state) => read(&state)?,
        None => value,
    };
    ledger.write(&format!("saved {} {value}", step.id));
    obey(instance, saved.signal.as_deref())?;
    Ok(value)
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
        Some(_) => {
            instance.acknowledge("cancel")?;
            Err(Stop::Leave(1))
        }
    }
}
