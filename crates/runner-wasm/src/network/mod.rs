//! What a guest reaches through `wasi:http`: the core, and such hosts as it is allowed.
//!
//! ```text
//!  guest ── wasi:http ──▶ Hooks ──▶ http://127.0.0.1:8001  core: the routes of the instance protocol, in this process, as the run itself
//!                              ├──▶ an allowed host        exchange: resolved, each address looked at, connected to, spoken with
//!                              └──▶ anything else          HTTP-request-denied
//! ```
//!
//! A guest holds no address, no socket and no token: who it is, is said here.

mod address;
mod allowed;
mod body;
mod connect;
mod core;
mod exchange;
mod hooks;
mod tls;

pub(crate) use allowed::{Allowed, Reach};
pub(crate) use connect::Outside;
pub(crate) use hooks::{Network, Speaker};

/// Where a guest finds the core: its own loopback, so to speak, as it is in a container.
pub(crate) const CORE_ADDR: &str = "127.0.0.1:8001";
/// The import by which a component is one that speaks HTTP; its version follows.
pub(crate) const HANDLER: &str = "wasi:http/outgoing-handler@";

/// Most requests of a guest at once. One counts until its answer was read, or dropped.
const REQUESTS: usize = 16;
/// Longest path of a request, with its query.
const TARGET_BYTES: usize = 32 * 1024;
/// Most bytes of a set of headers, as it is held in memory, where each header takes some tens more than it is long.
const HEADER_BYTES: usize = 32 * 1024;
/// Most bytes of a body that are taken from a guest at once.
const CHUNK_BYTES: usize = 64 * 1024;
