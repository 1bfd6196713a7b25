//! The promises, seen from outside: a real server process, real sockets, real programs.
//!
//! Each module is named after a promise or a part of the wire, each test after what a user sees. What cannot be seen from outside
//! (plans of queries, atomicity of single changes under each interleaving) is proved by the tests of the store.

mod wire_core;
mod wire_environment;
