//! The user and the network namespace of a container, made before the runtime is called.
//!
//! They are made by a child of the shim that lives just for that. The network namespace belongs to the user namespace, so that the
//! runtime, which joins both, may mount what shows it (sysfs refuses others). Made first, the network has its listener
//! before the program is there, without a hook that the runtime would have to execute; and the user namespace is what layers are
//! mapped by.

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv,
    recvmsg, send, sendmsg, setsockopt, socketpair, sockopt,
};
use nix::sys::time::TimeVal;

use super::sys::{self, Child, Waited};

/// How long the child may take for a step. Each is a few system calls.
const PATIENCE_SECONDS: i64 = 10;
/// A report: the step, and an error number, 0 for none.
const REPORT_BYTES: usize = 5;

/// Namespaces that live as long as somebody holds them.
#[derive(Debug)]
pub struct Namespaces {
    /// The user namespace: what layers are mapped by, and what the runtime joins.
    pub user: OwnedFd,
    /// The network namespace, if one was asked for.
    pub network: Option<Network>,
}

/// A network with nothing but a loopback.
#[derive(Debug)]
pub struct Network {
    /// The namespace.
    pub namespace: OwnedFd,
    /// Listens on its loopback.
    pub listener: TcpListener,
}

/// What the child does, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Separate = 1,
    Listen = 2,
}

impl Step {
    fn describe(number: u8) -> &'static str {
        match number {
            1 => "make the namespaces",
            _ => "listen in the network namespace",
        }
    }
}

impl Namespaces {
    /// Makes a user namespace in which user and group ids from 0 on are these of the host, and with a port a network namespace in which that port of the loopback is listened on. Only
    /// for a process of one thread, such as a shim.
    ///
    /// # Errors
    /// What the system reported, and at which step.
    pub fn make(ids: Range<u32>, port: Option<u16>) -> io::Result<Self> {
        make(ids, port)
    }
}

fn make(ids: Range<u32>, port: Option<u16>) -> io::Result<Namespaces> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for socket in [&ours, &theirs] {
        setsockopt(
            socket,
            sockopt::ReceiveTimeout,
            &TimeVal::new(PATIENCE_SECONDS, 0),
        )?;
    }
    let Some(child) = sys::fork()? else {
        drop(ours);
        let made = be_the_child(&theirs, port);
        sys::exit_now(i32::from(made.is_err()));
    };
    drop(theirs);
    let made = guide(&ours, child, ids, port.is_some());
    // It leaves when its socket closes, or is stuck and must.
    drop(ours);
    let _gone = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child),
        nix::sys::signal::Signal::SIGKILL,
    );
    while sys::wait(Child::Only(child), true) == Waited::Alive {
        // SIGKILL was sent, and the kernel is at it.
        std::thread::yield_now();
    }
    made
}

fn guide(
    socket: &OwnedFd,
    child: i32,
    ids: Range<u32>,
    has_network: bool,
) -> io::Result<Namespaces> {
    receive(socket)?;
    let map = format!("0 {} {}\n", ids.start, ids.len());
    for name in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{child}/{name}"), &map)
            .map_err(|error| naming(&format!("map the ids {map:?}"), error))?;
    }
    let namespace = |name: &str| -> io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/{child}/ns/{name}"))?.into())
    };
    let user = namespace("user")?;
    let network = match has_network {
        false => None,
        true => {
            let namespace = namespace("net")?;
            send(socket.as_raw_fd(), b"go", MsgFlags::MSG_NOSIGNAL)?;
            let listener = receive(socket)?
                .ok_or_else(|| io::Error::other("the child has sent no listener"))?;
            Some(Network {
                namespace,
                listener: listener.into(),
            })
        }
    };
    Ok(Namespaces { user, network })
}

/// Receives a report, and the descriptor that came with it.
#[expect(
    unsafe_code,
    reason = "descriptors arrive as bare numbers, and somebody must own them"
)]
fn receive(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut report = [0; REPORT_BYTES];
    let mut slices = [IoSliceMut::new(&mut report)];
    let mut controls = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut controls), flags)?;
    let mut descriptor = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel has just put this descriptor into our table, for us alone.
                descriptor = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    if message.bytes != REPORT_BYTES {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let [step, errno @ ..] = report;
    match i32::from_ne_bytes(errno) {
        0 => Ok(descriptor),
        errno => Err(naming(
            Step::describe(step),
            io::Error::from_raw_os_error(errno),
        )),
    }
}

fn be_the_child(socket: &OwnedFd, port: Option<u16>) -> io::Result<()> {
    let _with_the_shim = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    let mut flags = CloneFlags::CLONE_NEWUSER;
    flags.set(CloneFlags::CLONE_NEWNET, port.is_some());
    report(socket, Step::Separate, unshare(flags).map_err(Into::into))?;
    let mut go = [0; 2];
    // Without an answer the shim has what it wants, or is gone.
    if let Some(port) = port
        && recv(socket.as_raw_fd(), &mut go, MsgFlags::empty())? == go.len()
    {
        let listener =
            sys::raise_loopback().and_then(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, port)));
        report(socket, Step::Listen, listener)?;
    }
    // Until the namespaces are held by somebody else.
    recv(socket.as_raw_fd(), &mut go, MsgFlags::empty())?;
    Ok(())
}

/// What a step may have made.
trait Made {
    fn descriptor(&self) -> Option<RawFd>;
}

impl Made for () {
    fn descriptor(&self) -> Option<RawFd> {
        None
    }
}

impl Made for TcpListener {
    fn descriptor(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }
}

fn report<T: Made>(socket: &OwnedFd, step: Step, done: io::Result<T>) -> io::Result<()> {
    let errno = match &done {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let mut text = [step as u8, 0, 0, 0, 0];
    text[1..].copy_from_slice(&errno.to_ne_bytes());
    let descriptor = done.as_ref().ok().and_then(Made::descriptor);
    let descriptors = descriptor.map(|fd| [fd]);
    let rights = descriptors
        .as_ref()
        .map(|fds| ControlMessage::ScmRights(fds));
    let controls = rights.as_slice();
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&text)],
        controls,
        flags,
        None,
    )?;
    done.map(drop)
}

fn naming(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("could not {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use nix::sched::setns;

    use super::*;

    /// Does something in a child of its own: what is tried here is for processes of one thread, which a test is not.
    fn in_a_child(act: impl FnOnce() -> io::Result<()>) {
        let Some(child) = sys::fork().unwrap() else {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            match done {
                Ok(Ok(())) => sys::exit_now(0),
                Ok(Err(error)) => {
                    let _told = writeln!(io::stderr(), "{error}");
                    sys::exit_now(1)
                }
                Err(_) => sys::exit_now(2),
            }
        };
        let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child), None).unwrap();
        let left = nix::sys::wait::WaitStatus::Exited(nix::unistd::Pid::from_raw(child), 0);
        assert_eq!(status, left);
    }

    const IDS: Range<u32> = 1_879_048_192..1_879_113_728;

    #[test]
    fn the_listener_is_in_a_network_of_its_own() {
        if !nix::unistd::geteuid().is_root() {
            // Maps are root's to write.
            assert!(make(IDS, None).is_err());
            return;
        }
        in_a_child(|| {
            let made = make(IDS, Some(8001))?;
            let network = made.network.ok_or(io::ErrorKind::NotFound)?;
            // Another one can listen on the same port: it is another network.
            let second = make(IDS, Some(8001))?;
            drop(second);
            assert!(std::net::TcpStream::connect("127.0.0.1:8001").is_err());
            let Some(inside) = sys::fork()? else {
                let spoken = setns(&made.user, CloneFlags::CLONE_NEWUSER)
                    .and_then(|()| setns(&network.namespace, CloneFlags::CLONE_NEWNET))
                    .map_err(io::Error::from)
                    .and_then(|()| std::net::TcpStream::connect("127.0.0.1:8001"))
                    .and_then(|mut stream| stream.write_all(b"inside"));
                sys::exit_now(i32::from(spoken.is_err()));
            };
            let (mut heard, _) = network.listener.accept()?;
            let mut text = String::new();
            heard.read_to_string(&mut text)?;
            assert_eq!(text, "inside");
            let _left = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(inside), None)?;
            Ok(())
        });
    }

    #[test]
    fn the_ids_are_those_that_were_asked_for() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        in_a_child(|| {
            let made = make(IDS, None)?;
            assert!(made.network.is_none());
            let Some(inside) = sys::fork()? else {
                let joined = setns(&made.user, CloneFlags::CLONE_NEWUSER);
                let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
                let found: Vec<u32> = map
                    .split_whitespace()
                    .filter_map(|number| number.parse().ok())
                    .collect();
                let is_right = joined.is_ok() && found == [0, IDS.start, IDS.end - IDS.start];
                sys::exit_now(i32::from(!is_right));
            };
            let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(inside), None)?;
            let left = nix::sys::wait::WaitStatus::Exited(nix::unistd::Pid::from_raw(inside), 0);
            assert_eq!(status, left);
            Ok(())
        });
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        in_a_child(|| {
            // None at all.
            let error = make(0..0, None).err().ok_or(io::ErrorKind::Other)?;
            assert!(error.to_string().contains("map the ids"), "{error}");
            Ok(())
        });
    }
}
