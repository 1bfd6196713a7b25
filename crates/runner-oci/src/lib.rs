//! Runs images in containers, through an OCI runtime such as runc.
//!
//! - [`spec`]: the runtime configuration (`config.json`) of one container, with the list of system calls it may make.
//! - [`limits`]: what a container may take, merged from image, start and operator.
//! - [`IdRanges`]: user and group ids of its own for each container.

mod id_range;
pub mod limits;
mod network;
mod seccomp;
pub mod spec;

pub use id_range::{IdRange, IdRangeError, IdRanges, RANGE_SIZE, USUAL_BASE};
pub use network::{NetworkMode, UnknownNetworkMode};
