//! Minds runs: tells them to leave when their row says so, waits for their exit, and records it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use runtara_domain::{Change, EndedBy, Refusal, RunExit, RunnerKind};
use runtara_failpoints::{Point, pass};
use runtara_runner::Run;
use runtara_store::{LiveRun, StoreError};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::Shared;
use crate::live::Live;
use crate::silence::Silence;

/// How long the open calls of a run that has exited may take to be answered.
const LAST_CALLS: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A store that takes so long to answer was away.
const SLOW_ANSWER: Duration = Duration::from_secs(1);
/// When to look again at a row that could not be read.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Hands the nudges about runs to their minders, for as long as there are any.
pub(crate) async fn pass_nudges(shared: Arc<Shared>) {
    loop {
        let ids = tokio::select! {
            () = shared.leaving.cancelled() => return,
            ids = shared.store.nudges().runs_to_look_at() => ids,
        };
        if !ids.iter().all(|id| shared.live.look_at(id)) {
            // Those that are being claimed are known once the claim is noted.
            drop(shared.claiming.lock().await);
            for id in &ids {
                shared.live.look_at(id);
            }
        }
    }
}

/// Waits until every run is gone whose row says that it is killed now: those that sleep or wait from here on. Runs that may stay are
/// left to their shims.
pub(crate) async fn told_to_leave(shared: &Shared) {
    const ROWS: u32 = 200;
    loop {
        let mut after = None;
        let mut leaving = 0;
        loop {
            let page = shared
                .store
                .live_runs(shared.config.node, after.as_ref(), ROWS)
                .await;
            let Ok(rows) = page else { return };
            let told = rows.iter().filter(|row| row.leave_in_ms == Some(0));
            for live in told.filter_map(|row| shared.live.get(&row.instance_id)) {
                leaving += 1;
                live.look();
            }
            after = rows.last().map(|row| row.instance_id.clone());
            if rows.len() < ROWS as usize {
                break;
            }
        }
        if leaving == 0 {
            return;
        }
        let fewer = shared.live.fewer_than(shared.live.len());
        let _slowly = timeout(LOOK_AGAIN, fewer).await;
    }
}

/// Kills runs, whatever they were told before. One that is just being launched is not among them: it has no process to be killed.
pub(crate) async fn kill(runs: Vec<Arc<Live>>) {
    let kill = async |live: Arc<Live>| {
        if let Some(run) = live.run()
            && let Err(error) = run.terminate(Duration::ZERO, EndedBy::Host).await
        {
            warn!(%error, key = %live.key, "a run could not be killed");
        }
    };
    let _all: Vec<()> = join_all(runs.into_iter().map(kill)).await;
}

/// Minds a run until its exit is recorded, or until the scheduler leaves it to its shim.
pub(crate) async fn mind(shared: &Shared, live: &Arc<Live>, kind: RunnerKind) {
    let Some(run) = live.run() else { return };
    let exit = tokio::select! {
        () = shared.leaving.cancelled() => {
            if shared.ending.is_cancelled() {
                // It may have been launched too late to be told otherwise.
                kill(vec![Arc::clone(live)]).await;
            }
            return;
        }
        exit = wait(shared, live, run.as_ref()) => exit,
    };
    let Some(exit) = exit else { return };
    live.has_ended();
    if timeout(LAST_CALLS, shared.tracker.idle(live.token))
        .await
        .is_err()
    {
        warn!("a call of a run that has exited was not answered in time");
    }
    if record(shared, live, exit).await
        && let Some(runner) = shared.runners.get(&kind)
        && let Err(error) = runner.clean(&live.key, true).await
    {
        warn!(%error, "what a run has left could not be removed");
    }
}

/// Waits for the exit of a run, and tells it to leave when its row says so. `None` if its exit cannot be told.
async fn wait(shared: &Shared, live: &Live, run: &dyn Run) -> Option<RunExit> {
    let exit = run.wait();
    tokio::pin!(exit);
    let mut minder = Minder::new(live, run);
    let mut look_at = None;
    let mut is_ending = false;
    loop {
        tokio::select! {
            () = must_end(shared), if !is_ending => {
                is_ending = true;
                // At once: a program that was asked could report a failure that is not its own.
                minder.terminate(Duration::ZERO, EndedBy::Host).await;
            }
            exit = &mut exit => return match exit {
                Ok(exit) => Some(exit),
                Err(error) => {
                    error!(%error, "the exit of a run cannot be told; it is looked for again");
                    shared.live.remove(&live.key);
                    None
                }
            },
            () = live.looked_for() => look_at = minder.look(shared).await,
            () = until(look_at) => look_at = minder.look(shared).await,
        }
    }
}

/// Waits until every run of this server must end.
async fn must_end(shared: &Shared) {
    tokio::select! {
        () = shared.ending.cancelled() => {}
        () = shared.lease.must_end() => {}
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a run was told so far.
struct Minder<'a> {
    live: &'a Live,
    run: &'a dyn Run,
    asked: bool,
    slept_ms: u64,
    /// When it is killed. The row says how long that is from now by the store's clock, which may be set back; a run is never given more
    /// time than it was.
    leave_at: Option<Instant>,
    silence: Silence,
}

impl<'a> Minder<'a> {
    fn new(live: &'a Live, run: &'a dyn Run) -> Self {
        Self {
            live,
            run,
            asked: false,
            slept_ms: 0,
            leave_at: None,
            silence: Silence::default(),
        }
    }

    /// Reads the row and does what it wants of the run; says when to look again.
    async fn look(&mut self, shared: &Shared) -> Option<Instant> {
        let asked = Instant::now();
        let answer = shared.store.live_run(&self.live.key.instance_id).await;
        if asked.elapsed() >= SLOW_ANSWER {
            // Nor will the calls of the run have been answered meanwhile.
            Silence::excuse(shared, self.live.token);
        }
        match answer {
            Ok(Some(row)) if row.run_number == self.live.key.run_number => {
                let leave_at = self.follow(&row).await;
                if row.leave_in_ms.is_some() {
                    return leave_at;
                }
                let (live, run) = (self.live, self.run);
                self.silence.follow(shared, live, run, &row).await
            }
            Ok(_) => {
                // The row has no such run: it was given up for lost, and another may follow it.
                self.terminate(Duration::ZERO, EndedBy::Host).await;
                None
            }
            Err(error) => {
                debug!(%error, "the row of a run could not be read");
                Silence::excuse(shared, self.live.token);
                shared.counters.store_failed();
                Some(Instant::now() + LOOK_AGAIN)
            }
        }
    }

    async fn follow(&mut self, row: &LiveRun) -> Option<Instant> {
        if row.slept_ms != self.slept_ms {
            let slept = Duration::from_millis(row.slept_ms);
            match self.run.set_slept(slept).await {
                Ok(()) => self.slept_ms = row.slept_ms,
                Err(error) => warn!(%error, "the running time could not be adjusted"),
            }
        }
        let now = Instant::now();
        let leave_at = now + Duration::from_millis(row.leave_in_ms?);
        let leave_at = self.leave_at.map_or(leave_at, |known| known.min(leave_at));
        self.leave_at = Some(leave_at);
        let left = leave_at.saturating_duration_since(now);
        if row.asked_to_leave && !self.asked && !left.is_zero() {
            self.asked = true;
            self.terminate(left, EndedBy::Stop).await;
        }
        if left.is_zero() {
            let by = if row.asked_to_leave {
                EndedBy::Stop
            } else {
                EndedBy::Leaving
            };
            self.terminate(Duration::ZERO, by).await;
            return None;
        }
        Some(leave_at)
    }

    async fn terminate(&self, grace: Duration, by: EndedBy) {
        if let Err(error) = self.run.terminate(grace, by).await {
            warn!(%error, "a run could not be told to leave");
        }
    }
}

/// Records the exit of a run that has ended, however long the store is away; false if the scheduler leaves before. The exit is then found in the run's
/// directory by the next start.
pub(crate) async fn record(shared: &Shared, live: &Live, exit: RunExit) -> bool {
    live.has_ended();
    let our_fault = shared.tracker.is_our_fault(live.token);
    let change = Change::Exit {
        run_number: live.key.run_number,
        exit,
        our_fault,
    };
    let mut pause = FIRST_PAUSE;
    pass(Point::BeforeExitRecord);
    loop {
        match shared
            .store
            .change(&live.key.instance_id, change.clone())
            .await
        {
            Ok(changed) => {
                info!(status = %changed.state.status, "the exit of a run was recorded");
                shared.counters.exited(&changed.state);
                break;
            }
            Err(StoreError::Refused(Refusal::RunSuperseded | Refusal::InstanceUnknown)) => {
                debug!("the exit of a run was recorded before");
                break;
            }
            Err(error) => {
                warn!(%error, "the exit of a run could not be recorded yet");
                shared.counters.store_failed();
            }
        }
        tokio::select! {
            () = shared.leaving.cancelled() => return false,
            () = sleep(pause) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    pass(Point::AfterExitRecord);
    shared.tracker.forget(live.token);
    shared.ended_runs.note(&live.key.instance_id);
    shared.live.remove(&live.key);
    if shared.config.max_runs_per_tenant.is_some() {
        // There is room for another one of its tenant.
        shared.store.nudges().due();
    }
    true
}
