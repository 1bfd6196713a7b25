//! `cargo xtask fault`: the proof of the promises, kept and repeatable.

use std::path::PathBuf;

use crate::command::{cargo, run as run_command, target};
use crate::error::Error;
use crate::{packages, requirements};

/// The simulation among what `--only` can name; everything else there is a fault.
const SIMULATION: &str = "simulation";
/// Its test.
const SIMULATION_TEST: &str = "simulation::";

/// Break servers, shims, programs, the database and the disk at random, and look whether every promise holds.
///
/// Starts real servers on a real store, several hundred instances of all kinds, and for a given time does to them what may happen. Then
/// looks from the outside: every accepted instance came to its right end, no saved step ran again, no two runs lived at once, nothing is left
/// over. Prints the seed, the counts and the verdict; exit status 1 if a promise was broken, with its story under `target/fault`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// All that is random follows from it; chosen and printed unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// For how long faults are injected, for each store: `90s`, `15m`.
    #[arg(long, default_value = "15m")]
    time: String,
    /// The store of the servers: `postgres`, `sqlite` or `both`.
    #[arg(long, default_value = "both")]
    store: String,
    /// How many instances are started, for each store.
    #[arg(long, default_value_t = 300)]
    instances: usize,
    /// How many servers there are, with PostgreSQL; several share their images. With SQLite there is always one.
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Only programs of this kind, `native`, `oci` or `wasm`; may be given several times.
    #[arg(long)]
    kind: Vec<String>,
    /// Only this fault, or `simulation`: the scheduler alone, on a simulated clock; may be given several times.
    #[arg(long, value_name = "FAULT")]
    only: Vec<String>,
    /// How many histories of one server are simulated, with `--only simulation`; of several servers, of clocks that are set and of
    /// whole days there are fewer, in proportion.
    #[arg(long, default_value_t = 5_000)]
    histories: usize,
}

impl Arguments {
    /// What is a part of every test: a minute or so.
    fn in_short() -> Self {
        Self {
            seed: None,
            time: "20s".to_owned(),
            store: "both".to_owned(),
            instances: 40,
            nodes: 2,
            kind: Vec::new(),
            only: Vec::new(),
            histories: 0,
        }
    }
}

/// Brings and builds what it needs, and proves.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    if arguments.only.iter().any(|it| it == SIMULATION) {
        return simulate(arguments);
    }
    requirements::ensure()?;
    build_and_prove(arguments)
}

/// Builds, and proves in short, where everything is that it needs.
pub(crate) fn in_short() -> Result<(), Error> {
    build_and_prove(&Arguments::in_short())
}

fn build_and_prove(arguments: &Arguments) -> Result<(), Error> {
    // As the tests are built, so that nothing is compiled once more for this.
    run_command(&mut cargo([
        "build",
        "--workspace",
        "--all-features",
        "--tests",
        "--bin",
        "runtara-environment-with-failpoints",
        "--bin",
        "fault",
    ]))?;
    run_command(cargo(["build"]).args(packages::selected(&[packages::TEST_PROGRAMS])))?;
    prove(arguments)
}

/// Proves with what was built.
fn prove(arguments: &Arguments) -> Result<(), Error> {
    let programs = target().join("debug");
    let mut command = std::process::Command::new(programs.join("fault"));
    command
        .env("RUNTARA_TEST_BIN_DIR", &programs)
        .args(["--time", &arguments.time, "--store", &arguments.store])
        .args(["--instances", &arguments.instances.to_string()])
        .args(["--nodes", &arguments.nodes.to_string()])
        .arg("--keep")
        .arg::<PathBuf>(target().join("fault"));
    if let Some(seed) = arguments.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    for (option, values) in [("--kind", &arguments.kind), ("--only", &arguments.only)] {
        for value in values {
            command.args([option, value]);
        }
    }
    run_command(&mut command)
}

/// Simulates: a test of the scheduler, with more histories than it has among the others, and optimised: a month takes seconds then, and
/// the best part of a minute else.
fn simulate(arguments: &Arguments) -> Result<(), Error> {
    let mut command = cargo(["test", "--release"]);
    command.args(["-p", "runtara-scheduler", "--test", "scheduler"]);
    command.args([SIMULATION_TEST, "--", "--nocapture"]);
    command.env("RUNTARA_TEST_HISTORIES", arguments.histories.to_string());
    if let Some(seed) = arguments.seed {
        command.env("RUNTARA_TEST_SEED", seed.to_string());
    }
    run_command(&mut command)
}
