//! Chores: each an idempotent function without input, done every so often. Those that remove something are in [`upkeep`](crate::upkeep).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use runtara_store::NodeLease;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::Shared;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Starts all chores.
pub(crate) fn start(shared: &Arc<Shared>) {
    let lease = shared.config.lease / 3;
    every(shared, "node lease", lease, keep_lease);
    every(shared, "lost nodes", lease, take_over_lost_runs);
    every(shared, "counts", Duration::from_secs(10), refresh_counts);
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

async fn keep_lease(shared: Arc<Shared>) -> Result<(), Failure> {
    let lease = NodeLease {
        node: shared.config.node,
        name: shared.config.node_name.clone(),
        lease_ms: u64::try_from(shared.config.lease.as_millis())?,
    };
    shared.store.renew_node(lease).await?;
    Ok(())
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
