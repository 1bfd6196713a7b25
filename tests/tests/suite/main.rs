//! The promises, seen from outside: a real server process, real sockets, real programs.
//!
//! Each module is named after a promise or a part of the wire, each test after what a user sees. What cannot be seen from outside
//! (plans of queries, totals over a million rows, atomicity of single changes under each interleaving) is proved by the tests of the
//! store; fuzzed bodies and archives by those of the crates that read them.

mod admission;
mod containers;
mod doctor;
mod images;
mod limits;
mod liveness;
mod nobody_gets_in;
mod nodes;
mod nothing_is_lost;
mod nothing_twice;
mod people_and_clients;
mod processes;
mod restarts;
mod shared_images;
mod sleeps_and_signals;
mod upkeep;
mod wasm;
mod wire_core;
mod wire_environment;
