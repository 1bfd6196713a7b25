//! The server: keeps durable workflow instances alive.

mod doctor;
mod logging;
mod maintain;

use std::convert::Infallible;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use runtara_environment::config::{Mode, VARIABLES};
use runtara_environment::{Config, EnvironmentRuntime, Error, PassedSockets, shim};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Keeps durable workflow instances alive.
///
/// Settings are environment variables; a `.env` file in the working directory is read, too.
#[derive(Parser)]
#[command(name = "runtara-environment", version, after_help = variables_help())]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve with the database that RUNTARA_ENVIRONMENT_DATABASE_URL names.
    Serve,
    /// Serve for trying out: SQLite under DATA_DIR, both protocols on loopback, native programs as this user.
    Dev,
    /// Check the configuration of `serve`, say what is wrong with it, and leave.
    CheckConfig,
    /// Bring the database up to date, and leave.
    Migrate,
    /// Say what this machine can run, and what to install; needs no database and starts nothing.
    ///
    /// To be run as the user as whom `serve` runs, with its variables. Exit status: 0 if at least one kind of images can be run and
    /// nothing is wrong in the configuration, else 1.
    Doctor,
    /// Remove what is not needed any more, now, and say what each part of the upkeep did.
    ///
    /// A server does the same by itself every few minutes. The server that holds DATA_DIR is asked to do it, with the settings that it was
    /// started with; where none does, it is done here, with the database and the settings that the variables of `serve` name. Everything is
    /// removed in small batches; Ctrl-C ends it after the one that is under way. Exit status: 0 fine, 1 something failed, 2 usage or
    /// configuration, 130 interrupted.
    Maintain(maintain::Wanted),
}

fn variables_help() -> String {
    let lines = VARIABLES.iter().map(|variable| {
        format!(
            "  {:<34} {} [default: {}]\n",
            variable.name, variable.meaning, variable.default
        )
    });
    format!("Variables:\n{}", lines.collect::<String>())
}

pub(crate) fn main() -> ExitCode {
    // First, before any thread: the processes that parent runs are made from this executable.
    shim::init();
    let passed = PassedSockets::from_environment();
    match dotenvy::dotenv() {
        Err(error) if !error.not_found() => {
            eprintln!("error: the file .env cannot be read: {error}");
            return ExitCode::from(2);
        }
        _ => {}
    }
    let command = Arguments::parse().command;
    if matches!(command, Command::Doctor) {
        return doctor::run();
    }
    let done = match &command {
        Command::Maintain(wanted) => maintain_once(wanted),
        command => passed
            .and_then(|passed| run(command, passed))
            .map(|()| ExitCode::SUCCESS),
    };
    match done {
        Ok(status) => status,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                eprintln!("  because: {error}");
                cause = error.source();
            }
            match error {
                Error::Configuration { .. } => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: &Command, passed: PassedSockets) -> Result<(), Error> {
    let mode = match command {
        Command::Dev => Mode::Dev,
        _ => Mode::Serve,
    };
    let config = Config::from_env(mode)?;
    if matches!(command, Command::CheckConfig) {
        println!("the configuration is fine");
        return Ok(());
    }
    logging::start(&config);
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        if matches!(command, Command::Migrate) {
            runtara_environment::runtime::migrate(&config).await?;
            println!("the database is up to date");
            return Ok(());
        }
        let ended = signal(SignalKind::child()).map_err(signals)?;
        tokio::select! {
            served = serve(config, passed) => served,
            never = reap_orphans(ended) => match never {},
        }
    });
    // What still runs must not keep the process from leaving: blocking work cannot be cut off, only left behind.
    runtime.shutdown_background();
    outcome
}

fn maintain_once(wanted: &maintain::Wanted) -> Result<ExitCode, Error> {
    logging::start_for_a_command();
    let runtime = runtime()?;
    let outcome = runtime.block_on(maintain::run(wanted));
    runtime.shutdown_background();
    outcome
}

fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all().build().map_err(|error| Error::Part {
        what: "the asynchronous runtime",
        source: error.into(),
    })
}

fn signals(error: std::io::Error) -> Error {
    Error::Part {
        what: "the handling of signals",
        source: error.into(),
    }
}

/// Waits for the children that a process 1 is given, as it is one in most containers.
async fn reap_orphans(mut ended: Signal) -> Infallible {
    loop {
        ended.recv().await;
        if let Err(error) = shim::reap_orphans() {
            tracing::warn!(%error, "processes that have ended could not be waited for");
        }
    }
}

async fn serve(config: Config, passed: PassedSockets) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let started = tokio::select! {
        started = EnvironmentRuntime::new(config).sockets(passed).start() => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::select! {
        () = started.shutdown() => {}
        // Whoever asks twice is in a hurry: what is not recorded is found again at the next start.
        _ = terminate.recv() => tracing::warn!("leaving at once"),
        _ = interrupt.recv() => tracing::warn!("leaving at once"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_well_formed_and_every_command_is_explained() {
        let mut command = Arguments::command();
        command.build();
        for command in command.get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
        }
    }
}
