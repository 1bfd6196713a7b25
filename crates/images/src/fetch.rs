//! Fetches content from the shared store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use runtara_domain::ImageDigest;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::blob::blocking;
use crate::shared::PIECE_BYTES;
use crate::{BlobError, BlobStore, SharedStore, Upload};

/// How long a fetch waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(600);
/// How often content is looked for that goes away while it is fetched: somebody removes it, and puts it back.
const TRIES: usize = 3;
/// How many pieces of one content are asked for at once.
const PIECES_AT_ONCE: usize = 2;
/// From this size on, a fetch is told in the log.
const LARGE_BYTES: u64 = 64 * 1024 * 1024;
/// How often, in bytes.
const TOLD_BYTES: u64 = 256 * 1024 * 1024;

impl BlobStore {
    /// Has content be here that was not a moment ago.
    pub(crate) async fn fetch(&self, digest: &ImageDigest) -> Result<(), BlobError> {
        let absent = || BlobError::Absent { digest: *digest };
        let shared = self.shared.as_ref().ok_or_else(absent)?;
        let turn = self.cache.turn_of(*digest);
        // Whoever has it makes progress, or gives up: each of his requests has a deadline.
        let _turn = turn.lock().await;
        for _ in 0..TRIES {
            if self.local_size(digest).await?.is_some() {
                return Ok(());
            }
            let Some(size) = shared.size(digest).await? else {
                if shared.take_back(digest).await? {
                    continue;
                }
                break;
            };
            let fetches = Arc::clone(&self.cache.fetches);
            let permit = timeout(TURN_WAIT, fetches.acquire_owned()).await;
            let permit = permit.map_err(|_| BlobError::Shared {
                action: "fetch content from",
                reason: format!(
                    "other content is being fetched, and none was done within {} s",
                    TURN_WAIT.as_secs()
                ),
            })?;
            let permit = permit.expect("the semaphore is never closed");
            if self.fetch_once(shared, digest, size, permit).await? {
                self.cache.grown.notify_one();
                return Ok(());
            }
        }
        Err(absent())
    }

    /// Fetches content of a size; false if it goes away meanwhile.
    async fn fetch_once(
        &self,
        shared: &SharedStore,
        digest: &ImageDigest,
        size: u64,
        permit: OwnedSemaphorePermit,
    ) -> Result<bool, BlobError> {
        let began = Instant::now();
        let is_told = size >= LARGE_BYTES;
        if is_told {
            tracing::info!(%digest, bytes = size, "fetching content from the shared image store");
        }
        let place = Arc::clone(&self.place);
        let part = blocking(move || place.create_part()).await?;
        let mut upload = Upload::new(self, part, permit).of_at_most(size);
        let begins = (0..size).step_by(usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX));
        let pieces = stream::iter(begins.map(Ok::<_, BlobError>)).map_ok(async |begin| {
            let end = size.min(begin + PIECE_BYTES);
            shared.piece(digest, begin..end).await
        });
        let mut pieces = std::pin::pin!(pieces.try_buffered(PIECES_AT_ONCE));
        while let Some(piece) = pieces.next().await {
            let Some(piece) = piece? else {
                return Ok(false);
            };
            let before = upload.received();
            upload.write(&piece).await?;
            let received = upload.received();
            if is_told && before / TOLD_BYTES < received / TOLD_BYTES {
                tracing::info!(%digest, received, of = size, "fetching");
            }
        }
        match upload.finish(Some(*digest)).await {
            Ok(_) => {
                let ms = began.elapsed().as_millis();
                tracing::info!(%digest, bytes = size, ms, "fetched content from the shared image store");
                Ok(true)
            }
            Err(BlobError::ChecksumMismatch { expected, found }) => Err(BlobError::Corrupt {
                digest: expected,
                found,
            }),
            Err(error) => Err(error),
        }
    }
}
