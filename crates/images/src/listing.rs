//! Lists content page by page, in any store of objects.

use std::collections::BTreeMap;
use std::time::SystemTime;

use futures_util::stream::TryStreamExt as _;
use object_store::ObjectStore;
use object_store::path::Path as Location;
use runtara_domain::{ImageDigest, limits};

use crate::blob::{CONTENT, digest_at};

/// Content that was found.
pub(crate) struct Listed {
    pub(crate) digest: ImageDigest,
    pub(crate) size: u64,
    /// When it was put there, by the clock of the store.
    pub(crate) modified: SystemTime,
}

/// Content by ascending digest, after the one given: a page of at most `limit`.
pub(crate) async fn list(
    objects: &dyn ObjectStore,
    after: Option<ImageDigest>,
    limit: usize,
) -> object_store::Result<Vec<Listed>> {
    let limit = limit.clamp(1, limits::PAGE_ROWS as usize);
    let mut page = Vec::new();
    for shard in shards(objects, after).await? {
        let missing = limit - page.len();
        page.extend(list_shard(objects, &shard, after, missing).await?);
        if page.len() >= limit {
            break;
        }
    }
    Ok(page)
}

/// The prefixes that hold digests after the one given, ascending. There are at most 256.
async fn shards(
    objects: &dyn ObjectStore,
    after: Option<ImageDigest>,
) -> object_store::Result<Vec<Location>> {
    let first = after.map_or_else(String::new, |digest| digest.to_hex()[..2].to_owned());
    let found = objects
        .list_with_delimiter(Some(&Location::from(CONTENT)))
        .await?;
    let mut shards = found.common_prefixes;
    shards.retain(|shard| shard.filename().is_some_and(|name| name >= first.as_str()));
    shards.sort_unstable();
    Ok(shards)
}

/// The `limit` smallest digests of a prefix that come after the one given. Listings have no order of their own on a
/// file system, so that all of the prefix is looked at; only the smallest are kept.
async fn list_shard(
    objects: &dyn ObjectStore,
    shard: &Location,
    after: Option<ImageDigest>,
    limit: usize,
) -> object_store::Result<Vec<Listed>> {
    let mut smallest = BTreeMap::new();
    let mut found = objects.list(Some(shard));
    while let Some(meta) = found.try_next().await? {
        let Some(digest) = digest_at(&meta.location) else {
            continue;
        };
        if after.is_some_and(|after| digest.0 <= after.0) {
            continue;
        }
        smallest.insert(digest.0, (meta.size, meta.last_modified));
        if smallest.len() > limit {
            smallest.pop_last();
        }
    }
    let listed = smallest
        .into_iter()
        .map(|(digest, (size, modified))| Listed {
            digest: ImageDigest(digest),
            size,
            modified: modified.into(),
        });
    Ok(listed.collect())
}
