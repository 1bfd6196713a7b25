//! The process that carries what a container sends: slirp4netns or pasta.

use std::ffi::OsString;
use std::io::{self, PipeReader, Read as _};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::OFlags;

use super::address::{CONTAINER, HELPER, MTU, RESOLVER, SUBNET, TAP};
use super::{EgressError, WORDS_BYTES};
use crate::machine::EgressProgram;
use crate::sys;

/// The helper of one container, a child of this process. It is nowhere waited for but where it ended early: the shim ends, and reaps,
/// all of its children.
#[derive(Debug)]
pub(crate) struct Helper {
    program: String,
    child: Child,
    /// What it says about itself. Held open as long as it lives, since writing to nobody would end it.
    said: PipeReader,
}

impl Helper {
    /// Starts it in the host's network and in the container's user namespace, for the network namespace at a path.
    pub(super) fn start(
        program: &EgressProgram,
        network: &Path,
        user_namespace: BorrowedFd<'_>,
    ) -> Result<Self, EgressError> {
        let (path, package) = match program {
            EgressProgram::Slirp4netns(path) => (path, "slirp4netns"),
            EgressProgram::Pasta(path) => (path, "passt"),
        };
        let name = path.display().to_string();
        let step = format!("starting '{name}'");
        let (said, says) = mouth().map_err(EgressError::at(step.as_str()))?;
        let mut command = Command::new(path);
        command
            .args(arguments(program, network))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(says);
        sys::begin_clean(&mut command).map_err(EgressError::at(step.as_str()))?;
        sys::become_root_of(&mut command, user_namespace);
        let child = command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => EgressError::Missing {
                program: name.clone(),
                package,
            },
            _ => EgressError::Step { step, source },
        })?;
        Ok(Self {
            program: name,
            child,
            said,
        })
    }

    pub(super) fn name(&self) -> String {
        self.program.clone()
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait();
        status.ok().flatten().map(|status| status.to_string())
    }

    /// The beginning of what it said.
    pub(super) fn words(&mut self) -> String {
        let mut words = vec![0; WORDS_BYTES];
        let length = self.said.read(&mut words).unwrap_or(0);
        let words = String::from_utf8_lossy(words.get(..length).unwrap_or_default());
        let lines: Vec<_> = words.lines().map(str::trim).collect();
        match lines.join("; ") {
            none if none.is_empty() => "it said nothing".to_owned(),
            words => words,
        }
    }

    /// Ends it.
    pub(super) fn kill(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A pipe on which nobody ever waits: what does not fit into it is lost, as a container could make its helper say much.
fn mouth() -> io::Result<(PipeReader, Stdio)> {
    let (said, says) = io::pipe()?;
    rustix::fs::fcntl_setfl(&said, OFlags::NONBLOCK)?;
    rustix::fs::fcntl_setfl(&says, OFlags::NONBLOCK)?;
    Ok((said, says.into()))
}

/// Neither is to configure the device, which [`wire`](super::wire) does alike for both.
fn arguments(program: &EgressProgram, network: &Path) -> Vec<OsString> {
    let (subnet, bits) = SUBNET;
    let owned = |texts: &[&str]| texts.iter().map(OsString::from).collect::<Vec<_>>();
    let mtu = MTU.to_string();
    match program {
        EgressProgram::Slirp4netns(_) => {
            let mut arguments = owned(&[
                "--disable-host-loopback",
                "--enable-sandbox",
                "--enable-seccomp",
                "--netns-type=path",
            ]);
            arguments.push(format!("--mtu={mtu}").into());
            arguments.push(format!("--cidr={subnet}/{bits}").into());
            arguments.extend([network.into(), TAP.into()]);
            arguments
        }
        EgressProgram::Pasta(_) => {
            let mut arguments = owned(&[
                "--foreground",
                "--quiet",
                "--stderr",
                "--ipv4-only",
                "--no-map-gw",
                "--no-dhcp",
                "--no-ndp",
                "--no-dhcpv6",
                "--no-ra",
            ]);
            for [option, value] in [
                ["--tcp-ports", "none"],
                ["--udp-ports", "none"],
                ["--tcp-ns", "none"],
                ["--udp-ns", "none"],
                ["--mtu", &mtu],
                ["--netmask", &bits.to_string()],
                ["--address", &CONTAINER.to_string()],
                ["--gateway", &HELPER.to_string()],
                ["--dns-forward", &RESOLVER.to_string()],
                ["--ns-ifname", TAP],
            ] {
                arguments.extend(owned(&[option, value]));
            }
            arguments.extend(["--netns".into(), network.into()]);
            arguments
        }
    }
}
