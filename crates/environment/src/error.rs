//! Why a runtime cannot start.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use runtara_store::StoreError;

use crate::config::Problem;

/// Says why a runtime cannot start, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Settings are missing or cannot be used; all of them at once.
    #[error("the configuration has {}:{}", counted(problems), list(problems))]
    Configuration {
        /// What is wrong.
        problems: Vec<Problem>,
    },
    /// The data directory cannot be used.
    #[error("the data directory {} cannot be used: {action}", path.display())]
    DataDirectory {
        /// Where it is.
        path: PathBuf,
        /// What was tried.
        action: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another server uses the data directory.
    #[error(
        "the data directory {} is in use by process {holder}; stop it, or give this server another DATA_DIR",
        path.display()
    )]
    DataDirectoryInUse {
        /// Where it is.
        path: PathBuf,
        /// Which process has it.
        holder: String,
    },
    /// A port cannot be bound.
    #[error("{what} cannot listen on {address}; free it, or set {variable}")]
    Bind {
        /// Which of the servers.
        what: &'static str,
        /// Where.
        address: String,
        /// The variable that chooses another.
        variable: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Sockets were passed on that nothing is served on.
    #[error(
        "sockets were passed on in LISTEN_FDS that listen on {}, where nothing is to be served; they must listen exactly where \
         RUNTARA_ENV_HTTP_BIND and RUNTARA_ENV_HTTP_PORT, RUNTARA_CORE_ADDR and RUNTARA_CORE_HTTP_PORT say, or on {}",
        left.join(" and "),
        core_socket.display()
    )]
    PassedSockets {
        /// Where they listen.
        left: Vec<String>,
        /// The socket in the data directory, which may be one of them.
        core_socket: PathBuf,
    },
    /// The core address is taken by something that is not our core.
    #[error(
        "RUNTARA_CORE_ADDR {address} is in use by {holder}; free it, set another address, or start the core that serves this database there"
    )]
    CoreTaken {
        /// The address.
        address: SocketAddr,
        /// What answered there.
        holder: String,
    },
    /// An external core is asked for that cannot be used.
    #[error("the core at {address} cannot be used: {reason}")]
    ExternalCore {
        /// Its address.
        address: String,
        /// Why.
        reason: String,
    },
    /// The store cannot be opened.
    #[error("the database cannot be opened")]
    Store(#[from] StoreError),
    /// A maintenance by hand cannot be done.
    #[error("{reason}")]
    Maintain {
        /// Why.
        reason: String,
    },
    /// A part of the server cannot be set up.
    #[error("{what} cannot be set up")]
    Part {
        /// Which part.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn counted(problems: &[Problem]) -> String {
    match problems.len() {
        1 => "1 problem".to_owned(),
        several => format!("{several} problems"),
    }
}

fn list(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|problem| format!("\n  {problem}"))
        .collect()
}
