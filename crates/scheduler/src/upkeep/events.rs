//! Events of long instances.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::{InstanceId, limits};
use runtara_store::{InstanceFilter, InstanceOrder, PageRequest, PageStart, Store};
use tokio::time::Instant;

use super::{Failure, Pass, Reconciler};
use crate::Shared;

/// How many instances are asked about at once.
const ASKED: usize = 500;
/// How many events of one are folded at once.
const AT_ONCE: u32 = 1_000;
/// Most ended runs whose instances are remembered. Beyond it some are looked at only when they run again, or by hand.
const REMEMBERED: usize = 100_000;

/// Folds the oldest events of instances that have more than their starts allow. Only runs record events; so those that run here are looked
/// at, and those that have ended here since the last time. By hand all are.
pub(super) struct Events;

/// Instances whose runs have ended since the last time.
#[derive(Default)]
pub(crate) struct EndedRuns(Mutex<BTreeSet<InstanceId>>);

impl EndedRuns {
    pub(crate) fn note(&self, id: &InstanceId) {
        let mut ended = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() < REMEMBERED {
            ended.insert(id.clone());
        }
    }

    fn take(&self) -> BTreeSet<InstanceId> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Reconciler for Events {
    fn name(&self) -> &'static str {
        "events"
    }

    fn about(&self) -> &'static str {
        "oldest events of instances that have more than their start allows"
    }

    fn period(&self) -> Duration {
        Duration::from_secs(30)
    }

    async fn reconcile(&self, shared: &Shared, pass: &Pass) -> Result<(), Failure> {
        let store = shared.store.as_ref();
        if pass.is_by_hand() {
            return all(store, pass).await;
        }
        let ended = shared.ended_runs.take();
        let live = shared.live.all();
        let live = live.iter().map(|live| live.key.instance_id.clone());
        let ids: Vec<_> = live.chain(ended.iter().cloned()).collect();
        let done = of(store, pass, &ids).await;
        if !matches!(done, Ok(true)) {
            // Those that run are looked at anyway.
            for id in &ended {
                shared.ended_runs.note(id);
            }
        }
        done.map(drop)
    }
}

/// Looks at all instances that there are, newest first.
async fn all(store: &dyn Store, pass: &Pass) -> Result<(), Failure> {
    let (filter, order) = (InstanceFilter::default(), InstanceOrder::default());
    let mut page = PageRequest::first(limits::PAGE_ROWS);
    loop {
        let began = Instant::now();
        let found = store.list_instances(&filter, order, &page).await?;
        let ids: Vec<_> = found.rows.into_iter().map(|row| row.instance_id).collect();
        if !of(store, pass, &ids).await? {
            return Ok(());
        }
        let Some(next) = found.next else {
            return Ok(());
        };
        page.start = PageStart::After(next);
        pass.give_way(began.elapsed()).await;
    }
}

/// Looks at these instances. Says whether it came to all of them.
async fn of(store: &dyn Store, pass: &Pass, ids: &[InstanceId]) -> Result<bool, Failure> {
    for ids in ids.chunks(ASKED) {
        if pass.is_over() {
            return Ok(false);
        }
        for id in store.overfull_instances(ids).await? {
            if !fold(store, pass, &id).await? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

async fn fold(store: &dyn Store, pass: &Pass, id: &InstanceId) -> Result<bool, Failure> {
    if pass.dry_run {
        // How many that are is found out by folding them.
        pass.items(1, || format!("oldest events of {id}"));
        return Ok(true);
    }
    loop {
        let began = Instant::now();
        let folded = store.fold_events(id, AT_ONCE).await?;
        pass.items(folded.events, || format!("oldest events of {id}"));
        if !folded.more {
            return Ok(true);
        }
        if pass.is_over() {
            return Ok(false);
        }
        pass.give_way(began.elapsed()).await;
    }
}
