//! Chores: each an idempotent function without input, done every so often.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use runtara_domain::limits;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::{Shared, image_cache, run_files};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Starts all chores.
pub(crate) fn start(shared: &Arc<Shared>) {
    let lease = Duration::from_millis(limits::NODE_LEASE_MS / 3);
    every(shared, "lost nodes", lease, take_over_lost_runs);
    every(shared, "counts", Duration::from_secs(10), refresh_counts);
    let (ten_minutes, hour) = (Duration::from_secs(600), Duration::from_secs(3_600));
    every(shared, "images", ten_minutes, remove_unneeded_images);
    every(shared, "orphans", hour, remove_orphans);
    shared.tasks.spawn(image_cache::keep(Arc::clone(shared)));
    every(shared, "run files", ten_minutes, remove_unneeded_files);
}

fn every<F>(
    shared: &Arc<Shared>,
    name: &'static str,
    period: Duration,
    chore: impl Fn(Arc<Shared>) -> F + Send + 'static,
) where
    F: Future<Output = Result<(), Failure>> + Send,
{
    let owned = Arc::clone(shared);
    shared.tasks.spawn(async move {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = owned.closing.cancelled() => return,
                _ = ticks.tick() => {}
            }
            match chore(Arc::clone(&owned)).await {
                Ok(()) => debug!(chore = name, "done"),
                Err(error) => warn!(chore = name, %error, "failed; it is tried again"),
            }
        }
    });
}

async fn take_over_lost_runs(shared: Arc<Shared>) -> Result<(), Failure> {
    let lost = shared.store.expire_nodes(shared.config.node, 100).await?;
    if !lost.is_empty() {
        info!(runs = lost.len(), "runs of lost nodes were taken over");
    }
    Ok(())
}

async fn refresh_counts(shared: Arc<Shared>) -> Result<(), Failure> {
    shared.store.refresh_counts().await?;
    Ok(())
}

async fn remove_unneeded_images(shared: Arc<Shared>) -> Result<(), Failure> {
    let (store, runners) = (shared.store.as_ref(), &shared.runners);
    let digests = store.remove_unneeded_images(100).await?;
    shared.images.remove(&digests, store, runners).await
}

async fn remove_orphans(shared: Arc<Shared>) -> Result<(), Failure> {
    let store = shared.store.as_ref();
    shared
        .images
        .remove_orphans(store, &shared.runners, &shared.closing)
        .await
}

async fn remove_unneeded_files(shared: Arc<Shared>) -> Result<(), Failure> {
    run_files::remove_unneeded(&shared).await
}
