//! Keeps the local copies of shared content within their bound.
//!
//! What was used least recently goes first, with all that runners have made of it. Never what is being registered (its digest is pinned), made
//! ready or run here, or was used in the last [minutes](KEPT), and never the last copy: content that the shared store lacks stays.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use runtara_domain::{ImageContent, ImageDigest};
use runtara_images::{Cached, Deletion};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::Shared;

/// How long content stays that was used.
const KEPT: Duration = Duration::from_secs(300);
/// When it is looked at, if nothing comes: what was in use may not be any more.
const PERIOD: Duration = Duration::from_secs(60);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How many runs and preparations need content.
#[derive(Default)]
pub(crate) struct UsedContent(Mutex<HashMap<ImageDigest, usize>>);

/// Content of an image that is made ready or run, with its base.
pub(crate) struct InUse {
    used: Arc<UsedContent>,
    content: ImageContent,
}

fn digests(content: ImageContent) -> impl Iterator<Item = ImageDigest> {
    [Some(content.digest), content.base].into_iter().flatten()
}

impl UsedContent {
    pub(crate) fn hold(self: &Arc<Self>, content: ImageContent) -> InUse {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in digests(content) {
            *counts.entry(digest).or_default() += 1;
        }
        InUse {
            used: Arc::clone(self),
            content,
        }
    }

    fn all(&self) -> HashSet<ImageDigest> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.keys().copied().collect()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut counts = self.used.0.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in digests(self.content) {
            if let Some(count) = counts.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&digest);
                }
            }
        }
    }
}

/// Keeps the copies within their bound until the scheduler closes.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let Some(bound) = shared.images.blobs.cache_bytes() else {
        return;
    };
    loop {
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = shared.images.blobs.grown() => {}
            () = sleep(PERIOD) => {}
        }
        if let Err(error) = keep_within(&shared, bound).await {
            warn!(%error, "the cache of images could not be kept within its bound; it is tried again");
        }
    }
}

async fn keep_within(shared: &Shared, bound: u64) -> Result<(), Failure> {
    let blobs = &shared.images.blobs;
    let cached = blobs.cached().await?;
    let mut bytes: u64 = cached.iter().map(|cached| cached.size).sum();
    if bytes <= bound {
        return Ok(());
    }
    let mut evicted = 0_u32;
    for candidate in cached {
        if bytes <= bound || shared.closing.is_cancelled() {
            break;
        }
        // Asked for each: a run may have begun meanwhile.
        let kept = shared.images.used.all().contains(&candidate.digest);
        if !kept && is_idle(&candidate) && evict(shared, &candidate).await? {
            bytes -= candidate.size;
            evicted += 1;
        }
    }
    if evicted > 0 {
        info!(
            evicted,
            bytes, bound, "content that was not used of late has left the cache of images"
        );
        for runner in shared.runners.values() {
            runner.reclaim().await?;
        }
    }
    Ok(())
}

fn is_idle(cached: &Cached) -> bool {
    // What was used in the future was used just now.
    let past = SystemTime::now().duration_since(cached.used);
    past.is_ok_and(|past| past >= KEPT)
}

/// Takes a copy away, and what was made of it; false if it stays.
async fn evict(shared: &Shared, cached: &Cached) -> Result<bool, Failure> {
    let (images, digest) = (&shared.images, cached.digest);
    if !images.blobs.is_copy(cached).await? {
        return Ok(false);
    }
    let Some(removal) = images.blobs.removal(&digest).await? else {
        return Ok(false);
    };
    for runner in shared.runners.values() {
        runner.forget(digest).await?;
    }
    images.forget_all_with(digest);
    Ok(removal.remove().await? == Deletion::Removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_in_use_until_the_last_who_needs_it_is_done() {
        let used = Arc::<UsedContent>::default();
        let [base, one, other] = [b"base", b"one.", b"othr"].map(|text| ImageDigest::of(text));
        let hold = |digest| {
            let base = Some(base);
            used.hold(ImageContent { digest, base })
        };
        let (first, second, third) = (hold(one), hold(one), hold(other));
        drop(first);
        assert_eq!(used.all(), HashSet::from([base, one, other]));
        drop(second);
        assert_eq!(used.all(), HashSet::from([base, other]));
        drop(third);
        assert!(used.all().is_empty());
    }
}
