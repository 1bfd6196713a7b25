//! Where the server is, and how long to wait for it.

use std::time::Duration;

use http::HeaderValue;
use http::uri::{Authority, PathAndQuery, Scheme};

use crate::{Client, Error};

/// Where the environment listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "http://127.0.0.1:8002";

const ADDRESS_VARIABLE: &str = "RUNTARA_ENVIRONMENT_ADDR";
const CONNECT_VARIABLE: &str = "RUNTARA_CONNECT_TIMEOUT_MS";
const REQUEST_VARIABLE: &str = "RUNTARA_REQUEST_TIMEOUT_MS";

/// Options of a [`Client`].
#[derive(Clone)]
pub struct ClientBuilder {
    address: String,
    tenant: Option<String>,
    token: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) upload_idle_timeout: Duration,
    pub(crate) retries: u32,
    pub(crate) retry_pause: Duration,
    pub(crate) max_response_bytes: usize,
}

/// What a client needs to know in the form in which it needs it.
pub(crate) struct Checked {
    pub(crate) authority: Authority,
    /// Path in front of every path, without a slash at its end.
    pub(crate) prefix: String,
    pub(crate) tenant: Option<(String, HeaderValue)>,
    pub(crate) authorization: Option<HeaderValue>,
}

impl ClientBuilder {
    pub(crate) fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            tenant: None,
            token: None,
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            upload_idle_timeout: Duration::from_secs(120),
            retries: 3,
            retry_pause: Duration::from_millis(100),
            max_response_bytes: 192 * 1024 * 1024,
        }
    }

    /// Takes the address from `RUNTARA_ENVIRONMENT_ADDR` (else [`DEFAULT_ADDRESS`]) and the time-outs from
    /// `RUNTARA_CONNECT_TIMEOUT_MS` and `RUNTARA_REQUEST_TIMEOUT_MS`.
    ///
    /// # Errors
    ///
    /// [`Error::Configuration`] if a time-out is not a whole number of milliseconds above 0.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let given = |name| variable(name).filter(|value| !value.trim().is_empty());
        let mut builder =
            Self::new(given(ADDRESS_VARIABLE).unwrap_or_else(|| DEFAULT_ADDRESS.to_owned()));
        let millis = |name: &'static str| match given(name) {
            None => Ok(None),
            Some(found) => match found.trim().parse::<u64>() {
                Ok(millis) if millis > 0 => Ok(Some(Duration::from_millis(millis))),
                _ => Err(Error::Configuration {
                    name,
                    found,
                    wanted: "a whole number of milliseconds above 0",
                }),
            },
        };
        if let Some(timeout) = millis(CONNECT_VARIABLE)? {
            builder.connect_timeout = timeout;
        }
        if let Some(timeout) = millis(REQUEST_VARIABLE)? {
            builder.request_timeout = timeout;
        }
        Ok(builder)
    }

    /// Replaces the address: `http://host:port`, `host:port`, with a path in front of the API's if need be.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = address.into();
        self
    }

    /// Names the tenant for whom every call is made. It is sent as `X-Runtara-Tenant-Id` and fills in requests that name none.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Sends `Authorization: Bearer <token>` with every call.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// How long a connection may take to be made (default 10 s).
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long one attempt of a call may take, beside what the server was asked to wait (default 30 s).
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long an upload may stand still, its answer included (default 120 s).
    #[must_use]
    pub fn upload_idle_timeout(mut self, timeout: Duration) -> Self {
        self.upload_idle_timeout = timeout;
        self
    }

    /// How often a call that may be repeated is repeated when its connection fails (default 3), and the first pause before it
    /// (default 100 ms), which doubles up to 2 s.
    #[must_use]
    pub fn retries(mut self, retries: u32, first_pause: Duration) -> Self {
        self.retries = retries;
        self.retry_pause = first_pause;
        self
    }

    /// How long an answer may be (default 192 MiB: an instance shows its input and its output, each of up to 64 MiB).
    #[must_use]
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.max_response_bytes = bytes;
        self
    }

    /// Makes the client. No connection is made yet.
    ///
    /// # Errors
    ///
    /// [`Error::Configuration`] if the address, tenant or token cannot be used.
    pub fn build(self) -> Result<Client, Error> {
        let checked = self.checked()?;
        Ok(Client::new(self, checked))
    }

    fn checked(&self) -> Result<Checked, Error> {
        let (authority, prefix) = self.parse_address()?;
        let tenant = match &self.tenant {
            None => None,
            Some(tenant) => {
                let header = HeaderValue::from_str(tenant)
                    .ok()
                    .filter(|value| !value.is_empty());
                let header = header.ok_or_else(|| Error::Configuration {
                    name: "tenant",
                    found: tenant.clone(),
                    wanted: "a non-empty id without control characters",
                })?;
                Some((tenant.clone(), header))
            }
        };
        let authorization = match &self.token {
            None => None,
            Some(token) => {
                // The token itself is not told: it is a secret even if it is malformed.
                let mut header =
                    HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                        Error::Configuration {
                            name: "token",
                            found: "a control character".to_owned(),
                            wanted: "text that fits into a header",
                        }
                    })?;
                header.set_sensitive(true);
                Some(header)
            }
        };
        Ok(Checked {
            authority,
            prefix,
            tenant,
            authorization,
        })
    }

    fn parse_address(&self) -> Result<(Authority, String), Error> {
        const WANTED: &str =
            "http://host:port, such as http://127.0.0.1:8002 (https needs a proxy in front)";
        let text = self.address.trim();
        let refused = || {
            // Whatever stands before an `@` may be a password.
            let found = text.rsplit('@').next().unwrap_or_default().to_owned();
            Error::Configuration {
                name: "server address",
                found,
                wanted: WANTED,
            }
        };
        let full = if text.contains("://") {
            text.to_owned()
        } else {
            format!("http://{text}")
        };
        let parts = full
            .parse::<http::Uri>()
            .map_err(|_| refused())?
            .into_parts();
        let authority = parts.authority.ok_or_else(refused)?;
        let plain = parts.scheme == Some(Scheme::HTTP);
        if !plain || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(refused());
        }
        let path = parts
            .path_and_query
            .unwrap_or_else(|| PathAndQuery::from_static("/"));
        if path.query().is_some() {
            return Err(refused());
        }
        Ok((authority, path.path().trim_end_matches('/').to_owned()))
    }
}

impl std::fmt::Debug for ClientBuilder {
    /// Leaves the token out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("tenant", &self.tenant)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Result<(String, String), Error> {
        let (authority, prefix) = ClientBuilder::new(text).parse_address()?;
        Ok((authority.to_string(), prefix))
    }

    #[test]
    fn addresses_come_with_and_without_a_scheme() {
        for text in [
            "http://127.0.0.1:8002",
            "127.0.0.1:8002",
            " http://127.0.0.1:8002/ ",
        ] {
            assert_eq!(
                address(text).unwrap(),
                ("127.0.0.1:8002".to_owned(), String::new()),
                "{text}"
            );
        }
        assert_eq!(
            address("[::1]:8002/runtara/").unwrap(),
            ("[::1]:8002".to_owned(), "/runtara".to_owned())
        );
    }

    #[test]
    fn addresses_that_cannot_work_are_refused_without_their_password() {
        for text in [
            "https://x:1",
            "",
            "http://",
            "http://me:secret@x:1",
            "x:1?y",
            "unix:///x",
        ] {
            let error = address(text).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:8002"), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn variables_are_read_and_checked() {
        let set = |name: &str| match name {
            ADDRESS_VARIABLE => Some("10.0.0.1:9".to_owned()),
            CONNECT_VARIABLE => Some("250".to_owned()),
            _ => None,
        };
        let builder = ClientBuilder::from_variables(set).unwrap();
        assert_eq!(builder.address, "10.0.0.1:9");
        assert_eq!(builder.connect_timeout, Duration::from_millis(250));
        assert_eq!(builder.request_timeout, Duration::from_secs(30));

        let error = ClientBuilder::from_variables(|name| {
            (name == REQUEST_VARIABLE).then(|| "30s".to_owned())
        })
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"RUNTARA_REQUEST_TIMEOUT_MS is "30s", wanted is a whole number of milliseconds above 0"#
        );
    }

    #[test]
    fn a_token_shows_nowhere() {
        let builder = ClientBuilder::new("x:1").token("s3cret\n");
        assert!(!format!("{builder:?}").contains("s3cret"));
        let error = builder.build().unwrap_err();
        assert!(!format!("{error:?}").contains("s3cret"));
    }
}
