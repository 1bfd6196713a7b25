//! Where the instance protocol is served, and by whom.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use runtara_domain::DatabaseId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::Error;
use crate::config::{Config, CoreMode};

/// How long whatever answers at the core address may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of its answer that are read.
const ANSWER_BYTES: u64 = 64 * 1024;

/// Where the instance protocol is served.
pub(crate) enum CorePlace {
    /// Here.
    Here(TcpListener),
    /// By another process, which must be seen to serve the same database.
    Elsewhere {
        /// Where.
        address: String,
        /// Why we do not serve it here, if the address is one of this machine.
        taken: Option<SocketAddr>,
    },
}

/// Finds out whether the core can be served here.
pub(crate) async fn find(config: &Config) -> Result<CorePlace, Error> {
    let elsewhere = |taken| CorePlace::Elsewhere {
        address: config.core_addr.clone(),
        taken,
    };
    let address: Option<SocketAddr> = config.core_addr.parse().ok();
    let (CoreMode::Auto | CoreMode::Embedded, Some(address)) = (config.core_mode, address) else {
        if config.core_mode == CoreMode::Embedded {
            return Err(Error::ExternalCore {
                address: config.core_addr.clone(),
                reason: "RUNTARA_CORE_MODE is embedded, and this is not an IP address and a port"
                    .to_owned(),
            });
        }
        return Ok(elsewhere(None));
    };
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(CorePlace::Here(listener)),
        Err(error) if config.core_mode == CoreMode::Auto => match error.kind() {
            io::ErrorKind::AddrInUse => Ok(elsewhere(Some(address))),
            io::ErrorKind::AddrNotAvailable => Ok(elsewhere(None)),
            _ => Err(cannot_bind(&config.core_addr, error)),
        },
        Err(error) => Err(cannot_bind(&config.core_addr, error)),
    }
}

fn cannot_bind(address: &str, source: io::Error) -> Error {
    Error::Bind {
        what: "the instance protocol",
        address: address.to_owned(),
        variable: "RUNTARA_CORE_ADDR",
        source,
    }
}

/// Checks that the core at an address serves this database.
pub(crate) async fn check_elsewhere(
    address: &str,
    taken: Option<SocketAddr>,
    database: DatabaseId,
) -> Result<(), Error> {
    let found = timeout(PATIENCE, ask_ready(address)).await;
    let reason = match found {
        Ok(Ok(answer)) => match answer
            .get("database_id")
            .and_then(serde_json::Value::as_str)
        {
            Some(id) if id == database.to_string() => return Ok(()),
            Some(_) => "a core that serves another database".to_owned(),
            None => "a program that is not a runtara core".to_owned(),
        },
        Ok(Err(error)) => format!("a program that does not answer as a core does ({error})"),
        Err(_) => format!(
            "a program that did not answer within {} s",
            PATIENCE.as_secs()
        ),
    };
    Err(match taken {
        Some(address) => Error::CoreTaken {
            address,
            holder: reason,
        },
        None => Error::ExternalCore {
            address: address.to_owned(),
            reason: format!("there is {reason}"),
        },
    })
}

/// Asks `GET /ready`. The answer is small and comes from a server like ours, so that one request on one connection is all it takes.
async fn ask_ready(address: &str) -> io::Result<serde_json::Value> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES).read_to_end(&mut answer).await?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let body = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .map(|at| &answer[at + 4..])
        .ok_or_else(invalid)?;
    serde_json::from_slice(body).map_err(|_| invalid())
}
