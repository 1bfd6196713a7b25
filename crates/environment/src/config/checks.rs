//! What must fit together, and what this machine must have.

use std::net::{Ipv4Addr, SocketAddr};

use super::reader::Reader;
use super::{Config, CoreMode};
use crate::core_address;
use crate::native_user;

impl Config {
    /// Looks for everything that would keep a server with this configuration from starting, as far as that can be told without starting it.
    pub(super) fn check(&self, reader: &mut Reader<'_>) {
        let core = self.core_here(reader);
        self.check_exposure(&core, reader);
        self.check_ports(&core, reader);
        if let Some(name) = &self.native_user
            && let Err(problem) = native_user::find(name)
        {
            reader.problem("RUNTARA_NATIVE_USER", problem);
        }
    }

    /// The addresses of this machine that the core address means, if the core may be served here.
    fn core_here(&self, reader: &mut Reader<'_>) -> Vec<SocketAddr> {
        if self.core_mode == CoreMode::External {
            return Vec::new();
        }
        let found = core_address::of_this_machine(&self.core_addr);
        if self.core_mode == CoreMode::Embedded {
            let reason = match &found {
                Ok(here) if !here.is_empty() => None,
                Ok(_) => Some("it is not an address of this machine".to_owned()),
                Err(error) => Some(format!("it cannot be resolved: {error}")),
            };
            if let Some(reason) = reason {
                let text = format!(
                    "found {:?} while RUNTARA_CORE_MODE is embedded, but {reason}; name an address of this machine, or use external",
                    self.core_addr
                );
                reader.problem("RUNTARA_CORE_ADDR", text);
            }
        }
        found.unwrap_or_default()
    }

    /// Nobody is asked who he is: so only this machine may call, unless the operator says otherwise.
    fn check_exposure(&self, core: &[SocketAddr], reader: &mut Reader<'_>) {
        if self.allow_unauthenticated {
            return;
        }
        let advice = "is not a loopback address, and callers are not authenticated: set RUNTARA_ALLOW_UNAUTHENTICATED=true if only trusted programs can reach it";
        if !self.env_addr.ip().is_loopback() {
            let text = format!("{} {advice}", self.env_addr.ip());
            reader.problem("RUNTARA_ENV_HTTP_BIND", text);
        }
        if core.first().is_some_and(|core| !core.ip().is_loopback()) {
            reader.problem("RUNTARA_CORE_ADDR", format!("{} {advice}", self.core_addr));
        }
    }

    fn check_ports(&self, core: &[SocketAddr], reader: &mut Reader<'_>) {
        let environment = ("RUNTARA_ENV_HTTP_PORT", self.env_addr);
        let core = core.first().map(|address| ("RUNTARA_CORE_ADDR", *address));
        let second = self
            .core_http_port
            .filter(|_| core.is_some())
            .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .map(|address| ("RUNTARA_CORE_HTTP_PORT", address));
        let sockets: Vec<_> = [Some(environment), core, second]
            .into_iter()
            .flatten()
            .collect();
        for (at, (variable, address)) in sockets.iter().enumerate() {
            let taken = sockets[..at]
                .iter()
                .find(|(_, other)| collide(*other, *address));
            if let Some((by, _)) = taken {
                let text = format!(
                    "{address} is where {by} has the server listen already; another port is wanted"
                );
                reader.problem(variable, text);
            }
        }
    }
}

/// Whether two sockets cannot both be bound. Port 0 stands for any that is free.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && (everywhere || one.ip() == other.ip())
}
