//! Write durable programs in Rust: checkpoints, sleeps and signals that survive any crash.
//!
//! # A first workflow
//!
//! A workflow is an ordinary async function. What it does in steps is saved, and when its process dies, sleeps or is
//! restarted, a later run calls the function again: finished steps give what they gave before, at once, and the work goes on where
//! it stood.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::time::Duration;
//!
//! use runtara_sdk::{Error, Instance};
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! struct Trip {
//!     from: String,
//!     to: String,
//! }
//!
//! async fn book(instance: Instance) -> Result<String, Error> {
//!     let trip: Trip = instance.input().await?;
//!
//!     // Done once, whatever happens: a later run gets the saved value.
//!     let ticket: String = instance
//!         .checkpoint("book the train", || async { format!("{} to {}", trip.from, trip.to) })
//!         .await?;
//!     instance.progress("booked", 50.0).await?;
//!
//!     // No process while it sleeps, and the remainder only after a crash.
//!     instance.sleep("until the day", Duration::from_secs(3 * 24 * 3600)).await?;
//!
//!     // `runtara signal <id> checked-in '"seat 12"'`
//!     let seat: Option<String> = instance
//!         .signal_within("checked-in", Duration::from_secs(24 * 3600))
//!         .await?;
//!     Ok(format!("{ticket}, {}", seat.unwrap_or_else(|| "no seat".to_owned())))
//! }
//!
//! fn main() -> ExitCode {
//!     runtara_sdk::run(book)
//! }
//! ```
//!
//! # The rules of replay
//!
//! - What differs from run to run (the time, a random number, an answer from outside) belongs into a step.
//! - A step is saved after it was done. If the process dies in between it is done again: give calls to the outside an idempotency
//!   key.
//! - A name means one step. In a loop, put the number into it. Sleeps and signals count their uses by themselves.
//! - What runs side by side runs in [`Instance::branches`].
//!
//! # Cancel and pause
//!
//! Both reach the program between steps: the next call gives [`Error::Cancelled`] or [`Error::Suspended`], after the server was told
//! that the program obeys. Hand the error on with `?` (clean up first where you must); [`run`] leaves quietly.
//!
//! # When the server is away
//!
//! Every call is tried again, with growing pauses, for ten minutes ([`Settings::retry_deadline`]): a restart is not noticed. A call
//! that was carried out and whose answer was lost is recognised by the server. After that the program leaves with exit code 75 and
//! without a word, so that it is run again.

//!
//! # As a WebAssembly component
//!
//! The same source, built with `cargo build --target wasm32-wasip2`, is a component that runs within the server. What differs:
//!
//! - Its calls go to the host and not over HTTP, so of the [`Settings`] only the ids count.
//! - A call stops the whole program until it is answered. Of [`Instance::branches`] all that wait are waited for at once, by the host; while
//!   one of them is at work, or two wait for signals, the others look once a second whether their wait is over. Tasks beside the branches
//!   stand still during a long wait.
//! - The host repeats calls by itself, for as long as [`Settings::retry_deadline`] is unless set.
//! - A panic is a trap, which ends the run like the death of a process. Exit codes are 0 or 1.

mod branches;
mod checkpoint;
mod clock;
mod error;
#[cfg(any(target_family = "wasm", test))]
#[cfg_attr(
    not(target_family = "wasm"),
    expect(dead_code, reason = "elsewhere it is only checked")
)]
mod host;
mod instance;
mod leave;
mod names;
mod protocol;
mod report;
mod run;
mod settings;
mod wait;
#[cfg(not(target_family = "wasm"))]
mod wire;
mod work;

#[cfg(target_family = "wasm")]
use host::Server;
#[cfg(not(target_family = "wasm"))]
use wire::Server;

pub use branches::Branches;
pub use checkpoint::Retries;
pub use error::{BoxError, Error};
pub use instance::Instance;
pub use run::{drive, drive_with, run};
pub use settings::Settings;
