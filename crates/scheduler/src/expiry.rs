//! Ends instances that outlive their overall deadline, when it is over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use crate::Shared;

/// Most instances of one call to the store.
const BATCH: u32 = 100;
/// How long to wait at most although nothing is known to be over: another node may have started what is over next.
const SLOW_LOOK: Duration = Duration::from_secs(20);
/// How long to wait after the store failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// Does so until the scheduler closes. It sleeps until the earliest deadline, and a start with one wakes it.
pub(crate) async fn run(shared: Arc<Shared>) {
    while !shared.closing.is_cancelled() {
        let pause = match shared.store.expire_due(BATCH).await {
            Ok(expired) => {
                if !expired.instances.is_empty() {
                    info!(
                        instances = expired.instances.len(),
                        "instances have outlived their overall deadline"
                    );
                }
                let next = expired.next_in_ms.map(Duration::from_millis);
                next.map_or(SLOW_LOOK, |next| next.min(SLOW_LOOK))
            }
            Err(error) => {
                warn!(%error, "instances over their deadline could not be ended");
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = shared.closing.cancelled() => {}
            () = shared.store.nudges().expiry_came() => {}
            () = sleep(pause) => {}
        }
    }
}
