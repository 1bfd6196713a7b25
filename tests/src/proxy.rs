//! A wire between a server and its database that a test can cut.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Passes connections on to an address, as long as it is not cut.
pub struct Proxy {
    address: SocketAddr,
    wire: Arc<Wire>,
}

struct Wire {
    target: SocketAddr,
    is_cut: AtomicBool,
    is_over: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Passes on to whatever a database URL names.
    ///
    /// # Panics
    /// If the URL names no host and port.
    #[must_use]
    pub fn to_database(url: &str) -> Self {
        let target = host_and_port(url)
            .to_socket_addrs()
            .expect("the database has an address")
            .next()
            .expect("the database has an address");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let wire = Arc::new(Wire {
            target,
            is_cut: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&wire);
        thread::spawn(move || accepting.accept(&listener));
        Self { address, wire }
    }

    /// The same database, reached through this wire.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        database.replacen(host_and_port(database), &self.address.to_string(), 1)
    }

    /// Cuts the wire as a broken network does: nothing passes any more and nobody is told; new connections are made and lead nowhere.
    pub fn cut(&self) {
        self.wire.is_cut.store(true, Ordering::SeqCst);
    }

    /// Mends the wire. What was open before is reset.
    pub fn mend(&self) {
        self.wire.close();
        self.wire.is_cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.wire.is_over.store(true, Ordering::SeqCst);
        self.wire.close();
        // Wakes who accepts.
        let _refused_if_gone = TcpStream::connect(self.address);
    }
}

/// What stands between the user and the name of the database.
fn host_and_port(url: &str) -> &str {
    let (_, rest) = url.split_once("://").expect("a URL has a scheme");
    let (server, _) = rest.split_once('/').expect("it names a database");
    server.rsplit_once('@').map_or(server, |(_, server)| server)
}

impl Wire {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.is_over.load(Ordering::SeqCst) {
                return;
            }
            let Ok(client) = client else { continue };
            let Ok(server) = TcpStream::connect(self.target) else {
                continue;
            };
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
                    continue;
                };
                let wire = Arc::clone(self);
                thread::spawn(move || wire.pump(&from, &to));
            }
            let mut open = self.open.lock().expect("no holder panics");
            open.extend([client, server]);
        }
    }

    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut buffer = [0; 64 * 1024];
        loop {
            let length = match io::Read::read(&mut from, &mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            while self.is_cut.load(Ordering::SeqCst) && !self.is_over.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
            if io::Write::write_all(&mut to, &buffer[..length]).is_err() {
                break;
            }
        }
        let _gone_anyway = to.shutdown(Shutdown::Both);
    }

    fn close(&self) {
        let open = std::mem::take(&mut *self.open.lock().expect("no holder panics"));
        for stream in open {
            let _gone_anyway = stream.shutdown(Shutdown::Both);
        }
    }
}
