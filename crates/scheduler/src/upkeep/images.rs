//! Images that nobody needs.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::ImageRecord;
use tokio::time::Instant;

use super::{Failure, Pass, Reconciler};
use crate::Shared;

/// How many are removed at once.
const AT_ONCE: u32 = 100;
/// How many are named in a dry run.
const NAMED: u32 = 1_000;

/// Deletes images that were unused for long, and removes those that are deleted or replaced and that no instance needs, with their content.
pub(super) struct Images;

#[async_trait]
impl Reconciler for Images {
    fn name(&self) -> &'static str {
        "images"
    }

    fn about(&self) -> &'static str {
        "images that were deleted, replaced or unused for long, and that no instance needs"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(600)
    }

    async fn reconcile(&self, shared: &Shared, pass: &Pass) -> Result<(), Failure> {
        let (images, store) = (&shared.images, shared.store.as_ref());
        // Those that were unused; most are removed at once.
        let mut counted = HashSet::new();
        if let Some(unused_ms) = shared.config.upkeep.images_unused.millis() {
            if pass.dry_run {
                let unused = store.unused_images(unused_ms, NAMED).await?;
                count(pass, &unused, true);
                if unused.len() == NAMED as usize {
                    pass.ends_early();
                }
            } else {
                loop {
                    let began = Instant::now();
                    let deleted = store.delete_unused_images(unused_ms, AT_ONCE).await?;
                    count(pass, &deleted, false);
                    counted.extend(deleted.iter().map(|image| image.image_id.clone()));
                    if deleted.len() < AT_ONCE as usize {
                        break;
                    }
                    if pass.is_over() {
                        return Ok(());
                    }
                    pass.give_way(began.elapsed()).await;
                }
            }
        }
        if pass.dry_run {
            let unneeded = store.unneeded_images(NAMED).await?;
            count(pass, &unneeded, true);
            if unneeded.len() == NAMED as usize {
                pass.ends_early();
            }
            return Ok(());
        }
        loop {
            let began = Instant::now();
            let mut unneeded = store.unneeded_images(AT_ONCE).await?;
            if unneeded.is_empty() {
                return Ok(());
            }
            let is_last = unneeded.len() < AT_ONCE as usize;
            let digests = store.remove_unneeded_images(AT_ONCE).await?;
            unneeded.retain(|image| !counted.remove(&image.image_id));
            count(pass, &unneeded, false);
            let removed = |_, bytes| pass.bytes(bytes);
            images
                .remove(&digests, store, &shared.runners, removed)
                .await?;
            if is_last || pass.is_over() {
                return Ok(());
            }
            pass.give_way(began.elapsed()).await;
        }
    }
}

/// In earnest the bytes are those of the contents that go, which several images may share.
fn count(pass: &Pass, images: &[ImageRecord], with_bytes: bool) {
    for image in images {
        let bytes = if with_bytes { image.size } else { 0 };
        pass.item(
            || format!("{} of {}, {}", image.name, image.tenant_id, image.image_id),
            bytes,
        );
    }
}
