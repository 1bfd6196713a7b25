//! Connects the network of a container to the internet, and to nothing of the host.
//!
//! ```text
//!  network namespace of the container                    network of the host
//!  lo    127.0.0.1:<port> ── relay of the shim ────────▶ the core's socket
//!  tap0  198.18.83.100/32 ── frames ── slirp4netns/pasta ── connections of its own ──▶ internet
//! ```
//!
//! The helper makes a connection of its own for each of the program's, so whatever the host reaches the helper would reach, the host itself
//! included. What it must not be asked for is stopped before, by routes of the container's network that the program has no right to
//! change: see [`wire`]. The helper is nobody on the host: root of the container's user namespace, without any right in the host's network.
//! It ends with the shim. When it ends before the program does, its device goes with it, and the program goes on without a network.
//!
//! IPv6 is off: the helper takes no such frames.

mod address;
mod device;
mod helper;
mod host;
mod wire;

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use runtara_runner::shim::Wishes;

use crate::machine::EgressProgram;
use crate::namespaces::{self, Namespaces};
use address::RESOLVER;

pub(crate) use helper::Helper;

/// How long the helper may take until its device is there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for; some milliseconds are what it takes.
const PAUSE: Duration = Duration::from_millis(2);
/// Longest part of the helper's last words that is told.
const WORDS_BYTES: usize = 1024;

/// Says why a container is not connected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EgressError {
    #[error(
        "'{program}' is not there any more, so the network mode egress cannot be had; install it (Debian: apt install {package})"
    )]
    Missing {
        program: String,
        package: &'static str,
    },
    #[error(
        "'/dev/net/tun' cannot be used, so the network mode egress cannot be had; load the module tun (modprobe tun) or, in a container, \
         give it the device"
    )]
    Device(#[source] io::Error),
    #[error("the container has no network of its own that could be connected")]
    NoNetwork,
    #[error("the container could not be connected to the internet: {step}")]
    Step {
        step: String,
        #[source]
        source: io::Error,
    },
    #[error("'{program}' ended instead of connecting the container ({status}): {words}")]
    Left {
        program: String,
        status: String,
        words: String,
    },
    #[error("'{program}' has not connected the container within {} s: {words}", PATIENCE.as_secs())]
    Late { program: String, words: String },
}

impl EgressError {
    fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Step { step, source }
    }
}

/// What is to be in `/etc/resolv.conf` of the container: the helper carries questions to the resolver of the host.
pub(crate) fn resolver_file() -> String {
    format!("nameserver {RESOLVER}\n")
}

/// Connects a container, whose root is mounted below `staging` in mounts of the caller's own. Only for a process of one thread, such as a
/// shim.
///
/// # Errors
/// [`EgressError`]; then no helper is left.
pub(crate) fn connect(
    program: &EgressProgram,
    staging: &Path,
    namespaces: &Namespaces,
    wishes: &Wishes<'_>,
) -> Result<Helper, EgressError> {
    let network = namespaces.network.as_ref().ok_or(EgressError::NoNetwork)?;
    let network = network.namespace.as_fd();
    let of_host = host::addresses().map_err(EgressError::at("listing the host's addresses"))?;
    device::let_helper_open_it(staging).map_err(EgressError::Device)?;
    let place = wire::give_path(network, staging)
        .map_err(EgressError::at("giving the network namespace a path"))?;
    let mut helper = Helper::start(program, &place, namespaces.user.descriptor())?;
    let connected = namespaces::within(network, || {
        let tap = wait_for_tap(&mut helper, wishes)?;
        wire::connect(tap, &of_host)
    });
    match connected
        .map_err(EgressError::at("entering its network namespace"))
        .flatten()
    {
        Ok(()) => Ok(helper),
        Err(error) => {
            helper.kill();
            Err(error)
        }
    }
}

/// Waits until the helper has made its device, and gives the device's index.
fn wait_for_tap(helper: &mut Helper, wishes: &Wishes<'_>) -> Result<u32, EgressError> {
    let late = Instant::now() + PATIENCE;
    loop {
        if let Ok(index) = nix::net::if_::if_nametoindex(address::TAP) {
            return Ok(index);
        }
        if let Some(status) = helper.ended() {
            return Err(EgressError::Left {
                program: helper.name(),
                status,
                words: helper.words(),
            });
        }
        // A run that is to be over waits for nothing, and why it was not connected is nobody's question.
        if Instant::now() >= late.min(wishes.ends_at()) {
            return Err(EgressError::Late {
                program: helper.name(),
                words: helper.words(),
            });
        }
        std::thread::sleep(PAUSE);
    }
}
