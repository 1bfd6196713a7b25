//! The only caller of runners: dispatch, exits, leases, recovery, cleanup.
//!
//! | part | what it does | what wakes it |
//! |---|---|---|
//! | `dispatch` | claims due instances while there is room, and launches them | a nudge, the earliest due time, room |
//! | `supervise` | minds one run: tells it to leave, waits for its exit, records it | a nudge about the run, its exit |
//! | `silence` | has a run ended that is silent for too long | its row, through `supervise` |
//! | `expiry` | ends instances that outlive their overall deadline | the earliest deadline, a nudge |
//! | `reconcile` | compares the rows that say "live here" with the runs in memory | the start, store errors, slowly always |
//! | `lease` | keeps the lease, ends all runs if it is lost while there are other nodes, and takes over those of nodes that lost theirs | its period, the ends of leases |
//! | `chores` | keeps the counts | their periods |
//! | `upkeep` | removes what is not needed any more | their periods, or somebody by hand |
//!
//! Everything here may be interrupted at any point: what was not recorded is found again by `reconcile`, which is also how a new
//! server process takes over the runs of the one before.

mod chores;
mod dispatch;
mod expiry;
mod figures;
mod image_cache;
mod launch;
mod lease;
mod live;
mod reconcile;
mod silence;
mod supervise;
mod upkeep;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use runtara_domain::{NodeId, RunnerKind};
use runtara_failpoints::{Point, pass};
use runtara_images::BlobStore;
use runtara_runner::{CallTracker, Runner};
use runtara_store::Store;
use tokio::sync::{Mutex, Notify, Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::figures::Counters;
use crate::launch::PreparedImages;
use crate::lease::Lease;
use crate::live::LiveRuns;
use crate::upkeep::{EndedRuns, Upkeep};

pub use crate::figures::SchedulerFigures;
pub use crate::upkeep::{
    NAMES as UPKEEP_NAMES, NoSuchUpkeep, UpkeepConfig, UpkeepEvent, UpkeepFigures, UpkeepReport,
    UpkeepRequest,
};

pub use crate::lease::NodeIdentity;

/// How the scheduler works.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// This node.
    pub node: NodeId,
    /// What people call it.
    pub node_name: String,
    /// Where the server keeps its files.
    pub data_dir: PathBuf,
    /// Where the core listens, as `host:port`, for the programs that are launched.
    pub core_addr: String,
    /// Variables that every program is given.
    pub passed_env: BTreeMap<String, String>,
    /// Kinds of images that are launched. Runs of other kinds are minded, if there is a runner, and none is added.
    pub kinds: Vec<RunnerKind>,
    /// The room for runs: so many of weight 1 at once.
    pub capacity: usize,
    /// How much room a run takes by its kind; 1 if nothing is said.
    pub weights: HashMap<RunnerKind, usize>,
    /// Most runs of one tenant at once, over all nodes; what else it has due waits. Any number if it is not said.
    pub max_runs_per_tenant: Option<u32>,
    /// For how long an instance that registered itself may be silent before it fails; for ever if it is not said.
    pub self_registered_timeout: Option<Duration>,
    /// Further addresses at which this core answers. A run of an earlier process that was told none of them is launched anew.
    pub other_core_addrs: Vec<String>,
    /// What is kept, and for how long.
    pub upkeep: UpkeepConfig,
}

/// The parts of a server that the scheduler works with.
pub struct SchedulerParts {
    /// Durable state.
    pub store: Arc<dyn Store>,
    /// One runner for each kind that this server can launch or has launched.
    pub runners: Vec<Arc<dyn Runner>>,
    /// The content of images.
    pub blobs: BlobStore,
    /// Which calls of which runs are open; shared with the core.
    pub tracker: CallTracker,
    /// What this node says of itself to others, and what ends its runs if it must.
    pub identity: NodeIdentity,
}

/// Launches what is due and minds what runs.
#[derive(Clone)]
pub struct Scheduler(Arc<Shared>);

/// The moment at which this much of the time until a deadline is over: the rest belongs to what comes after.
fn share(percent: u32, deadline: Instant) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) * percent / 100
}

pub(crate) struct Shared {
    config: SchedulerConfig,
    store: Arc<dyn Store>,
    runners: HashMap<RunnerKind, Arc<dyn Runner>>,
    images: PreparedImages,
    tracker: CallTracker,
    live: LiveRuns,
    lease: Lease,
    /// Held while a claim is made and noted, and while rows are compared with the runs in memory.
    claiming: Mutex<()>,
    /// Has that comparison made soon.
    reconcile: Notify,
    launches: Semaphore,
    upkeep: Upkeep,
    ended_runs: EndedRuns,
    counters: Counters,
    /// Ends dispatch and chores.
    closing: CancellationToken,
    /// Has every run ended, also those that are just being launched.
    ending: CancellationToken,
    /// Ends the minding of runs, which stay with their shims.
    leaving: CancellationToken,
    tasks: TaskTracker,
    minders: TaskTracker,
}

/// Launches that are under way at once: enough to keep the processors busy, few enough to keep each launch short.
const LAUNCHES_AT_ONCE: usize = 16;

impl Scheduler {
    /// A scheduler that does nothing yet.
    #[must_use]
    pub fn new(config: SchedulerConfig, parts: SchedulerParts) -> Self {
        let runners = parts
            .runners
            .into_iter()
            .map(|runner| (runner.kind(), runner))
            .collect();
        Self(Arc::new(Shared {
            live: LiveRuns::new(config.capacity, config.weights.clone()),
            lease: Lease::new(parts.identity),
            images: PreparedImages::new(parts.blobs),
            config,
            store: parts.store,
            runners,
            tracker: parts.tracker,
            claiming: Mutex::new(()),
            reconcile: Notify::new(),
            launches: Semaphore::new(LAUNCHES_AT_ONCE),
            upkeep: Upkeep::new(),
            ended_runs: EndedRuns::default(),
            counters: Counters::default(),
            closing: CancellationToken::new(),
            ending: CancellationToken::new(),
            leaving: CancellationToken::new(),
            tasks: TaskTracker::new(),
            minders: TaskTracker::new(),
        }))
    }

    /// Starts: first every run of this node is found again, then what is due is claimed.
    pub fn start(&self) {
        let shared = Arc::clone(&self.0);
        self.0.minders.spawn(lease::watch_over(Arc::clone(&shared)));
        self.0.tasks.spawn(async move {
            if lease::register(&shared).await && reconcile::recover(&shared).await {
                shared.tasks.spawn(lease::keep(Arc::clone(&shared)));
                shared.tasks.spawn(lease::take_over(Arc::clone(&shared)));
                shared.tasks.spawn(dispatch::run(Arc::clone(&shared)));
                shared.tasks.spawn(expiry::run(Arc::clone(&shared)));
                shared.tasks.spawn(reconcile::run(Arc::clone(&shared)));
                let pass_nudges = supervise::pass_nudges(Arc::clone(&shared));
                shared.minders.spawn(pass_nudges);
                chores::start(&shared);
                upkeep::start(&shared);
            }
        });
    }

    /// How many runs are live here.
    #[must_use]
    pub fn live_runs(&self) -> usize {
        self.0.live.len()
    }

    /// Removes once, now, what is not needed any more, or says what would be removed, also where this has not been started. What each
    /// did is sent as it is done; when nobody listens any more it ends between two batches.
    ///
    /// # Errors
    /// [`NoSuchUpkeep`] if a name is unknown. Nothing is done then.
    pub async fn maintain(
        &self,
        request: &UpkeepRequest,
        events: &mpsc::Sender<UpkeepEvent>,
    ) -> Result<(), NoSuchUpkeep> {
        upkeep::by_hand(&self.0, request, events).await
    }

    /// Whether [`maintain`](Self::maintain) knows all names of a request.
    ///
    /// # Errors
    /// [`NoSuchUpkeep`] with the first that it does not know.
    pub fn knows(request: &UpkeepRequest) -> Result<(), NoSuchUpkeep> {
        upkeep::check(request)
    }

    /// What has been removed since the server started, by the names of those who did.
    #[must_use]
    pub fn upkeep_figures(&self) -> Vec<(&'static str, UpkeepFigures)> {
        self.0.upkeep.figures()
    }

    /// What this scheduler has done since it was made, and what it has now.
    #[must_use]
    pub fn figures(&self) -> SchedulerFigures {
        let shared = &self.0;
        shared
            .counters
            .figures(shared.live.len(), shared.config.capacity)
    }

    /// Stops claiming. Runs go on.
    pub fn stop_claiming(&self) {
        self.0.closing.cancel();
    }

    /// Has every run ended, also those that are just being launched: they are asked to leave, and killed two seconds later. Nothing is
    /// claimed any more. [`Scheduler::shutdown`] waits for it.
    pub fn end_runs(&self) {
        self.stop_claiming();
        self.0.ending.cancel();
    }

    /// Stops. Runs that have a process of their own go on under their shims, for the next server process to adopt; those that
    /// [`Scheduler::end_runs`] ends are gone, and their instances launched again by whoever comes next. Answers when all is done, at
    /// the deadline at the latest: no part of it can spend the time of those that follow.
    pub async fn shutdown(&self, deadline: Instant) {
        let shared = &self.0;
        self.stop_claiming();
        shared.tasks.close();
        let tasks = timeout_at(share(20, deadline), shared.tasks.wait()).await;
        if tasks.is_err() {
            warn!("claims and chores did not end in time");
        }
        if shared.ending.is_cancelled() {
            self.runs_ended(share(70, deadline)).await;
        } else if timeout_at(share(70, deadline), supervise::told_to_leave(shared))
            .await
            .is_err()
        {
            warn!("runs that were told to leave did not do so in time");
        }
        shared.leaving.cancel();
        shared.minders.close();
        let minders = timeout_at(share(50, deadline), shared.minders.wait()).await;
        if minders.is_err() {
            warn!("exits were not recorded in time; they are recorded at the next start");
        }
        pass(Point::ShutdownRunsLeft);
        for runner in shared.runners.values() {
            // What stays is found again at the next start.
            let _in_time = timeout_at(share(50, deadline), runner.leave()).await;
        }
        if shared.live.len() > 0 {
            // They are left to their shims; the lease lasts for as long as the next server process may take.
            let _in_time = timeout_at(share(50, deadline), lease::renew_last(shared)).await;
            return;
        }
        let release = shared.store.release_node(shared.config.node);
        match timeout_at(deadline, release).await {
            Ok(Ok(())) => lease::release(shared).await,
            Ok(Err(error)) => info!(%error, "the node's lease was left to lapse"),
            Err(_) => info!("the node's lease was left to lapse: the store did not answer in time"),
        }
    }

    /// Waits for the end of all runs, and kills those that do not end in time: nobody would come for them.
    async fn runs_ended(&self, deadline: Instant) {
        let live = &self.0.live;
        if timeout_at(share(75, deadline), live.empty()).await.is_ok() {
            return;
        }
        warn!(
            runs = live.len(),
            "runs did not end in time; they are killed"
        );
        let kill_all = supervise::kill(live.all());
        if timeout_at(deadline, async { tokio::join!(kill_all, live.empty()) })
            .await
            .is_err()
        {
            warn!(
                runs = live.len(),
                "runs were killed whose end was not recorded"
            );
        }
    }
}
