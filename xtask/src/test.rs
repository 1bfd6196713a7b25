//! `cargo xtask test`: the whole truth about the working tree.

use std::ffi::OsString;

use clap::ValueEnum;

use crate::command::{cargo, run as run_command, target};
use crate::error::Error;
use crate::postgres::PrivateCluster;
use crate::steps::Steps;
use crate::tools::NEXTEST;
use crate::{check, fault, guests, packages, requirements, up};

/// Check, build and test everything; nothing is left out in silence.
///
/// Brings what it needs where it may (as root through apt, cargo's tools into the target directory), starts a PostgreSQL of its own and
/// stops it again, and ends at the first step that fails.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run this step alone, with the steps it needs; may be given several times.
    #[arg(long, value_enum, value_name = "STEP")]
    only: Vec<Step>,
    /// Hand these to nextest: a part of a test's name, or its own options.
    #[arg(last = true, value_name = "FILTERS")]
    filters: Vec<OsString>,
}

/// The steps in their order: cheap and telling ones first, the tests last, so that nextest's
/// summary stands at the end of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Step {
    Requirements,
    Formatting,
    Clippy,
    Docs,
    Policy,
    Build,
    Guests,
    Up,
    Fault,
    Database,
    Doctests,
    Tests,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::Requirements => "requirements",
            Self::Formatting => "formatting",
            Self::Clippy => "clippy",
            Self::Docs => "docs",
            Self::Policy => "policy",
            Self::Build => "build",
            Self::Guests => "guests",
            Self::Up => "up",
            Self::Fault => "fault",
            Self::Database => "database",
            Self::Doctests => "doctests",
            Self::Tests => "tests",
        }
    }

    /// The steps without which this one has no meaning.
    fn needs(self) -> &'static [Self] {
        match self {
            Self::Requirements => &[],
            Self::Formatting
            | Self::Clippy
            | Self::Docs
            | Self::Policy
            | Self::Build
            | Self::Guests => &[Self::Requirements],
            Self::Up => &[Self::Requirements, Self::Build],
            Self::Fault => &[Self::Requirements, Self::Build, Self::Guests],
            Self::Database => &[Self::Requirements],
            Self::Doctests => &[Self::Requirements, Self::Database],
            Self::Tests => &[
                Self::Requirements,
                Self::Build,
                Self::Guests,
                Self::Database,
            ],
        }
    }
}

/// Runs the steps and shows their table, whatever happened.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    let mut steps = Steps::plan(selected(&arguments.only).into_iter().map(Step::name));
    let outcome = all(&mut steps, &arguments.filters);
    eprintln!("\n{}", steps.table());
    outcome
}

fn all(steps: &mut Steps, filters: &[OsString]) -> Result<(), Error> {
    steps.step(Step::Requirements.name(), requirements::ensure)?;
    steps.step(Step::Formatting.name(), || check::formatting(false))?;
    steps.step(Step::Clippy.name(), check::clippy)?;
    steps.step(Step::Docs.name(), check::docs)?;
    steps.step(Step::Policy.name(), || check::policy(false))?;
    steps.step(Step::Build.name(), build)?;
    steps.step(Step::Guests.name(), guests::build)?;
    // The first command of the README: whoever meets the product meets it there.
    steps.step(Step::Up.name(), || up::run(&up::Arguments::to_its_end()))?;
    // The promises in short; `cargo xtask fault` is the long form.
    steps.step(Step::Fault.name(), fault::in_short)?;
    let database = steps.step(Step::Database.name(), PrivateCluster::start)?;
    let environment = match &database {
        Some(database) => database.environment()?.to_vec(),
        None => Vec::new(),
    };
    steps.step(Step::Doctests.name(), || {
        // With all features, as the tests are built, so that nothing is compiled once more for this.
        let what = ["test", "--doc", "--workspace", "--all-features"];
        run_command(cargo(what).envs(environment.clone()))
    })?;
    steps.step(Step::Tests.name(), || {
        run_command(nextest()?.args(filters).envs(environment.clone()))
    })?;
    Ok(())
}

/// Builds what the black-box suites start, as those who use it build it.
fn build() -> Result<(), Error> {
    let what = packages::selected(&[packages::UP, packages::TEST_PROGRAMS]);
    run_command(cargo(["build"]).args(what))
}

fn nextest() -> Result<std::process::Command, Error> {
    let program = NEXTEST.ensure()?;
    let mut command = cargo(["nextest", "run", "--workspace", "--all-features"]);
    if let Some(directory) = program.parent().filter(|it| it.starts_with(target())) {
        // Cargo looks for its commands in `PATH`.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories = std::iter::once(directory.to_owned()).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(directories) {
            command.env("PATH", path);
        }
    }
    // CI systems set it; what the profile changes stands in .config/nextest.toml.
    if std::env::var_os("CI").is_some() {
        command.args(["--profile", "ci"]);
    }
    Ok(command)
}

/// Gives the steps to run, in their order: all, or those asked for with what they need.
fn selected(only: &[Step]) -> Vec<Step> {
    let wanted = |step: &Step| {
        only.is_empty()
            || only
                .iter()
                .any(|it| it == step || it.needs().contains(step))
    };
    Step::value_variants()
        .iter()
        .copied()
        .filter(wanted)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_choice_every_step_runs() {
        assert_eq!(selected(&[]), Step::value_variants());
    }

    #[test]
    fn a_chosen_step_brings_what_it_needs_in_the_right_order() {
        use Step::{Build, Database, Formatting, Guests, Requirements, Tests, Up};
        assert_eq!(selected(&[Up]), [Requirements, Build, Up]);
        assert_eq!(
            selected(&[Tests]),
            [Requirements, Build, Guests, Database, Tests]
        );
        assert_eq!(
            selected(&[Tests, Formatting]),
            [Requirements, Formatting, Build, Guests, Database, Tests]
        );
    }

    #[test]
    fn needs_are_complete_and_come_before() {
        let place = |step: Step| Step::value_variants().iter().position(|it| *it == step);
        for step in Step::value_variants() {
            for need in step.needs() {
                assert!(
                    place(*need) < place(*step),
                    "{need:?} must come before {step:?}"
                );
                for deeper in need.needs() {
                    assert!(
                        step.needs().contains(deeper),
                        "{step:?} also needs {deeper:?}"
                    );
                }
            }
        }
    }
}
