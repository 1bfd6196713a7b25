//! Content under its digest.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Location;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt as _};
use runtara_domain::ImageDigest;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::cache::Cache;
use crate::listing::{self, Listed};
use crate::place::{Pin, Place, RemovalLock};
use crate::{BlobError, Detected, SharedStore, Stored, Upload, detect};

/// How much is read from a file at once.
const READ_BYTES: usize = 512 * 1024;

/// What a [`BlobStore`] takes.
#[derive(Debug, Clone)]
pub struct BlobOptions {
    /// Largest content, in bytes.
    pub max_bytes: u64,
    /// How many uploads may be under way at once. Each takes about 2 MiB of memory, whatever its size.
    pub uploads: usize,
    /// How long a further upload waits for one of those to end.
    pub upload_wait: Duration,
    /// How many bytes of content may be here that is also in the shared store, as near as what is in use allows. Without one it means nothing.
    pub cache_bytes: u64,
}

impl Default for BlobOptions {
    /// 2 GiB, 16 uploads, 30 seconds, 10 GiB.
    fn default() -> Self {
        Self {
            max_bytes: 2 * 1024 * 1024 * 1024,
            uploads: 16,
            upload_wait: Duration::from_secs(30),
            cache_bytes: 10 * 1024 * 1024 * 1024,
        }
    }
}

/// What was left by those who died, and was removed or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many files or names.
    pub items: u64,
    /// How many bytes these had.
    pub bytes: u64,
}

impl Swept {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.items += 1;
        self.bytes += bytes;
    }
}

/// Content and its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: ImageDigest,
    /// Its size in bytes.
    pub size: u64,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// The content is gone.
    Removed,
    /// There was none.
    Absent,
    /// The content stays: it is being registered right now, or is being removed by somebody else. Ask again later.
    Pinned,
}

/// Keeps content under its SHA-256, in a directory that several servers may share; with [`BlobStore::with_shared`] the directory is a cache of
/// storage that several machines share.
///
/// Reading, listing and removing go through `object_store`. Writing to the directory does not: `object_store` wants to be told the name before
/// the first byte, and the name is the digest of all of them; its temporary files carry no lock, so that nobody could tell those of a dead
/// process from those of another server; and its multipart upload neither hashes nor starts the disk early. What a process runs must be
/// a file in any case: [`BlobStore::local_path`] is the only way to one, and fetches it if it is elsewhere.
///
/// Every method leaves blocking work to the blocking pool of the runtime that it is called on. Dropping a future that reads
/// is harmless; for those that write, see [`Upload`] and [`Removal`].
#[derive(Debug, Clone)]
pub struct BlobStore {
    pub(crate) place: Arc<Place>,
    pub(crate) options: Arc<BlobOptions>,
    uploads: Arc<Semaphore>,
    objects: Arc<dyn ObjectStore>,
    pub(crate) shared: Option<SharedStore>,
    pub(crate) cache: Arc<Cache>,
}

impl BlobStore {
    /// Opens the store in a directory, which is made if it is not there, and removes what uploads of dead processes left.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the directory cannot be made or read.
    pub async fn open(
        directory: impl Into<PathBuf>,
        options: BlobOptions,
    ) -> Result<Self, BlobError> {
        let directory = directory.into();
        let place = blocking(move || Place::open(&directory)).await?;
        let objects = LocalFileSystem::new_with_prefix(place.root())
            .map_err(BlobError::objects("open a directory"))?;
        let store = Self {
            place: Arc::new(place),
            uploads: Arc::new(Semaphore::new(options.uploads)),
            options: Arc::new(options),
            objects: Arc::new(objects),
            shared: None,
            cache: Arc::default(),
        };
        let Swept { items, bytes } = store.sweep(false).await?;
        if items > 0 {
            tracing::info!(items, bytes, "removed what broken uploads left");
        }
        Ok(store)
    }

    /// Makes the directory a cache of what several nodes share.
    #[must_use]
    pub fn with_shared(mut self, shared: SharedStore) -> Self {
        self.shared = Some(shared);
        self
    }

    /// What is shared with other nodes, if anything is.
    #[must_use]
    pub fn shared(&self) -> Option<&SharedStore> {
        self.shared.as_ref()
    }

    /// The largest content that is taken, in bytes.
    #[must_use]
    pub fn max_bytes(&self) -> u64 {
        self.options.max_bytes
    }

    /// Removes what uploads of dead processes left, and says what that was; in a dry run it stays. [`BlobStore::open`] removes it too; call this now
    /// and then where several servers share a directory.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the directory cannot be read.
    pub async fn sweep(&self, dry_run: bool) -> Result<Swept, BlobError> {
        let place = Arc::clone(&self.place);
        blocking(move || place.sweep(dry_run)).await
    }

    /// Begins an upload, as soon as fewer than [`BlobOptions::uploads`] are under way.
    ///
    /// # Errors
    /// [`BlobError::TooManyUploads`] if none of them ended in time, [`BlobError::Io`] if no file can be made.
    pub async fn upload(&self) -> Result<Upload, BlobError> {
        let waited = self.options.upload_wait;
        let turn = tokio::time::timeout(waited, Arc::clone(&self.uploads).acquire_owned()).await;
        let permit = turn
            .map_err(|_| BlobError::TooManyUploads {
                limit: self.options.uploads,
                waited,
            })?
            .expect("the semaphore is never closed");
        let place = Arc::clone(&self.place);
        let part = blocking(move || place.create_part()).await?;
        Ok(Upload::new(self, part, permit))
    }

    /// Stores content that arrives as pieces of one base64 text. `expected` is the digest that the sender announced.
    ///
    /// # Errors
    /// As [`BlobStore::upload`], [`Upload::write_base64`] and [`Upload::finish`]; [`BlobError::Source`] if the stream fails.
    pub async fn put_base64<S, T, E>(
        &self,
        text: S,
        expected: Option<ImageDigest>,
    ) -> Result<Stored, BlobError>
    where
        S: Stream<Item = Result<T, E>>,
        T: AsRef<[u8]>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut upload = self.upload().await?;
        let mut text = std::pin::pin!(text);
        while let Some(piece) = text.next().await {
            let piece = piece.map_err(|error| BlobError::Source {
                received: upload.received(),
                source: error.into(),
            })?;
            upload.write_base64(piece.as_ref()).await?;
        }
        upload.finish(expected).await
    }

    /// Says whether there is content of this digest, here or in the shared store.
    ///
    /// # Errors
    /// [`BlobError::Objects`] or [`BlobError::Shared`] if that cannot be told now.
    pub async fn exists(&self, digest: &ImageDigest) -> Result<bool, BlobError> {
        Ok(self.size(digest).await?.is_some())
    }

    /// The size of this content in bytes, if it is here or in the shared store.
    ///
    /// # Errors
    /// [`BlobError::Objects`] or [`BlobError::Shared`] if that cannot be told now.
    pub async fn size(&self, digest: &ImageDigest) -> Result<Option<u64>, BlobError> {
        match (self.local_size(digest).await?, &self.shared) {
            (None, Some(shared)) => shared.size(digest).await,
            (found, _) => Ok(found),
        }
    }

    pub(crate) async fn local_size(&self, digest: &ImageDigest) -> Result<Option<u64>, BlobError> {
        match self.objects.head(&location(digest)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(BlobError::objects("look up content")(error)),
        }
    }

    /// Keeps content that is there from being removed for as long as the answer lives, by this node or another; `None` if it is not there.
    ///
    /// # Errors
    /// [`BlobError::Locked`] if it is being removed for too long, [`BlobError::Io`], [`BlobError::Objects`] or [`BlobError::Shared`] if that
    /// cannot be told now.
    pub async fn pin(&self, digest: &ImageDigest) -> Result<Option<Pin>, BlobError> {
        let (place, pinned) = (Arc::clone(&self.place), *digest);
        let mut pin = blocking(move || place.pin(&pinned)).await?;
        // Looked at under the lock: before it, it could still be removed.
        let local = self.local_size(digest).await?;
        let Some(shared) = &self.shared else {
            return Ok(local.is_some().then_some(pin));
        };
        pin.shared = Some(shared.pin(digest).await?);
        let is_there = self.ensure_shared(shared, digest, local).await?;
        Ok(is_there.then_some(pin))
    }

    async fn ensure_shared(
        &self,
        shared: &SharedStore,
        digest: &ImageDigest,
        local: Option<u64>,
    ) -> Result<bool, BlobError> {
        let path = self.place.path_of(digest);
        let local = local.map(|size| (path.as_path(), size));
        shared.ensure(digest, local).await
    }

    /// Puts content that has been stored where other nodes find it, if there is such a place; nothing is put that is there. Call it before the row
    /// is written, and keep the pin until that is durable.
    ///
    /// # Errors
    /// [`BlobError::Shared`] if the shared store is away. The content stays here, and is found by the removal of content without rows.
    pub async fn share(&self, stored: &mut Stored) -> Result<(), BlobError> {
        if let Some(shared) = &self.shared {
            stored.pin.shared = Some(shared.pin(&stored.digest).await?);
            self.ensure_shared(shared, &stored.digest, Some(stored.size))
                .await?;
            self.cache.grown.notify_one();
        }
        Ok(())
    }

    /// Puts content that a row needs, and that is here, where other nodes find it, if it is not there: what was registered before there was a
    /// shared store, and what went away there.
    ///
    /// # Errors
    /// [`BlobError::Shared`] if the shared store is away.
    pub async fn share_again(&self, digest: &ImageDigest) -> Result<(), BlobError> {
        if let Some(shared) = &self.shared
            && let Some(size) = self.local_size(digest).await?
            && shared.size(digest).await? != Some(size)
        {
            tracing::warn!(%digest, "the shared image store lacks content that an image needs; it is put there");
            self.ensure_shared(shared, digest, Some(size)).await?;
        }
        Ok(())
    }

    /// The content as a local file: read-only, executable (mode 0555), never changed in place. It may be linked to, not moved. What is only in the
    /// shared store is fetched, by one of all who ask at once.
    ///
    /// # Errors
    /// [`BlobError::Absent`] if it is not there, [`BlobError::Corrupt`] if what was fetched is not what it should be, of which nothing is kept;
    /// [`BlobError::Objects`] or [`BlobError::Shared`] if that cannot be told now.
    pub async fn local_path(&self, digest: &ImageDigest) -> Result<PathBuf, BlobError> {
        if self.local_size(digest).await?.is_none() {
            self.fetch(digest).await?;
        }
        self.used(digest).await;
        Ok(self.place.path_of(digest))
    }

    /// Reads content, in pieces of at most 512 KiB.
    ///
    /// # Errors
    /// [`BlobError::Absent`] if it is not there, [`BlobError::Objects`] if it cannot be opened, otherwise as [`BlobStore::local_path`].
    pub async fn open_content(
        &self,
        digest: &ImageDigest,
    ) -> Result<BoxStream<'static, Result<Bytes, BlobError>>, BlobError> {
        self.local_path(digest).await?;
        match self.objects.get(&location(digest)).await {
            Ok(found) => Ok(match found.payload {
                // Its own stream would read a file in pieces of 8 KiB, each on a thread of its own.
                GetResultPayload::File(file, path) => read_file(file, path),
                GetResultPayload::Stream(stream) => stream
                    .map_err(|error| BlobError::objects("read content")(error))
                    .boxed(),
            }),
            Err(object_store::Error::NotFound { .. }) => Err(BlobError::Absent { digest: *digest }),
            Err(error) => Err(BlobError::objects("open content")(error)),
        }
    }

    /// Reads content and compares its digest with the one it is kept under. Answers with its size in bytes.
    ///
    /// # Errors
    /// [`BlobError::Corrupt`] if they differ, otherwise as [`BlobStore::open_content`].
    pub async fn verify(&self, digest: &ImageDigest) -> Result<u64, BlobError> {
        let mut content = self.open_content(digest).await?;
        let mut hasher = Sha256::new();
        let mut size = 0;
        while let Some(piece) = content.try_next().await? {
            size += piece.len() as u64;
            hasher = blocking(move || {
                hasher.update(&piece);
                Ok(hasher)
            })
            .await?;
        }
        let found = ImageDigest(hasher.finalize().into());
        if found == *digest {
            return Ok(size);
        }
        Err(BlobError::Corrupt {
            digest: *digest,
            found,
        })
    }

    /// Says what content is. Reads little of it, whatever its size.
    ///
    /// # Errors
    /// [`BlobError::Absent`] if it is not there, [`BlobError::Io`] if it cannot be read.
    pub async fn detect(&self, digest: &ImageDigest) -> Result<Detected, BlobError> {
        let path = self.local_path(digest).await?;
        blocking(move || {
            let mut file = File::open(&path).map_err(BlobError::io("open", &path))?;
            detect(&mut file).map_err(BlobError::io("read", &path))
        })
        .await
    }

    /// Content that is here by ascending digest, after the one given: a page of at most `limit` (and at most
    /// [`runtara_domain::limits::PAGE_ROWS`]). A page that is not full is the last.
    ///
    /// Takes time in proportion to the page; what was stored or removed meanwhile may or may not be seen.
    ///
    /// # Errors
    /// [`BlobError::Objects`] if the store cannot be read.
    pub async fn list(
        &self,
        after: Option<ImageDigest>,
        limit: usize,
    ) -> Result<Vec<Blob>, BlobError> {
        let listed = listing::list(self.objects.as_ref(), after, limit).await;
        let page = listed.map_err(BlobError::objects("list content"))?;
        let of = |listed: &Listed| Blob {
            digest: listed.digest,
            size: listed.size,
        };
        Ok(page.iter().map(of).collect())
    }

    /// Removes content that is here, unless it is being registered right now. Does not ask whether a row needs it: see
    /// [`BlobStore::removal`].
    ///
    /// # Errors
    /// As [`BlobStore::removal`] and [`Removal::remove`].
    pub async fn delete(&self, digest: &ImageDigest) -> Result<Deletion, BlobError> {
        match self.removal(digest).await? {
            Some(removal) => removal.remove().await,
            None => Ok(Deletion::Pinned),
        }
    }

    /// Locks a digest against registrations, in all servers that share the directory, so that the caller can find out whether a
    /// row needs the content before it is removed. Answers `None` at once if it is being registered. Do nothing that takes
    /// long while it is held: registrations wait for it for at most ten seconds.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the lock cannot be taken.
    pub async fn removal(&self, digest: &ImageDigest) -> Result<Option<Removal>, BlobError> {
        let place = Arc::clone(&self.place);
        let digest = *digest;
        let lock = blocking(move || place.lock_for_removal(&digest)).await?;
        Ok(lock.map(|lock| Removal {
            store: self.clone(),
            digest,
            lock,
        }))
    }
}

/// A digest that cannot be registered while this lives. Dropping it leaves the content where it is.
#[derive(Debug)]
pub struct Removal {
    store: BlobStore,
    digest: ImageDigest,
    lock: RemovalLock,
}

impl Removal {
    /// Removes the content that is here, durably; what is shared goes with [`SharedStore::remove`]. If the future is dropped, the content may be there or not; removing it again is
    /// harmless. Registrations wait until its name is gone, and not for its room on the disk, which a large file takes a while to
    /// give back.
    ///
    /// # Errors
    /// [`BlobError::Objects`] if it cannot be removed, [`BlobError::Io`] if the removal cannot be made durable.
    pub async fn remove(self) -> Result<Deletion, BlobError> {
        let Self {
            store,
            digest,
            lock,
        } = self;
        // On a task of its own: were the caller's future dropped in the middle, the lock would be released while the file
        // is still being removed.
        let removing = tokio::spawn(async move {
            let path = store.place.path_of(&digest);
            // While it is open, the file system takes away its name alone.
            let open = blocking(move || Ok(File::open(path).ok())).await?;
            let removed = match store.objects.delete(&location(&digest)).await {
                Ok(()) => Deletion::Removed,
                Err(object_store::Error::NotFound { .. }) => return Ok(Deletion::Absent),
                Err(error) => return Err(BlobError::objects("remove content")(error)),
            };
            let place = Arc::clone(&store.place);
            blocking(move || place.sync_removal(&digest)).await?;
            drop(lock);
            blocking(move || {
                drop(open);
                Ok(())
            })
            .await?;
            Ok(removed)
        });
        joined(removing.await)?
    }
}

pub(crate) const CONTENT: &str = "sha256";

pub(crate) fn location(digest: &ImageDigest) -> Location {
    let hex = digest.to_hex();
    let (shard, rest) = hex.split_at(2);
    Location::from_iter([CONTENT, shard, rest])
}

/// The digest whose content lies here, or `None` for files that are not ours.
pub(crate) fn digest_at(location: &Location) -> Option<ImageDigest> {
    let mut parts = location.parts().skip(1);
    let (shard, rest) = (parts.next()?, parts.next()?);
    let hex = format!("{}{}", shard.as_ref(), rest.as_ref());
    let digest = ImageDigest::from_hex(&hex).ok()?;
    (digest.to_hex() == hex && parts.next().is_none()).then_some(digest)
}

fn read_file(file: File, path: PathBuf) -> BoxStream<'static, Result<Bytes, BlobError>> {
    futures_util::stream::try_unfold(file, move |file| {
        let path = path.clone();
        blocking(move || {
            let mut piece = Vec::with_capacity(READ_BYTES);
            (&file)
                .take(READ_BYTES as u64)
                .read_to_end(&mut piece)
                .map_err(BlobError::io("read", &path))?;
            Ok((!piece.is_empty()).then(|| (Bytes::from(piece), file)))
        })
    })
    .boxed()
}

/// Runs blocking work on the blocking pool.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    joined(tokio::task::spawn_blocking(work).await)?
}

/// What a task answered. A panic goes on in whoever waited for it.
pub(crate) fn joined<T>(answer: Result<T, tokio::task::JoinError>) -> Result<T, BlobError> {
    answer.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => BlobError::Stopping,
    })
}
