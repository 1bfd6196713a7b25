//! The life of an instance, proved on the one function that changes it.
//!
//! - `table` has every change in every situation, written out, to be read by people.
//! - `reachable` walks every state that any order of changes can lead to, and holds the laws of [`laws`] at each step.
//! - `random` plays long histories, in which counters and times grow as they do in life.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod changes;
mod laws;
mod random;
mod reachable;
mod table;
