//! What images and starts may ask of containers, and what registrations are told, with a played runner of containers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod base;
mod registrations;
mod settings;
mod tried_out;
mod world;
