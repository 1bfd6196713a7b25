//! The command line of the runtara environment.
//!
//! Exit status: 0 fine; 1 the instance failed, or the server refused; 2 usage; 3 not found; 4 the server, or a registry, cannot be reached;
//! 124 the time to wait is over; 130 interrupted.

mod checkpoints;
mod cli;
mod completions;
mod doctor;
mod events;
mod failure;
mod image;
mod instances;
mod lifecycle;
mod live;
mod logs;
mod node;
mod pull;
mod screen;
mod settings;
mod start;
mod stop;
mod table;
mod text;
mod upload;
mod values;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let json = cli.global.json;
    // One thread is enough: a command waits for one server, and reads files by the blocking pool.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(cli::run(cli));
            // A read of standard input that still hangs in the pool must not hold the exit.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(failure::Failure::Io(error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(json);
            ExitCode::from(failure.exit_code())
        }
    }
}
