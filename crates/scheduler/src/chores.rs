//! Chores: each an idempotent function without input, done every so often. Those that remove something are in [`upkeep`](crate::upkeep).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use crate::{Shared, image_cache};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Starts all chores.
pub(crate) fn start(shared: &Arc<Shared>) {
    every(shared, "counts", Duration::from_secs(10), refresh_counts);
    if let Some(timeout) = shared.config.self_registered_timeout {
        let period = (timeout / 10).clamp(Duration::from_secs(1), Duration::from_secs(30));
        every(shared, "silent instances", period, lapse_silent);
    }
    shared.tasks.spawn(image_cache::keep(Arc::clone(shared)));
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

/// Fails instances that registered themselves and are silent. The store sees to it that none is failed for want of a node; so it is safe
/// for any of them to ask.
async fn lapse_silent(shared: Arc<Shared>) -> Result<(), Failure> {
    const ONCE: u32 = 100;
    let Some(timeout) = shared.config.self_registered_timeout else {
        return Ok(());
    };
    let timeout_ms = u64::try_from(timeout.as_millis())?;
    loop {
        let lapsed = shared.store.lapse_silent(timeout_ms, ONCE).await?;
        if !lapsed.is_empty() {
            info!(
                instances = lapsed.len(),
                "instances that registered themselves were silent for too long"
            );
        }
        if lapsed.len() < ONCE as usize || shared.closing.is_cancelled() {
            return Ok(());
        }
    }
}

async fn refresh_counts(shared: Arc<Shared>) -> Result<(), Failure> {
    shared.store.refresh_counts().await?;
    Ok(())
}
