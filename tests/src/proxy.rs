//! Stands between a server and its database: cuts connections, holds them up, loses what they say, lets no new one through.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{sleep, spawn};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

/// The proxy. It serves until the process ends.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// How long each piece is held up, in milliseconds.
    delay_ms: AtomicU64,
    refuses: AtomicBool,
    /// Whether nothing passes, and nobody is told.
    is_silent: AtomicBool,
    open: Mutex<Vec<(TcpStream, TcpStream)>>,
}

impl State {
    fn open(&self) -> MutexGuard<'_, Vec<(TcpStream, TcpStream)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Passes on what comes to what listens on this port.
    ///
    /// # Errors
    /// If no port is free.
    pub fn to(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let proxy = Self {
            port: listener.local_addr()?.port(),
            state: Arc::default(),
        };
        let state = Arc::clone(&proxy.state);
        spawn(move || {
            for client in listener.incoming().flatten() {
                if state.refuses.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
                    continue;
                };
                // What cannot be passed on is a connection that was cut.
                let _cut = join(&state, client, server);
            }
        });
        Ok(proxy)
    }

    /// Passes on to the database of this machine that a URL names.
    ///
    /// # Panics
    /// If the URL names no port, or none is free here.
    #[must_use]
    pub fn to_database(url: &str) -> Self {
        let (_, port) = host_and_port(url);
        Self::to(port.parse().expect("a port is a number")).expect("a port is free")
    }

    /// The same database, reached through this proxy.
    ///
    /// # Panics
    /// If the URL names no port.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let (host, port) = host_and_port(database);
        let here = format!("127.0.0.1:{}", self.port);
        database.replacen(&format!("{host}:{port}"), &here, 1)
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Holds up each piece for so long.
    pub fn delay(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.state.delay_ms.store(millis, Ordering::Relaxed);
    }

    /// Lets no new connection through, or does again.
    pub fn refuse(&self, refuses: bool) {
        self.state.refuses.store(refuses, Ordering::Relaxed);
    }

    /// Breaks the network: nothing passes any more and nobody is told; new connections are made and lead nowhere.
    pub fn cut(&self) {
        self.state.is_silent.store(true, Ordering::Relaxed);
    }

    /// Mends the network. What was open before is reset.
    pub fn mend(&self) {
        self.reset();
        self.state.is_silent.store(false, Ordering::Relaxed);
    }

    /// Cuts all connections, as a machine does that has forgotten them.
    pub fn reset(&self) {
        for (client, server) in self.state.open().drain(..) {
            for stream in [client, server] {
                let now = nix::libc::linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                let _closed_before = setsockopt(&stream, sockopt::Linger, &now);
                let _closed_before = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// What stands between the user and the name of the database.
fn host_and_port(url: &str) -> (&str, &str) {
    let (_, rest) = url.split_once("://").expect("a URL has a scheme");
    let (server, _) = rest.split_once('/').expect("it names a database");
    let server = server.rsplit_once('@').map_or(server, |(_, server)| server);
    server.rsplit_once(':').expect("it names a port")
}

fn join(state: &Arc<State>, client: TcpStream, server: TcpStream) -> io::Result<()> {
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        let state = Arc::clone(state);
        spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                let delay = state.delay_ms.load(Ordering::Relaxed);
                if delay > 0 {
                    sleep(Duration::from_millis(delay));
                }
                while state.is_silent.load(Ordering::Relaxed) {
                    sleep(Duration::from_millis(5));
                }
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            // The other direction ends with this one.
            for stream in [from, to] {
                let _closed_before = stream.shutdown(Shutdown::Both);
            }
        });
    }
    let mut open = state.open();
    // Those that have ended meanwhile.
    open.retain(|(client, _)| client.peer_addr().is_ok());
    open.push((client, server));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection through a proxy to somebody who says everything again.
    fn pair() -> (Proxy, TcpStream) {
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = echo.local_addr().expect("it is bound").port();
        spawn(move || {
            for stream in echo.incoming().flatten() {
                let mut back = stream.try_clone().expect("a descriptor is free");
                spawn(move || io::copy(&mut &stream, &mut back));
            }
        });
        let proxy = Proxy::to(port).expect("a port is free");
        let stream = connect(&proxy);
        (proxy, stream)
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port()));
        let stream = stream.expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a time can be set");
        stream
    }

    fn is_answered(mut stream: &TcpStream) -> bool {
        let mut answer = [0; 2];
        stream.write_all(b"hi").is_ok() && stream.read_exact(&mut answer).is_ok()
    }

    #[test]
    fn it_passes_on_cuts_and_refuses() {
        let (proxy, stream) = pair();
        assert!(is_answered(&stream));
        proxy.reset();
        assert!(!is_answered(&stream), "it was cut");
        assert!(is_answered(&connect(&proxy)), "others may come");
        proxy.refuse(true);
        assert!(!is_answered(&connect(&proxy)), "nobody may come");
        proxy.refuse(false);
        assert!(is_answered(&connect(&proxy)));
    }

    #[test]
    fn it_loses_what_is_said() {
        let (proxy, stream) = pair();
        proxy.cut();
        let silent = Some(Duration::from_millis(100));
        stream.set_read_timeout(silent).expect("a time can be set");
        assert!(!is_answered(&stream));
        proxy.mend();
        assert!(!is_answered(&stream), "it was reset");
        assert!(is_answered(&connect(&proxy)));
    }

    #[test]
    fn it_reaches_a_database_under_another_url() {
        let (proxy, _stream) = pair();
        let url = proxy.url("postgres://user@db.example:5432/name");
        let port = proxy.port();
        assert_eq!(url, format!("postgres://user@127.0.0.1:{port}/name"));
    }

    #[test]
    fn it_holds_up() {
        let (proxy, stream) = pair();
        proxy.delay(Duration::from_millis(100));
        let began = std::time::Instant::now();
        assert!(is_answered(&stream));
        assert!(
            began.elapsed() >= Duration::from_millis(200),
            "once each way"
        );
    }
}
