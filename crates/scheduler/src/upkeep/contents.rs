//! Content that no image has.

use std::time::Duration;

use async_trait::async_trait;

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
        if !pass.dry_run {
            images.blobs().sweep().await?;
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
                _ => return Ok(()),
            }
        }
    }
}
