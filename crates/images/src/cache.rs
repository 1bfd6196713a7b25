//! What is here of content that is shared, and when it was used.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use runtara_domain::ImageDigest;
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore};

use crate::blob::blocking;
use crate::place::Place;
use crate::{BlobError, BlobStore};

/// How many contents are fetched at once, each with up to three pieces in memory.
const FETCHES: usize = 4;
/// How often the use of one content is noted.
const NOTED_EVERY: Duration = Duration::from_secs(30);
/// How many are remembered to have been noted.
const REMEMBERED: usize = 4_096;

/// Content that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cached {
    /// Its digest.
    pub digest: ImageDigest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was used last, within half a minute.
    pub used: SystemTime,
}

/// What is known of the local copies beside their files.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) fetches: Arc<Semaphore>,
    /// Told when something came to it.
    pub(crate) grown: Notify,
    /// Who fetches which.
    turns: Mutex<HashMap<ImageDigest, Arc<AsyncMutex<()>>>>,
    noted: Mutex<HashMap<ImageDigest, SystemTime>>,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            fetches: Arc::new(Semaphore::new(FETCHES)),
            grown: Notify::new(),
            turns: Mutex::default(),
            noted: Mutex::default(),
        }
    }
}

impl Cache {
    pub(crate) fn turn_of(&self, digest: ImageDigest) -> Arc<AsyncMutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody has any more.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(digest).or_default())
    }

    /// Whether the use of content is to be noted now.
    fn is_due(&self, digest: ImageDigest, now: SystemTime) -> bool {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |at: &SystemTime| now.duration_since(*at).is_ok_and(|past| past < NOTED_EVERY);
        if noted.get(&digest).is_some_and(is_new) {
            return false;
        }
        if noted.len() >= REMEMBERED {
            noted.clear();
        }
        noted.insert(digest, now);
        true
    }
}

impl BlobStore {
    /// Notes that content is used now, if it is a copy: the time is that of the change of its file, which survives the process.
    pub async fn used(&self, digest: &ImageDigest) {
        let now = SystemTime::now();
        if self.shared.is_none() || !self.cache.is_due(*digest, now) {
            return;
        }
        let path = self.place.path_of(digest);
        let noted = blocking(move || {
            let noted = File::open(&path).and_then(|file| file.set_modified(now));
            noted.map_err(BlobError::io("note the use of", &path))
        });
        if let Err(error) = noted.await {
            // It may be evicted a little early, and is fetched again then.
            tracing::debug!(%error, %digest, "the use of content could not be noted");
        }
    }

    /// Waits until content has come here since this was asked last.
    pub async fn grown(&self) {
        self.cache.grown.notified().await;
    }

    /// How many bytes of copies may be here; `None` where what is here are no copies.
    #[must_use]
    pub fn cache_bytes(&self) -> Option<u64> {
        self.shared.as_ref().map(|_| self.options.cache_bytes)
    }

    /// All content that is here, whoever used it least recently first.
    ///
    /// # Errors
    /// [`BlobError::Io`] if the directory cannot be read.
    pub async fn cached(&self) -> Result<Vec<Cached>, BlobError> {
        let place = Arc::clone(&self.place);
        blocking(move || {
            let mut found = place.cached()?;
            found.sort_unstable_by_key(|cached| (cached.used, cached.digest.0));
            Ok(found)
        })
        .await
    }

    /// Whether content of this size is in the shared store, so that the copy that is here is not the last.
    ///
    /// # Errors
    /// [`BlobError::Shared`] if that cannot be told now.
    pub async fn is_copy(&self, cached: &Cached) -> Result<bool, BlobError> {
        match &self.shared {
            Some(shared) => Ok(shared.size(&cached.digest).await? == Some(cached.size)),
            None => Ok(false),
        }
    }
}

impl Place {
    fn cached(&self) -> Result<Vec<Cached>, BlobError> {
        let mut found = Vec::new();
        let content = self.content();
        let shards = fs::read_dir(&content).map_err(BlobError::io("read", &content))?;
        for shard in shards {
            let shard = shard.map_err(BlobError::io("read", &content))?.path();
            let prefix = shard
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            for entry in fs::read_dir(&shard).map_err(BlobError::io("read", &shard))? {
                let entry = entry.map_err(BlobError::io("read", &shard))?;
                let hex = format!("{prefix}{}", entry.file_name().to_string_lossy());
                let Ok(digest) = ImageDigest::from_hex(&hex) else {
                    continue;
                };
                let metadata = match entry.metadata() {
                    // Somebody has just removed it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    metadata => metadata.map_err(BlobError::io("read", &entry.path()))?,
                };
                let used = metadata
                    .modified()
                    .map_err(BlobError::io("read", &entry.path()))?;
                found.push(Cached {
                    digest,
                    size: metadata.len(),
                    used,
                });
            }
        }
        Ok(found)
    }
}
