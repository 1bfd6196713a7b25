//! Keeps web pages from speaking to a server that asks nobody who he is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::Request;
use http::{StatusCode, Uri, header};

use crate::ApiError;
use crate::server::LocalAddress;

/// Which `Host` and `Origin` an unauthenticated port accepts.
///
/// A page in a browser can send requests to whatever its machine can reach, and by DNS rebinding even read the answers. Browsers tell on
/// it: with the `Origin` header, and with the name in `Host`. Programs send neither a foreign host nor an origin.
///
/// No port takes an `Origin`. A `Host` is decided by where the port listens, each for itself:
///
/// | listens on | accepts |
/// |---|---|
/// | loopback | `localhost`, and addresses of loopback |
/// | anything else | these, the address that the connection arrived at, and the names and addresses that the operator gives |
///
/// The number of the port in `Host` is not looked at: it says nothing about who calls, and tunnels change it.
#[derive(Debug, Clone)]
pub struct HostPolicy {
    listens: Option<IpAddr>,
    names: Arc<[String]>,
}

impl HostPolicy {
    /// The policy of a port at this address. `names` are those under which others know it; a loopback port has none.
    #[must_use]
    pub fn of_port(listens: SocketAddr, names: &[String]) -> Self {
        let listens = listens.ip().to_canonical();
        let names = if listens.is_loopback() { &[] } else { names };
        Self {
            listens: Some(listens),
            names: names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        }
    }

    /// The policy of a socket in the file system, which has no address.
    #[must_use]
    pub fn of_socket() -> Self {
        Self {
            listens: None,
            names: Arc::default(),
        }
    }

    /// Checks a request.
    ///
    /// # Errors
    /// 403 `FOREIGN_ORIGIN` or `FOREIGN_HOST`.
    pub fn check(&self, request: &Request) -> Result<(), ApiError> {
        if request.headers().contains_key(header::ORIGIN) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "FOREIGN_ORIGIN",
                "requests of web pages (with an Origin header) are refused on this port",
            ));
        }
        let arrived = request
            .extensions()
            .get::<LocalAddress>()
            .map(|address| address.0.ip().to_canonical());
        for host in request.headers().get_all(header::HOST) {
            let host = host.to_str().unwrap_or_default();
            if !self.accepts(host, arrived) {
                return Err(self.foreign(host));
            }
        }
        Ok(())
    }

    fn accepts(&self, host: &str, arrived: Option<IpAddr>) -> bool {
        let Some(name) = name_of(host) else {
            return false;
        };
        if name == "localhost" || self.names.contains(&name) {
            return true;
        }
        let address = name.trim_start_matches('[').trim_end_matches(']');
        let Ok(address) = address.parse::<IpAddr>() else {
            return false;
        };
        let address = address.to_canonical();
        address.is_loopback() || Some(address) == arrived || Some(address) == self.listens
    }

    fn foreign(&self, host: &str) -> ApiError {
        let is_exposed = self.listens.is_some_and(|address| !address.is_loopback());
        let advice = if is_exposed {
            "this server's address, localhost, or one of RUNTARA_ALLOWED_HOSTS"
        } else {
            "localhost or an address of loopback"
        };
        let shown: String = host.chars().take(100).collect();
        ApiError::new(
            StatusCode::FORBIDDEN,
            "FOREIGN_HOST",
            format!("the Host header is {shown:?}; on this port it must be {advice}"),
        )
    }
}

/// The name in a `Host`, without its port, in small letters.
fn name_of(host: &str) -> Option<String> {
    let uri: Uri = format!("http://{host}/").parse().ok()?;
    let is_name_alone = uri
        .authority()
        .is_some_and(|authority| !authority.as_str().contains('@'));
    let name = uri.host().unwrap_or_default();
    (is_name_alone && !name.is_empty()).then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn accepts(policy: &HostPolicy, arrived: &str, header: (&str, &str)) -> bool {
        let request = Request::builder()
            .header(header.0, header.1)
            .extension(LocalAddress(arrived.parse().unwrap()))
            .body(Body::empty())
            .unwrap();
        policy.check(&request).is_ok()
    }

    fn policy(listens: &str) -> HostPolicy {
        let names = ["Runtara.Example".to_owned(), "192.0.2.1".to_owned()];
        HostPolicy::of_port(listens.parse().unwrap(), &names)
    }

    #[test]
    fn a_loopback_port_is_known_by_loopback_names_alone() {
        let policy = policy("127.0.0.1:8002");
        let accepts = |host| accepts(&policy, "127.0.0.1:8002", ("host", host));
        for good in [
            "127.0.0.1:8002",
            "127.0.0.1",
            "127.1.2.3:8002",
            "localhost",
            "LOCALHOST:1",
            "[::1]:8002",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(accepts(good), "{good}");
        }
        for bad in [
            "evil.example:8002",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "10.0.0.7",
            "runtara.example",
            "192.0.2.1",
            "",
        ] {
            assert!(!accepts(bad), "{bad}");
        }
    }

    #[test]
    fn an_exposed_port_is_known_by_its_own_addresses_and_the_given_names() {
        let policy = policy("0.0.0.0:8002");
        let accepts = |host| accepts(&policy, "10.0.0.7:8002", ("host", host));
        for good in [
            "10.0.0.7:8002",
            "localhost:8002",
            "127.0.0.1",
            "runtara.example:8002",
            "RUNTARA.example",
            "192.0.2.1:80",
        ] {
            assert!(accepts(good), "{good}");
        }
        for bad in [
            "evil.example",
            "10.0.0.8:8002",
            "x.runtara.example",
            "0.0.0.1",
        ] {
            assert!(!accepts(bad), "{bad}");
        }
    }

    #[test]
    fn no_port_takes_an_origin() {
        for listens in ["127.0.0.1:8002", "0.0.0.0:8002"] {
            let origin = ("origin", "http://127.0.0.1:8002");
            assert!(!accepts(&policy(listens), "127.0.0.1:8002", origin));
        }
    }
}
