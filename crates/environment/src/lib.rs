//! Keeps durable workflow instances alive: the runtime that composes everything.
//!
//! [`Config`] is read once; [`EnvironmentRuntime`] turns it into a server: it locks the data directory, binds the ports, opens the
//! store, finds the runs of the process before, and serves. What it is made of stands in the crates below it.
//!
//! [`maintain()`](maintain::maintain) has removed by hand what is not needed any more; [`doctor`] finds out what a machine can run, without a server.
//!
//! A program that starts a runtime must begin its `main` with [`shim::init`]: the processes that parent runs are made from
//! the program's own executable, and must not run its `main`.

pub mod config;
mod core_address;
mod data_dir;
pub mod doctor;
mod error;
pub mod maintain;
mod metrics;
#[cfg(feature = "postgres")]
pub mod migrations;
mod native_user;
mod programs;
mod report;
mod runners;
pub mod runtime;
pub mod shim;
mod sockets;
mod store;

pub use config::Config;
pub use error::Error;
pub use runtime::{EnvironmentRuntime, RuntimeHandle};
pub use sockets::PassedSockets;
