//! Real containers by the real runtime, looked at from the inside.
//!
//! They need root, runc, busybox-static and a C compiler, and say which package is missing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod container;
mod escapes;
mod image;
mod isolation;
mod limits;
mod machine;
mod settings;
