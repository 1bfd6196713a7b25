//! Claims due instances while there is room, and has them launched.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use runtara_domain::{RunToken, TenantId, TokenHash};
use runtara_runner::RunKey;
use runtara_store::{Claim, ClaimedRun, StoreResult};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::live::Live;
use crate::{Shared, launch, reconcile};

/// Most instances of one claim: a batch that is launched within a fraction of a second.
const BATCH: usize = 32;
/// How long to wait at most although nothing is known to be due: a safety net under the nudges.
const SLOW_LOOK: Duration = Duration::from_secs(20);
/// How long to wait after the store failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// How often at most a tenant that fills whole batches is left out of one.
const FAIR_EVERY: Duration = Duration::from_millis(250);

/// Dispatches until the scheduler closes.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut fairness = Fairness::default();
    while !shared.closing.is_cancelled() {
        let pause = match claim_and_launch(&shared, &mut fairness).await {
            Ok(true) => continue,
            Ok(false) => until_next_due(&shared).await,
            Err(error) => {
                warn!(%error, "due instances could not be claimed");
                // The claim may have been made although its answer was lost.
                reconcile::soon(&shared);
                AFTER_FAILURE
            }
        };
        tokio::select! {
            () = shared.closing.cancelled() => {}
            () = shared.store.nudges().due_came() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Claims one batch; true if there may be more.
async fn claim_and_launch(shared: &Arc<Shared>, fairness: &mut Fairness) -> StoreResult<bool> {
    tokio::select! {
        () = shared.closing.cancelled() => return Ok(false),
        () = shared.live.has_room() => {}
    }
    let _comparing = shared.claiming.lock().await;
    let wanted = shared.live.room().min(BATCH);
    let mut tenants = claim(shared, wanted, Vec::new()).await?;
    let filled = tenants.len() == wanted;
    tenants.dedup();
    if let Some(greedy) = fairness.left_out(filled, tenants) {
        let wanted = shared.live.room().min(BATCH);
        claim(shared, wanted, vec![greedy]).await?;
    }
    Ok(filled)
}

/// Sees to it that one tenant with many due instances does not keep the others waiting: when its instances alone filled a batch, the
/// next claim, from time to time, leaves it out.
#[derive(Default)]
struct Fairness {
    last: Option<Instant>,
}

impl Fairness {
    /// The tenant to be left out of a second claim, if it is time for one.
    fn left_out(&mut self, filled: bool, mut tenants: Vec<TenantId>) -> Option<TenantId> {
        let is_time = self.last.is_none_or(|last| last.elapsed() >= FAIR_EVERY);
        if !filled || !is_time || tenants.len() != 1 {
            return None;
        }
        self.last = Some(Instant::now());
        tenants.pop()
    }
}

/// Claims at most so many instances, has them launched, and says whose they are.
async fn claim(
    shared: &Arc<Shared>,
    wanted: usize,
    without_tenants: Vec<TenantId>,
) -> StoreResult<Vec<TenantId>> {
    let mut tokens: HashMap<TokenHash, RunToken> = (0..wanted)
        .map(|_| RunToken::generate())
        .map(|token| (token.hash(), token))
        .collect();
    let claim = Claim {
        node: shared.config.node,
        kinds: shared.kinds.clone(),
        tokens: tokens.keys().copied().collect(),
        without_tenants,
    };
    let claimed = shared.store.claim_due(claim).await?;
    let mut tenants: Vec<_> = claimed.iter().map(|run| run.tenant_id.clone()).collect();
    tenants.sort();
    for claimed in claimed {
        if let Some(token) = tokens.remove(&claimed.token) {
            begin(shared, claimed, token);
        }
    }
    Ok(tenants)
}

/// Notes a claimed run and has it launched. Noted at once, in the task that claimed it, so that the reconciler never takes it for one
/// whose claim was lost.
fn begin(shared: &Arc<Shared>, claimed: ClaimedRun, token: RunToken) {
    let key = RunKey {
        instance_id: claimed.instance_id.clone(),
        run_number: claimed.run_number,
    };
    debug!(%key, "claimed");
    let live = Live::new(key, claimed.token);
    shared.live.insert(Arc::clone(&live));
    shared.tracker.announce(claimed.token, false);
    shared
        .minders
        .spawn(launch::run(Arc::clone(shared), live, claimed, token));
}

async fn until_next_due(shared: &Shared) -> Duration {
    match shared.store.next_due(&shared.kinds).await {
        Ok(next) => next
            .in_ms
            .map_or(SLOW_LOOK, |ms| Duration::from_millis(ms).min(SLOW_LOOK)),
        Err(error) => {
            warn!(%error, "the next due time could not be told");
            AFTER_FAILURE
        }
    }
}
