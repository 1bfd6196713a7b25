//! The runs that this process minds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use runtara_domain::{InstanceId, TokenHash};
use runtara_runner::{Run, RunKey};
use tokio::sync::{Notify, watch};

/// A run that this process launches or minds.
pub(crate) struct Live {
    pub(crate) key: RunKey,
    pub(crate) token: TokenHash,
    run: OnceLock<Arc<dyn Run>>,
    look: Notify,
}

impl Live {
    pub(crate) fn new(key: RunKey, token: TokenHash) -> Arc<Self> {
        Arc::new(Self {
            key,
            token,
            run: OnceLock::new(),
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
    runs: Mutex<HashMap<InstanceId, Arc<Live>>>,
    count: watch::Sender<usize>,
}

impl LiveRuns {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            runs: Mutex::default(),
            count: watch::Sender::new(0),
        }
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
            runs.insert(live.key.instance_id.clone(), live);
            self.count.send_replace(runs.len());
        }
        !known
    }

    pub(crate) fn remove(&self, key: &RunKey) {
        let mut runs = self.lock();
        if runs
            .get(&key.instance_id)
            .is_some_and(|live| live.key == *key)
        {
            runs.remove(&key.instance_id);
            self.count.send_replace(runs.len());
        }
    }

    pub(crate) fn get(&self, id: &InstanceId) -> Option<Arc<Live>> {
        self.lock().get(id).cloned()
    }

    pub(crate) fn knows(&self, key: &RunKey) -> bool {
        self.get(&key.instance_id)
            .is_some_and(|live| live.key == *key)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Live>> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn len(&self) -> usize {
        *self.count.borrow()
    }

    /// How many more may be launched.
    pub(crate) fn room(&self) -> usize {
        self.capacity.saturating_sub(self.len())
    }

    /// Waits until there is room for one more.
    pub(crate) async fn has_room(&self) {
        self.fewer_than(self.capacity).await;
    }

    /// Waits until there are none.
    pub(crate) async fn empty(&self) {
        self.fewer_than(1).await;
    }

    /// Waits until there are fewer than so many.
    pub(crate) async fn fewer_than(&self, most: usize) {
        let mut count = self.count.subscribe();
        // The sender lives as long as `self`.
        let _closed = count.wait_for(|count| *count < most).await;
    }
}
