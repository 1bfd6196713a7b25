//! `cargo xtask bench`: speed and memory, each figure beside what the machine allows in the same run.
//!
//! A figure alone says nothing: the same server is twice as fast on another disk. So each is measured in alternation with its
//! limit (what the database, the kernel or the disk does without us), and judged by their ratio where it can be. Everything runs on
//! a PostgreSQL of its own that waits for the disk, and is gone at the end.

mod checkpoints;
mod containers;
mod crowd;
mod database;
mod figure;
mod guests;
mod held;
mod load;
mod memory;
mod million;
mod process;
mod recovery;
mod runs;
mod server;
mod wake;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use serde_json::json;

use self::database::Postgres;
use self::figure::{Figure, table};
use crate::command::{cargo, run as run_command, target};
use crate::error::{Error, with_causes};
use crate::{interrupt, packages, requirements};

/// Measure speed and memory, each figure beside its physical limit in the same run.
///
/// Builds everything in release, and needs an otherwise idle machine: what else runs shows in the figures.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Measure only these.
    #[arg(long, value_enum, num_args = 1.., value_name = "NAME")]
    only: Vec<Phase>,
    /// Short rounds, to see whether everything works.
    #[arg(long)]
    quick: bool,
    /// How many rounds; the median counts.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=50))]
    rounds: Option<u8>,
    /// Write the figures as JSON to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure what was built before.
    #[arg(long)]
    no_build: bool,
}

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Phase {
    /// Checkpoints over HTTP with 16, 64 and one connection.
    Checkpoints,
    /// Native programs from start to completed, one after another.
    Start,
    /// The same, by 16 at once.
    Starts,
    /// Workflows of ten steps, each in its own process.
    Workflows,
    /// Containers, beside the runtime alone.
    Containers,
    /// WebAssembly guests on both stores, beside wasmtime alone.
    Wasm,
    /// Native programs when their server is killed, and when their node is.
    Recovery,
    /// How far behind their due time sleepers wake.
    Wake,
    /// An image of 1 GiB.
    Upload,
    /// Memory of instances that wait.
    Waiting,
    /// 1,000,000 sleepers: the idle server, and lists.
    Million,
}

/// What all phases share.
struct Bench {
    postgres: Postgres,
    place: PathBuf,
    rounds: usize,
    time: Duration,
    quick: bool,
}

impl Bench {
    /// The URL of the SQLite database in the directory of the server of this name.
    fn sqlite(&self, name: &str) -> String {
        let file = self.place.join(name).join("runtara.db");
        format!("sqlite:{}", file.display())
    }
}

/// Measures, prints the table, and writes the JSON. That a bound was missed is no failure: the machine may be busy.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    if !arguments.no_build {
        build()?;
    }
    if cfg!(debug_assertions) {
        return run_again_in_release();
    }
    requirements::ensure_postgres()?;
    let place = Place::make()?;
    let rounds = arguments
        .rounds
        .unwrap_or(if arguments.quick { 1 } else { 3 });
    let bench = Bench {
        postgres: Postgres::start()?,
        place: place.directory.clone(),
        rounds: usize::from(rounds),
        time: Duration::from_secs(if arguments.quick { 2 } else { 6 }),
        quick: arguments.quick,
    };
    let load_before = load_average();
    let mut figures = Vec::new();
    let mut failures = Vec::new();
    for phase in Phase::value_variants() {
        if !arguments.only.is_empty() && !arguments.only.contains(phase) {
            continue;
        }
        interrupt::check()?;
        let began = Instant::now();
        say(format!("{}:", phase.name()));
        match phase.measure(&bench) {
            Ok(measured) => figures.extend(measured),
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            // The other figures are still worth having.
            Err(error) => {
                say(format!("{} failed: {}", phase.name(), with_causes(&error)));
                keep_log(&bench.place, phase.name());
                failures.push(phase.name());
            }
        }
        say(format!(
            "{} took {:.0} s",
            phase.name(),
            began.elapsed().as_secs_f64()
        ));
    }
    println!("\n{}", table(&figures));
    println!(
        "load average {load_before} before, {} after",
        load_average()
    );
    if let Some(path) = &arguments.json {
        write_json(path, &figures, rounds, &load_before)?;
    }
    if failures.is_empty() {
        Ok(())
    } else {
        let names = failures.join(", ");
        Err(Error::Unmet(format!("could not be measured: {names}")))
    }
}

impl Phase {
    fn measure(self, bench: &Bench) -> Result<Vec<Figure>, Error> {
        match self {
            Self::Checkpoints => checkpoints::measure(bench),
            Self::Start => runs::one_by_one(bench),
            Self::Starts => runs::many(bench),
            Self::Workflows => runs::workflows(bench),
            Self::Containers => containers::measure(bench),
            Self::Wasm => guests::measure(bench),
            Self::Recovery => recovery::measure(bench),
            Self::Wake => wake::measure(bench),
            Self::Upload => memory::upload(bench),
            Self::Waiting => memory::waiting(bench),
            Self::Million => million::measure(bench),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Checkpoints => "checkpoints",
            Self::Start => "start",
            Self::Starts => "starts",
            Self::Workflows => "workflows",
            Self::Containers => "containers",
            Self::Wasm => "wasm",
            Self::Recovery => "recovery",
            Self::Wake => "wake",
            Self::Upload => "upload",
            Self::Waiting => "waiting",
            Self::Million => "million",
        }
    }
}

/// Tells how far we are.
fn say(text: impl AsRef<str>) {
    eprintln!("    {}", text.as_ref());
}

/// Since 1970, as the server tells times.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn build() -> Result<(), Error> {
    let server = &["runtara-environment-server"];
    let ours = &["xtask", "runtara-tests"];
    let wanted = packages::selected(&[server, packages::TEST_PROGRAMS, ours]);
    run_command(cargo(["build", "--release"]).args(wanted))?;
    guests::build()
}

/// Hands over to a release build of this program: load that is made by a debug build measures that build.
fn run_again_in_release() -> Result<(), Error> {
    let mut command = Command::new(target().join("release").join("xtask"));
    command.args(std::env::args_os().skip(1));
    if !std::env::args_os().any(|argument| argument == "--no-build") {
        command.arg("--no-build");
    }
    run_command(&mut command)
}

fn write_json(path: &Path, figures: &[Figure], rounds: u8, load_before: &str) -> Result<(), Error> {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let all = json!({
        "cpus": cpus,
        "kernel": kernel.trim(),
        "rounds": rounds,
        "load_average_before": load_before,
        "load_average_after": load_average(),
        "figures": figures,
    });
    fs::write(path, format!("{all:#}\n")).map_err(Error::io(format!("write {}", path.display())))
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Shows the end of a failed phase's server log, which is gone with everything else.
fn keep_log(place: &Path, name: &str) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|it| it == "log") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(8)..].join("\n      ");
            say(format!(
                "the end of {}, after {name}:\n      {end}",
                path.display()
            ));
        }
    }
}

/// The directory of everything that servers keep, on the disk that cargo builds on. Gone with this value, and if this process is
/// killed, with the next bench.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn make() -> Result<Self, Error> {
        let all = target().join("bench");
        fs::create_dir_all(&all).map_err(Error::io(format!("make {}", all.display())))?;
        for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !Path::new("/proc").join(&name).exists() {
                remove(&entry.path());
            }
        }
        let directory = all.join(std::process::id().to_string());
        fs::create_dir_all(&directory)
            .map_err(Error::io(format!("make {}", directory.display())))?;
        Ok(Self { directory })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Removes a directory in which shims may still be writing their last word.
fn remove(directory: &Path) {
    for _ in 0..50 {
        if fs::remove_dir_all(directory).is_ok() || !directory.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    eprintln!("could not remove {}", directory.display());
}
