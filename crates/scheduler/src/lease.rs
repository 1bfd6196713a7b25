//! The lease of this node: by it others know that this server lives and minds its runs.
//!
//! It is renewed three times as often as it would end. Where other nodes are registered, runs are ended that this node could not renew the
//! lease for, before others take them over: by this server, and whatever becomes of it by its [guard](NodeGuard). A node that is alone ends
//! nothing, however long the store is away.

use std::sync::Arc;
use std::time::Duration;

use runtara_domain::{NodeKey, limits};
use runtara_runner::{BootTime, NodeGuard};
use runtara_store::{NodeLease, NodeStanding};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use crate::Shared;
use crate::{reconcile, supervise};

/// Between two renewals.
const PERIOD: Duration = Duration::from_millis(limits::NODE_LEASE_MS / 3);
/// How long one renewal may take: there must be time for another.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two renewals at least that somebody asked for.
const SOON: Duration = Duration::from_millis(100);
/// When to try again after one that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// How long after the end of a lease it is looked whether it was renewed.
const JUST_AFTER: Duration = Duration::from_millis(20);
/// How many runs of lost nodes are taken over by one call.
const TAKEN_AT_ONCE: u32 = 100;
/// How long it may take until nothing lives within this process: a little less than the guard waits, which would take the server for one that
/// hangs.
const WITHIN_ENDED_IN: Duration = Duration::from_millis(900);
/// How long it may take until all has ended, before that is left to the guard alone.
const ALL_ENDED_IN: Duration = Duration::from_secs(3);

/// What this node says of itself to others, and what ends its runs.
#[derive(Debug, Default)]
pub struct NodeIdentity {
    /// Where other nodes reach it, as `host:port`.
    pub address: Option<String>,
    /// What they show for themselves there.
    pub key: Option<NodeKey>,
    /// Ends its runs if it cannot renew its lease; `None` if the store serves one node at a time.
    pub guard: Option<NodeGuard>,
}

/// How the lease stands.
pub(crate) struct Lease {
    identity: NodeIdentity,
    standing: watch::Sender<Standing>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    /// Until when the runs of this node may live without another renewal; `None` if it is alone.
    until: Option<BootTime>,
    /// Whether that moment has come, and all runs are being ended.
    is_lost: bool,
    /// When what still runs is handed over, if this node is being drained.
    drained_at: Option<Instant>,
    /// When the lease of another node ends, unless that renews it.
    others_end: Option<Instant>,
}

impl Lease {
    pub(crate) fn new(identity: NodeIdentity) -> Self {
        Self {
            identity,
            standing: watch::Sender::default(),
        }
    }

    /// Waits until instances may be claimed: none are while the lease is lost or the node is being drained.
    pub(crate) async fn may_claim(&self) {
        self.until(|standing| !standing.is_lost && standing.drained_at.is_none())
            .await;
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.standing.borrow().is_lost
    }

    /// Waits until every run must end: the lease is lost, or the node is to hand over what still runs.
    pub(crate) async fn must_end(&self) {
        let mut standing = self.standing.subscribe();
        loop {
            let now = *standing.borrow_and_update();
            if now.is_lost {
                return;
            }
            let handed_over = async {
                match now.drained_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = handed_over => return,
                changed = standing.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
            }
        }
    }

    async fn until(&self, wanted: impl Fn(&Standing) -> bool) {
        let mut standing = self.standing.subscribe();
        // The sender lives as long as `self`.
        let _closed = standing.wait_for(wanted).await;
    }

    fn is_guarded(&self) -> bool {
        self.standing.borrow().until.is_some()
    }
}

/// Registers this node, however long the store is away; false if the scheduler closes before. Nothing is adopted before: others may be just
/// about to take the runs over.
pub(crate) async fn register(shared: &Shared) -> bool {
    loop {
        // The second time to say that there is a guard by now, if there is to be one.
        if renew(shared).await.is_some() && renew(shared).await.is_some() {
            return true;
        }
        tokio::select! {
            () = shared.closing.cancelled() => return false,
            () = sleep(AFTER_FAILURE) => {}
        }
    }
}

/// Renews the lease until the scheduler closes.
pub(crate) async fn keep(shared: Arc<Shared>) {
    let mut pause = PERIOD;
    loop {
        let asked = async {
            sleep(SOON).await;
            shared.store.nudges().node_was_asked().await;
        };
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = asked => {}
            () = sleep(pause) => {}
        }
        let was_guarded = shared.lease.is_guarded();
        pause = match renew(&shared).await {
            // The others are to know at once that its runs are ended if it falls silent.
            Some(_) if shared.lease.is_guarded() != was_guarded => Duration::ZERO,
            Some(_) => PERIOD,
            None => AFTER_FAILURE,
        };
    }
}

/// Renews the lease once more, and for the last time: so the next server process has as long as can be to take over what still runs.
pub(crate) async fn renew_last(shared: &Shared) {
    if shared.lease.is_guarded() {
        renew(shared).await;
    }
}

/// Has nothing guarded any more: nothing of this node runs, and it is on the list no longer.
pub(crate) async fn release(shared: &Shared) {
    if let Some(guard) = &shared.lease.identity.guard {
        guard.leave().await;
    }
}

/// Has the lease renewed soon, for it may be over.
pub(crate) fn may_be_over(shared: &Shared) {
    shared.store.nudges().node_asked();
}

async fn renew(shared: &Shared) -> Option<NodeStanding> {
    let identity = &shared.lease.identity;
    let lease = NodeLease {
        guarded: shared.lease.is_guarded(),
        address: identity.address.clone(),
        key: identity.key.clone(),
        capacity: shared.live.capacity() as u64,
        used: shared.live.used() as u64,
        ..NodeLease::new(
            shared.config.node,
            &shared.config.node_name,
            limits::NODE_LEASE_MS,
        )
    };
    // Before it is asked: the lease lasts from some moment after this one.
    let asked = BootTime::now();
    let renewed = timeout(PATIENCE, shared.store.renew_node(lease)).await;
    match renewed {
        Ok(Ok(standing)) => {
            renewed_at(shared, asked, standing).await;
            Some(standing)
        }
        Ok(Err(error)) => {
            warn!(%error, "the lease of this node could not be renewed");
            None
        }
        Err(_) => {
            warn!("the lease of this node was not renewed in time");
            None
        }
    }
}

async fn renewed_at(shared: &Shared, asked: BootTime, standing: NodeStanding) {
    let lease = &shared.lease;
    let until = asked.plus_millis(limits::NODE_UNRENEWED_MS);
    let until = match &lease.identity.guard {
        Some(guard) if standing.others > 0 => {
            if let Err(error) = guard.hold_until(until).await {
                // The server itself still ends its runs.
                error!(
                    error = &error as &dyn std::error::Error,
                    "this node has no guard"
                );
            }
            Some(until)
        }
        Some(guard) => {
            if lease.is_guarded() {
                guard.leave().await;
            }
            None
        }
        None => None,
    };
    let in_ms = |ms| Instant::now() + Duration::from_millis(ms);
    let drained_at = standing.drain_in_ms.map(in_ms);
    let was = lease.standing.send_replace(Standing {
        until,
        is_lost: until.is_some_and(|until| until <= BootTime::now()),
        drained_at,
        others_end: standing.next_end_in_ms.map(in_ms),
    });
    if was.is_lost {
        info!("the lease of this node was renewed; it works again");
    }
    match (was.drained_at, drained_at) {
        (None, Some(_)) => info!("this node is being drained: it takes nothing new"),
        (Some(_), None) => info!("this node is drained no longer"),
        _ => {}
    }
    if !standing.lasted {
        debug!("this node had no lease before");
        reconcile::soon(shared);
    }
}

/// Takes over the runs of nodes that did not renew their lease: at its end, and now and then, until the scheduler closes.
pub(crate) async fn take_over(shared: Arc<Shared>) {
    let mut standing = shared.lease.standing.subscribe();
    loop {
        let others_end = standing.borrow_and_update().others_end;
        let soon = others_end.map_or(Duration::MAX, |end| {
            end.saturating_duration_since(Instant::now()) + JUST_AFTER
        });
        tokio::select! {
            () = shared.closing.cancelled() => return,
            // Another moment may be the next, unless this one has just come.
            changed = standing.changed(), if others_end.is_some() => match changed {
                Ok(()) if others_end.is_some_and(|end| end > Instant::now()) => continue,
                Ok(()) => {}
                Err(_) => return,
            },
            () = sleep(soon.min(PERIOD)) => {}
        }
        loop {
            match shared
                .store
                .expire_nodes(shared.config.node, TAKEN_AT_ONCE)
                .await
            {
                Ok(lost) if lost.is_empty() => break,
                Ok(lost) => info!(runs = lost.len(), "runs of lost nodes were taken over"),
                Err(error) => {
                    warn!(%error, "runs of lost nodes could not be taken over yet");
                    break;
                }
            }
        }
    }
}

/// Ends all runs whenever the lease is lost, until the scheduler leaves.
pub(crate) async fn watch_over(shared: Arc<Shared>) {
    let mut standing = shared.lease.standing.subscribe();
    loop {
        let until = standing.borrow_and_update().until;
        let over = async {
            match until {
                Some(until) => until.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.leaving.cancelled() => return,
            changed = standing.changed() => if changed.is_err() { return; },
            waited = over => {
                if let Err(error) = waited {
                    error!(%error, "this server cannot watch over its lease; its guard does");
                    return;
                }
                if let Some(until) = until {
                    lose(&shared, until).await;
                    let renewed = standing.wait_for(|now| now.until != Some(until));
                    tokio::select! {
                        () = shared.leaving.cancelled() => return,
                        _ = renewed => {}
                    }
                }
            }
        }
    }
}

/// Ends all runs because the lease could not be renewed in time.
async fn lose(shared: &Shared, until: BootTime) {
    let lost = shared.lease.standing.send_if_modified(|standing| {
        let is_over = standing.until == Some(until);
        standing.is_lost |= is_over;
        is_over
    });
    if !lost {
        return;
    }
    warn!(
        runs = shared.live.len(),
        "the lease of this node could not be renewed in time; its runs are ended, for others may take them over"
    );
    let Some(guard) = &shared.lease.identity.guard else {
        return;
    };
    let within_ended = async {
        supervise::kill(shared.live.all()).await;
        shared.live.all_within_ended().await;
    };
    if timeout(WITHIN_ENDED_IN, within_ended).await.is_err() {
        error!("guests did not end in time; the guard ends them with this server");
        return;
    }
    guard.ending(until).await;
    match timeout(ALL_ENDED_IN, shared.live.all_ended()).await {
        Ok(()) => guard.all_ended(until).await,
        Err(_) => warn!("not all runs have ended in time; the guard ends them too"),
    }
}

/// Why a claimed instance is not launched.
pub(crate) const LOST: &str = "the lease of this node was lost before its program was started";
