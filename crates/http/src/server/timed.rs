//! Streams that give up on clients who keep them waiting, and that close so that clients still get to know why.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use runtara_domain::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::{Connection, ServerLimits};

/// How long a connection that is closed in the middle of a request takes what its client is still sending.
///
/// Enough for a client nearby to send [`LINGER_BYTES`] and to take its answer, and for one far away to see the answer and stop;
/// little beside the grace that a server has for its end, which closes such connections, too.
const LINGER: Duration = Duration::from_secs(2);
/// How much of it is taken at most: as much as the largest body that is read whole. What is taken is thrown away, so it costs no
/// memory; a client that sends more gets an error of its connection in place of the answer.
const LINGER_BYTES: usize = limits::BODY_BYTES;
/// How much of it is taken at once.
const LINGER_PIECE: usize = 64 * 1024;

/// What a connection is about to do, shared between its stream, its service and whoever drives it. All of them are one task.
#[derive(Debug, Default)]
pub(super) struct Phase {
    now: AtomicU8,
    /// What the deadline of the stream was armed for.
    timed: AtomicU8,
    /// Whether there may be bytes of a request that nobody has read.
    unread: AtomicBool,
}

impl Phase {
    /// No request is under way.
    pub(super) const IDLE: u8 = 0;
    /// The head of a request has begun to come.
    pub(super) const HEAD: u8 = 1;
    /// A request is being served.
    pub(super) const SERVED: u8 = 2;

    pub(super) fn set(&self, phase: u8) {
        self.now.store(phase, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.now.load(Ordering::Relaxed)
    }

    fn timed(&self) -> u8 {
        self.timed.load(Ordering::Relaxed)
    }

    /// Whether the connection has become idle and nobody minds for how long: its stream was not read since.
    pub(super) fn is_idle_untimed(&self) -> bool {
        self.get() == Self::IDLE && self.timed() != Self::IDLE
    }

    /// Notes whether there may be bytes of a request that nobody has read.
    pub(super) fn set_unread(&self, unread: bool) {
        self.unread.store(unread, Ordering::Relaxed);
    }

    /// Notes that the connection is closed because the server leaves: where no request is being served, there is nothing to tell
    /// its client for which it would have to be waited for.
    pub(super) fn leave(&self) {
        if self.get() != Self::SERVED {
            self.set_unread(false);
        }
    }
}

/// The body of a request: notes that it was read to its end.
pub(super) struct RequestBody {
    body: Incoming,
    phase: Arc<Phase>,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, phase: Arc<Phase>) -> Self {
        phase.set_unread(!body.is_end_stream());
        Self { body, phase }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.phase.set_unread(false);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer: the connection is idle when it has ended, which may be long after the handler gave it.
pub(super) struct AnswerBody {
    body: Body,
    phase: Arc<Phase>,
}

impl AnswerBody {
    pub(super) fn new(body: Body, phase: Arc<Phase>) -> Self {
        Self { body, phase }
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.phase.set(Phase::IDLE);
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What is thrown away of a request before its connection is closed.
struct Lingering {
    end: Pin<Box<Sleep>>,
    left: usize,
    piece: Box<[u8]>,
}

impl Lingering {
    fn new() -> Self {
        Self {
            end: Box::pin(sleep(LINGER)),
            left: LINGER_BYTES,
            piece: vec![0; LINGER_PIECE].into(),
        }
    }

    /// Reads until the client has closed its side, or there was enough.
    fn poll(&mut self, stream: &mut dyn Connection, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.end.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut self.piece);
            let read = ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer));
            let count = buffer.filled().len();
            self.left = self.left.saturating_sub(count);
            if read.is_err() || count == 0 || self.left == 0 {
                return Poll::Ready(());
            }
        }
    }
}

/// A stream that gives up on clients who are idle for too long, send the head of a request too slowly, or do not take their answer.
///
/// A request may be answered before all of it has come: an upload of the wrong tenant, a body that is too large. If the connection
/// were closed at once, the client's next bytes would be answered with a reset, which ends what it sends with an error and may take
/// the answer away before it is read. So the writing side is closed first, and what still comes is thrown away for a little while.
pub(super) struct TimedStream {
    stream: Box<dyn Connection>,
    phase: Arc<Phase>,
    limits: ServerLimits,
    deadline: Pin<Box<Sleep>>,
    /// Armed while the client takes nothing of what there is for it.
    untaken: Option<Pin<Box<Sleep>>>,
    /// What is going on once the writing side is closed.
    lingering: Option<Lingering>,
}

impl TimedStream {
    pub(super) fn new(
        stream: Box<dyn Connection>,
        phase: Arc<Phase>,
        limits: ServerLimits,
    ) -> Self {
        Self {
            stream,
            phase,
            // A new connection is expected to send something soon.
            deadline: Box::pin(sleep(limits.head)),
            untaken: None,
            lingering: None,
            limits,
        }
    }

    /// Arms the deadline anew when the phase has changed.
    fn follow_phase(&mut self) {
        let phase = self.phase.get();
        if phase == self.phase.timed() {
            return;
        }
        self.phase.timed.store(phase, Ordering::Relaxed);
        let limit = match phase {
            Phase::HEAD => self.limits.head,
            _ => self.limits.idle,
        };
        self.deadline.as_mut().reset(Instant::now() + limit);
    }

    /// Bounds how long a write may make no progress.
    fn bound<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.untaken = None;
            return written;
        }
        let limit = self.limits.untaken;
        let untaken = self.untaken.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(untaken.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
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
                    this.phase.set_unread(true);
                    this.follow_phase();
                }
                Poll::Ready(answer)
            }
            Poll::Pending => {
                if this.phase.timed() == Phase::SERVED {
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
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bound(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if !this.phase.unread.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let lingering = this.lingering.get_or_insert_with(Lingering::new);
        lingering.poll(&mut *this.stream, context).map(Ok)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.bound(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
