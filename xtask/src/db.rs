//! `cargo xtask db`: a throw-away PostgreSQL for development.

use clap::Subcommand;

use crate::command::quoted;
use crate::error::Error;
use crate::postgres::{Cluster, Mode, Settings, Status};
use crate::requirements;

/// Start and stop a throw-away PostgreSQL for development; print its URL.
///
/// It listens on 127.0.0.1 and on a socket of its own, and lets everybody of this machine in. For
/// tests without `cargo xtask test`: eval "$(cargo xtask db env)".
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    deed: Deed,
}

#[derive(Subcommand)]
enum Deed {
    /// Start it unless it runs, and print its URL.
    Start {
        /// Listen on this port and not on a free one.
        #[arg(long)]
        port: Option<u16>,
        /// Do not wait for the disk at commits: faster, and good enough unless speed is measured.
        #[arg(long)]
        no_fsync: bool,
    },
    /// Stop it if it runs.
    Stop {
        /// Remove its data too.
        #[arg(long)]
        remove: bool,
    },
    /// Stop it and start it again, as fault tests do.
    Restart {
        /// How it is told to leave.
        #[arg(long, value_enum, default_value = "fast")]
        mode: Mode,
    },
    /// Print its URL.
    Url,
    /// Print the variables by which tests find it, for a shell's eval.
    Env,
    /// Tell whether it runs, and where.
    Status,
}

/// Does what was asked. Only what a script would read goes to standard output.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Error> {
    if let Deed::Start { .. } = arguments.deed {
        requirements::ensure_postgres()?;
    }
    let cluster = Cluster::for_development()?;
    match arguments.deed {
        Deed::Start { port, no_fsync } => {
            cluster.start(Settings {
                fsync: !no_fsync,
                port,
            })?;
            println!("{}", cluster.url()?);
        }
        Deed::Stop { remove } => {
            cluster.stop(Mode::Fast)?;
            if remove {
                cluster.remove()?;
            }
        }
        Deed::Restart { mode } => cluster.restart(mode)?,
        Deed::Url => {
            running(&cluster)?;
            println!("{}", cluster.url()?);
        }
        Deed::Env => {
            running(&cluster)?;
            for (name, value) in cluster.environment()? {
                println!("export {name}={}", quoted(&value));
            }
        }
        Deed::Status => match cluster.status()? {
            Status::Absent => println!("absent: cargo xtask db start"),
            Status::Stopped => println!("stopped: cargo xtask db start"),
            Status::Running { pid, port } => println!("running on port {port} as process {pid}"),
        },
    }
    Ok(())
}

fn running(cluster: &Cluster) -> Result<(), Error> {
    match cluster.status()? {
        Status::Running { .. } => Ok(()),
        Status::Absent | Status::Stopped => Err(Error::Unmet(
            "PostgreSQL does not run: cargo xtask db start".to_owned(),
        )),
    }
}
