//! Who keeps the sockets of a server, as systemd does: each process of the server is given them, and while there is none,
//! connections wait.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
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
    tcp: [TcpListener; 2],
    core_socket: UnixListener,
}

impl Keeper {
    /// Listens on two ports, and on the socket in a data directory.
    pub(crate) fn of(ports: [u16; 2], data_dir: &Path) -> Self {
        let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let tcp = ports.map(|port| listen(port).expect("the port was free a moment ago"));
        let core_socket = UnixListener::bind(data_dir.join("core.sock"));
        Self {
            tcp,
            core_socket: core_socket.expect("there is none in a new directory"),
        }
    }

    /// A command that starts a server with the sockets.
    pub(crate) fn outer(&self) -> Command {
        let mut outer = Command::new("bash");
        outer.args(["-c", PASS, "bash"]);
        for socket in [
            self.tcp[0].as_fd(),
            self.tcp[1].as_fd(),
            self.core_socket.as_fd(),
        ] {
            // Beyond those that the protocol uses, and open in the shell, too.
            let copy = fcntl(socket, FcntlArg::F_DUPFD(100)).expect("a descriptor is free");
            outer.arg(copy.to_string());
        }
        outer
    }
}
