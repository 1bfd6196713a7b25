//! Streams that give up on clients who keep them waiting.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::{Connection, ServerLimits};

/// What a connection is about to do, shared between its stream, its service and whoever drives it. All of them are one task.
#[derive(Debug, Default)]
pub(super) struct Phase {
    now: AtomicU8,
    /// What the deadline of the stream was armed for.
    timed: AtomicU8,
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

/// A stream that gives up on clients who are idle for too long, send the head of a request too slowly, or do not take their answer.
pub(super) struct TimedStream {
    stream: Box<dyn Connection>,
    phase: Arc<Phase>,
    limits: ServerLimits,
    deadline: Pin<Box<Sleep>>,
    /// Armed while the client takes nothing of what there is for it.
    untaken: Option<Pin<Box<Sleep>>>,
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
        Pin::new(&mut self.stream).poll_shutdown(context)
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
