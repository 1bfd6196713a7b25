//! Runs images in containers, through an OCI runtime such as runc.
//!
//! - [`OciRunner`]: the runner, by its [`OciConfig`].
//! - [`spec`]: the runtime configuration (`config.json`) of one container, with the list of system calls it may make.
//! - [`limits`]: what a container may take, merged from image, start and operator.
//! - [`plan`]: what the runner writes for its half in the shim, and [`shim`]: that half.
//! - [`rootfs`]: mounts the root file system of a container from the layers of its image.
//! - [`IdRanges`]: user and group ids of its own for each container.
//! - [`runtime`]: the runtime's commands, its version and the holes it is known to have.
//! - [`machine`]: what this machine can do for containers.
//!
//! All but the runner is synchronous and without threads, so that a shim can use it. Linux only.

mod clean;
mod config;
mod counted;
mod egress;
mod finding;
mod host;
mod id_range;
mod ids;
mod images;
mod kernel;
mod launch;
pub mod limits;
pub mod machine;
mod making;
mod namespaces;
mod netlink;
pub mod plan;
pub mod rootfs;
mod runner;
pub mod runtime;
mod seccomp;
mod settings;
pub mod shim;
pub mod spec;
mod sys;
mod temporary;

pub use config::OciConfig;
pub use finding::{Finding, Level};
pub use id_range::{IdRange, IdRangeError, IdRanges, RANGE_SIZE, USUAL_BASE};
pub use runner::OciRunner;
