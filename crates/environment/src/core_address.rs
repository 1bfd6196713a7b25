//! Where the instance protocol is served, and by whom.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::sync::mpsc;
use std::time::Duration;
use std::{io, thread};

use runtara_domain::DatabaseId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::Error;
use crate::config::{Config, CoreMode};
use crate::sockets::PassedSockets;

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

/// The addresses that a `host:port` means, as far as they are of this machine; those of IPv4 first, which is what people mean by
/// `localhost`. Blocking, within bounds.
///
/// # Errors
/// If the name of the host cannot be resolved.
pub(crate) fn of_this_machine(address: &str) -> io::Result<Vec<SocketAddr>> {
    let mut found = match address.parse() {
        Ok(address) => vec![address],
        Err(_) => resolve(address)?,
    };
    found.retain(|address: &SocketAddr| is_of_this_machine(address.ip()));
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

/// Asks the resolver, on a thread of its own: it may take minutes, and cannot be told not to.
fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    let (answer, answered) = mpsc::channel();
    let asked = address.to_owned();
    thread::Builder::new()
        .name("resolver".to_owned())
        .spawn(move || {
            let found = asked.to_socket_addrs().map(Iterator::collect);
            // Nobody waits any more if it took too long.
            let _in_time = answer.send(found);
        })?;
    answered.recv_timeout(PATIENCE).map_err(|_| {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", PATIENCE.as_secs()),
        )
    })?
}

/// Only addresses of this machine can be bound (bind(2)).
fn is_of_this_machine(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Finds out whether the core can be served here.
pub(crate) async fn find(config: &Config, passed: &mut PassedSockets) -> Result<CorePlace, Error> {
    let elsewhere = |taken| CorePlace::Elsewhere {
        address: config.core_addr.clone(),
        taken,
    };
    if config.core_mode == CoreMode::External {
        return Ok(elsewhere(None));
    }
    let name = config.core_addr.clone();
    let here = spawn_blocking(move || of_this_machine(&name))
        .await
        .map_err(io::Error::other)
        .flatten();
    let address = here.ok().and_then(|here| here.first().copied());
    let Some(address) = address else {
        if config.core_mode == CoreMode::Embedded {
            return Err(Error::ExternalCore {
                address: config.core_addr.clone(),
                reason: "RUNTARA_CORE_MODE is embedded, and this is not an address of this machine"
                    .to_owned(),
            });
        }
        return Ok(elsewhere(None));
    };
    match passed.listen(address).await {
        Ok(listener) => Ok(CorePlace::Here(listener)),
        Err(error)
            if config.core_mode == CoreMode::Auto && error.kind() == io::ErrorKind::AddrInUse =>
        {
            Ok(elsewhere(Some(address)))
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mode;

    #[tokio::test]
    async fn a_host_name_of_this_machine_is_served_here() {
        let variables =
            |name: &str| (name == "RUNTARA_CORE_ADDR").then(|| "localhost:0".to_owned().into());
        let config = Config::read(Mode::Dev, &variables).unwrap();
        let CorePlace::Here(listener) = find(&config, &mut PassedSockets::default()).await.unwrap()
        else {
            panic!("localhost is taken for another machine");
        };
        assert!(listener.local_addr().unwrap().ip().is_loopback());
    }

    #[test]
    fn an_address_of_another_machine_is_none_of_ours() {
        // Kept for documentation by RFC 5737.
        assert!(of_this_machine("192.0.2.1:8001").unwrap().is_empty());
        // Some resolvers have an answer for everything.
        let invalid = of_this_machine("core.invalid:8001");
        assert!(invalid.map_or(true, |here| here.is_empty()));
    }
}
