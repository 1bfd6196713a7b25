//! Content: streamed into the archive, and verified while it comes.

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};

use crate::answer::chunk;
use crate::layout::LayoutWriter;
use crate::registry::{Registry, Wanted};
use crate::{Digest, PullError};

/// A connection that brought so many bytes before it broke was a good one: the attempts are counted anew.
const GOOD_BYTES: u64 = 1024 * 1024;

/// What a manifest names.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// A blob on its way.
struct Transfer {
    what: String,
    blob: Blob,
    hash: Sha256,
    received: u64,
}

/// Gets a blob into the archive. `progress` is told how many bytes of it are there.
///
/// What breaks off is continued where it broke off, if the registry can do that, and begun anew otherwise.
pub(crate) async fn fetch(
    registry: &mut Registry<'_>,
    blob: &Blob,
    layout: &mut LayoutWriter,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(), PullError> {
    layout.begin(blob.digest, blob.size).await?;
    let mut transfer = Transfer {
        what: format!("the layer {}", blob.digest),
        blob: blob.clone(),
        hash: Sha256::new(),
        received: 0,
    };
    let (mut attempt, mut before) = (1, 0);
    while let Err(error) = transfer.go_on(registry, layout, progress).await {
        if transfer.received >= before + GOOD_BYTES {
            attempt = 1;
        }
        before = before.max(transfer.received);
        registry.pause(error, attempt).await?;
        attempt += 1;
    }
    transfer.check()?;
    Ok(layout.end().await?)
}

impl Transfer {
    async fn go_on(
        &mut self,
        registry: &mut Registry<'_>,
        layout: &mut LayoutWriter,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), PullError> {
        if self.received == self.blob.size && self.received > 0 {
            return Ok(());
        }
        let path = format!("blobs/{}", self.blob.digest);
        let wanted = Wanted {
            path: &path,
            accept: "*/*",
            from: self.received,
            what: &self.what,
            is_image: false,
        };
        let mut response = registry.get(&wanted).await?;
        if response.status() != StatusCode::PARTIAL_CONTENT || !self.is_continued_by(&response) {
            self.begin_anew(&response, layout).await?;
        }
        if let Some(length) = response.content_length() {
            self.check_size(self.received.saturating_add(length), true)?;
        }
        let url = response.url().clone();
        while let Some(bytes) = chunk(&mut response, &url, &self.what, registry.options).await? {
            self.received += bytes.len() as u64;
            self.check_size(self.received, false)?;
            self.hash.update(&bytes);
            layout.write(&bytes).await?;
            progress(self.received);
        }
        self.check_size(self.received, true)
    }

    /// Drops what has come, if the answer holds it again.
    async fn begin_anew(
        &mut self,
        response: &Response,
        layout: &mut LayoutWriter,
    ) -> Result<(), PullError> {
        if response.status() == StatusCode::PARTIAL_CONTENT {
            return Err(PullError::Malformed {
                what: self.what.clone(),
                problem: "comes in another part than was asked for".to_owned(),
            });
        }
        if self.received > 0 {
            layout.restart().await?;
            self.hash = Sha256::new();
            self.received = 0;
        }
        Ok(())
    }

    fn is_continued_by(&self, response: &Response) -> bool {
        let range = response.headers().get(CONTENT_RANGE);
        let text = range.and_then(|value| value.to_str().ok());
        // `bytes 100-199/200` (RFC 9110, 14.4).
        let first = text
            .and_then(|text| text.strip_prefix("bytes "))
            .and_then(|text| text.split_once('-'))
            .and_then(|(first, _)| first.parse().ok());
        first == Some(self.received)
    }

    /// Refuses content that is longer than the manifest says at once, and shorter content at its end.
    fn check_size(&self, found: u64, at_end: bool) -> Result<(), PullError> {
        let wanted = self.blob.size;
        if found > wanted || (at_end && found < wanted) {
            return Err(PullError::SizeMismatch {
                what: self.what.clone(),
                wanted,
                found,
            });
        }
        Ok(())
    }

    fn check(self) -> Result<(), PullError> {
        let found = Digest::from_hash(self.hash);
        self.blob.digest.check(&self.what, found)
    }
}
