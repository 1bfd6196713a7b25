//! Claims due instances while there is room, and has them launched.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use runtara_domain::{RunToken, TenantId, TokenHash};
use runtara_failpoints::{Point, pass};
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
/// How often at most the store is asked what is due next: so much later may an instance be launched that became due meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(4);
/// How long to wait after the store failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// How often at most a claim leaves out tenants.
const FAIR_EVERY: Duration = Duration::from_millis(250);
/// Most tenants that a claim leaves out, but for those of one batch; beyond it a new round begins.
const MOST_SERVED: usize = 1_000;

/// Dispatches until the scheduler closes.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut fairness = Fairness::default();
    let mut tokens = Tokens::default();
    let mut ask_at = Instant::now();
    while !shared.closing.is_cancelled() {
        match claim_and_launch(&shared, &mut fairness, &mut tokens).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => {
                warn!(%error, "due instances could not be claimed");
                // The claim may have been made although its answer was lost.
                reconcile::soon(&shared);
                nudged_within(&shared, AFTER_FAILURE).await;
                continue;
            }
        }
        // In a throng of starts each comes with a nudge, and need not be followed by a question of its own.
        let early = ask_at.saturating_duration_since(Instant::now());
        if !early.is_zero() && nudged_within(&shared, early).await {
            continue;
        }
        let pause = until_next_due(&shared).await;
        ask_at = Instant::now() + ASK_EVERY;
        nudged_within(&shared, pause).await;
    }
}

/// Waits for a nudge, or the end, for so long at most; false if neither came.
async fn nudged_within(shared: &Shared, time: Duration) -> bool {
    tokio::select! {
        () = shared.closing.cancelled() => true,
        () = shared.store.nudges().due_came() => true,
        () = sleep(time) => false,
    }
}

/// Claims one batch; true if there may be more.
///
/// Where tenants have filled whole batches, what the others have due is claimed first from time to time: behind them there would be no
/// room left for it.
async fn claim_and_launch(
    shared: &Arc<Shared>,
    fairness: &mut Fairness,
    tokens: &mut Tokens,
) -> StoreResult<bool> {
    tokio::select! {
        () = shared.closing.cancelled() => return Ok(false),
        () = shared.live.has_room() => {}
    }
    let _comparing = shared.claiming.lock().await;
    if let Some(served) = fairness.left_out() {
        let began = Instant::now();
        let wanted = shared.live.room().min(BATCH);
        let tenants = claim(shared, tokens, wanted, served).await?;
        let filled = tenants.len() == wanted;
        fairness.claimed_for_others(tenants, began);
        if filled {
            return Ok(true);
        }
    }
    let wanted = shared.live.room().min(BATCH);
    let tenants = claim(shared, tokens, wanted, Vec::new()).await?;
    let filled = tenants.len() == wanted;
    fairness.claimed(filled, tenants);
    Ok(filled)
}

/// Sees to it that tenants with many due instances do not keep the others waiting.
///
/// It goes in rounds. Whoever is claimed for while more is due than there is room for has been served in this round; a claim from time
/// to time leaves out all who were. When it finds nothing everybody has had a turn, and the next round begins.
#[derive(Default)]
struct Fairness {
    served: BTreeSet<TenantId>,
    next: Option<Instant>,
}

impl Fairness {
    /// The tenants that are to be left out of a claim, if it is time for one.
    fn left_out(&self) -> Option<Vec<TenantId>> {
        let is_time = self.next.is_none_or(|next| Instant::now() >= next);
        (is_time && !self.served.is_empty()).then(|| self.served.iter().cloned().collect())
    }

    /// Notes what a claim has found that left out those who were served.
    fn claimed_for_others(&mut self, tenants: Vec<TenantId>, began: Instant) {
        // It reads over all that is due of those whom it leaves out: that must not become what the store is busy with.
        let pause = FAIR_EVERY.max(began.elapsed() * 20);
        self.next = Some(Instant::now() + pause);
        if tenants.is_empty() || self.served.len() >= MOST_SERVED {
            self.served.clear();
        }
        self.served.extend(tenants);
    }

    /// Notes what a claim has found that left out nobody.
    fn claimed(&mut self, filled: bool, tenants: Vec<TenantId>) {
        if filled {
            self.served.extend(tenants);
        } else {
            // There was room for all.
            self.served.clear();
        }
    }
}

/// Claims at most so many instances, has them launched, and says whose they are, one tenant for each.
async fn claim(
    shared: &Arc<Shared>,
    tokens: &mut Tokens,
    wanted: usize,
    without_tenants: Vec<TenantId>,
) -> StoreResult<Vec<TenantId>> {
    let mut offered = tokens.take(wanted);
    let claim = Claim {
        node: shared.config.node,
        kinds: shared.config.kinds.clone(),
        tokens: offered.keys().copied().collect(),
        without_tenants,
    };
    // A claim whose answer was lost may have used them: then they are used up.
    let claimed = shared.store.claim_due(claim).await?;
    if !claimed.is_empty() {
        pass(Point::AfterClaim);
    }
    let tenants = claimed.iter().map(|run| run.tenant_id.clone()).collect();
    for claimed in claimed {
        if let Some(token) = offered.remove(&claimed.token) {
            begin(shared, claimed, token);
        }
    }
    tokens.0 = offered;
    Ok(tenants)
}

/// Tokens that were offered to claims and not used. Most claims find one instance and could have found a batch.
#[derive(Default)]
struct Tokens(HashMap<TokenHash, RunToken>);

impl Tokens {
    /// Gives so many, new ones where there are too few.
    fn take(&mut self, wanted: usize) -> HashMap<TokenHash, RunToken> {
        let mut taken: HashMap<_, _> = std::mem::take(&mut self.0)
            .into_iter()
            .take(wanted)
            .collect();
        while taken.len() < wanted {
            let token = RunToken::generate();
            taken.insert(token.hash(), token);
        }
        taken
    }
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
    match shared.store.next_due(&shared.config.kinds).await {
        Ok(next) => next
            .in_ms
            .map_or(SLOW_LOOK, |ms| Duration::from_millis(ms).min(SLOW_LOOK)),
        Err(error) => {
            warn!(%error, "the next due time could not be told");
            AFTER_FAILURE
        }
    }
}
