//! The proof of the promises: real servers on a real store, several hundred instances, faults of all kinds at random and at named
//! points, and then a look from the outside at what became of it all.
//!
//! Started by `cargo xtask fault`, which builds what it needs. Everything follows from the seed, but for the order in which the machine
//! does things.

mod driver;
mod field;
mod injector;
mod judge;
mod ledger;
mod leftovers;
mod plan;
mod watcher;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use fastrand::Rng;
use runtara_tests::http::{Address, Request, exchange};
use runtara_tests::{Store, clean_up_after_the_dead, guest, image, program};
use serde_json::{Value, json};

use crate::driver::{Driver, image_of, registration};
use crate::field::{Field, Notes};
use crate::injector::{Fault, Injector};
use crate::judge::{Checkpoint, Event, Told};
use crate::ledger::{Broken, Ledger};
use crate::plan::{Kind, Planned, Registered};

/// How long everything may take to come to its end when nothing disturbs it any more: the longest pause before a relaunch is a minute.
const QUIET_LIMIT: Duration = Duration::from_secs(240);
/// How long what is left of runs may take to be gone.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(30);

/// Breaks what can be broken, and looks whether the promises hold.
#[derive(Parser)]
struct Arguments {
    /// All that is random follows from it; chosen and printed unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// For how long faults are injected, for each store: `90s`, `15m`.
    #[arg(long, default_value = "15m", value_parser = duration)]
    time: Duration,
    /// The store of the servers.
    #[arg(long, value_enum, default_value_t = Stores::Both)]
    store: Stores,
    /// How many instances are started, for each store.
    #[arg(long, default_value_t = 300)]
    instances: usize,
    /// How many servers there are, with PostgreSQL; several share their images. With SQLite there is always one.
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Only programs of these kinds.
    #[arg(long, value_enum)]
    kind: Vec<Kind>,
    /// Only these faults.
    #[arg(long, value_enum)]
    only: Vec<Fault>,
    /// Where what is known of a broken promise is kept.
    #[arg(long, default_value = "target/fault")]
    keep: PathBuf,
    /// Cleans up when whoever started it is gone. Not for people.
    #[arg(long, hide = true)]
    janitor: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Stores {
    Postgres,
    Sqlite,
    Both,
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.len() - text.len().min(1));
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(format!("{text:?} is no time like 90s, 15m or 1h")),
    };
    let number: u64 = number
        .parse()
        .map_err(|error| format!("{text:?}: {error}"))?;
    Ok(Duration::from_secs(number * factor))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.janitor {
        return janitor();
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let _janitor = Janitor::start();
    ends_with_any_thread();
    let stores = match arguments.store {
        Stores::Postgres => vec![Store::Postgres],
        Stores::Sqlite => vec![Store::Sqlite],
        Stores::Both => vec![Store::Sqlite, Store::Postgres],
    };
    let mut is_fine = true;
    for store in stores {
        is_fine &= prove(&arguments, seed, store);
    }
    if is_fine {
        ExitCode::SUCCESS
    } else {
        println!("repeat it with --seed {seed}");
        ExitCode::FAILURE
    }
}

/// Ends the process when a thread panics, for which the others would be waited for in vain.
fn ends_with_any_thread() {
    let tells = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tells(panic);
        std::process::exit(101);
    }));
}

/// A process that cleans up when this one is gone, however that came.
struct Janitor(Child);

impl Janitor {
    fn start() -> Self {
        let me = std::env::current_exe().expect("a process can tell its own program");
        let janitor = Command::new(me)
            .arg("--janitor")
            .stdin(Stdio::piped())
            // Ctrl-C is not for it.
            .process_group(0)
            .spawn();
        Self(janitor.expect("this very program can be started"))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ended = self.0.wait();
    }
}

/// Waits until the other end of its input is gone, and removes what is left.
fn janitor() -> ExitCode {
    let _gone = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    for _ in 0..5 {
        clean_up_after_the_dead();
        sleep(Duration::from_millis(200));
    }
    ExitCode::SUCCESS
}

/// Proves one store, says what was found, and whether all is as promised.
fn prove(arguments: &Arguments, seed: u64, store: Store) -> bool {
    let name = match store {
        Store::Sqlite => "sqlite",
        Store::Postgres => "postgres",
    };
    println!(
        "== seed {seed}, {name}: {} instances, faults for {:?}",
        arguments.instances, arguments.time
    );
    let keep = arguments.keep.join(format!("{seed}-{name}"));
    let _none_yet = fs::remove_dir_all(&keep);
    fs::create_dir_all(&keep).expect("the directory for what is kept can be made");
    let log = File::create(keep.join("faults.log")).expect("the directory is ours");
    let notes = Notes::to(log);
    let began = Instant::now();
    let proof = Proof::run(arguments, seed, store, &notes);
    for (what, count) in notes.counts() {
        println!("   {count:>6}  {what}");
    }
    println!(
        "   {:>6}  lines in the ledger, of {} runs; {} of these were of guests",
        proof.ledger.len(),
        proof.ledger.runs(),
        proof.runs_of_guests,
    );
    let broken = notes.all_broken();
    if broken.is_empty() {
        println!(
            "== seed {seed}, {name}: every promise held ({:.0?})",
            began.elapsed()
        );
        let _gone = fs::remove_dir_all(&keep);
        return true;
    }
    proof.keep(&keep, &broken);
    for one in broken.iter().take(40) {
        let instance = one.instance.as_deref().unwrap_or("-");
        let what: String = one.what.chars().take(600).collect();
        println!("   BROKEN {instance}: {what}");
    }
    println!(
        "== seed {seed}, {name}: {} broken promises; their stories are in {}",
        broken.len(),
        keep.display()
    );
    false
}

/// What is left of a proof.
struct Proof {
    field: Field,
    ledger: Ledger,
    runs_of_guests: usize,
    plan: Vec<Planned>,
    told: BTreeMap<String, Told>,
}

impl Proof {
    fn run(arguments: &Arguments, seed: u64, store: Store, notes: &Notes) -> Self {
        let mut rng = Rng::with_seed(seed);
        let kinds = match arguments.kind.as_slice() {
            [] => vec![Kind::Native, Kind::Oci, Kind::Wasm],
            some => some.to_vec(),
        };
        let mut plan = plan::plan(&mut rng, arguments.instances, arguments.time, &kinds);
        let field = Field::start(store, arguments.nodes);
        let ledger = field.nodes[0].shared().path("ledger");
        fs::write(&ledger, "").expect("the directory is ours");
        fs::set_permissions(&ledger, fs::Permissions::from_mode(0o666)).expect("it is ours");
        let addresses = field.addresses();
        let images = register_all(&addresses, &kinds);
        notes.say("begin");
        let until = Instant::now() + arguments.time;
        let deadline = until + QUIET_LIMIT;
        let (nodes, place) = (&field.node_ids(), Path::new(&ledger));
        let driver = Driver::new(notes, &addresses, &images, &ledger);
        let injector = Injector {
            field,
            notes,
            rng: rng.fork(),
            only: arguments.only.clone(),
            drained: None,
        };
        let pause = if arguments.time > Duration::from_secs(120) {
            200..3_000
        } else {
            100..2_000
        };
        let registers = rng.fork();
        let (mut field, fresh) = std::thread::scope(|scope| {
            let (_watching, watched) = mpsc::channel();
            let (_telling, told) = mpsc::channel();
            scope.spawn(move || watcher::watch_containers(nodes, place, &watched));
            scope.spawn(move || watcher::tell(notes, arguments.time, place, &told));
            let injected = scope.spawn(|| injector.run(until, pause));
            let driven = scope.spawn(|| driver.drive(&plan, 8, deadline));
            let registered = scope.spawn(|| driver.register(registers, &kinds, until));
            let joined = (injected.join(), driven.join(), registered.join());
            let (Ok(field), Ok(()), Ok(fresh)) = joined else {
                unreachable!("a panic of any thread ends the process");
            };
            wait_for_ends(notes, &addresses, plan.iter().chain(&fresh), deadline);
            (field, fresh)
        });
        plan.extend(fresh);
        let mut text = fs::read_to_string(&ledger).unwrap_or_default();
        let of_guests = field.ledger_of_guests().concat();
        let runs_of_guests = Ledger::read(&of_guests).map_or(0, |it| it.runs());
        text.push_str(&of_guests);
        let _unwritten = fs::write(&ledger, &text);
        let ledger = Ledger::read(&text).unwrap_or_else(|what| {
            notes.broken(Broken::at_large(what));
            Ledger::default()
        });
        for broken in ledger.broken() {
            notes.broken(broken);
        }
        let mut all_told = BTreeMap::new();
        for planned in &plan {
            match told(&addresses[0], planned) {
                Ok(it) => {
                    notes.count(format!("end: {}", it.status));
                    for broken in judge::broken(planned, &it, ledger.of(&planned.id)) {
                        notes.broken(broken);
                    }
                    all_told.insert(planned.id.clone(), it);
                }
                Err(what) => notes.broken(Broken::of(&planned.id, what)),
            }
        }
        let fresh = plan.iter().filter_map(|it| it.image.as_ref());
        let registered: Vec<_> = images.values().chain(fresh).collect();
        leave(&mut field, &registered, notes);
        Self {
            field,
            ledger,
            runs_of_guests,
            plan,
            told: all_told,
        }
    }

    /// Keeps what is known of broken promises.
    fn keep(&self, place: &Path, broken: &[Broken]) {
        let mut logs = String::new();
        for (number, server) in self.field.nodes.iter().enumerate() {
            let log = server.log();
            let _unwritten = fs::write(place.join(format!("server-{number}.log")), &log);
            logs.push_str(&log);
            for file in ["runtara.db", "runtara.db-wal", "runtara.db.redo"] {
                let _none = fs::copy(server.data_dir().join(file), place.join(file));
            }
        }
        let _none = fs::copy(
            self.field.nodes[0].shared().path("ledger"),
            place.join("ledger"),
        );
        let mut ids: Vec<_> = broken.iter().filter_map(|it| it.instance.clone()).collect();
        ids.sort();
        ids.dedup();
        for id in ids {
            let mut story = String::new();
            for one in broken.iter().filter(|it| it.instance.as_ref() == Some(&id)) {
                story.push_str(&format!("BROKEN: {}\n", one.what));
            }
            let planned = self.plan.iter().find(|it| it.id == id);
            story.push_str(&format!("\nplanned: {planned:#?}\n\nthe ledger:\n"));
            for line in self.ledger.of(&id) {
                story.push_str(&format!("{line:?}\n"));
            }
            story.push_str("\nwhat was done, and the log of the servers:\n");
            let done = fs::read_to_string(place.join("faults.log")).unwrap_or_default();
            for line in done
                .lines()
                .chain(logs.lines())
                .filter(|line| line.contains(&id))
            {
                story.push_str(&format!("{line}\n"));
            }
            story.push_str(&format!(
                "\nwhat is told of it: {:#?}\n",
                self.told.get(&id)
            ));
            let _unwritten = fs::write(place.join(format!("{id}.txt")), story);
        }
    }
}

/// Registers the program of each kind before anything is broken, each with another of the servers: all of them can run it.
fn register_all(addresses: &[Address], kinds: &[Kind]) -> BTreeMap<Kind, Registered> {
    let mut images = BTreeMap::new();
    for (kind, address) in kinds.iter().zip(addresses.iter().cycle()) {
        let path = program("keeps_a_ledger");
        let binary = || fs::read(&path).expect("the program was built");
        let content = match kind {
            Kind::Native => binary(),
            Kind::Oci => {
                let layer = image::Layer::new()
                    .program("bin/program", binary())
                    .finish();
                let config = json!({"Entrypoint": ["/bin/program"]});
                image::archive(&[image::base_layer(), &layer], &config)
            }
            Kind::Wasm => guest::like("speaks_the_protocol"),
        };
        let request = registration(&format!("{kind:?}").to_lowercase(), *kind, &content);
        let answer = exchange(address, &request).expect("the server answers");
        assert_eq!(answer.status, 201, "{kind:?}: {answer}");
        images.insert(*kind, image_of(&answer, &content));
    }
    images
}

/// Waits until all have ended.
fn wait_for_ends<'a>(
    notes: &Notes,
    addresses: &[Address],
    plan: impl Iterator<Item = &'a Planned>,
    deadline: Instant,
) {
    let mut open: Vec<_> = plan.collect();
    while !open.is_empty() && Instant::now() < deadline {
        open.retain(|planned| {
            let path = format!("/api/v1/instances/{}", planned.id);
            let found = get(&addresses[0], &path).unwrap_or_default();
            let status = found["status"].as_str().unwrap_or_default();
            !["completed", "failed", "cancelled"].contains(&status)
        });
        sleep(Duration::from_millis(300));
    }
    notes.say(&format!("{} have not ended", open.len()));
}

fn get(address: &Address, path: &str) -> Result<Value, String> {
    let answer = exchange(address, &Request::get(path)).map_err(|error| error.to_string())?;
    if answer.status != 200 {
        return Err(answer.to_string());
    }
    serde_json::from_slice(&answer.body).map_err(|error| error.to_string())
}

fn decoded(value: &Value) -> String {
    if value.is_null() {
        return String::new();
    }
    runtara_tests::from_base64(value)
}

/// All that the server tells of an instance.
fn told(address: &Address, planned: &Planned) -> Result<Told, String> {
    let path = |rest: &str| format!("/api/v1/instances/{}{rest}", planned.id);
    let found = get(address, &path(""))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| u32::try_from(value.as_u64().unwrap_or(0)).unwrap_or(0);
    let listed = get(address, &path("/checkpoints?limit=1000"))?;
    let mut checkpoints = Vec::new();
    for row in listed["checkpoints"].as_array().into_iter().flatten() {
        let id = text(&row["checkpoint_id"]);
        if planned.steps.contains(&id) {
            let one = get(address, &path(&format!("/checkpoints/{id}")))?;
            checkpoints.push(Checkpoint {
                value: decoded(&one["data"]),
                run: number(&row["run_number"]),
                id,
            });
        }
    }
    let listed = get(address, &path("/events?sort_order=asc&limit=1000"))?;
    let events = listed["events"].as_array().into_iter().flatten();
    let event = |event: &Value| Event {
        run: number(&event["run_number"]),
        kind: text(&event["event_type"]),
        subtype: text(&event["subtype"]),
        payload: decoded(&event["payload"]),
    };
    Ok(Told {
        status: text(&found["status"]),
        error: text(&found["error"]),
        output: serde_json::from_str(&decoded(&found["output"])).unwrap_or_default(),
        run_number: number(&found["run_number"]),
        checkpoints,
        events: events.map(event).collect(),
    })
}

/// Has all servers leave, and looks at what is left, and whether these images are still where servers share them.
fn leave(field: &mut Field, images: &[&Registered], notes: &Notes) {
    let end = Instant::now() + LEFTOVERS_LIMIT;
    // An instance has ended before its last process has left, whose files go then.
    let untidy = loop {
        let untidy = field.tidy();
        let is_tidy = untidy.is_empty() && field.left_by_runs().is_empty();
        if is_tidy || Instant::now() > end {
            break untidy;
        }
        sleep(Duration::from_millis(500));
    };
    for what in untidy {
        notes.broken(Broken::at_large(what));
    }
    for node in 0..field.nodes.len() {
        if field.nodes[node].has_left().is_some() {
            notes.broken(Broken::at_large(format!(
                "node {node} left by itself in the end"
            )));
            continue;
        }
        let status = field.nodes[node].sigterm();
        if !status.success() {
            let what = format!("node {node} was asked to leave, and did so with {status}");
            notes.broken(Broken::at_large(what));
        }
    }
    let end = Instant::now() + LEFTOVERS_LIMIT;
    let mut left = field.leftovers();
    while !left.is_empty() && Instant::now() < end {
        sleep(Duration::from_millis(500));
        left = field.leftovers();
    }
    for what in left {
        notes.broken(Broken::at_large(format!("left over: {what}")));
    }
    let digests = images.iter().map(|image| image.digest.as_str());
    for what in field.wrong_in_shared(digests) {
        notes.broken(Broken::at_large(what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        for wrong in ["", "s", "15", "-1s", "1d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_arguments_are_well_formed() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn several_servers_are_proved_unless_somebody_says_otherwise() {
        assert_eq!(Arguments::parse_from(["fault"]).nodes, 2);
    }
}
