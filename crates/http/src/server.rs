//! Accepts connections, bounds them, and lets them finish when the process goes away.

mod drive;
pub(crate) mod head;
mod timed;

use std::any::Any;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use http::header::{CONNECTION, HeaderValue};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tracing::{debug, error, warn};

use crate::ApiError;

use drive::drive;
use timed::{AnswerBody, Phase, RequestBody, TimedStream};

/// Bounds on connections.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Most connections at once; more wait in the kernel's queue.
    pub connections: usize,
    /// How long a client may take to send the head of a request, from its first byte.
    pub head: Duration,
    /// How long a connection may be idle. Published clients keep connections in a pool and do not repeat what fails on one that
    /// was just closed, so this must be longer than any pool keeps one (90 seconds is common).
    pub idle: Duration,
    /// How long a client may take nothing at all of an answer that waits for it.
    pub untaken: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head: Duration::from_secs(30),
            idle: Duration::from_secs(600),
            untaken: Duration::from_secs(60),
        }
    }
}

/// Where a server listens.
pub enum Listener {
    /// A TCP address.
    Tcp(TcpListener),
    /// A socket in the file system.
    Unix(UnixListener),
}

/// Who is at the other end of a connection; an extension of each of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A process that may open the socket.
    Unix,
}

impl Peer {
    /// Whether it is on this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix => true,
        }
    }
}

/// The address of ours that a connection arrived at; an extension of each of its requests, unless it came over a socket in the file
/// system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalAddress(pub SocketAddr);

/// The two ends of a connection.
#[derive(Debug, Clone, Copy)]
struct Ends {
    peer: Peer,
    local: Option<LocalAddress>,
}

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

impl Listener {
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, Ends)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let ends = Ends {
                    peer: Peer::Tcp(address),
                    local: stream.local_addr().ok().map(LocalAddress),
                };
                Ok((Box::new(stream), ends))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let ends = Ends {
                    peer: Peer::Unix,
                    local: None,
                };
                Ok((Box::new(stream), ends))
            }
        }
    }
}

/// How a server ends.
#[derive(Debug, Clone, Default)]
struct Ending {
    /// Nothing more is to be accepted.
    leave: CancellationToken,
    /// The next answer of each connection is its last. Only once nothing is accepted any more: the client comes anew, and is the next
    /// server's then.
    last: CancellationToken,
    /// Idle connections are closed.
    stop: CancellationToken,
}

/// A server under way.
pub struct Server {
    ending: Ending,
    tasks: TaskTracker,
}

impl Server {
    /// Serves a listener with a service until it is stopped.
    #[must_use]
    pub fn start<S>(listener: Listener, service: S, limits: ServerLimits) -> Self
    where
        S: Service<Request, Response = Response, Error = Infallible, Future: Send>
            + Clone
            + Send
            + 'static,
    {
        let ending = Ending::default();
        let tasks = TaskTracker::new();
        let of_connections = tasks.clone();
        tasks.spawn(accept(
            listener,
            service,
            limits,
            ending.clone(),
            of_connections,
        ));
        Self { ending, tasks }
    }

    /// Stops accepting, and has every connection close after the next answer that it carries, which says so. An idle one stays, so that
    /// no request that is on its way is lost; [`stop`](Self::stop) closes it.
    pub fn leave(&self) {
        self.ending.leave.cancel();
        self.tasks.close();
    }

    /// Stops accepting, and has every connection close after the answer that it is waiting for; an idle one at once.
    pub fn stop(&self) {
        self.leave();
        self.ending.stop.cancel();
    }

    /// Waits until all connections are closed; callers bound it by a deadline of their own. Connections that are left are cut when the
    /// process ends.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

async fn accept<S>(
    listener: Listener,
    service: S,
    limits: ServerLimits,
    ending: Ending,
    tasks: TaskTracker,
) where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let places = Arc::new(Semaphore::new(limits.connections));
    let _nothing_more = ending.last.clone().drop_guard();
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = ending.leave.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, ends)) => {
                let connection = serve(
                    stream,
                    ends,
                    service.clone(),
                    limits.clone(),
                    ending.clone(),
                );
                tasks.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Such as too many open files: taking the next one at once would fail in the same way.
                warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve<S>(
    stream: Box<dyn Connection>,
    ends: Ends,
    service: S,
    limits: ServerLimits,
    ending: Ending,
) where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let phase = Arc::new(Phase::default());
    let of_requests = Arc::clone(&phase);
    let io = TimedStream::new(stream, Arc::clone(&phase), limits);
    let Ending { last, stop, .. } = ending;
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        of_requests.set(Phase::SERVED);
        let mut request =
            request.map(|body| Body::new(RequestBody::new(body, Arc::clone(&of_requests))));
        request.extensions_mut().insert(ends.peer);
        if let Some(local) = ends.local {
            request.extensions_mut().insert(local);
        }
        let mut service = service.clone();
        let phase = Arc::clone(&of_requests);
        let last = last.clone();
        async move {
            let answer = async move {
                match head::check(&request) {
                    Ok(()) => service.call(request).await,
                    Err(refused) => Ok(refused.into_response()),
                }
            };
            // Nothing of the request is used after a panic.
            let answer = AssertUnwindSafe(answer).catch_unwind().await;
            let mut answer = answer.unwrap_or_else(|panic| Ok(after_panic(panic.as_ref())))?;
            if last.is_cancelled() {
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(answer.map(|body| AnswerBody::new(body, phase)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Counted by the stream itself: hyper's own timer counts idle time, too.
        .header_read_timeout(None)
        .keep_alive(true)
        .half_close(false)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = drive(connection.as_mut(), || phase.is_idle_untimed()) => ended,
        () = stop.cancelled() => {
            phase.leave();
            connection.as_mut().graceful_shutdown();
            drive(connection, || phase.is_idle_untimed()).await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

/// Answers a request whose handler panicked: its client is told that we failed, and the connection goes on.
pub(crate) fn after_panic(panic: &(dyn Any + Send)) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    error!(panic = text.unwrap_or("no text"), "a handler panicked");
    ApiError::internal().into_response()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use runtara_domain::TokenHash;
    use runtara_runner::CallTracker;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tower::ServiceExt as _;
    use tower::util::BoxCloneSyncService;

    use super::*;

    const TOKEN: TokenHash = TokenHash([7; 32]);

    async fn panics(tracker: CallTracker) -> Response {
        let _open = tracker.begin(TOKEN, false);
        tokio::task::yield_now().await;
        panic!("a handler has an error");
    }

    async fn ask(stream: &mut TcpStream, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4_096];
        let read = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered_as_our_failure() {
        let tracker = CallTracker::new();
        tracker.announce(TOKEN, false);
        let handler = tracker.clone();
        let router = Router::new()
            .route("/panics", get(move || panics(handler.clone())))
            .route("/works", get(async || "fine"));
        let service = BoxCloneSyncService::new(tower::service_fn(move |request: Request| {
            router.clone().oneshot(request)
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let _server = Server::start(Listener::Tcp(listener), service, ServerLimits::default());

        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer = ask(&mut stream, "/panics").await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.contains(r#""code":"INTERNAL_ERROR""#), "{answer}");
        assert!(
            tracker.is_our_fault(TOKEN),
            "what its program does now is no fault of its own"
        );
        let answer = ask(&mut stream, "/works").await;
        assert!(answer.ends_with("fine"), "the connection goes on: {answer}");
    }
}
