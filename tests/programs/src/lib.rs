//! Small real programs with one behaviour each, for the black-box suites.
//!
//! | program | what it does |
//! |---|---|
//! | `echoes_input` | gives its input as output |
//! | `prints_and_exits` | writes what it is told to standard output and standard error, then exits as told |
//! | `exits_with` | exits with a code, at once |
//! | `dies_by_signal` | dies by a signal |
//! | `ignores_sigterm` | says `ready` and lives until SIGKILL |
//! | `leaves_grandchildren` | leaves a daemon of its own session behind, which writes a heartbeat |
//! | `writes_endless_output` | writes numbered lines without end |
//! | `allocates_until_killed` | takes memory until it is killed |
//! | `sleeps_forever` | does nothing |
//! | `shows_environment` | gives what it finds around itself: variables, descriptors, limits, ids |
//! | `speaks_the_protocol` | plays a script as programs with the published blocking client do |
//! | `keeps_a_ledger` | plays it, and keeps a ledger outside of the server of all that it does |
//! | `uses_the_sdk` | plays the same script with the SDK of this repository; builds as a WebAssembly component too |
//!
//! The simple ones take [`Options`]; the last three take a [`script`] as input.

pub mod blocking;
pub mod fake_core;
mod http;
mod options;
pub mod script;

pub use options::{Options, print_result, sleep_forever};
