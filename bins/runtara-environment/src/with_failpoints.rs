//! The server, as tests kill it at named points: a program of its own, so that it is never taken for the one that is used.

#[path = "main.rs"]
mod server;

use std::process::ExitCode;

fn main() -> ExitCode {
    server::main()
}
