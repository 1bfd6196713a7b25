//! Content that no image has.

use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::ImageDigest;
use runtara_images::{Deletion, SharedStore, Swept};
use runtara_store::Store;

use super::{Failure, Pass, Reconciler};
use crate::Shared;

/// How many contents are listed at once.
const PAGE: usize = 500;

/// Removes content that no image has, of uploads that ended between their content and their row; and what broken uploads have left.
pub(super) struct Contents;

#[async_trait]
impl Reconciler for Contents {
    fn name(&self) -> &'static str {
        "contents"
    }

    fn about(&self) -> &'static str {
        "content that no image has"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(3_600)
    }

    async fn reconcile(&self, shared: &Shared, pass: &Pass) -> Result<(), Failure> {
        let (images, store) = (&shared.images, shared.store.as_ref());
        let swept = images.blobs().sweep(pass.dry_run).await?;
        count(pass, swept, "what broken uploads have left");
        let common = images.blobs().shared();
        if let Some(common) = common {
            // Without rows, what another database's servers have put there would be taken for nobody's.
            common.check_owner(store.database_id().await?).await?;
        }
        let mut after = None;
        loop {
            let page = images.blobs().list(after, PAGE).await?;
            let mut orphans = Vec::new();
            for blob in &page {
                if pass.is_over() {
                    return Ok(());
                }
                if !store.is_content_needed(&blob.digest).await? {
                    orphans.push(*blob);
                } else if common.is_some() && !pass.dry_run {
                    images.blobs().share_again(&blob.digest).await?;
                }
            }
            if pass.dry_run {
                for blob in &orphans {
                    pass.item(|| blob.digest.to_string(), blob.size);
                }
            } else {
                let digests: Vec<_> = orphans.iter().map(|blob| blob.digest).collect();
                let removed = |digest, bytes| pass.item(|| format!("{digest}"), bytes);
                images
                    .remove(&digests, store, &shared.runners, removed)
                    .await?;
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.digest),
                _ => break,
            }
        }
        match common {
            Some(common) => in_common(common, store, pass).await,
            None => Ok(()),
        }
    }
}

fn count(pass: &Pass, swept: Swept, what: &str) {
    pass.items(swept.items, || what.to_owned());
    pass.bytes(swept.bytes);
}

/// Removes content from the store that nodes share that no image has, and what those who died there have left.
async fn in_common(common: &SharedStore, store: &dyn Store, pass: &Pass) -> Result<(), Failure> {
    let is_needed =
        async |digest: ImageDigest| Ok::<_, Failure>(store.is_content_needed(&digest).await?);
    let swept = common.sweep_removed(pass.dry_run, is_needed).await?;
    count(
        pass,
        swept,
        "what broken registrations and removals have left in the shared image store",
    );
    let mut after = None;
    loop {
        let page = common.list(after, PAGE).await?;
        for blob in &page {
            if pass.is_over() {
                return Ok(());
            }
            let digest = blob.digest;
            if !blob.is_old || is_needed(digest).await? {
                continue;
            }
            let is_gone = pass.dry_run
                || common.remove(&digest, || is_needed(digest)).await? == Deletion::Removed;
            if is_gone {
                pass.item(|| format!("{digest} in the shared image store"), blob.size);
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.digest),
            _ => return Ok(()),
        }
    }
}
