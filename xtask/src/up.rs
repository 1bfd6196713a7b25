//! `cargo xtask up`: the product in one minute, on a machine without anything.
//!
//! The sample is started, its process killed in mid-step, the server killed with SIGKILL; it comes
//! back, sleeps, wakes, waits for a signal and completes. What the product promises is checked on
//! the way, so that `--exit` is a test of the whole.

mod narrator;
mod order;
mod server;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::narrator::Narrator;
use self::order::{Event, Order, SAMPLE, is_alive};
use self::server::{DEFAULT_PORT, Ports, Server, program};
use crate::command::{cargo, quoted, run as run_command, signal};
use crate::error::Error;
use crate::{interrupt, packages};

/// The number of the order in the sample's input and in its result.
const ORDER: &str = "A-1042";
/// What the signal brings, and the result must say.
const SIGNED_BY: &str = "the neighbour";
/// Within what a sleeper must be seen to run after its time. Milliseconds are the aim, and the bench measures them; this is for
/// machines that have much else to do.
const WAKE_LIMIT: Duration = Duration::from_secs(5);

/// Watch a durable workflow be killed, come back, sleep, wake and finish.
///
/// Builds the server, the command line and a sample, and serves on 127.0.0.1 until Ctrl-C. Needs
/// no database server and changes nothing outside its directory.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Keep everything in this directory, and not in a new one that goes with the server.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Serve the environment protocol on this port, the core on the ports before and after it; 0: all on free ports.
    #[arg(long, default_value_t = DEFAULT_PORT)]
    port: u16,
    /// Leave at the end; fails unless everything was as promised.
    #[arg(long)]
    exit: bool,
    /// Build the server with all that it can be built with: WebAssembly takes minutes, and the story does without.
    #[arg(long)]
    whole: bool,
}

impl Arguments {
    /// What tests want: a directory that goes with it, ports that nobody has, and an end.
    pub(crate) fn to_its_end() -> Self {
        Self {
            data_dir: None,
            port: 0,
            exit: true,
            // As it was built for the tests, which go on with it.
            whole: true,
        }
    }
}

/// Tells the story and goes on serving.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    eprintln!("building the server, the command line and the sample");
    let mut build = cargo(["build"]);
    build.args(packages::selected(&[packages::UP]));
    if !arguments.whole {
        build.arg("--no-default-features");
    }
    run_command(&mut build)?;
    let place = Place::make(arguments.data_dir.as_deref())?;
    let narrator = Narrator::begin();
    let outcome = serve(arguments, narrator, &place.directory);
    match &outcome {
        Ok(()) | Err(Error::Interrupted) => place.leave(),
        Err(_) => {
            eprintln!("{}", Server::end_of_log(&place.directory));
            eprintln!("everything is left in {}", place.directory.display());
        }
    }
    // Ctrl-C is how serving ends: no failure, unless an answer was awaited.
    match outcome {
        Err(Error::Interrupted) if !arguments.exit => Ok(()),
        other => other,
    }
}

fn serve(arguments: &Arguments, narrator: Narrator, directory: &Path) -> Result<(), Error> {
    let ports = choose_ports(narrator, arguments.port)?;
    let server = Server::start(directory, ports)?;
    narrator.say(format!(
        "the server is ready on http://127.0.0.1:{} (process {}), with SQLite under {}",
        ports.environment,
        server.pid(),
        directory.display()
    ));
    let (mut server, id) = story(narrator, server, directory, ports)?;
    say_what_next(ports, &id);
    if arguments.exit {
        return server.stop();
    }
    narrator.say("serving until Ctrl-C");
    loop {
        if let Some(status) = server.exited()? {
            return Err(Error::Unmet(format!(
                "the server left by itself ({status})"
            )));
        }
        interrupt::pause(Duration::from_millis(200))?;
    }
}

/// The story itself, chapter by chapter; gives the server that is left at its end.
fn story(
    narrator: Narrator,
    server: Server,
    directory: &Path,
    ports: Ports,
) -> Result<(Server, String), Error> {
    let id = new_id();
    let mut order = Order::start(narrator, server.client(), directory, &id, &order_input())?;
    kill_program(narrator, &mut order)?;
    let server = kill_server(narrator, &mut order, server, directory, ports)?;
    sleep_and_wake(narrator, &mut order)?;
    order.watch_until("the instance to wait for the signal", |_, it| {
        it.waits("waiting_signal")
    })?;
    narrator.strike("sending it the signal `delivered`");
    order.send_signal("delivered", &json!({"signed_by": SIGNED_BY}))?;
    let end = order.watch_until("the instance to complete", |_, it| it.status == "completed")?;
    let result = end
        .result()
        .ok_or_else(|| Error::Unmet("it has no result".to_owned()))?;
    println!("\n{result:#}\n");
    check_promises(narrator, &order, &result)?;
    Ok((server, id))
}

/// Kills the program in the middle of a step, and sees it come back.
fn kill_program(narrator: Narrator, order: &mut Order) -> Result<(), Error> {
    order.watch_until("the first step to be saved", |order, it| {
        it.status == "running" && !order.saved().is_empty()
    })?;
    let pid = live_process(order, 1)?;
    signal(pid, Signal::SIGKILL);
    narrator.strike(format!(
        "killed its process ({pid}) in the middle of the next step"
    ));
    let saved = order.saved().len();
    order.watch_until("a second run to go on from the checkpoints", |order, it| {
        it.run_number == Some(2) && order.saved().len() > saved
    })?;
    Ok(())
}

/// Kills the server while a step is at work, starts it again, and sees the step finish.
fn kill_server(
    narrator: Narrator,
    order: &mut Order,
    server: Server,
    directory: &Path,
    ports: Ports,
) -> Result<Server, Error> {
    let run = live_process(order, 2)?;
    let saved = order.saved().len();
    let pid = server.pid();
    server.kill()?;
    narrator.strike(format!("killed the server ({pid}) with -9"));
    if !is_alive(run) {
        return Err(Error::Unmet(format!(
            "the program ({run}) died with the server"
        )));
    }
    narrator.say(format!("the program ({run}) lives on without a server"));
    let server = Server::start(directory, ports)?;
    narrator.say(format!("the server is back (process {})", server.pid()));
    order.talk_to(server.client());
    let after = order.watch_until("a step to be saved after the restart", |order, it| {
        order.saved().len() > saved || it.waits("sleeping")
    })?;
    check_taken_back(run, after.run_number, order.saved())?;
    narrator.say(format!(
        "the same program ({run}) went on: the server took it back"
    ));
    Ok(server)
}

/// Checks that the program of the second run was not replaced. By now it may have left for its sleep: so its work is looked at.
fn check_taken_back(
    pid: u32,
    run_number: Option<u64>,
    saved: &[order::Checkpoint],
) -> Result<(), Error> {
    if run_number != Some(2) {
        return Err(Error::Unmet(format!(
            "the server that came back did not take the program of run 2 (process {pid}) back: the run is now {run_number:?}"
        )));
    }
    match saved.iter().find(|it| it.run_number > 2) {
        None => Ok(()),
        Some(step) => Err(Error::Unmet(format!(
            "step {} was saved by run {} after the restart, and not by run 2 (process {pid})",
            step.checkpoint_id, step.run_number
        ))),
    }
}

/// Sees the instance sleep without a process, and wake on time.
fn sleep_and_wake(narrator: Narrator, order: &mut Order) -> Result<(), Error> {
    let asleep = order.watch_until("the instance to sleep", |_, it| it.waits("sleeping"))?;
    let run = asleep.run_number.unwrap_or_default();
    interrupt::until(
        "the sleeper's process to be gone",
        Duration::from_secs(10),
        || Ok(order.process(run).is_none().then_some(())),
    )?;
    let due = asleep
        .due_at_ms
        .ok_or_else(|| Error::Unmet("it sleeps without an end".to_owned()))?;
    let left = Duration::from_millis((due - now_ms()).max(0).unsigned_abs());
    narrator.say(format!(
        "it sleeps for {:.1} s more, and has no process",
        left.as_secs_f64()
    ));
    order.watch_until("the instance to wake", |_, it| it.run_number > Some(run))?;
    let lag = now_ms() - due;
    check_wake(lag)?;
    narrator.say(format!("it woke, seen {lag} ms after its time"));
    Ok(())
}

/// Checks by how many milliseconds a sleeper was late.
fn check_wake(lag: i64) -> Result<(), Error> {
    match u64::try_from(lag) {
        Err(_) => Err(Error::Unmet(format!("it woke {} ms too early", -lag))),
        Ok(late) if Duration::from_millis(late) > WAKE_LIMIT => Err(Error::Unmet(format!(
            "it woke {late} ms after its time, and should within {} ms",
            WAKE_LIMIT.as_millis()
        ))),
        Ok(_) => Ok(()),
    }
}

/// Checks from the outside that the result is right, nothing was lost and nothing happened twice.
fn check_promises(narrator: Narrator, order: &Order, result: &Value) -> Result<(), Error> {
    for (field, wanted) in [("order", ORDER), ("signed_by", SIGNED_BY)] {
        if result.get(field).and_then(Value::as_str) != Some(wanted) {
            return Err(Error::Unmet(format!(
                "the result does not say {wanted:?} as {field}"
            )));
        }
    }
    let steps = steps_of(result)?;
    for (name, run) in &steps {
        let saved = order.saved().iter().filter(|it| it.checkpoint_id == *name);
        let saved: Vec<u64> = saved.map(|it| it.run_number).collect();
        if saved != [*run] {
            return Err(Error::Unmet(format!(
                "step {name} is saved by the runs {saved:?}, and the result says run {run}"
            )));
        }
    }
    let runs: Vec<u64> = steps.iter().map(|(_, run)| *run).collect();
    if !runs.is_sorted() || runs.first() != Some(&1) || runs.last() <= Some(&2) {
        return Err(Error::Unmet(format!(
            "the steps were not done across the kills: {steps:?}"
        )));
    }
    let count = |is: &dyn Fn(&&Event) -> bool| order.events().iter().filter(is).count();
    let ends = count(&|event| event.event_type == "completed");
    let crashes = count(&|event| event.subtype.as_deref() == Some("runtara.crashed"));
    if (ends, crashes) != (1, 1) {
        return Err(Error::Unmet(format!(
            "its life has {ends} ends and {crashes} crashes, and should have one of each"
        )));
    }
    narrator.say(format!(
        "as promised: {} steps, each done once, by {} runs, across a crash and a killed server",
        steps.len(),
        order
            .saved()
            .iter()
            .map(|it| it.run_number)
            .max()
            .unwrap_or_default()
    ));
    Ok(())
}

/// Gives the steps of the sample's result with the number of the run that executed each.
fn steps_of(result: &Value) -> Result<Vec<(String, u64)>, Error> {
    let step = |step: &Value| {
        let name = step.get("step")?.as_str()?.to_owned();
        Some((name, step.get("run")?.as_u64()?))
    };
    let steps = result
        .get("steps")
        .and_then(Value::as_array)
        .map(|steps| steps.iter().map(step));
    steps.and_then(Iterator::collect).ok_or_else(|| {
        Error::Unmet(format!(
            "the result names no steps with their runs: {result}"
        ))
    })
}

fn live_process(order: &Order, run: u64) -> Result<u32, Error> {
    interrupt::until("the process of the run", Duration::from_secs(10), || {
        Ok(order.process(run))
    })
}

fn say_what_next(ports: Ports, id: &str) {
    let cli = program("runtara");
    let here = std::env::current_dir().unwrap_or_default();
    let cli = quoted(&cli.strip_prefix(here).unwrap_or(&cli).display().to_string());
    println!("\ntry next:");
    if ports.environment != DEFAULT_PORT {
        println!(
            "  export RUNTARA_ENVIRONMENT_ADDR=127.0.0.1:{}",
            ports.environment
        );
    }
    println!("  {cli} events {id}");
    println!("  {cli} start --image {SAMPLE} --id mine --wait");
    println!("  {cli} signal mine delivered '{{\"signed_by\": \"me\"}}'  # in another terminal\n");
}

fn choose_ports(narrator: Narrator, wanted: u16) -> Result<Ports, Error> {
    if wanted == 0 {
        return Ports::free();
    }
    let ports = Ports::around(wanted)?;
    let taken = ports.taken();
    if taken.is_empty() {
        return Ok(ports);
    }
    let taken: Vec<_> = taken.iter().map(ToString::to_string).collect();
    narrator.say(format!(
        "in use by others: port {}; free ones are taken instead",
        taken.join(", ")
    ));
    Ports::free()
}

fn order_input() -> Value {
    json!({"order": ORDER, "items": ["teapot", "six cups"]})
}

/// Makes an id that no earlier story in the same directory had.
fn new_id() -> String {
    format!("order-{}", now_ms())
}

fn now_ms() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("1970 is over");
    i64::try_from(now.as_millis()).expect("the year is below 292 million")
}

/// The directory of everything that the server keeps.
struct Place {
    directory: PathBuf,
    ours: bool,
}

impl Place {
    fn make(given: Option<&Path>) -> Result<Self, Error> {
        let ours = given.is_none();
        let name = format!("runtara-up-{}", std::process::id());
        let directory = given.map_or_else(|| std::env::temp_dir().join(name), Path::to_path_buf);
        let action = || format!("make {}", directory.display());
        // A new one must not exist: in a directory for all, somebody else could have made it.
        DirBuilder::new()
            .recursive(!ours)
            .mode(0o700)
            .create(&directory)
            .map_err(Error::io(action()))?;
        // Absolute: the server has it as its working directory.
        let directory = directory.canonicalize().map_err(Error::io(action()))?;
        Ok(Self { directory, ours })
    }

    /// Removes the directory if it was made for this story.
    fn leave(&self) {
        if self.ours
            && let Err(error) = fs::remove_dir_all(&self.directory)
        {
            eprintln!("could not remove {}: {error}", self.directory.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_breaks_the_promise() {
        let saved = |runs: &[u64]| -> Vec<order::Checkpoint> {
            let step = |run: &u64| json!({"checkpoint_id": "pack", "run_number": run});
            let steps: Value = runs.iter().map(step).collect();
            serde_json::from_value(steps).expect("these are checkpoints")
        };
        assert!(check_taken_back(7, Some(2), &saved(&[1, 2, 2])).is_ok());
        for (run, runs) in [(Some(3), &[1, 2][..]), (None, &[1]), (Some(2), &[1, 3])] {
            let answer = check_taken_back(7, run, &saved(runs));
            assert!(answer.is_err(), "{run:?} {runs:?}");
        }
    }

    #[test]
    fn a_wake_is_neither_early_nor_much_too_late() {
        assert!(check_wake(0).is_ok() && check_wake(4_999).is_ok());
        assert!(check_wake(-1).is_err() && check_wake(5_001).is_err());
    }

    #[test]
    fn steps_and_their_runs_are_read_from_the_result() {
        let result = json!({"steps": [{"step": "reserve", "run": 1}, {"step": "pay", "run": 2}]});
        let steps = steps_of(&result).expect("it has steps");
        assert_eq!(steps, [("reserve".to_owned(), 1), ("pay".to_owned(), 2)]);
        for broken in [json!({}), json!({"steps": [{"step": "pay"}]}), json!(null)] {
            assert!(
                steps_of(&broken).is_err(),
                "{broken} was taken for a result"
            );
        }
    }
}
