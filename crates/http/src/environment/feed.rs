//! Feeds the parser of multipart forms no more than it can make use of.
//!
//! The parser takes from its stream whatever is ready, and keeps what it cannot cut into a field's head or content. So the stream
//! itself bounds what is kept: it gives one piece at a time, and the next only when nothing came of what the parser has.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _};

use crate::ApiError;
use crate::body::{BodyReader, too_large};

/// How much may come before the parser makes something of it: the head of a part, or what stands before the first.
const UNPARSED_BYTES: usize = 64 * 1024;

/// How often the parser asks before it has surely looked at all that it has: it may ask twice each time it is polled, and take what it is
/// given the second time without looking at it before it asks anew.
const LAST_LOOKS: u8 = 3;

/// What the reader of a form and the stream that feeds its parser know of each other.
#[derive(Clone, Default)]
pub(super) struct Feed(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// How often the parser has come back for more without having made anything of what it has.
    asked: u8,
    /// How much it was given since something came of it.
    unparsed: usize,
    /// How much it was given in all.
    total: u64,
    /// Why the stream ended before its end.
    failure: Option<ApiError>,
}

/// Says that the stream failed; the reason is with the [`Feed`].
#[derive(Debug)]
pub(super) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body cannot be read further")
    }
}

impl std::error::Error for Broken {}

impl Feed {
    fn state(&self) -> MutexGuard<'_, State> {
        // Plain values: a panic elsewhere cannot have left them half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the parser has given a field, or content of one.
    pub(super) fn parsed(&self) {
        let mut state = self.state();
        state.asked = 0;
        state.unparsed = 0;
    }

    /// Why the stream failed, if it did.
    pub(super) fn failure(&self) -> Option<ApiError> {
        self.state().failure.take()
    }

    /// The stream for the parser, of at most so many bytes.
    pub(super) fn stream(
        &self,
        body: BodyReader,
        limit: u64,
    ) -> impl Stream<Item = Result<Bytes, Broken>> + Send + 'static {
        let pieces = stream::unfold(Some(body), |body| async {
            let mut body = body?;
            match body.next().await {
                Ok(Some(piece)) => Some((Ok(piece), Some(body))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Pieces {
            pieces: pieces.boxed(),
            feed: self.clone(),
            limit,
        }
    }
}

impl State {
    /// The parser asks no further after this.
    fn fail(&mut self, failure: ApiError) -> Poll<Option<Result<Bytes, Broken>>> {
        self.failure = Some(failure);
        Poll::Ready(Some(Err(Broken)))
    }
}

struct Pieces {
    pieces: BoxStream<'static, Result<Bytes, ApiError>>,
    feed: Feed,
    limit: u64,
}

impl Stream for Pieces {
    type Item = Result<Bytes, Broken>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let mut state = this.feed.state();
        let enough = if state.unparsed > UNPARSED_BYTES {
            LAST_LOOKS
        } else {
            1
        };
        if state.asked < enough {
            // Let it look at what it has first; it comes back at once if that is not enough.
            state.asked += 1;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if state.unparsed > UNPARSED_BYTES {
            let failure = ApiError::bad_request(
                "UPLOAD_ERROR",
                format!(
                    "the form cannot be read: the head of a part, or what stands before the first part, has more than \
                     {UNPARSED_BYTES} bytes"
                ),
            );
            return state.fail(failure);
        }
        match ready!(this.pieces.poll_next_unpin(context)) {
            None => Poll::Ready(None),
            Some(Err(error)) => state.fail(error),
            Some(Ok(piece)) => {
                state.asked = 0;
                state.unparsed += piece.len();
                state.total += piece.len() as u64;
                if state.total > this.limit {
                    return state.fail(too_large(this.limit));
                }
                Poll::Ready(Some(Ok(piece)))
            }
        }
    }
}
