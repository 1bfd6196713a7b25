//! One upload: from pieces of a body to a durable file under its digest.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use futures_util::future::{Join, join};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use runtara_domain::ImageDigest;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::blob::{blocking, joined};
use crate::place::{Part, Pin, Place};
use crate::{Base64Decoder, BlobError, BlobStore, Detected, detect};

/// How much is hashed and written at once. Two of these exist for each upload: one is filled while the other is worked on.
const BATCH_BYTES: usize = 1024 * 1024;
/// After so many bytes the disk is told to begin with them.
const WRITE_BACK_BYTES: u64 = 8 * 1024 * 1024;
/// How much base64 text is decoded at once.
const TEXT_BYTES: usize = 64 * 1024;

/// Content that is stored, and durable.
#[derive(Debug)]
pub struct Stored {
    /// Its digest.
    pub digest: ImageDigest,
    /// Its size in bytes.
    pub size: u64,
    /// Whether the same content was there before.
    pub already_there: bool,
    /// Keeps the content from being removed: hold it until the row that needs the content is durable.
    pub pin: Pin,
}

/// Content on its way into the store: hashed while it is written, under a temporary name.
///
/// Hashing and writing run side by side on the blocking pool, a batch at a time, so that a slow sender holds no thread and a
/// fast one waits for the slower of the two. Dropping an upload removes its file; after a crash the next start does.
pub struct Upload {
    place: Arc<Place>,
    limit: u64,
    /// `None` once the upload is finished.
    part: Option<(Part, OwnedSemaphorePermit)>,
    batch: Vec<u8>,
    /// The other batch, while it is not worked on.
    spare: Vec<u8>,
    /// `None` while a batch is being hashed.
    hasher: Option<Sha256>,
    working: Option<Join<JoinHandle<Hashed>, JoinHandle<Written>>>,
    /// Where in the file the next batch begins.
    offset: u64,
    decoder: Base64Decoder,
    decoded: Vec<u8>,
    /// Set during every change, so that one that failed or was dropped in the middle is never mistaken for a whole one.
    gap: bool,
}

type Hashed = (Sha256, Arc<Vec<u8>>);
type Written = (io::Result<()>, Arc<Vec<u8>>);

impl Upload {
    /// With another limit than that of its store.
    pub(crate) fn of_at_most(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    pub(crate) fn new(store: &BlobStore, part: Part, permit: OwnedSemaphorePermit) -> Self {
        Self {
            place: Arc::clone(&store.place),
            limit: store.options.max_bytes,
            part: Some((part, permit)),
            batch: Vec::new(),
            spare: Vec::new(),
            hasher: Some(Sha256::new()),
            working: None,
            offset: 0,
            decoder: Base64Decoder::default(),
            decoded: Vec::new(),
            gap: false,
        }
    }

    /// Bytes of content so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.offset + self.batch.len() as u64
    }

    /// Appends content. Answers as soon as the piece is taken; an error of the disk may be told by a later call. If the future
    /// is dropped, the upload is of no further use.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`] beyond the largest size, [`BlobError::StorageFull`] or [`BlobError::Io`] if it cannot be
    /// written, [`BlobError::Gap`] after any of them.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), BlobError> {
        self.begin()?;
        self.append(piece).await?;
        self.gap = false;
        Ok(())
    }

    /// Appends content that is given as the next piece of one base64 text.
    ///
    /// # Errors
    /// [`BlobError::Base64`] if it is none, otherwise as [`Upload::write`].
    pub async fn write_base64(&mut self, text: &[u8]) -> Result<(), BlobError> {
        self.begin()?;
        for text in text.chunks(TEXT_BYTES) {
            let mut decoded = std::mem::take(&mut self.decoded);
            self.decoder.decode(text, &mut decoded)?;
            self.append(&decoded).await?;
            decoded.clear();
            self.decoded = decoded;
        }
        self.gap = false;
        Ok(())
    }

    /// Says what the content so far is, so that what nobody can run needs not be stored at all.
    ///
    /// # Errors
    /// As [`Upload::write`].
    pub async fn detect(&mut self) -> Result<Detected, BlobError> {
        self.begin()?;
        self.flush().await?;
        let (file, path) = self.target();
        let detected = blocking(move || {
            // All writes name their position, so that moving the file's own is harmless.
            detect(&mut &*file).map_err(BlobError::io("read", &path))
        })
        .await?;
        self.gap = false;
        Ok(detected)
    }

    /// Puts the content in its place, durably. `expected` is the digest that its sender announced.
    ///
    /// If the future is dropped, the content may come to its place or not, and nothing else is left of it.
    ///
    /// # Errors
    /// [`BlobError::ChecksumMismatch`] if the content is not what was announced, [`BlobError::Base64`] if its text was cut
    /// off, otherwise as [`Upload::write`]. Nothing is left of it then.
    pub async fn finish(mut self, expected: Option<ImageDigest>) -> Result<Stored, BlobError> {
        let digest = match self.digest(expected).await {
            Ok(digest) => digest,
            Err(error) => {
                self.discard().await;
                return Err(error);
            }
        };
        let size = self.offset;
        let place = Arc::clone(&self.place);
        let (part, permit) = self.part.take().expect("an upload is finished once");
        blocking(move || {
            let _permit = permit;
            let (already_there, pin) = place.publish(part, &digest, size)?;
            Ok(Stored {
                digest,
                size,
                already_there,
                pin,
            })
        })
        .await
    }

    async fn digest(&mut self, expected: Option<ImageDigest>) -> Result<ImageDigest, BlobError> {
        self.begin()?;
        self.decoder.finish()?;
        self.flush().await?;
        let hasher = self
            .hasher
            .take()
            .expect("no batch is being hashed after a flush");
        let found = ImageDigest(hasher.finalize().into());
        match expected {
            Some(expected) if expected != found => {
                Err(BlobError::ChecksumMismatch { expected, found })
            }
            _ => Ok(found),
        }
    }

    /// Removes the file before it answers; a drop does so in its own time.
    async fn discard(&mut self) {
        if let Some(part) = self.part.take() {
            // Only a runtime that shuts down refuses the work, and drops the part all the same.
            let _ = spawn_blocking(move || drop(part)).await;
        }
    }

    fn begin(&mut self) -> Result<(), BlobError> {
        if std::mem::replace(&mut self.gap, true) {
            return Err(BlobError::Gap);
        }
        Ok(())
    }

    async fn append(&mut self, mut piece: &[u8]) -> Result<(), BlobError> {
        if piece.len() as u64 > self.limit - self.received() {
            return Err(BlobError::TooLarge { limit: self.limit });
        }
        while !piece.is_empty() {
            // The batches trade places, so that this allocates at most twice.
            self.batch.reserve_exact(BATCH_BYTES - self.batch.len());
            let room = BATCH_BYTES - self.batch.len();
            let (head, rest) = piece.split_at(room.min(piece.len()));
            self.batch.extend_from_slice(head);
            piece = rest;
            if self.batch.len() == BATCH_BYTES {
                self.hand_over().await?;
            }
        }
        Ok(())
    }

    /// Waits until all content so far is hashed and written (not yet durable).
    async fn flush(&mut self) -> Result<(), BlobError> {
        if !self.batch.is_empty() {
            self.hand_over().await?;
        }
        self.settle().await
    }

    /// Gives the batch to be hashed and written, once the one before it is done.
    async fn hand_over(&mut self) -> Result<(), BlobError> {
        self.settle().await?;
        runtara_failpoints::pass(runtara_failpoints::Point::MidUpload);
        let mut hasher = self
            .hasher
            .take()
            .expect("no batch is being hashed after it settled");
        let batch = std::mem::replace(&mut self.batch, std::mem::take(&mut self.spare));
        let offset = self.offset;
        self.offset += batch.len() as u64;
        let batch = Arc::new(batch);
        let (file, _) = self.target();
        let hash = spawn_blocking({
            let batch = Arc::clone(&batch);
            move || {
                hasher.update(batch.as_slice());
                (hasher, batch)
            }
        });
        let write = spawn_blocking(move || (write_batch(&file, &batch, offset), batch));
        self.working = Some(join(hash, write));
        Ok(())
    }

    /// Waits for the batch that is worked on.
    async fn settle(&mut self) -> Result<(), BlobError> {
        let Some(working) = &mut self.working else {
            return Ok(());
        };
        let (hashed, written) = working.await;
        self.working = None;
        let (hasher, batch) = joined(hashed)?;
        self.hasher = Some(hasher);
        drop(batch);
        let (result, batch) = joined(written)?;
        result.map_err(BlobError::io("write", &self.target().1))?;
        self.spare = Arc::into_inner(batch).unwrap_or_default();
        self.spare.clear();
        Ok(())
    }

    fn target(&self) -> (Arc<File>, std::path::PathBuf) {
        let (part, _) = self
            .part
            .as_ref()
            .expect("only a finished upload has no file");
        (Arc::clone(part.file()), part.path().to_owned())
    }
}

/// Without the content: it may be a secret of its owner.
impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("received", &self.received())
            .field("gap", &self.gap)
            .finish_non_exhaustive()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Removing a large file takes a while. Were the runtime gone already, the part would be dropped right here. The permit
        // goes with it: an upload counts until its space is free again.
        if let Some(part) = self.part.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(part));
        }
    }
}

fn write_batch(file: &File, batch: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(batch, offset)?;
    let end = offset + batch.len() as u64;
    if end / WRITE_BACK_BYTES > offset / WRITE_BACK_BYTES {
        start_write_back(file, end - end % WRITE_BACK_BYTES);
    }
    Ok(())
}

/// Lets the disk begin with the last window of dirty pages, so that the flush at the end finds little left to do.
///
/// Linux begins to write dirty pages of a range when it is told that the range is not needed (`mm/fadvise.c`), and drops only
/// pages that are clean. It is advice: should it be refused, the flush at the end does it all.
fn start_write_back(file: &File, end: u64) {
    let begin = end.saturating_sub(WRITE_BACK_BYTES);
    if let (Ok(begin), Ok(length)) = (begin.try_into(), WRITE_BACK_BYTES.try_into()) {
        let _ = posix_fadvise(file, begin, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}
