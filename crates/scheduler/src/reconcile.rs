//! Compares the rows that say "live here" with the runs in memory.
//!
//! At the start it finds the runs of the process before; later it finds claims whose answer was lost and runs whose exit could not be
//! told. It is one code path for both.

use std::sync::Arc;
use std::time::Duration;

use runtara_domain::{EndedBy, RunExit};
use runtara_runner::{Adoption, Run, RunKey, RunnerError};
use runtara_store::{LiveRun, StoreResult};
use tokio::time::sleep;
use tracing::{Instrument as _, info, info_span, warn};

use crate::image_cache::InUse;
use crate::live::Live;
use crate::{Shared, supervise};

const PERIOD: Duration = Duration::from_secs(30);
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// Rows of one question.
const PAGE: u32 = 200;

/// Has the comparison made soon.
pub(crate) fn soon(shared: &Shared) {
    shared.reconcile.notify_one();
}

/// Finds every run of this node before anything is claimed, however long the store is away; false if the scheduler closes before.
pub(crate) async fn recover(shared: &Arc<Shared>) -> bool {
    loop {
        match reconcile(shared).await {
            Ok(found) => {
                info!(runs = found, "recovered");
                return true;
            }
            Err(error) => {
                warn!(%error, "the runs of this node could not be read yet");
                shared.counters.store_failed();
            }
        }
        tokio::select! {
            () = shared.closing.cancelled() => return false,
            () = sleep(AFTER_FAILURE) => {}
        }
    }
}

/// Compares slowly always, and soon when asked to.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut pause = PERIOD;
    loop {
        tokio::select! {
            () = shared.closing.cancelled() => return,
            () = shared.reconcile.notified() => {}
            () = shared.store.nudges().missed_came() => {}
            () = sleep(pause) => {}
        }
        pause = match reconcile(&shared).await {
            Ok(_) => PERIOD,
            Err(error) => {
                warn!(%error, "the runs of this node could not be read");
                shared.counters.store_failed();
                AFTER_FAILURE
            }
        };
    }
}

/// Takes care of every row that is live here and that nobody minds; has every run looked at whose row is gone.
async fn reconcile(shared: &Arc<Shared>) -> StoreResult<usize> {
    // No claim may come between the look at the rows and the look at the memory.
    let _no_claims = shared.claiming.lock().await;
    let known = shared.live.all();
    let mut found = 0;
    let mut after = None;
    loop {
        let rows = shared
            .store
            .live_runs(shared.config.node, after.as_ref(), PAGE)
            .await?;
        after = rows.last().map(|row| row.instance_id.clone());
        let full = rows.len() == PAGE as usize;
        for row in rows {
            found += usize::from(adopt(shared, row));
        }
        if !full || after.is_none() {
            break;
        }
    }
    for live in known {
        live.look();
    }
    Ok(found)
}

/// Has a row taken care of that nobody minds.
fn adopt(shared: &Arc<Shared>, row: LiveRun) -> bool {
    let key = RunKey {
        instance_id: row.instance_id.clone(),
        run_number: row.run_number,
    };
    if shared.live.knows(&key) {
        return false;
    }
    let weight = shared.live.weight(row.kind);
    let live = Live::new(key, row.token, row.kind, weight);
    if !shared.live.insert(Arc::clone(&live)) {
        return false;
    }
    // Nobody knows what it called while nobody listened.
    shared.tracker.announce(row.token, true);
    let span = info_span!("run", instance = %row.instance_id, run_number = %row.run_number);
    let task = mind_adopted(Arc::clone(shared), live, row);
    shared.minders.spawn(task.instrument(span));
    true
}

async fn mind_adopted(shared: Arc<Shared>, live: Arc<Live>, row: LiveRun) {
    let Some(runner) = shared.runners.get(&row.kind) else {
        // Its processes may well live, and only a runner of its kind can tell.
        warn!(kind = %row.kind, "a run was left alone: this server has no runner of its kind");
        return leave_alone(&shared, &live);
    };
    let exit = match runner.adopt(&live.key).await {
        Ok(Adoption::Alive(run)) => {
            if let Err(error) = end_if_unreached(&shared, run.as_ref()).await {
                warn!(%error, "a run that knows an old address could not be ended");
                return leave_alone(&shared, &live);
            }
            info!("adopted");
            live.begins();
            live.set_run(run);
            let _in_use = in_use(&shared, &row).await;
            // What happened to its row while nobody minded it has been nudged to nobody.
            live.look();
            return supervise::mind(&shared, &live, row.kind).await;
        }
        Ok(Adoption::Exited(exit)) => exit,
        Ok(Adoption::Gone) => RunExit::lost(),
        Err(error) => {
            warn!(%error, "what became of a run could not be told");
            return leave_alone(&shared, &live);
        }
    };
    supervise::record(&shared, &live, exit).await;
    if let Err(error) = runner.clean(&live.key, true).await {
        warn!(%error, "what a run has left could not be removed");
    }
}

/// Keeps the content of an adopted run from leaving the cache, as far as that can be told now: the run itself goes on without it.
async fn in_use(shared: &Shared, row: &LiveRun) -> Option<InUse> {
    shared.images.blobs.shared()?;
    let instance = shared.store.instance(&row.instance_id).await.ok()??;
    let image = shared.store.image(&instance.state.image_id?).await.ok()??;
    Some(shared.images.in_use(image.content()))
}

/// Concludes nothing of a run. Its row stays as it is, and the next comparison asks again.
fn leave_alone(shared: &Shared, live: &Live) {
    shared.live.remove(&live.key);
    shared.tracker.forget(live.token);
}

/// Ends a run whose program calls an address at which nobody answers any more.
async fn end_if_unreached(shared: &Shared, run: &dyn Run) -> Result<(), RunnerError> {
    let config = &shared.config;
    match run.core_addr() {
        Some(addr)
            if addr != config.core_addr && !config.other_core_addrs.iter().any(|it| it == addr) =>
        {
            info!(
                addr,
                "a run was ended: it knows an address that is no longer served"
            );
            run.terminate(Duration::ZERO, EndedBy::Host).await
        }
        _ => Ok(()),
    }
}
