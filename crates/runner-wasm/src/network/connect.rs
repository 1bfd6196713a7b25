//! Connects to hosts outside.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use wasmtime_wasi_http::Error;

use super::address::of_this_machine;
use super::allowed::{Allowed, Host};
use super::tls::Tls;

/// Names that are looked up at once, of all guests: each takes a thread, for as long as the system's resolver takes.
const LOOKUPS: usize = 32;

/// What all guests share that call hosts outside.
pub(crate) struct Outside {
    connections: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    pub(super) tls: Tls,
}

impl Outside {
    /// With at most so many connections at once.
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(connections)),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            tls: Tls::default(),
        }
    }

    /// Connects to a host that is allowed, at an address that is. The place among all connections lives with it.
    pub(super) async fn connect(
        &self,
        allowed: &Allowed,
        host: &Host,
        port: u16,
        patience: Duration,
    ) -> Result<(TcpStream, OwnedSemaphorePermit), Error> {
        let deadline = Instant::now() + patience;
        let place = timeout_at(deadline, Arc::clone(&self.connections).acquire_owned());
        let place = place
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(Error::ConnectionLimitReached)?;
        let mut failure = Error::DestinationNotFound;
        let addresses = timeout_at(deadline, self.look_up(allowed, host, port));
        for address in addresses.await.map_err(|_| Error::DnsTimeout)?? {
            match timeout_at(deadline, TcpStream::connect(address)).await {
                Err(_) => return Err(Error::ConnectionTimeout),
                Ok(Err(error)) => failure = unreached(&error),
                Ok(Ok(stream)) => {
                    // A request is one small write, and its answer another.
                    let _slower_at_worst = stream.set_nodelay(true);
                    return Ok((stream, place));
                }
            }
        }
        Err(failure)
    }

    /// The addresses of a host that may be connected to; never none.
    async fn look_up(
        &self,
        allowed: &Allowed,
        host: &Host,
        port: u16,
    ) -> Result<Vec<SocketAddr>, Error> {
        let turn = Arc::clone(&self.lookups).acquire_owned().await;
        let asked = host.clone();
        let looked = runtara_runner::blocking(move || {
            // Until the resolver is done, whoever still waits for it.
            let _turn = turn;
            let found: Vec<IpAddr> = match asked {
                Host::Address(address) => vec![address],
                Host::Name(name) => (name, port).to_socket_addrs()?.map(|it| it.ip()).collect(),
            };
            Ok((found, of_this_machine()?))
        });
        let (found, own) = looked.await.map_err(|error| Error::DnsError {
            rcode: Some(error.to_string()),
            info_code: None,
        })?;
        let is_unknown = found.is_empty();
        let mut taken = found;
        taken.retain(|address| allowed.takes_address(*address, port, &own));
        match taken.is_empty() {
            true if is_unknown => Err(Error::DestinationNotFound),
            true => Err(Error::DestinationIpProhibited),
            false => Ok(taken
                .into_iter()
                .map(|address| SocketAddr::new(address, port))
                .collect()),
        }
    }
}

fn unreached(error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            Error::DestinationIpUnroutable
        }
        ErrorKind::TimedOut => Error::ConnectionTimeout,
        _ => Error::DestinationUnavailable,
    }
}
