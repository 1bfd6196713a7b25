//! Runs WebAssembly in the server's own process: thousands of guests, each with a memory of its own and nothing else.
//!
//! - [`WasmRunner`]: the runner, by its [`WasmConfig`].
//! - An image is a component that is a command of WASI 0.2, or a module of preview 1, which is wrapped into one. It is compiled when it is
//!   registered; what was compiled is kept on disk, and mapped.
//! - What a guest may import, beside WASI: the package `runtara:durable` (`wit/durable.wit`). Each of its functions is a call of the
//!   instance protocol, as [`InstanceCalls`](runtara_runner::InstanceCalls) has it.
//! - Or it speaks the published contract over HTTP, through `wasi:http`: its requests reach the core, without a socket, and such hosts as
//!   it is allowed to call.
//! - Guests run on threads of their own, and give way to each other every 10 ms. They see no files and no sockets.
//! - When the process ends, so do its guests; they are run again from their checkpoints.

mod cache;
mod config;
mod content;
mod drain;
mod engine;
mod guest;
mod host;
mod images;
mod network;
mod output;
mod run;
mod runner;
mod scratch;
mod settings;

pub use config::WasmConfig;
pub use content::component;
pub use engine::look;
pub use runner::WasmRunner;
