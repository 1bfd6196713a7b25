//! What every runner does, and what runs and the server share.
//!
//! - [`Runner`] and [`Run`]: prepare an image once, launch, adopt, wait, terminate, report usage. One implementation per
//!   kind; only the scheduler calls them.
//! - [`InstanceCalls`]: the instance protocol as domain calls. The core implements it; HTTP and in-process guests call it.
//! - [`InstanceRoutes`]: the same as its routes over HTTP, without a socket. The HTTP layer implements it.
//! - [`CallTracker`]: which calls of which runs are open, and which runs suffer from a fault of ours.
//! - [`RunDirectory`]: the files of a run; [`RunDirectories`] makes and removes them; [`Spares`]: those that ended runs have left.
//! - [`NodeGuard`]: the process that ends the runs of a node whose lease was not renewed, by the clock of [`BootTime`].
//! - [`shim`]: the small process that parents a run, so that the run outlives the server.
//! - [`ShimRun`]: a run that a shim parents, whatever its program is.
//! - [`contract_env`]: what a program finds in its environment.

mod blocking;
mod boot_time;
mod calls;
mod contract;
mod describe;
mod directories;
mod directory;
mod guard;
mod launch_files;
mod left;
mod log_watch;
mod remove_tree;
mod routes;
mod run;
pub mod shim;
mod shim_run;
mod spares;
mod tracker;

pub use blocking::blocking;
pub use boot_time::BootTime;
pub use calls::{CallError, InstanceCalls};
pub use contract::{ProgramPaths, contract_env, forbidden_env_name};
pub use describe::describe;
pub use directories::{RunDirectories, owner_of_runs};
pub use directory::RunDirectory;
pub use guard::{GuardAct, NodeGuard};
pub use launch_files::{naming, unexpected};
pub use left::{ProgramResult, end_of_stderr, result_of_stdout};
pub use log_watch::LogWatch;
pub use remove_tree::remove_tree;
pub use routes::{InstanceRoutes, RouteBody};
pub use run::{
    Adoption, AskedSettings, ImageFiles, Input, LaunchError, LaunchObstacle, LaunchSpec,
    PrepareError, PreparedImage, Readiness, Run, RunKey, Runner, RunnerError,
};
pub use shim_run::{ShimRun, ShimRunPlaces};
pub use spares::Spares;
pub use tracker::{CallGuard, CallTracker};
