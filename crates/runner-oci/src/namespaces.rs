//! The user and the network namespace of a container, made before the runtime is called.
//!
//! They are made by a process that lives just for that. The network namespace belongs to the user namespace, so that the runtime, which
//! joins both, may mount what shows it (sysfs refuses others). Made first, the network has its listener before the program is
//! there, without a hook that the runtime would have to execute; and the user namespace is what layers are mapped by.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use crate::id_range::{IdRange, RANGE_SIZE};
use crate::machine::PROCS;
use crate::netlink::{Netlink, Request};
use crate::sys::NamespaceHolder;

/// A user namespace in which ids from 0 on are those of a range; no process is in it. It lives as long as something refers to it.
#[derive(Debug)]
pub struct UserNamespace(OwnedFd);

impl UserNamespace {
    /// Makes one, by a process that lives just for that.
    ///
    /// # Errors
    /// What the system said: there may be no more user namespaces (`user.max_user_namespaces`), or this process is not root.
    pub fn new(ids: IdRange) -> io::Result<Self> {
        let holder = hold(ids, CloneFlags::empty(), None)?;
        of(&holder, "user").map(Self)
    }

    /// The namespace, as mounts are told it.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The namespaces of a container. They live as long as something refers to them.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Has left them already. Waited for when this is dropped, and not before: it takes the system some time to take a process apart.
    _holder: NamespaceHolder,
    /// What layers are mapped by, and what the runtime joins.
    pub(crate) user: UserNamespace,
    /// The network, if one was asked for.
    pub(crate) network: Option<Network>,
}

/// A network with nothing but a loopback.
#[derive(Debug)]
pub(crate) struct Network {
    /// The namespace.
    pub(crate) namespace: OwnedFd,
    /// Listens on its loopback.
    pub(crate) listener: TcpListener,
}

impl Namespaces {
    /// Makes a user namespace with these ids, and with a port a network namespace in which that port of the loopback is listened on.
    ///
    /// Who makes them moves first into the cgroup, if there is one: its directory, in any hierarchy. The first process that is moved
    /// waits for a grace period of RCU, about 10 ms, and with it whoever moves another meanwhile, but not those that come shortly
    /// after (`rcu_sync` of the kernel's `cgroup_threadgroup_rwsem`). The runtime will move the container's: so that wait has begun before, beside
    /// all that the runtime does until then.
    pub(crate) fn make(ids: IdRange, port: Option<u16>, cgroup: Option<&Path>) -> io::Result<Self> {
        let others = match port {
            Some(_) => CloneFlags::CLONE_NEWNET,
            None => CloneFlags::empty(),
        };
        // Without it all takes its usual time.
        let open = |cgroup: &Path| File::options().write(true).open(cgroup.join(PROCS)).ok();
        let mut holder = hold(ids, others, cgroup.and_then(open).as_ref())?;
        let user = of(&holder, "user").map(UserNamespace)?;
        let network = port.map(|port| Network::of(&holder, port)).transpose()?;
        holder.let_go();
        Ok(Self {
            _holder: holder,
            user,
            network,
        })
    }
}

impl Network {
    fn of(holder: &NamespaceHolder, port: u16) -> io::Result<Self> {
        let namespace = of(holder, "net")?;
        let listener = within(namespace.as_fd(), || listen(port))?
            .map_err(|error| naming("listen in the network namespace", &error))?;
        Ok(Self {
            namespace,
            listener,
        })
    }
}

/// Does something in another network namespace, which the calling thread leaves again.
///
/// # Errors
/// What entering and leaving reported; after a failure to leave nothing more should be done.
pub(crate) fn within<T>(network: BorrowedFd<'_>, act: impl FnOnce() -> T) -> io::Result<T> {
    let own = File::open("/proc/thread-self/ns/net")?;
    setns(network, CloneFlags::CLONE_NEWNET)?;
    let done = act();
    setns(own, CloneFlags::CLONE_NEWNET)?;
    Ok(done)
}

/// Makes a user namespace with these ids, and others that belong to it.
fn hold(ids: IdRange, others: CloneFlags, cgroup: Option<&File>) -> io::Result<NamespaceHolder> {
    let holder = NamespaceHolder::start(others, cgroup);
    let holder = holder.map_err(|error| naming("make the namespaces", &error))?;
    let map = format!("0 {} {RANGE_SIZE}\n", ids.first());
    for name in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{name}", holder.pid()), &map)
            .map_err(|error| naming(&format!("map the ids {map:?}"), &error))?;
    }
    Ok(holder)
}

fn of(holder: &NamespaceHolder, name: &str) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{}/ns/{name}", holder.pid()))?.into())
}

/// Sets the loopback up, which is down in a new network, and listens on it.
fn listen(port: u16) -> io::Result<TcpListener> {
    let index = nix::net::if_::if_nametoindex("lo")?;
    Netlink::open()?.ask(&Request::set_up(index))?;
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

fn naming(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("could not {what}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    use super::*;
    use crate::id_range::USUAL_BASE;

    fn ids() -> IdRange {
        IdRange::starting_at(USUAL_BASE).unwrap()
    }

    #[test]
    fn the_listener_is_in_a_network_of_its_own() {
        if !nix::unistd::geteuid().is_root() {
            // Maps are root's to write.
            assert!(Namespaces::make(ids(), None, None).is_err());
            return;
        }
        let network = Namespaces::make(ids(), Some(8001), None).unwrap().network;
        let network = network.unwrap();
        // Another one can listen on the same port: it is another network.
        drop(Namespaces::make(ids(), Some(8001), None).unwrap());
        let reach = || TcpStream::connect("127.0.0.1:8001");
        let before = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let mut inside = within(network.namespace.as_fd(), reach).unwrap().unwrap();
        assert_eq!(before, fs::read_link("/proc/thread-self/ns/net").unwrap());
        inside.write_all(b"inside").unwrap();
        drop(inside);
        let mut text = String::new();
        let (mut heard, _) = network.listener.accept().unwrap();
        heard.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inside");
    }

    #[test]
    fn the_ids_are_those_that_were_asked_for() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let holder = hold(ids(), CloneFlags::empty(), None).unwrap();
        for map in ["uid_map", "gid_map"] {
            let map = fs::read_to_string(format!("/proc/{}/{map}", holder.pid())).unwrap();
            let found: Vec<u32> = map
                .split_whitespace()
                .map(|number| number.parse().unwrap())
                .collect();
            assert_eq!(found, [0, USUAL_BASE, RANGE_SIZE]);
        }
    }
}
