//! Reads bodies of clients that may be slow, or never end.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout};

use crate::ApiError;

/// How long the next [`LEAST_BYTES`] of a body, or all that is left of it, may take to come.
const WINDOW: Duration = Duration::from_secs(30);
/// How much of a body must come in each [`WINDOW`]. A client that sends less would hold what it holds (memory, a place for an
/// upload) for days, byte by byte.
const LEAST_BYTES: usize = 64 * 1024;

/// A body that is read part by part, at a least rate.
pub(crate) struct BodyReader {
    body: Body,
    /// How much longer we wait for the rest of the window. Only waiting for the client counts, not what is done with the parts.
    patience: Duration,
    /// How much has come in this window.
    came: usize,
}

impl BodyReader {
    pub(crate) fn new(body: Body) -> Self {
        Self {
            body,
            patience: WINDOW,
            came: 0,
        }
    }

    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// 408 `REQUEST_TIMEOUT` for a client that is too slow, 400 `BODY_BROKEN` for one that went away.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let asked = Instant::now();
            let frame = timeout(self.patience, self.body.frame())
                .await
                .map_err(|_| too_slow())?;
            self.patience = self.patience.saturating_sub(asked.elapsed());
            match frame {
                None => return Ok(None),
                Some(Err(error)) => {
                    return Err(ApiError::bad_request(
                        "BODY_BROKEN",
                        format!("the body broke off: {error}"),
                    ));
                }
                Some(Ok(frame)) => {
                    if let Ok(part) = frame.into_data() {
                        self.count(part.len());
                        return Ok(Some(part));
                    }
                }
            }
        }
    }

    fn count(&mut self, bytes: usize) {
        self.came += bytes;
        if self.came >= LEAST_BYTES {
            self.came = 0;
            self.patience = WINDOW;
        }
    }

    /// The whole body, within a bound.
    ///
    /// # Errors
    /// 413 `BODY_TOO_LARGE`, and as [`BodyReader::next`].
    pub(crate) async fn whole(mut self, limit: usize) -> Result<Bytes, ApiError> {
        let mut whole = BytesMut::new();
        while let Some(part) = self.next().await? {
            if whole.len() + part.len() > limit {
                return Err(too_large(limit as u64));
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }
}

fn too_slow() -> ApiError {
    ApiError::new(
        StatusCode::REQUEST_TIMEOUT,
        "REQUEST_TIMEOUT",
        format!(
            "less than {LEAST_BYTES} bytes of the body, and not its end, came within {} s",
            WINDOW.as_secs()
        ),
    )
}

pub(crate) fn too_large(limit: u64) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "BODY_TOO_LARGE",
        format!("the body has more than the {limit} bytes that are allowed"),
    )
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use tokio::time::sleep;

    use super::*;

    /// A body of so many pieces of so many bytes, each after a pause.
    fn dripping(pieces: usize, bytes: usize, pause: Duration) -> BodyReader {
        let pieces = stream::unfold(0, move |sent| async move {
            if sent == pieces {
                return None;
            }
            sleep(pause).await;
            Some((
                Ok::<_, Infallible>(Bytes::from(vec![b' '; bytes])),
                sent + 1,
            ))
        });
        BodyReader::new(Body::from_stream(pieces))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up() {
        let began = Instant::now();
        let answer = dripping(1_000, 1, Duration::from_secs(5))
            .whole(1_000)
            .await;
        assert_eq!(answer.unwrap_err().code(), "REQUEST_TIMEOUT");
        assert_eq!(began.elapsed(), WINDOW);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_at_the_least_rate_may_take_its_time() {
        let pause = Duration::from_secs(7);
        let whole = dripping(100, LEAST_BYTES / 4, pause).whole(usize::MAX);
        assert_eq!(whole.await.unwrap().len(), 25 * LEAST_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn what_we_do_with_a_part_is_not_the_clients_time() {
        let mut body = dripping(5, 10, Duration::from_secs(1));
        let mut parts = 0;
        while body.next().await.unwrap().is_some() {
            parts += 1;
            sleep(WINDOW).await;
        }
        assert_eq!(parts, 5);
    }
}
