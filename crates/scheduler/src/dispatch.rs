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
use crate::{Shared, launch, lease, reconcile};

/// Most instances of one claim: a batch that is launched within a fraction of a second.
const BATCH: usize = 32;
/// How long to wait at most although nothing is known to be due: a safety net under the nudges.
const SLOW_LOOK: Duration = Duration::from_secs(20);
/// How long to wait at most while something is due whose tenant has as many runs as it may have: what becomes due in the moment between a claim
/// and the question for the next one cannot be told from that.
const BLOCKED_LOOK: Duration = Duration::from_millis(250);
/// How often at most the store is asked what is due next: so much later may an instance be launched that became due meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(4);
/// How long to wait after the store failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// How often at most a claim leaves out tenants.
const FAIR_EVERY: Duration = Duration::from_millis(250);
/// How often at least, so that nobody new waits for a second.
const FAIR_EVERY_AT_LEAST: Duration = Duration::from_millis(400);
/// Most tenants that a claim leaves out, but for those of one batch; beyond it a new round begins.
const MOST_SERVED: usize = 1_000;
/// Most tenants of whom it is remembered that they were served.
const MOST_KNOWN: usize = 4_000;

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
                shared.counters.store_failed();
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
        if pause.is_zero() {
            // It was not given what is due. Others may have been faster; or the clock of the store has made a leap.
            lease::may_be_over(&shared);
        }
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
        () = async {
            shared.lease.may_claim().await;
            shared.live.has_room().await;
        } => {}
    }
    let _comparing = shared.claiming.lock().await;
    if fairness.wants_others() {
        let began = Instant::now();
        for left_out in fairness.left_out() {
            let wanted = room(shared);
            let tenants = claim(shared, tokens, wanted, left_out.tenants).await?;
            let filled = tenants.len() == wanted;
            fairness.claimed_for_others(tenants, left_out.ends_round);
            if filled {
                fairness.pause(began);
                return Ok(true);
            }
        }
        fairness.pause(began);
    }
    let wanted = room(shared);
    let tenants = claim(shared, tokens, wanted, Vec::new()).await?;
    let filled = tenants.len() == wanted;
    fairness.claimed(filled, tenants);
    Ok(filled)
}

/// How many a claim may ask for.
fn room(shared: &Shared) -> usize {
    shared.live.room(&shared.config.kinds).min(BATCH)
}

/// Sees to it that tenants with many due instances do not keep the others waiting.
///
/// It goes in rounds. Whoever is claimed for while more is due than there is room for has been served in this round; a claim from time
/// to time leaves out all who were. When it finds nothing everybody has had a turn, and the next round begins. Before it goes another claim, for
/// those only who have not been served in any round: a round of a thousand tenants takes its time, and is no reason for somebody new to wait
/// for his first turn.
#[derive(Default)]
struct Fairness {
    /// Who was served in this round.
    served: BTreeSet<TenantId>,
    /// Who was served in this one or one before, since there was room for all.
    known: BTreeSet<TenantId>,
    next: Option<Instant>,
}

/// Whom a claim leaves out.
struct LeftOut {
    tenants: Vec<TenantId>,
    /// Whether everybody has had a turn if it finds nothing.
    ends_round: bool,
}

impl Fairness {
    /// Whether it is time for claims that leave out somebody, and there is somebody.
    fn wants_others(&self) -> bool {
        !self.known.is_empty() && self.next.is_none_or(|next| Instant::now() >= next)
    }

    /// Whom the claims leave out that are to be made now, one after the other.
    fn left_out(&self) -> Vec<LeftOut> {
        let leave_out = |tenants: &BTreeSet<TenantId>, ends_round| LeftOut {
            tenants: tenants.iter().cloned().collect(),
            ends_round,
        };
        let mut claims = Vec::new();
        if self.known.len() > self.served.len() {
            claims.push(leave_out(&self.known, false));
        }
        if !self.served.is_empty() {
            claims.push(leave_out(&self.served, true));
        }
        claims
    }

    /// Notes what a claim has found that left out somebody.
    fn claimed_for_others(&mut self, tenants: Vec<TenantId>, ends_round: bool) {
        if (ends_round && tenants.is_empty()) || self.served.len() >= MOST_SERVED {
            self.served.clear();
        }
        self.serve(tenants);
    }

    fn serve(&mut self, tenants: Vec<TenantId>) {
        if self.known.len() >= MOST_KNOWN {
            self.known = self.served.clone();
        }
        self.known.extend(tenants.iter().cloned());
        self.served.extend(tenants);
    }

    /// Has the next of these claims wait for so long that they are not what the store is busy with: they may read over all that is due of
    /// those whom they leave out.
    fn pause(&mut self, began: Instant) {
        let pause = (began.elapsed() * 10).clamp(FAIR_EVERY, FAIR_EVERY_AT_LEAST);
        self.next = Some(Instant::now() + pause);
    }

    /// Notes what a claim has found that left out nobody.
    fn claimed(&mut self, filled: bool, tenants: Vec<TenantId>) {
        if filled {
            self.serve(tenants);
        } else {
            // There was room for all.
            self.served.clear();
            self.known.clear();
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
        running_allowed: shared.config.max_runs_per_tenant,
    };
    // A claim whose answer was lost may have used them: then they are used up.
    let claimed = shared.store.claim_due(claim).await?;
    shared.counters.claimed(claimed.len());
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
    let weight = shared.live.weight(claimed.image.kind);
    let live = Live::new(key, claimed.token, claimed.image.kind, weight);
    shared.live.insert(Arc::clone(&live));
    shared.tracker.announce(claimed.token, false);
    shared
        .minders
        .spawn(launch::run(Arc::clone(shared), live, claimed, token));
}

/// How long until something is due that can be claimed.
async fn next_due(shared: &Shared) -> StoreResult<Duration> {
    let kinds = &shared.config.kinds;
    let next = shared.store.next_due(kinds).await?;
    let pause = |in_ms: Option<u64>, most: Duration| {
        in_ms.map_or(most, |ms| Duration::from_millis(ms).min(most))
    };
    if next.in_ms == Some(0) && shared.config.max_runs_per_tenant.is_some() {
        // It is of tenants who have no room: an end of one of their runs is told. Or it became due only just now.
        let later = shared.store.next_due_later(kinds).await?;
        return Ok(pause(later.in_ms, BLOCKED_LOOK));
    }
    Ok(pause(next.in_ms, SLOW_LOOK))
}

async fn until_next_due(shared: &Shared) -> Duration {
    match next_due(shared).await {
        Ok(next) => next,
        Err(error) => {
            warn!(%error, "the next due time could not be told");
            shared.counters.store_failed();
            AFTER_FAILURE
        }
    }
}
