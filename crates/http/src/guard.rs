//! Keeps web pages from speaking to a server that asks nobody who he is.

use std::net::IpAddr;

use axum::extract::Request;
use http::{StatusCode, Uri, header};

use crate::ApiError;

/// Which `Host` and `Origin` an unauthenticated port accepts.
///
/// A page in a browser on this machine can send requests to loopback, and by DNS rebinding even read the answers. Browsers tell
/// on it: with the `Origin` header, and with the name in `Host`. Programs send neither a foreign host nor an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPolicy {
    /// No `Origin`; a `Host` that is an address or `localhost`.
    AddressOnly,
    /// No `Origin`; any `Host`: the operator lets others than this machine call, under whatever name they know it by.
    NoOrigin,
}

impl HostPolicy {
    /// Checks a request.
    ///
    /// # Errors
    /// 403 `FOREIGN_ORIGIN` or `FOREIGN_HOST`.
    pub fn check(self, request: &Request) -> Result<(), ApiError> {
        if request.headers().contains_key(header::ORIGIN) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "FOREIGN_ORIGIN",
                "requests of web pages (with an Origin header) are refused on this port",
            ));
        }
        if self == Self::NoOrigin {
            return Ok(());
        }
        let host = request
            .headers()
            .get(header::HOST)
            .map(|value| value.to_str().unwrap_or_default());
        if host.is_some_and(|host| !is_address_or_localhost(host)) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "FOREIGN_HOST",
                "the Host header must be this server's address or localhost",
            ));
        }
        Ok(())
    }
}

fn is_address_or_localhost(host: &str) -> bool {
    let Ok(uri) = format!("http://{host}/").parse::<Uri>() else {
        return false;
    };
    let name = uri.host().unwrap_or_default();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn check(header: (&str, &str)) -> bool {
        let request = Request::builder()
            .header(header.0, header.1)
            .body(Body::empty())
            .unwrap();
        HostPolicy::AddressOnly.check(&request).is_ok()
    }

    #[test]
    fn addresses_and_localhost_pass_and_names_do_not() {
        for good in [
            "127.0.0.1:8002",
            "localhost",
            "LOCALHOST:1",
            "[::1]:8002",
            "10.0.0.7",
        ] {
            assert!(check(("host", good)), "{good}");
        }
        for bad in [
            "evil.example:8002",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
        ] {
            assert!(!check(("host", bad)), "{bad}");
        }
        assert!(!check(("origin", "http://127.0.0.1:8002")));
    }
}
