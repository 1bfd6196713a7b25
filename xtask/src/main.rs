//! Every chore of a developer, as a verb: one file per verb, and beside them what verbs share.
//!
//! A bare `cargo xtask` lists the verbs.

mod bench;
mod check;
mod command;
mod db;
mod debian_rust;
mod error;
mod fault;
mod guests;
mod http;
mod interrupt;
mod packages;
mod postgres;
mod requirements;
mod steps;
mod test;
mod tools;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::Error;

/// Every chore of a developer, as a verb.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    Up(up::Arguments),
    Test(test::Arguments),
    Bench(bench::Arguments),
    Fault(fault::Arguments),
    Check(check::Arguments),
    Db(db::Arguments),
    Guests(guests::Arguments),
}

fn main() -> ExitCode {
    interrupt::install();
    let outcome = match Arguments::parse().verb {
        Some(Verb::Up(arguments)) => up::run(&arguments),
        Some(Verb::Test(arguments)) => test::run(&arguments),
        Some(Verb::Bench(arguments)) => bench::run(&arguments),
        Some(Verb::Fault(arguments)) => fault::run(&arguments),
        Some(Verb::Check(arguments)) => check::run(&arguments),
        Some(Verb::Db(arguments)) => db::run(&arguments),
        Some(Verb::Guests(arguments)) => guests::run(&arguments),
        None => Arguments::command()
            .print_help()
            .map_err(|source| Error::Io {
                action: "print the help".to_owned(),
                source,
            }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Interrupted) => {
            eprintln!("interrupted");
            // 128 + SIGINT, as shells report it.
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {}", error::with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_says_in_one_line_what_it_does() {
        let mut command = Arguments::command();
        command.clone().debug_assert();
        for verb in command.get_subcommands_mut() {
            let about = verb
                .get_about()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                !about.is_empty() && !about.contains('\n'),
                "{}: {about:?}",
                verb.get_name()
            );
        }
    }
}
