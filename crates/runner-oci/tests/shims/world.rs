//! A host and an internet for one test: two networks that nothing else is in.

use std::fs::{self, File};
use std::future::Future;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{image, stage};

/// The host.
pub(crate) const HOST: &str = "10.77.0.1";
/// Somebody in the internet, and what every name stands for.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The host, by IPv6.
pub(crate) const HOST_BY_IPV6: &str = "fd00:77::1";
/// Somebody in the internet, by IPv6.
pub(crate) const OUTSIDE_BY_IPV6: &str = "fd00:77::2";
/// Where clouds tell their machines who they are.
pub(crate) const METADATA: &str = "169.254.169.254";
/// Where the host is heard, by TCP and by UDP, on all of its addresses.
pub(crate) const HOST_PORT: u16 = 9000;
pub(crate) const OUTSIDE_PORT: u16 = 80;

/// What is there.
#[derive(Clone)]
pub(crate) struct World {
    /// How often the host was called.
    pub(crate) calls_of_host: Arc<AtomicU32>,
}

/// Plays one test to its end, on a host of its own.
pub(crate) fn play<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    // Namespaces are those of a thread, and of what it starts.
    let apart = std::thread::spawn(move || {
        let world = World::make();
        stage::play(test(world));
    });
    if let Err(panic) = apart.join() {
        std::panic::resume_unwind(panic);
    }
}

impl World {
    fn make() -> Self {
        let net = || File::open("/proc/thread-self/ns/net").unwrap();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let internet = net();
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let host = net();
        let peer = format!("/proc/{}/fd/{}", std::process::id(), internet.as_raw_fd());
        ip(&format!(
            "link add eth0 type veth peer name eth0 netns {peer}"
        ));
        ip(&format!("addr add {HOST}/24 dev eth0"));
        ip(&format!("addr add {HOST_BY_IPV6}/64 dev eth0 nodad"));
        ip("link set lo up");
        ip("link set eth0 up");
        ip(&format!("route add default via {OUTSIDE}"));
        setns(internet.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        ip(&format!("addr add {OUTSIDE}/24 dev eth0"));
        ip(&format!("addr add {METADATA}/32 dev eth0"));
        ip(&format!("addr add {OUTSIDE_BY_IPV6}/64 dev eth0 nodad"));
        ip("link set eth0 up");
        greet("outside", OUTSIDE_PORT, Arc::default());
        setns(host.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        let calls_of_host = Arc::default();
        greet("host", HOST_PORT, Arc::clone(&calls_of_host));
        hear(Arc::clone(&calls_of_host));
        resolve();
        Self { calls_of_host }
    }
}

fn ip(arguments: &str) {
    let done = Command::new(image::needed("ip", "iproute2"))
        .args(arguments.split(' '))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "ip {arguments}: {said}");
}

/// Says a word to whoever connects, by whatever address, and counts them.
fn greet(word: &'static str, port: u16, calls: Arc<AtomicU32>) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    std::thread::spawn(move || {
        for call in listener.incoming() {
            calls.fetch_add(1, Ordering::Relaxed);
            let _told = call.and_then(|mut call| writeln!(call, "{word}"));
        }
    });
}

/// Counts what comes by UDP.
fn hear(calls: Arc<AtomicU32>) {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, HOST_PORT)).unwrap();
    std::thread::spawn(move || {
        while socket.recv(&mut [0; 64]).is_ok() {
            calls.fetch_add(1, Ordering::Relaxed);
        }
    });
}

/// Has a resolver on the host's loopback, which knows one address for all names.
fn resolve() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(none, "/", none, private, none).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "nameserver 127.0.0.1").unwrap();
    fs::set_permissions(
        file.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    mount(
        Some(file.path()),
        "/etc/resolv.conf",
        none,
        MsFlags::MS_BIND,
        none,
    )
    .unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, asker)) = socket.recv_from(&mut question) {
            let _told = socket.send_to(&answer(&question[..length]), asker);
        }
    });
}

/// An answer to a question for the address of a name (RFC 1035, 4).
fn answer(question: &[u8]) -> Vec<u8> {
    let name = question[12..].iter().position(|byte| *byte == 0).unwrap();
    let asked = &question[12..12 + name + 5];
    let is_ipv4 = asked[name + 1..name + 3] == [0, 1];
    let counts = [0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0];
    let mut answer = [&question[..2], &[0x81, 0x80], &counts, asked].concat();
    if is_ipv4 {
        // The name asked for; an address; of the internet; for a minute; of four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(OUTSIDE.octets());
    }
    answer
}
