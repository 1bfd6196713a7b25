//! Both protocols over HTTP: wire types, routes, errors, and the server loop.
//!
//! - [`environment`]: what people and the management client ask (port 8002).
//! - [`core`]: what instances ask and say (port 8001, and the socket in the data directory).
//! - [`nodes`]: what nodes that share a database ask of one another.
//! - [`server`]: accepts connections, bounds them, and lets them finish when the process goes away.
//!
//! Every answer, also to what no route knows, is JSON. An error's HTTP form is made in one place: `error`.

mod body;
pub mod core;
pub mod environment;
mod error;
mod extract;
mod guard;
mod json_stream;
pub mod nodes;
pub mod server;
mod standing;

pub use error::ApiError;
pub use guard::HostPolicy;
