//! A tiny HTTP server that answers as a test says, remembers what it was asked, and can break off in several ways.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Method, path and query as one line.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// As it should.
    Fine,
    /// The connection is cut.
    Cut,
    /// Nothing more comes.
    Stall,
    /// It never does: zeros come.
    Never,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            end: End::Fine,
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Ends the body in this way after so many bytes of it, although all were promised.
    pub(crate) fn ending(mut self, end: End, after: usize) -> Self {
        if end != End::Never {
            let length = self.body.len().to_string();
            self = self.header("content-length", length);
        }
        self.body.truncate(after);
        self.end = end;
        self
    }
}

type Handler = dyn Fn(&Asked) -> Reply + Send + Sync;

/// The server; it ends with the value.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Fake {
    /// Answers each request by `handler`.
    pub(crate) async fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let handler: Arc<Handler> = Arc::new(handler);
        let accepting = tokio::spawn(accept(listener, handler, Arc::clone(&asked)));
        Self {
            address,
            asked,
            accepting,
        }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no handler panics").clone()
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().iter().map(Asked::line).collect()
    }
}

async fn accept(listener: TcpListener, handler: Arc<Handler>, asked: Arc<Mutex<Vec<Asked>>>) {
    // A set, so that all connections end with the server.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (handler, asked) = (Arc::clone(&handler), Arc::clone(&asked));
        connections.spawn(async move {
            let service = service_fn(move |request| {
                answer(request, Arc::clone(&handler), Arc::clone(&asked))
            });
            // An error is a client that went away or a cut that a test asked for.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    handler: Arc<Handler>,
    asked: Arc<Mutex<Vec<Asked>>>,
) -> Result<Response<Ending>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let one = Asked {
        method: parts.method.to_string(),
        target: parts.uri.to_string(),
        headers: parts.headers,
        body: body.unwrap_or_default(),
    };
    asked.lock().expect("no handler panics").push(one.clone());
    let reply = handler(&one);
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    let parts = reply.body.chunks(16 * 1024).map(Bytes::copy_from_slice);
    let body = Ending {
        parts: parts.collect(),
        end: reply.end,
        cut: Box::pin(tokio::time::sleep(CUT)),
    };
    Ok(response.body(body).expect("a valid reply"))
}

/// How long a connection stays before it is cut: so that what was sent before arrives.
const CUT: Duration = Duration::from_millis(50);

/// A body with its end.
struct Ending {
    parts: VecDeque<Bytes>,
    end: End,
    cut: Pin<Box<Sleep>>,
}

impl Body for Ending {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        if let Some(part) = self.parts.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(part))));
        }
        match self.end {
            End::Fine => Poll::Ready(None),
            End::Cut => self.cut.as_mut().poll(context).map(|()| Some(Err("cut"))),
            End::Stall => Poll::Pending,
            End::Never => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; 16_384]))))),
        }
    }
}
