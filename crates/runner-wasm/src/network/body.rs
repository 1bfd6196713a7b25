//! Bodies that are counted, and that break off when nothing comes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use wasmtime_wasi_http::{Error, WasiBody};

/// Bytes of a guest that the core holds at once: what all its open calls have sent.
#[derive(Debug, Default)]
pub(super) struct Held(AtomicUsize);

/// What one call has sent, which counts as held until the call is over.
#[derive(Debug)]
pub(super) struct Sent {
    held: Arc<Held>,
    bytes: AtomicUsize,
    limit: usize,
}

impl Sent {
    pub(super) fn new(held: &Arc<Held>, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            held: Arc::clone(held),
            bytes: AtomicUsize::new(0),
            limit,
        })
    }

    /// Counts more, and says whether it is within the limit.
    fn add(&self, bytes: usize) -> bool {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let held = self.held.0.fetch_add(bytes, Ordering::Relaxed);
        held.saturating_add(bytes) <= self.limit
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.held.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The body of a call, which breaks off where the guest has sent too much.
pub(super) struct Counted {
    pub(super) body: WasiBody,
    pub(super) sent: Arc<Sent>,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            if !self.sent.add(bytes) {
                let limit = u64::try_from(self.sent.limit).ok();
                return Poll::Ready(Some(Err(Error::HttpRequestBodySize(limit))));
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, whose parts come within a time of each other. It holds what must live as long as it is read.
pub(super) struct Answer<B, K> {
    body: B,
    patience: Duration,
    /// Runs while the next part is waited for.
    waiting: Option<Pin<Box<Sleep>>>,
    _kept: K,
}

impl<B, K> Answer<B, K> {
    pub(super) fn new(body: B, patience: Duration, kept: K) -> Self {
        Self {
            body,
            patience,
            waiting: None,
            _kept: kept,
        }
    }
}

impl<B, K> Body for Answer<B, K>
where
    B: Body<Data = Bytes, Error: Into<Error>> + Unpin,
    K: Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if let Poll::Ready(polled) = Pin::new(&mut this.body).poll_frame(context) {
            this.waiting = None;
            return Poll::Ready(polled.map(|frame| frame.map_err(Into::into)));
        }
        let patience = this.patience;
        let waiting = this
            .waiting
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        std::task::ready!(waiting.as_mut().poll(context));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, Full};

    use super::*;

    fn counted(held: &Arc<Held>, bytes: usize) -> Counted {
        let body = Full::new(Bytes::from(vec![0; bytes]));
        Counted {
            body: body
                .map_err(|never: Infallible| match never {})
                .boxed_unsync(),
            sent: Sent::new(held, 10),
        }
    }

    #[tokio::test]
    async fn open_calls_share_what_may_be_held() {
        let held = Arc::new(Held::default());
        let first = counted(&held, 6);
        let call = Arc::clone(&first.sent);
        assert!(first.collect().await.is_ok());
        let second = counted(&held, 6).collect().await;
        assert!(matches!(second, Err(Error::HttpRequestBodySize(Some(10)))));
        drop(call);
        assert!(counted(&held, 6).collect().await.is_ok());
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
    }

    /// A body of which nothing comes.
    struct Silent;

    impl Body for Silent {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_body_breaks_off() {
        let began = tokio::time::Instant::now();
        let patience = Duration::from_secs(7);
        let frame = Answer::new(Silent, patience, ()).frame().await;
        assert!(matches!(frame, Some(Err(Error::ConnectionReadTimeout))));
        assert_eq!(began.elapsed(), patience);
    }
}
