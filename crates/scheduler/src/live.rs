//! The runs that this process minds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use runtara_domain::{InstanceId, RunnerKind, TokenHash};
use runtara_runner::{Run, RunKey};
use tokio::sync::{Notify, watch};

/// A run that this process launches or minds.
pub(crate) struct Live {
    pub(crate) key: RunKey,
    pub(crate) token: TokenHash,
    kind: RunnerKind,
    /// How much room it takes.
    weight: usize,
    run: OnceLock<Arc<dyn Run>>,
    phase: watch::Sender<Phase>,
    look: Notify,
}

/// Whether a run may have processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It is not launched yet.
    Before,
    /// It may have some.
    During,
    /// All have ended.
    After,
}

impl Live {
    pub(crate) fn new(key: RunKey, token: TokenHash, kind: RunnerKind, weight: usize) -> Arc<Self> {
        Arc::new(Self {
            key,
            token,
            kind,
            weight,
            run: OnceLock::new(),
            phase: watch::Sender::new(Phase::Before),
            look: Notify::new(),
        })
    }

    /// The run itself, once it is launched.
    pub(crate) fn run(&self) -> Option<&Arc<dyn Run>> {
        self.run.get()
    }

    pub(crate) fn set_run(&self, run: Arc<dyn Run>) -> &Arc<dyn Run> {
        self.run.get_or_init(|| run)
    }

    /// Notes that it may have processes from here on.
    pub(crate) fn begins(&self) {
        self.phase.send_replace(Phase::During);
    }

    /// Notes that it has no process any more, and will have none.
    pub(crate) fn has_ended(&self) {
        self.phase.send_replace(Phase::After);
    }

    fn is_over(&self) -> bool {
        *self.phase.borrow() == Phase::After
    }

    /// Waits while it may have processes.
    async fn ended(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _closed = phase.wait_for(|phase| *phase != Phase::During).await;
    }

    /// Has the row of the run looked at by its minder.
    pub(crate) fn look(&self) {
        self.look.notify_one();
    }

    pub(crate) async fn looked_for(&self) {
        self.look.notified().await;
    }
}

/// All of them. At most one run of an instance is live at a time: the row sees to that.
pub(crate) struct LiveRuns {
    capacity: usize,
    weights: HashMap<RunnerKind, usize>,
    runs: Mutex<HashMap<InstanceId, Arc<Live>>>,
    count: watch::Sender<Count>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    runs: usize,
    used: usize,
}

impl LiveRuns {
    /// Room for so much, of which a run takes the weight of its kind: 1 unless another is named.
    pub(crate) fn new(capacity: usize, weights: HashMap<RunnerKind, usize>) -> Self {
        Self {
            capacity,
            weights,
            runs: Mutex::default(),
            count: watch::Sender::default(),
        }
    }

    /// How much room a run of this kind takes.
    pub(crate) fn weight(&self, kind: RunnerKind) -> usize {
        self.weights.get(&kind).map_or(1, |weight| (*weight).max(1))
    }

    fn recount(&self, runs: &HashMap<InstanceId, Arc<Live>>) {
        self.count.send_modify(|count| count.runs = runs.len());
    }

    fn takes(&self, live: &Live) {
        self.count.send_modify(|count| count.used += live.weight);
    }

    fn gives_back(&self, live: &Live) {
        self.count
            .send_modify(|count| count.used = count.used.saturating_sub(live.weight));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Arc<Live>>> {
        // A map of shared values: a panic elsewhere cannot have left it half changed.
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a run, unless it is known already.
    pub(crate) fn insert(&self, live: Arc<Live>) -> bool {
        let mut runs = self.lock();
        let known = runs
            .get(&live.key.instance_id)
            .is_some_and(|known| known.key == live.key);
        if !known {
            self.takes(&live);
            if let Some(before) = runs.insert(live.key.instance_id.clone(), live) {
                self.gives_back(&before);
            }
            self.recount(&runs);
        }
        !known
    }

    pub(crate) fn remove(&self, key: &RunKey) {
        let mut runs = self.lock();
        if runs
            .get(&key.instance_id)
            .is_some_and(|live| live.key == *key)
        {
            if let Some(live) = runs.remove(&key.instance_id) {
                self.gives_back(&live);
            }
            self.recount(&runs);
        }
    }

    pub(crate) fn get(&self, id: &InstanceId) -> Option<Arc<Live>> {
        self.lock().get(id).cloned()
    }

    /// Has the run of an instance looked at by its minder; false if it has none that is still to end. One that has ended stays known until its exit is
    /// recorded, and by then the next one may have been claimed.
    pub(crate) fn look_at(&self, id: &InstanceId) -> bool {
        let live = self.get(id).filter(|live| !live.is_over());
        live.inspect(|live| live.look()).is_some()
    }

    pub(crate) fn knows(&self, key: &RunKey) -> bool {
        self.get(&key.instance_id)
            .is_some_and(|live| live.key == *key)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Live>> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.count.borrow().runs
    }

    /// All the room that there is.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// How much of it is taken.
    pub(crate) fn used(&self) -> usize {
        self.count.borrow().used
    }

    /// How many more of these kinds may be launched, whichever of them they are. The last may take a little more room than there is: else
    /// the light ones would keep the heavy ones out for as long as there are any.
    pub(crate) fn room(&self, kinds: &[RunnerKind]) -> usize {
        let heaviest = kinds.iter().map(|kind| self.weight(*kind)).max();
        let left = self.capacity.saturating_sub(self.used());
        left.div_ceil(heaviest.unwrap_or(1))
    }

    /// Waits until there is room for one more.
    pub(crate) async fn has_room(&self) {
        self.counted(|count| count.used < self.capacity).await;
    }

    /// Waits until none has a process: those that are not launched yet have none.
    pub(crate) async fn all_ended(&self) {
        for live in self.all() {
            live.ended().await;
        }
    }

    /// Waits until none has anything within this process.
    pub(crate) async fn all_within_ended(&self) {
        let within = |live: &Arc<Live>| live.kind == RunnerKind::Wasm;
        for live in self.all().into_iter().filter(within) {
            live.ended().await;
        }
    }

    /// Waits until there are none.
    pub(crate) async fn empty(&self) {
        self.fewer_than(1).await;
    }

    /// Waits until there are fewer than so many.
    pub(crate) async fn fewer_than(&self, most: usize) {
        self.counted(|count| count.runs < most).await;
    }

    async fn counted(&self, wanted: impl Fn(&Count) -> bool) {
        let mut count = self.count.subscribe();
        // The sender lives as long as `self`.
        let _closed = count.wait_for(wanted).await;
    }
}
