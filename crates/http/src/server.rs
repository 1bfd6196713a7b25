//! Accepts connections, bounds them, and lets them finish when the process goes away.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;
use tracing::{debug, error, warn};

use crate::ApiError;

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
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            head: Duration::from_secs(30),
            idle: Duration::from_secs(600),
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

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection for T {}

impl Listener {
    async fn accept(&self) -> io::Result<(Box<dyn Connection>, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Box::new(stream), Peer::Tcp(address)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Box::new(stream), Peer::Unix))
            }
        }
    }
}

/// A server under way.
pub struct Server {
    stop: CancellationToken,
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
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(accept(
            listener,
            service,
            limits,
            stop.clone(),
            tasks.clone(),
        ));
        Self { stop, tasks }
    }

    /// Stops accepting, and has every connection close after the answer that it is waiting for.
    pub fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
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
    stop: CancellationToken,
    tasks: TaskTracker,
) where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = serve(stream, peer, service.clone(), limits.clone(), stop.clone());
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
    peer: Peer,
    service: S,
    limits: ServerLimits,
    stop: CancellationToken,
) where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    let phase = Arc::new(Phase::default());
    let io = TimedStream::new(stream, Arc::clone(&phase), limits);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        phase.set(Phase::SERVED);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        let mut service = service.clone();
        let phase = Arc::clone(&phase);
        async move {
            let answer = async move { service.call(request).await };
            // Nothing of the request is used after a panic.
            let answer = AssertUnwindSafe(answer).catch_unwind().await;
            phase.set(Phase::IDLE);
            answer.unwrap_or_else(|panic| Ok(after_panic(panic.as_ref())))
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
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

/// Answers a request whose handler panicked: its client is told that we failed, and the connection goes on.
fn after_panic(panic: &(dyn Any + Send)) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    error!(panic = text.unwrap_or("no text"), "a handler panicked");
    ApiError::internal().into_response()
}

/// What a connection is about to do, shared between its stream and its service.
#[derive(Debug, Default)]
struct Phase(AtomicU8);

impl Phase {
    /// No request is under way.
    const IDLE: u8 = 0;
    /// The head of a request has begun to come.
    const HEAD: u8 = 1;
    /// A request is being served.
    const SERVED: u8 = 2;

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Release);
    }

    fn get(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// A stream that gives up on clients who are idle for too long, or send the head of a request too slowly.
struct TimedStream {
    stream: Box<dyn Connection>,
    phase: Arc<Phase>,
    limits: ServerLimits,
    timed: u8,
    deadline: Pin<Box<Sleep>>,
}

impl TimedStream {
    fn new(stream: Box<dyn Connection>, phase: Arc<Phase>, limits: ServerLimits) -> Self {
        Self {
            stream,
            phase,
            timed: Phase::IDLE,
            // A new connection is expected to send something soon.
            deadline: Box::pin(sleep(limits.head)),
            limits,
        }
    }

    /// Arms the deadline anew when the phase has changed.
    fn follow_phase(&mut self) {
        let phase = self.phase.get();
        if phase == self.timed {
            return;
        }
        self.timed = phase;
        let limit = match phase {
            Phase::HEAD => self.limits.head,
            _ => self.limits.idle,
        };
        self.deadline.as_mut().reset(Instant::now() + limit);
    }
}

impl AsyncRead for TimedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.follow_phase();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Ready(answer) => {
                if buffer.filled().len() > before && this.phase.get() == Phase::IDLE {
                    this.phase.set(Phase::HEAD);
                    this.follow_phase();
                }
                Poll::Ready(answer)
            }
            Poll::Pending => {
                if this.timed == Phase::SERVED {
                    return Poll::Pending;
                }
                ready!(this.deadline.as_mut().poll(context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncWrite for TimedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
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
