//! `cargo xtask check`: the quick loop, and the single checks that `test` shares.

use std::process::Command;

use crate::command::{cargo, root, run as run_command};
use crate::error::Error;
use crate::steps::Steps;
use crate::tools;

/// Format, clippy, docs and dependency policy: the quick loop.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Apply the format in place of complaining.
    #[arg(long)]
    fix: bool,
    /// Look for known vulnerabilities too; fetches the RustSec database from GitHub.
    #[arg(long)]
    advisories: bool,
}

/// Runs the checks.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    let mut steps = Steps::plan(["formatting", "clippy", "docs", "policy"]);
    let outcome = steps
        .step("formatting", || formatting(arguments.fix))
        .and_then(|_| steps.step("clippy", clippy))
        .and_then(|_| steps.step("docs", docs))
        .and_then(|_| steps.step("policy", || policy(arguments.advisories)));
    eprintln!("\n{}", steps.table());
    outcome.map(drop)
}

/// Checks that every file is formatted, or formats it.
pub(crate) fn formatting(fix: bool) -> Result<(), Error> {
    let arguments: &[&str] = if fix {
        &["fmt", "--all"]
    } else {
        &["fmt", "--all", "--check"]
    };
    run_command(&mut cargo(arguments))
}

/// Lints every target with every feature; a warning is an error.
pub(crate) fn clippy() -> Result<(), Error> {
    let what = ["clippy", "--workspace", "--all-targets", "--all-features"];
    run_command(cargo(what).args(["--", "-D", "warnings"]))
}

/// Builds the documentation of every library; a warning (a dead link, say) is an error.
///
/// Libraries alone: rustdoc writes a program and a library of the same name to the same place.
/// With all features, so that what clippy has checked of the dependencies is not checked again.
pub(crate) fn docs() -> Result<(), Error> {
    let what = ["doc", "--workspace", "--lib", "--no-deps", "--all-features"];
    run_command(cargo(what).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Checks licences, banned and duplicate crates and their sources by `deny.toml`.
///
/// Advisories are checked on demand only: their database comes by git from GitHub, which a build
/// machine need not reach, and a new entry must not break a build that changed nothing.
pub(crate) fn policy(advisories: bool) -> Result<(), Error> {
    let mut deny = Command::new(tools::DENY.ensure()?);
    deny.current_dir(root()).args([
        "--locked",
        "--all-features",
        "check",
        "--hide-inclusion-graph",
    ]);
    if advisories {
        deny.arg("advisories");
    } else {
        eprintln!("    not checked here: advisories (cargo xtask check --advisories)");
    }
    run_command(deny.args(["licenses", "bans", "sources"]))
}
