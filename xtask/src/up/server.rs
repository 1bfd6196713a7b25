//! The server process that `up` starts, kills and starts again.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::command::{leave_out, signal, target};
use crate::error::Error;
use crate::http::Client;
use crate::interrupt;

/// How long a server may take until it is ready; the first start makes the database.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a server may take to leave when asked.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// The port of the environment protocol, unless another is asked for.
pub(super) const DEFAULT_PORT: u16 = 8002;

/// The three ports of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    /// The environment protocol: what people and clients speak to.
    pub(super) environment: u16,
    /// The core: what instances speak to.
    pub(super) core: u16,
    /// The core again, where the published client looks for it by default.
    pub(super) published_core: u16,
}

impl Ports {
    /// The three around that of the environment protocol: 8002 stands between 8001 and 8003.
    pub(super) fn around(environment: u16) -> Result<Self, Error> {
        match (environment.checked_sub(1), environment.checked_add(1)) {
            (Some(core), Some(published_core)) if core > 0 => Ok(Self {
                environment,
                core,
                published_core,
            }),
            _ => Err(Error::Unmet(format!(
                "port {environment} has no port on either side of it"
            ))),
        }
    }

    /// Gives those of the three that somebody listens on.
    pub(super) fn taken(self) -> Vec<u16> {
        let all = [self.core, self.environment, self.published_core];
        all.into_iter()
            .filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_err())
            .collect()
    }

    /// Takes three that are free now.
    pub(super) fn free() -> Result<Self, Error> {
        let found = || -> std::io::Result<[u16; 3]> {
            // All three are held until the last is found, so that they differ.
            let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
            let held = [bind()?, bind()?, bind()?];
            let port = |at: usize| held[at].local_addr().map(|address| address.port());
            Ok([port(0)?, port(1)?, port(2)?])
        };
        let [environment, core, published_core] = found().map_err(Error::io("find free ports"))?;
        Ok(Self {
            environment,
            core,
            published_core,
        })
    }
}

/// A running server. Dropped, it is asked to leave, and its runs with it.
pub(super) struct Server {
    child: Child,
    ports: Ports,
}

impl Server {
    /// Starts a server on a data directory and waits until it is ready.
    pub(super) fn start(directory: &Path, ports: Ports) -> Result<Self, Error> {
        let path = log_path(directory);
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(Error::io(format!("open {}", path.display())))?;
        let errors = log
            .try_clone()
            .map_err(Error::io(format!("open {}", path.display())))?;
        let mut command = Command::new(program("runtara-environment"));
        // What the developer has set for another server must not lead this one astray.
        leave_out(&mut command, |name| name.starts_with("RUNTARA_"));
        let child = command
            .arg("dev")
            .env("DATA_DIR", directory)
            .env("RUNTARA_ENV_HTTP_PORT", ports.environment.to_string())
            .env("RUNTARA_CORE_ADDR", format!("127.0.0.1:{}", ports.core))
            .env("RUNTARA_CORE_HTTP_PORT", ports.published_core.to_string())
            // No `.env` of the working tree; and Ctrl-C reaches the server through us, once.
            .current_dir(directory)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(Error::io(format!(
                "run {}",
                program("runtara-environment").display()
            )))?;
        let mut server = Self { child, ports };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Gives a client of the environment protocol.
    pub(super) fn client(&self) -> Client {
        Client::new(self.ports.environment)
    }

    /// Gives the id of the process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Tells whether the process has left, and how.
    pub(super) fn exited(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.child
            .try_wait()
            .map_err(Error::io("look after the server"))
    }

    /// Kills the process with SIGKILL: it gets no chance to put anything in order.
    pub(super) fn kill(mut self) -> Result<(), Error> {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        ended.map(drop).map_err(Error::io("kill the server"))
    }

    /// Asks the process to leave as Ctrl-C would, and waits for it.
    pub(super) fn stop(&mut self) -> Result<(), Error> {
        if self.exited()?.is_none() {
            signal(self.pid(), Signal::SIGINT);
        }
        let end = Instant::now() + STOP_LIMIT;
        // Not a wait that Ctrl-C cuts short: this is what happens after it.
        while self.exited()?.is_none() {
            if Instant::now() > end {
                let killed = self.child.kill().and_then(|()| self.child.wait());
                killed.map_err(Error::io("kill the server"))?;
                let limit = STOP_LIMIT.as_secs();
                return Err(Error::Unmet(format!(
                    "the server did not leave within {limit} s"
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Gives the last lines of its log, for errors.
    pub(super) fn end_of_log(directory: &Path) -> String {
        let path = log_path(directory);
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n  ");
        format!("the end of {}:\n  {end}", path.display())
    }

    fn wait_until_ready(&mut self) -> Result<(), Error> {
        let client = self.client();
        interrupt::until("the server to be ready", START_LIMIT, || {
            if let Some(status) = self.exited()? {
                return Err(Error::Unmet(format!(
                    "the server left at its start ({status})"
                )));
            }
            // Not reachable yet is the ordinary case here.
            Ok(client
                .get("/ready")
                .ok()
                .filter(|answer| answer.status == 200)
                .map(drop))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{}", crate::error::with_causes(&error));
        }
    }
}

/// Gives the place where cargo puts a program of this workspace.
pub(super) fn program(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

fn log_path(directory: &Path) -> PathBuf {
    directory.join("server.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_ports_are_those_of_the_protocol() {
        let ports = Ports::around(DEFAULT_PORT).expect("8002 has neighbours");
        assert_eq!(
            ports,
            Ports {
                environment: 8002,
                core: 8001,
                published_core: 8003
            }
        );
        assert!(Ports::around(1).is_err() && Ports::around(u16::MAX).is_err());
    }

    #[test]
    fn a_port_in_use_is_told_and_free_ones_are_free() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = holder.local_addr().expect("it is bound").port();
        let ports = Ports {
            core: port,
            ..Ports::free().expect("ports are free")
        };
        assert_eq!(ports.taken(), [port]);
    }
}
