//! The client itself: its connections and what every call shares.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::config::{Checked, ClientBuilder, DEFAULT_ADDRESS};
use crate::transport::RequestBody;
use crate::{Error, NotFound};

/// After this long without a word a peer is asked whether it still lives; streams that may be silent need it.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A client of one environment. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) http: HttpClient<HttpConnector, RequestBody>,
    pub(crate) options: ClientBuilder,
    pub(crate) checked: Checked,
}

impl Client {
    /// Begins a client of the environment at `address`, such as `http://127.0.0.1:8002` or `localhost:8002`.
    ///
    /// ```
    /// use runtara_management_sdk::Client;
    ///
    /// let client = Client::builder("127.0.0.1:8002").tenant("acme").build().unwrap();
    /// assert_eq!(client.server(), "http://127.0.0.1:8002");
    /// ```
    #[must_use]
    pub fn builder(address: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(address)
    }

    /// Makes a client from the environment variables, see [`ClientBuilder::from_env`].
    ///
    /// # Errors
    ///
    /// [`Error::Configuration`] if a variable has a value that it cannot have.
    pub fn from_env() -> Result<Self, Error> {
        ClientBuilder::from_env()?.build()
    }

    /// Makes a client of the environment on this machine, at [`DEFAULT_ADDRESS`].
    #[must_use]
    pub fn local() -> Self {
        ClientBuilder::new(DEFAULT_ADDRESS)
            .build()
            .expect("the default address is valid")
    }

    pub(crate) fn new(options: ClientBuilder, checked: Checked) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(options.connect_timeout));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE_PROBE));
        connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        let http = HttpClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            // The server keeps idle connections for at least 100 s: leaving before it does never meets its close.
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(64)
            .build(connector);
        Self {
            inner: Arc::new(Inner {
                http,
                options,
                checked,
            }),
        }
    }

    /// The server's base address.
    #[must_use]
    pub fn server(&self) -> String {
        let Checked {
            authority, prefix, ..
        } = &self.inner.checked;
        format!("http://{authority}{prefix}")
    }

    /// The tenant for whom calls are made, where the client has one.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.inner
            .checked
            .tenant
            .as_ref()
            .map(|(tenant, _)| tenant.as_str())
    }

    /// The tenant a request names, else the client's.
    pub(crate) fn tenant_or<'a>(&'a self, named: Option<&'a str>) -> Result<&'a str, Error> {
        named
            .or_else(|| self.tenant())
            .ok_or_else(|| Error::InvalidRequest {
                what: "tenant id",
                found: String::new(),
                wanted: "a tenant, in the request or by ClientBuilder::tenant",
            })
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("server", &self.server())
            .field("tenant", &self.tenant())
            .finish_non_exhaustive()
    }
}

/// The error of an answer that says `success: false` with a status of success. Published servers tell what is missing by the
/// words `not found` alone.
pub(crate) fn refusal(
    kind: NotFound,
    id: &str,
    status: u16,
    code: &str,
    message: Option<String>,
) -> Error {
    let message = message.unwrap_or_else(|| "the server gave no reason".to_owned());
    if message.contains("not found") {
        return Error::not_found(kind, id);
    }
    Error::Refused {
        status,
        code: code.to_owned(),
        message,
        retry_after: None,
    }
}
