//! Runs images in containers, through an OCI runtime such as runc.
//!
//! - [`spec`]: the runtime configuration (`config.json`) of one container, with the list of system calls it may make.
//! - [`limits`]: what a container may take, merged from image, start and operator.
//! - [`rootfs`]: mounts the root file system of a container from the layers of its image.
//! - [`IdRanges`]: user and group ids of its own for each container.
//!
//! All of it is synchronous and without threads, so that a shim can use it. Linux only.

mod id_range;
pub mod limits;
mod network;
pub mod rootfs;
mod seccomp;
pub mod spec;
mod sys;

pub use id_range::{IdRange, IdRangeError, IdRanges, RANGE_SIZE, USUAL_BASE};
pub use network::{NetworkMode, UnknownNetworkMode};
