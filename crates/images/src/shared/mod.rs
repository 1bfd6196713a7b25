//! Content that several nodes share.
//!
//! ```text
//! database                         the id of the database whose images these are
//! sha256/ab/cdef…                  content, by the 64 digits of its digest
//! removed/<digest>/<uuid>          content that somebody is about to remove, or was when he died
//! pins/<digest>/<uuid>             somebody is about to write a row that needs the content
//! probes/<uuid>                    whether it can be written, at the start of a server
//! ```
//!
//! Everything is one request at a time, each with a deadline. There are no locks: a node may die at any point, and storage that speaks S3
//! has none. What keeps content from being lost is an order:
//!
//! - **Registering**: (1) put a *pin*; (2) look for the content, and put it if it is not there; (3) write the row; (4) take the pin away.
//! - **Removing**: (a) rename the content to a name under `removed/` that nobody else uses (where there is no renaming: copy, then
//!   delete); (b) look for *pins*; (c) ask the database whether a row needs it; (d) if either does, rename it back, else delete it.
//!
//! The interleavings of the two, by what the remover meets:
//!
//! | the pin (1) comes | then | so |
//! |---|---|---|
//! | before (b), the row (3) after (c) | (b) sees the pin | it is renamed back |
//! | before (b) and is gone by then | (3) was before (4), (4) before (b), (b) before (c): (c) sees the row | it is renamed back |
//! | after (b) | (a) was before (b), (b) before (1), (1) before (2): (2) does not find the content | it is put again, and what was renamed is deleted |
//!
//! It makes no difference how many registrations and removals there are: each remover has a name of its own, and whoever was the last to take
//! `sha256/…` away looks for pins and rows after that, with content of his own in his hands. Neither does it when one dies:
//!
//! - A remover between (a) and (d): the content is under `removed/`. A reader that does not find `sha256/…` takes it back from there, and the
//!   [sweep](SharedStore::sweep_removed) does (b) to (d). In between the content has no row (or a reader finds it).
//! - A registration between (1) and (3): its pin is in the way of removals until it is [a day old](PIN_LIFE). What it has put is content without
//!   a row, and goes an hour later, as does what was put and whose pin was taken away because the row was refused.
//! - A registration between (3) and (4): the same pin, and nothing else.
//!
//! Where copying and deleting are two requests, time is a part of it: a remover that was held up for more than [`MOVE_LIMIT`] after it began to
//! copy does not delete, because the sweep takes what has been under `removed/` for an [hour](ORPHAN_AGE) to be a dead one's. And a store
//! that executes a delete long after it has given up on it can take away what was put meanwhile. Nodes that have the content put it back
//! within the hour: see [`crate::BlobStore::share_again`].

#[cfg(test)]
mod tests;
mod unfinished;
mod url;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::try_join;
use futures_util::stream::TryStreamExt as _;
use object_store::path::Path as Location;
use object_store::{MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutPayload};
use runtara_domain::{DatabaseId, ImageDigest};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::blob::{blocking, location};
use crate::listing::{self, Listed};
use crate::{BlobError, Deletion, Swept};

pub use url::ImageStoreUrl;

/// How much is read, fetched or put by one request. Storage that speaks S3 wants 5 MiB at least.
pub(crate) const PIECE_BYTES: u64 = 8 * 1024 * 1024;
/// How many pieces one content may have: S3 takes 10,000.
const PIECES: u64 = 9_000;
/// How long one request may take, with its repetitions.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);
/// The largest content that S3 copies by one request.
const COPY_BYTES: u64 = 5 * 1024 * 1024 * 1024;
/// How long one copy may take.
const COPY_LIMIT: Duration = Duration::from_secs(600);
/// How old a copy may be when the original is deleted.
const MOVE_LIMIT: Duration = Duration::from_secs(600);
/// How old content without a row must be to be removed, and what lies under `removed/` to be somebody's who died. By the clock of the store, beside
/// ours.
const ORPHAN_AGE: Duration = Duration::from_secs(3_600);
/// How old a pin must be to be that of somebody who died.
const PIN_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// How many of the names under `removed/` and `pins/` one sweep looks at.
const SWEPT: usize = 10_000;

const REMOVED: &str = "removed";
const PINS: &str = "pins";
const PROBES: &str = "probes";

/// Storage that several nodes share.
#[derive(Debug, Clone)]
pub struct SharedStore {
    objects: Arc<dyn ObjectStore>,
    name: String,
    /// The directory that it is, if it is one.
    directory: Option<PathBuf>,
    renames: bool,
    copy_bytes: u64,
    /// Whose it was when the server started.
    database: Arc<OnceLock<DatabaseId>>,
}

/// Content that nodes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedBlob {
    /// Its digest.
    pub digest: ImageDigest,
    /// How many bytes it has.
    pub size: u64,
    /// Whether it is old enough to be removed if no row needs it.
    pub is_old: bool,
}

impl SharedStore {
    /// The store at an address. Nothing is asked of it yet; S3 takes region, endpoint and keys from the variables `AWS_…`.
    ///
    /// # Errors
    /// [`BlobError::Shared`] if there is no such directory, or the settings cannot be used.
    pub fn at(url: &ImageStoreUrl) -> Result<Self, BlobError> {
        let mut store = Self::of(url.objects()?, url.to_string());
        store.directory = url.directory().map(Path::to_owned);
        store.renames = store.directory.is_some();
        Ok(store)
    }

    /// A store of any objects, under a name for the log.
    #[must_use]
    pub fn of(objects: Arc<dyn ObjectStore>, name: impl Into<String>) -> Self {
        Self {
            objects,
            name: name.into(),
            directory: None,
            renames: false,
            copy_bytes: COPY_BYTES,
            database: Arc::default(),
        }
    }

    /// Has content above this size copied piece by piece, in place of 5 GiB.
    #[must_use]
    pub fn copying_at_once(mut self, bytes: u64) -> Self {
        self.copy_bytes = bytes;
        self
    }

    /// Where it is, for the log. No secret.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Finds out whether it can be read and written, and makes it that of a database if it is nobody's yet.
    ///
    /// # Errors
    /// [`BlobError::Shared`] with what stood in the way, [`BlobError::OtherDatabase`] if it is that of another one.
    pub async fn claim(&self, database: DatabaseId) -> Result<(), BlobError> {
        let probe = Location::from_iter([PROBES, &Uuid::new_v4().to_string()]);
        self.put(&probe, Bytes::from_static(b"probe")).await?;
        self.delete(&probe).await?;
        if self.read_owner().await?.is_none() {
            self.put(&owner(), Bytes::from(database.to_string()))
                .await?;
        }
        self.check_owner(database).await?;
        let _known = self.database.set(database);
        Ok(())
    }

    /// Finds out whether it is that of a database. Asked before every sweep: content without a row of the wrong database would be lost.
    ///
    /// # Errors
    /// [`BlobError::OtherDatabase`] if it is not, [`BlobError::Shared`] if that cannot be told now.
    pub async fn check_owner(&self, database: DatabaseId) -> Result<(), BlobError> {
        let expected = database.to_string();
        let found = self.read_owner().await?.ok_or_else(|| BlobError::Shared {
            action: "find its database in",
            reason: "the object 'database' is not there; a directory may not be mounted".to_owned(),
        })?;
        if found == expected {
            return Ok(());
        }
        Err(BlobError::OtherDatabase { found, expected })
    }

    async fn read_owner(&self) -> Result<Option<String>, BlobError> {
        let found = self.read(&owner(), 0..64).await?;
        Ok(found.map(|text| String::from_utf8_lossy(&text).trim().to_owned()))
    }

    /// The size of content in bytes, if it is there.
    pub(crate) async fn size(&self, digest: &ImageDigest) -> Result<Option<u64>, BlobError> {
        let meta = self.head(&location(digest)).await?;
        Ok(meta.map(|meta| meta.size))
    }

    /// A piece of content, if that is there.
    pub(crate) async fn piece(
        &self,
        digest: &ImageDigest,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, BlobError> {
        self.read(&location(digest), range).await
    }

    /// Says that a row will need content, until the answer is dropped.
    pub(crate) async fn pin(&self, digest: &ImageDigest) -> Result<SharedPin, BlobError> {
        if let Some(database) = self.database.get() {
            // A directory that nothing is mounted on any more would take content, and nobody else would find it.
            self.check_owner(*database).await?;
        }
        let name = Location::from_iter([PINS, &digest.to_hex(), &Uuid::new_v4().to_string()]);
        // Before it is put: a request that seems to have failed may have come through.
        let pin = SharedPin(Some((self.clone(), name.clone())));
        self.put(&name, Bytes::from_static(b"pin")).await?;
        Ok(pin)
    }

    /// Has content be there, from a local file of this size if need be; false if it is nowhere. Pin it before.
    pub(crate) async fn ensure(
        &self,
        digest: &ImageDigest,
        local: Option<(&Path, u64)>,
    ) -> Result<bool, BlobError> {
        let found = self.size(digest).await?;
        match (found, local) {
            (Some(found), Some((_, size))) if found == size => Ok(true),
            (Some(_), None) => Ok(true),
            (_, Some((path, size))) => {
                self.put_content(&location(digest), size, &Source::File(path))
                    .await?;
                Ok(true)
            }
            (None, None) => self.take_back(digest).await,
        }
    }

    /// Takes content back that somebody is about to remove; false if there is none.
    pub(crate) async fn take_back(&self, digest: &ImageDigest) -> Result<bool, BlobError> {
        for removed in self.removed(digest).await? {
            // Where renaming takes two steps, it is left there: its owner may not have taken away yet what he will ask about then.
            let (from, to) = (&removed.location, &location(digest));
            let taken = if self.renames {
                self.rename(from, to, removed.size).await?
            } else {
                self.copy(from, to, removed.size).await?
            };
            if taken {
                tracing::info!(%digest, "took content back that was to be removed from the shared image store");
                return Ok(true);
            }
        }
        // He who was about to may have thought better of it.
        Ok(self.size(digest).await?.is_some())
    }

    /// Removes content that no row needs, which is asked when nobody can find the content any more.
    ///
    /// # Errors
    /// [`BlobError::Shared`] if the store is away, or what asking reported. The content is back in its place then, or under `removed/`, where
    /// readers and the next sweep find it.
    pub async fn remove<E: From<BlobError>, F>(
        &self,
        digest: &ImageDigest,
        is_needed: impl Fn() -> F,
    ) -> Result<Deletion, E>
    where
        F: Future<Output = Result<bool, E>>,
    {
        let content = location(digest);
        let Some(meta) = self.head(&content).await? else {
            return Ok(Deletion::Absent);
        };
        // To spare a way there and back.
        if self.is_pinned(digest).await? {
            return Ok(Deletion::Pinned);
        }
        let aside = Location::from_iter([REMOVED, &digest.to_hex(), &Uuid::new_v4().to_string()]);
        if !self.rename(&content, &aside, meta.size).await? {
            return Ok(Deletion::Absent);
        }
        self.decide(digest, &aside, meta.size, is_needed).await
    }

    /// What becomes of content that was renamed.
    async fn decide<E: From<BlobError>, F>(
        &self,
        digest: &ImageDigest,
        aside: &Location,
        size: u64,
        is_needed: impl Fn() -> F,
    ) -> Result<Deletion, E>
    where
        F: Future<Output = Result<bool, E>>,
    {
        // In this order: whoever has taken his pin away has written his row before.
        let wanted = match self.is_pinned(digest).await {
            Ok(false) => is_needed().await,
            Ok(true) => Ok(true),
            Err(error) => Err(error.into()),
        };
        if let Ok(false) = wanted {
            self.delete(aside).await?;
            return Ok(Deletion::Removed);
        }
        // Whatever else it is: it must be found.
        self.rename(aside, &location(digest), size).await?;
        wanted.map(|_| Deletion::Pinned)
    }

    /// Removes what is left under `removed/`, `pins/` and `probes/` of those who died, and what they have not written whole; what of it is
    /// needed is put back. Says how much was removed, or would be: in a dry run all of it stays.
    ///
    /// # Errors
    /// As [`SharedStore::remove`].
    pub async fn sweep_removed<E: From<BlobError>, F>(
        &self,
        dry_run: bool,
        is_needed: impl Fn(ImageDigest) -> F,
    ) -> Result<Swept, E>
    where
        F: Future<Output = Result<bool, E>>,
    {
        let mut swept = self.sweep_unfinished(dry_run).await?;
        for (place, life) in [(PINS, PIN_LIFE), (PROBES, ORPHAN_AGE)] {
            for left in self.names(&Location::from(place)).await? {
                if is_older(&left, life) {
                    if !dry_run {
                        self.delete(&left.location).await?;
                    }
                    swept.add(left.size);
                }
            }
        }
        for removed in self.names(&Location::from(REMOVED)).await? {
            let digest = removed.location.parts().nth(1);
            let Some(digest) = digest.and_then(|hex| ImageDigest::from_hex(hex.as_ref()).ok())
            else {
                continue;
            };
            // Where content is renamed in one step, whatever is here is gone from its place: nobody has to be waited for.
            if !self.renames && !is_older(&removed, ORPHAN_AGE) {
                continue;
            }
            let aside = &removed.location;
            let is_gone = match dry_run {
                true => !is_needed(digest).await?,
                false => {
                    let needed = || is_needed(digest);
                    self.decide(&digest, aside, removed.size, needed).await? == Deletion::Removed
                }
            };
            if is_gone {
                swept.add(removed.size);
            }
        }
        Ok(swept)
    }

    /// Removes what was not written whole, which lists of a directory do not show. Storage that speaks S3 has no such thing: parts of uploads that are
    /// not finished are its operator's (a lifecycle rule).
    async fn sweep_unfinished(&self, dry_run: bool) -> Result<Swept, BlobError> {
        let Some(directory) = self.directory.clone() else {
            return Ok(Swept::default());
        };
        let sweep = move || unfinished::sweep(&directory, ORPHAN_AGE, dry_run);
        blocking(sweep).await
    }

    /// Content by ascending digest, after the one given: a page of at most `limit`, of which those are marked that are old enough to be
    /// removed if no row needs them.
    ///
    /// # Errors
    /// [`BlobError::Shared`] if the store cannot be read.
    pub async fn list(
        &self,
        after: Option<ImageDigest>,
        limit: usize,
    ) -> Result<Vec<SharedBlob>, BlobError> {
        let listed = listing::list(self.objects.as_ref(), after, limit);
        let page: Vec<Listed> = self.within("list content in", COPY_LIMIT, listed).await?;
        let now = SystemTime::now();
        let of = |listed: Listed| SharedBlob {
            digest: listed.digest,
            size: listed.size,
            is_old: age(listed.modified, now) >= ORPHAN_AGE,
        };
        Ok(page.into_iter().map(of).collect())
    }

    async fn is_pinned(&self, digest: &ImageDigest) -> Result<bool, BlobError> {
        let pins = self
            .names(&Location::from_iter([PINS, &digest.to_hex()]))
            .await?;
        Ok(pins.iter().any(|pin| !is_older(pin, PIN_LIFE)))
    }

    async fn removed(&self, digest: &ImageDigest) -> Result<Vec<ObjectMeta>, BlobError> {
        self.names(&Location::from_iter([REMOVED, &digest.to_hex()]))
            .await
    }

    async fn names(&self, prefix: &Location) -> Result<Vec<ObjectMeta>, BlobError> {
        use futures_util::stream::StreamExt as _;

        let found = self.objects.list(Some(prefix)).take(SWEPT).try_collect();
        self.within("list names in", REQUEST_LIMIT, found).await
    }

    /// Renames content; false if there is none. Where that takes two steps, both names are there in between.
    async fn rename(&self, from: &Location, to: &Location, size: u64) -> Result<bool, BlobError> {
        if self.renames {
            let renamed = self.objects.rename(from, to);
            return self
                .found("rename content in", REQUEST_LIMIT, renamed)
                .await
                .map(|found| found.is_some());
        }
        let began = Instant::now();
        if !self.copy(from, to, size).await? {
            return Ok(false);
        }
        if began.elapsed() > MOVE_LIMIT {
            return Err(BlobError::Shared {
                action: "rename content in",
                reason: format!("copying took more than {} s", MOVE_LIMIT.as_secs()),
            });
        }
        self.delete(from).await?;
        Ok(true)
    }

    /// Copies content; false if there is none.
    async fn copy(&self, from: &Location, to: &Location, size: u64) -> Result<bool, BlobError> {
        if size <= self.copy_bytes {
            let copied = self.objects.copy(from, to);
            return self
                .found("copy content in", COPY_LIMIT, copied)
                .await
                .map(|found| found.is_some());
        }
        if self.head(from).await?.is_none() {
            return Ok(false);
        }
        self.put_content(to, size, &Source::Object(self, from))
            .await?;
        Ok(true)
    }

    /// Puts content of a size, piece by piece; nobody sees any of it before all of it is there.
    async fn put_content(
        &self,
        to: &Location,
        size: u64,
        source: &Source<'_>,
    ) -> Result<(), BlobError> {
        if size <= PIECE_BYTES {
            return self.put(to, source.read(0..size).await?).await;
        }
        let begun = self.objects.put_multipart(to);
        let mut upload = self.within("write to", REQUEST_LIMIT, begun).await?;
        let put = async {
            self.put_pieces(upload.as_mut(), size, source).await?;
            let complete = upload.complete();
            self.within("write to", COPY_LIMIT, complete).await
        };
        match put.await {
            Ok(_) => Ok(()),
            Err(error) => {
                // What stays of it is for the rules that its owner has given the bucket.
                if !matches!(timeout(REQUEST_LIMIT, upload.abort()).await, Ok(Ok(()))) {
                    tracing::warn!(object = %to, "a broken upload to the shared image store could not be taken back");
                }
                Err(error)
            }
        }
    }

    async fn put_pieces(
        &self,
        upload: &mut dyn MultipartUpload,
        size: u64,
        source: &Source<'_>,
    ) -> Result<(), BlobError> {
        let length = piece_length(size);
        let mut next = source.read(0..length.min(size)).await?;
        let mut offset = 0;
        while offset < size {
            let end = size.min(offset + length);
            let part = upload.put_part(PutPayload::from_bytes(next));
            let put = self.within("write to", REQUEST_LIMIT, part);
            // While one is on its way, the next is read: two are in memory.
            ((), next) = try_join(put, source.read(end..size.min(end + length))).await?;
            offset = end;
        }
        Ok(())
    }

    async fn head(&self, location: &Location) -> Result<Option<ObjectMeta>, BlobError> {
        self.found(
            "look up content in",
            REQUEST_LIMIT,
            self.objects.head(location),
        )
        .await
    }

    async fn read(
        &self,
        location: &Location,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, BlobError> {
        if range.is_empty() {
            return Ok(self.head(location).await?.map(|_| Bytes::new()));
        }
        let piece = self.objects.get_range(location, range);
        self.found("read from", REQUEST_LIMIT, piece).await
    }

    async fn put(&self, location: &Location, bytes: Bytes) -> Result<(), BlobError> {
        let put = self.objects.put(location, PutPayload::from_bytes(bytes));
        self.within("write to", REQUEST_LIMIT, put).await.map(drop)
    }

    /// Deletes an object, if it is there.
    async fn delete(&self, location: &Location) -> Result<(), BlobError> {
        let deleted = self.objects.delete(location);
        self.found("remove content from", REQUEST_LIMIT, deleted)
            .await
            .map(drop)
    }

    async fn found<T>(
        &self,
        action: &'static str,
        limit: Duration,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Option<T>, BlobError> {
        let found = async {
            match request.await {
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                answer => answer.map(Some),
            }
        };
        self.within(action, limit, found).await
    }

    async fn within<T>(
        &self,
        action: &'static str,
        limit: Duration,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BlobError> {
        match timeout(limit, request).await {
            Ok(answer) => answer.map_err(|error| BlobError::shared(action, &error)),
            Err(_) => Err(BlobError::Shared {
                action,
                reason: format!("it did not answer within {} s", limit.as_secs()),
            }),
        }
    }
}

/// Where content comes from.
enum Source<'a> {
    File(&'a Path),
    Object(&'a SharedStore, &'a Location),
}

impl Source<'_> {
    async fn read(&self, range: Range<u64>) -> Result<Bytes, BlobError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match self {
            Self::File(path) => {
                let path = path.to_path_buf();
                blocking(move || read_file(&path, &range)).await
            }
            Self::Object(store, location) => {
                let piece = store.read(location, range).await?;
                piece.ok_or_else(|| BlobError::Shared {
                    action: "copy content in",
                    reason: "it went away meanwhile".to_owned(),
                })
            }
        }
    }
}

fn read_file(path: &Path, range: &Range<u64>) -> Result<Bytes, BlobError> {
    // A piece fits: it is some MiB.
    let mut piece = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut piece, range.start))
        .map_err(BlobError::io("read", path))?;
    Ok(Bytes::from(piece))
}

/// Says to all nodes that a row will need content; taken away when it is dropped, in its own time.
#[derive(Debug)]
pub struct SharedPin(Option<(SharedStore, Location)>);

impl Drop for SharedPin {
    fn drop(&mut self) {
        // Without a runtime it stays, and is swept when it is old.
        if let Some((store, name)) = self.0.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                if let Err(error) = store.delete(&name).await {
                    tracing::warn!(%error, "a pin in the shared image store stays for a day");
                }
            });
        }
    }
}

fn owner() -> Location {
    Location::from("database")
}

/// How long the pieces of content are.
fn piece_length(size: u64) -> u64 {
    const MIB: u64 = 1024 * 1024;
    PIECE_BYTES.max(size.div_ceil(PIECES).div_ceil(MIB) * MIB)
}

fn age(modified: SystemTime, now: SystemTime) -> Duration {
    // What is younger than now has no age.
    now.duration_since(modified).unwrap_or_default()
}

fn is_older(meta: &ObjectMeta, than: Duration) -> bool {
    age(meta.last_modified.into(), SystemTime::now()) >= than
}
