//! What every runner does, and what runs and the server share.
//!
//! - [`Runner`] and [`Run`]: prepare an image once, launch, adopt, wait, terminate, report usage. One implementation per
//!   kind; only the scheduler calls them.
//! - [`InstanceCalls`]: the instance protocol as domain calls. The core implements it; HTTP and in-process guests call it.
//! - [`CallTracker`]: which calls of which runs are open, and which runs suffer from a fault of ours.
//! - [`RunDirectory`]: the files of a run.

mod calls;
mod directory;
mod run;
mod tracker;

pub use calls::{CallError, InstanceCalls};
pub use directory::RunDirectory;
pub use run::{
    Adoption, Input, LaunchError, LaunchSpec, PrepareError, PreparedImage, Readiness, Run, RunKey,
    Runner, RunnerError,
};
pub use tracker::{CallGuard, CallTracker};
