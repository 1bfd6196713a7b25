//! `runtara completions`: scripts for shells.

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use crate::cli::Cli;
use crate::failure::Failure;
use crate::screen::Screen;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell, as in: runtara completions bash > /etc/bash_completion.d/runtara
    shell: Shell,
}

pub(crate) fn run(screen: &mut Screen, args: &CompletionsArgs) -> Result<(), Failure> {
    // Into memory first: the generator panics where it cannot write, as into a closed pipe.
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "runtara", &mut script);
    Ok(screen.bytes(&script)?)
}
