//! The sockets of a server: bound here, or passed on by whoever started it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};
use tracing::info;

use crate::config::Config;
use crate::core_address::{CorePlace, find, of_this_machine};
use crate::error::Error;

/// The name of the socket in the data directory.
const CORE_SOCKET: &str = "core.sock";

/// Listening sockets that this process was given by whoever started it, as systemd does (sd_listen_fds(3)).
///
/// Such a socket is open from before this process until after it: while one server leaves and the next one starts, connections wait
/// in it, and none is refused.
#[derive(Debug, Default)]
pub struct PassedSockets {
    tcp: Vec<std::net::TcpListener>,
    unix: Vec<StdUnixListener>,
}

impl PassedSockets {
    /// Takes the sockets that `LISTEN_FDS` and `LISTEN_PID` tell of, and removes these variables. To be called while the process has
    /// one thread.
    ///
    /// # Errors
    /// [`Error::Part`] if one of them is no listening stream socket.
    pub fn from_environment() -> Result<Self, Error> {
        let mut passed = ListenFd::from_env();
        let mut found = Self::default();
        for number in 0..passed.len() {
            if let Ok(Some(listener)) = passed.take_unix_listener(number) {
                found.unix.push(listener);
                continue;
            }
            let listener = passed
                .take_tcp_listener(number)
                .map_err(|source| Error::Part {
                    what: "a socket that was passed on in LISTEN_FDS",
                    source: source.into(),
                })?;
            found.tcp.extend(listener);
        }
        Ok(found)
    }

    /// Whether there are none, or none any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.unix.is_empty()
    }

    fn take_tcp(&mut self, address: SocketAddr) -> Option<std::net::TcpListener> {
        let mut passed = self.tcp.iter();
        let at = passed.position(|listener| listener.local_addr().ok() == Some(address))?;
        Some(self.tcp.swap_remove(at))
    }

    fn take_unix(&mut self, path: &Path) -> Option<StdUnixListener> {
        let mut passed = self.unix.iter();
        let at = passed.position(|listener| path_of(listener).as_deref() == Some(path))?;
        Some(self.unix.swap_remove(at))
    }

    /// Listens on an address: with the socket that was passed on for it, else with one of our own.
    pub(crate) async fn listen(&mut self, address: SocketAddr) -> std::io::Result<TcpListener> {
        let Some(passed) = self.take_tcp(address) else {
            return TcpListener::bind(address).await;
        };
        passed.set_nonblocking(true)?;
        info!(%address, "listening on a socket that was passed on");
        TcpListener::from_std(passed)
    }

    /// What is left: where those sockets listen.
    fn left(&self) -> Vec<String> {
        let tcp = self.tcp.iter().map(|listener| match listener.local_addr() {
            Ok(address) => address.to_string(),
            Err(error) => format!("an address that cannot be told ({error})"),
        });
        let unix = self.unix.iter().map(|listener| match path_of(listener) {
            Some(path) => path.display().to_string(),
            None => "a socket without a path".to_owned(),
        });
        tcp.chain(unix).collect()
    }
}

fn path_of(listener: &StdUnixListener) -> Option<PathBuf> {
    let address = listener.local_addr().ok()?;
    address.as_pathname().map(Path::to_owned)
}

/// The sockets of a server, bound before anything else: from here on no connection is refused, it only waits.
pub(crate) struct Sockets {
    pub(crate) environment: TcpListener,
    pub(crate) core: CorePlace,
    pub(crate) second_core: Option<TcpListener>,
    pub(crate) core_socket: UnixListener,
    /// Where other nodes reach this one, and the address by which they do.
    pub(crate) node: Option<(TcpListener, String)>,
}

impl Sockets {
    /// Listens wherever the configuration says, with the sockets that were passed on as far as there are some.
    pub(crate) async fn bind(
        config: &Config,
        data_dir: &Path,
        mut passed: PassedSockets,
    ) -> Result<Self, Error> {
        let environment = bind_tcp(
            &mut passed,
            config.env_addr,
            "the environment protocol",
            "RUNTARA_ENV_HTTP_PORT",
        )
        .await?;
        let core = find(config, &mut passed).await?;
        let second_core = match (config.core_http_port, &core) {
            (Some(port), CorePlace::Here(_)) => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                let what = "the second port of the instance protocol";
                Some(bind_tcp(&mut passed, address, what, "RUNTARA_CORE_HTTP_PORT").await?)
            }
            _ => None,
        };
        let core_socket = bind_unix(data_dir, &mut passed)?;
        let node = match &config.node.address {
            Some(address) => Some(bind_node(&mut passed, address).await?),
            None => None,
        };
        if !passed.is_empty() {
            return Err(Error::PassedSockets {
                left: passed.left(),
                core_socket: data_dir.join(CORE_SOCKET),
            });
        }
        Ok(Self {
            environment,
            core,
            second_core,
            core_socket,
            node,
        })
    }

    /// The address that launched programs are given.
    pub(crate) fn core_addr(&self, config: &Config) -> Result<String, Error> {
        match &self.core {
            CorePlace::Elsewhere { address, .. } => Ok(address.clone()),
            CorePlace::Here(listener) => listener
                .local_addr()
                .map(|mut address| {
                    if address.ip().is_unspecified() {
                        // Programs of this machine cannot call "any address".
                        address.set_ip(Ipv4Addr::LOCALHOST.into());
                    }
                    address.to_string()
                })
                .map_err(|source| Error::Bind {
                    what: "the instance protocol",
                    address: config.core_addr.clone(),
                    variable: "RUNTARA_CORE_ADDR",
                    source,
                }),
        }
    }

    /// Further addresses at which programs that were launched under other settings find the core.
    pub(crate) fn other_core_addrs(&self) -> Vec<String> {
        let second = self.second_core.as_ref();
        let address = second.and_then(|listener| listener.local_addr().ok());
        address.iter().map(ToString::to_string).collect()
    }
}
async fn bind_tcp(
    passed: &mut PassedSockets,
    address: SocketAddr,
    what: &'static str,
    variable: &'static str,
) -> Result<TcpListener, Error> {
    passed.listen(address).await.map_err(|source| Error::Bind {
        what,
        address: address.to_string(),
        variable,
        source,
    })
}

/// Listens where other nodes reach this one: at that address itself, or at its port on all addresses if it is not one of this machine, as
/// behind a translation of addresses. Gives the address by which they reach it.
async fn bind_node(
    passed: &mut PassedSockets,
    address: &str,
) -> Result<(TcpListener, String), Error> {
    let failed = |source| Error::Bind {
        what: "the requests of other nodes",
        address: address.to_owned(),
        variable: "RUNTARA_NODE_ADDR",
        source,
    };
    let name = address.to_owned();
    let here = tokio::task::spawn_blocking(move || of_this_machine(&name))
        .await
        .map_err(|error| failed(std::io::Error::other(error)))?
        .map_err(failed)?;
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.parse().unwrap_or(0)));
    let listen_at = here.first().copied().unwrap_or(everywhere);
    let listener = passed.listen(listen_at).await.map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    Ok((listener, format!("{host}:{port}")))
}

/// The socket in the data directory: that which was passed on, else a new one. The directory is locked by us, so a socket that is there is one that a dead process left.
fn bind_unix(data_dir: &Path, passed: &mut PassedSockets) -> Result<UnixListener, Error> {
    let path = data_dir.join(CORE_SOCKET);
    let failed = |source| Error::Bind {
        what: "the instance protocol's socket",
        address: path.display().to_string(),
        variable: "DATA_DIR",
        source,
    };
    if let Some(passed) = passed.take_unix(&path) {
        passed.set_nonblocking(true).map_err(failed)?;
        return UnixListener::from_std(passed).map_err(failed);
    }
    bind_new(data_dir, CORE_SOCKET).map_err(failed)
}

/// Listens on a new socket in the data directory, in place of one that is there.
pub(crate) fn bind_new(data_dir: &Path, name: &str) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(data_dir.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The name of a socket is at most 107 bytes long (unix(7)); a descriptor of the directory stands for a path of any length.
    let directory = std::fs::File::open(data_dir)?;
    let short = PathBuf::from(format!(
        "/proc/self/fd/{}/{name}",
        std::os::fd::AsRawFd::as_raw_fd(&directory)
    ));
    UnixListener::bind(short)
}
