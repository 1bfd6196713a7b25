//! Who keeps the sockets of a server, as systemd does: each process of the server is given them, and while there is none,
//! connections wait.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};

/// Puts the sockets where the protocol wants them, from the third descriptor on, and becomes the server: the process that is named in
/// `LISTEN_PID` must be the server itself.
const PASS: &str = "exec 3<&$1 4<&$2 5<&$3; a=$1 b=$2 c=$3; shift 3; \
                    exec {a}<&- {b}<&- {c}<&-; \
                    LISTEN_PID=$$ LISTEN_FDS=3 exec \"$@\"";

pub(crate) struct Keeper {
    /// Descriptors of the sockets, which a shell finds open too; so they are until the test's process ends.
    sockets: [String; 3],
}

impl Keeper {
    /// Listens on two ports, and on the socket in a data directory.
    pub(crate) fn of([one, other]: [u16; 2], data_dir: &Path) -> Self {
        let listen = |port| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            OwnedFd::from(listener.expect("the port was free a moment ago"))
        };
        let core_socket = UnixListener::bind(data_dir.join("core.sock"));
        let core_socket = OwnedFd::from(core_socket.expect("there is none in a new directory"));
        let sockets = [listen(one), listen(other), core_socket].map(|socket| {
            // Beyond those that the protocol uses, and not closed when a program is executed.
            let kept = fcntl(&socket, FcntlArg::F_DUPFD(100));
            kept.expect("a descriptor is free").to_string()
        });
        Self { sockets }
    }

    /// A command that starts a server with the sockets.
    pub(crate) fn outer(&self) -> Command {
        let mut outer = Command::new("bash");
        outer.args(["-c", PASS, "bash"]).args(&self.sockets);
        outer
    }
}
