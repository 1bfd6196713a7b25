//! A request to a host outside, and its answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};
use wasmtime_wasi_http::io::TokioIo;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::allowed::{Allowed, Host};
use super::body::Answer;
use super::connect::Outside;
use super::{HEADER_BYTES, TARGET_BYTES};

/// How long a connection may take to be made, TLS included, if the guest does not say, and at most.
const CONNECT: Duration = Duration::from_secs(10);
const LONGEST_CONNECT: Duration = Duration::from_secs(60);
/// How long the first byte of an answer may take, if the guest does not say.
const FIRST_BYTE: Duration = Duration::from_secs(60);
/// How long the next part of a body may take, if the guest does not say.
pub(super) const BETWEEN_BYTES: Duration = Duration::from_secs(60);
/// How long either may take at most.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Most headers of an answer.
const HEADERS: usize = 100;

/// What is called.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    host: Host,
    port: u16,
    is_secure: bool,
    path: PathAndQuery,
}

impl Target {
    /// # Errors
    /// What a guest is told of a URL that cannot be called.
    pub(super) fn of(method: &Method, uri: &Uri) -> Result<Self, Error> {
        // It would be a tunnel through which anything is spoken.
        if method == Method::CONNECT {
            return Err(Error::HttpRequestMethodInvalid);
        }
        let is_secure = uri.scheme() == Some(&Scheme::HTTPS);
        let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(Error::HttpRequestUriInvalid);
        }
        let usual = if is_secure { 443 } else { 80 };
        // Not as the library has it, which takes a port that is none for one that is not there.
        let port = match &authority.as_str()[authority.host().len()..] {
            "" => Some(usual),
            port => port[1..].parse().ok().filter(|port| *port > 0),
        };
        let path = uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        if path.as_str().len() > TARGET_BYTES {
            return Err(Error::HttpRequestUriTooLong);
        }
        Ok(Self {
            host: Host::new(authority.host()),
            port: port.ok_or(Error::HttpRequestUriInvalid)?,
            is_secure,
            path,
        })
    }

    pub(super) fn is_taken(&self, allowed: &Allowed) -> bool {
        allowed.takes(&self.host, self.port)
    }

    /// Sends a request here that is allowed, over a connection of its own. The answer holds what is to be kept while it is read.
    pub(super) async fn call<K: Send + Unpin + 'static>(
        self,
        outside: Arc<Outside>,
        allowed: Arc<Allowed>,
        request: Request<WasiBody>,
        options: RequestOptions,
        kept: K,
    ) -> Result<Response<WasiBody>, Error> {
        let Self {
            host,
            port,
            is_secure,
            path,
        } = self;
        let patience = options.connect_timeout.unwrap_or(CONNECT);
        let patience = patience.min(LONGEST_CONNECT);
        let connected = outside.connect(&allowed, &host, port, patience);
        let (stream, place) = connected.await?;
        let (mut parts, body) = request.into_parts();
        parts.uri = path.into();
        let request = Request::from_parts(parts, body);
        let kept = (kept, place);
        if is_secure {
            let stream = timeout(patience, outside.tls.connect(&host, stream)).await;
            let stream = stream.map_err(|_| Error::ConnectionTimeout)??;
            speak(stream, request, options, kept).await
        } else {
            speak(stream, request, options, kept).await
        }
    }
}

async fn speak<S, K>(
    stream: S,
    request: Request<WasiBody>,
    options: RequestOptions,
    kept: K,
) -> Result<Response<WasiBody>, Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    K: Send + Unpin + 'static,
{
    let wait = |asked: Option<Duration>, usual| asked.unwrap_or(usual).min(LONGEST_WAIT);
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // Ends with the answer, or with whoever waits for it.
    let driver: AbortOnDropJoinHandle<()> = spawn(async {
        // Told by the answer.
        let _failure = connection.await;
    });
    let answer = timeout(
        wait(options.first_byte_timeout, FIRST_BYTE),
        sender.send_request(request),
    );
    let answer = answer
        .await
        .map_err(|_| Error::ConnectionReadTimeout)?
        .map_err(broken)?;
    let patience = wait(options.between_bytes_timeout, BETWEEN_BYTES);
    Ok(answer.map(|body| {
        let body = body.map_err(broken);
        Answer::new(body, patience, (kept, driver)).boxed_unsync()
    }))
}

/// What a guest is told of a connection that failed.
fn broken(error: hyper::Error) -> Error {
    let cause = std::error::Error::source(&error);
    let is_cut = cause
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .is_some_and(|cause| cause.kind() == io::ErrorKind::UnexpectedEof);
    if is_cut {
        Error::HttpResponseIncomplete
    } else if error.is_parse_too_large() {
        Error::HttpResponseHeaderSectionSize(None)
    } else if error.is_parse() {
        Error::HttpProtocolError
    } else if error.is_incomplete_message() {
        Error::HttpResponseIncomplete
    } else {
        Error::ConnectionTerminated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Result<Target, Error> {
        Target::of(&Method::GET, &url.parse().unwrap())
    }

    #[test]
    fn the_port_is_that_of_the_scheme_unless_it_is_said() {
        for (url, port) in [
            ("http://a/", 80),
            ("https://a/", 443),
            ("https://a:80/", 80),
            ("https://[::1]:8443", 8443),
        ] {
            assert_eq!(target(url).unwrap().port, port, "{url}");
        }
    }

    #[test]
    fn what_is_no_plain_call_is_refused() {
        for url in ["http://user@a/", "http://a:0/", "http://a:99999/"] {
            let refused = target(url);
            assert!(
                matches!(refused, Err(Error::HttpRequestUriInvalid)),
                "{url}"
            );
        }
        let refused = Target::of(&Method::CONNECT, &Uri::from_static("http://a/"));
        assert!(matches!(refused, Err(Error::HttpRequestMethodInvalid)));
        let long = format!("http://a/{}", "x".repeat(TARGET_BYTES));
        assert!(matches!(target(&long), Err(Error::HttpRequestUriTooLong)));
    }
}
