//! Who is told that something changed, so that nobody has to look again and again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use runtara_domain::{InstanceId, InstanceState, Status};
use tokio::sync::{Notify, watch};

/// Tells waiting tasks of this process that something changed.
///
/// A nudge says "look again", nothing more: whoever is nudged reads the store. So nudges may come in excess and be merged, and a
/// lost one costs only the time to the next slow look.
#[derive(Debug, Clone, Default)]
pub struct Nudges(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    due: Notify,
    expiry: Notify,
    runs: Notify,
    runs_to_look_at: Mutex<HashSet<InstanceId>>,
    missed: Notify,
    node: Notify,
    watched: Mutex<HashMap<InstanceId, watch::Sender<Option<Status>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Sets and maps of plain values: a panic elsewhere cannot have left them half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nudges {
    /// Nudges for one store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives all nudges that follow from an instance having come into this state.
    pub fn after(&self, state: &InstanceState) {
        if state.due_at.is_some() && state.live_node.is_none() {
            self.due();
        }
        if state.expires_at.is_some() && state.status == Status::Pending {
            self.0.expiry.notify_one();
        }
        let run = &state.run;
        if state.live_node.is_some() && (run.leave_by.is_some() || run.slept_ms > 0) {
            self.look_at_run(&state.instance_id);
        }
        self.tell(&state.instance_id, Some(state.status));
    }

    /// Says that an instance may be due earlier than anybody thought.
    pub fn due(&self) {
        self.0.due.notify_one();
    }

    /// Waits until an instance may be due earlier than thought.
    pub async fn due_came(&self) {
        self.0.due.notified().await;
    }

    /// Waits until an instance may outlive its overall deadline earlier than thought.
    pub async fn expiry_came(&self) {
        self.0.expiry.notified().await;
    }

    /// Says that whoever minds the live run of an instance should look at it.
    pub fn look_at_run(&self, id: &InstanceId) {
        lock(&self.0.runs_to_look_at).insert(id.clone());
        self.0.runs.notify_one();
    }

    /// Waits until there are live runs to look at, and takes their instances.
    pub async fn runs_to_look_at(&self) -> Vec<InstanceId> {
        loop {
            let taken: Vec<_> = lock(&self.0.runs_to_look_at).drain().collect();
            if !taken.is_empty() {
                return taken;
            }
            self.0.runs.notified().await;
        }
    }

    /// Says that nudges may have been lost: whatever they were about is to be looked at.
    pub fn missed(&self) {
        self.due();
        for sender in lock(&self.0.watched).values() {
            sender.send_modify(|known| {
                if !known.is_some_and(Status::is_end) {
                    *known = None;
                }
            });
        }
        self.0.missed.notify_one();
    }

    /// Waits until nudges about live runs may have been lost.
    pub async fn missed_came(&self) {
        self.0.missed.notified().await;
    }

    /// Says that somebody may have asked something of this node.
    pub fn node_asked(&self) {
        self.0.node.notify_one();
    }

    /// Waits until something may have been asked of this node.
    pub async fn node_was_asked(&self) {
        self.0.node.notified().await;
    }

    /// Says that an instance changed.
    pub fn changed(&self, id: &InstanceId) {
        self.tell(id, None);
    }

    /// Says that an instance was claimed.
    pub fn claimed(&self, id: &InstanceId) {
        self.tell(id, Some(Status::Running));
    }

    fn tell(&self, id: &InstanceId, status: Option<Status>) {
        if let Some(watched) = lock(&self.0.watched).get(id) {
            watched.send_modify(|known| {
                // Nudges may overtake each other: an end that was told is not hidden by what came before it.
                if !known.is_some_and(Status::is_end) {
                    *known = status;
                }
            });
        }
    }

    /// Watches an instance from now on.
    #[must_use]
    pub fn watch(&self, id: &InstanceId) -> Watch {
        let receiver = lock(&self.0.watched)
            .entry(id.clone())
            .or_insert_with(|| watch::Sender::new(None))
            .subscribe();
        Watch {
            id: id.clone(),
            receiver,
            nudges: self.clone(),
        }
    }
}

/// Tells that an instance changed since the last look.
#[derive(Debug)]
pub struct Watch {
    id: InstanceId,
    receiver: watch::Receiver<Option<Status>>,
    nudges: Nudges,
}

impl Watch {
    /// Waits until the instance changes; at once if it has since the watch began or this was last asked.
    ///
    /// Gives the status that it has now, where whoever said so knew it: so that who waits for one need not look for others.
    pub async fn changed(&mut self) -> Option<Status> {
        // The sender stays in the map for as long as a watch exists.
        let _closed = self.receiver.changed().await;
        *self.receiver.borrow_and_update()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = lock(&self.nudges.0.watched);
        // This watch still counts as one of the receivers.
        if watched
            .get(&self.id)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            watched.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn id(text: &str) -> InstanceId {
        InstanceId::new(text).unwrap()
    }

    #[tokio::test]
    async fn a_change_between_two_looks_is_not_missed() {
        let nudges = Nudges::new();
        let mut watch = nudges.watch(&id("a"));
        nudges.changed(&id("b"));
        assert!(
            timeout(Duration::from_millis(20), watch.changed())
                .await
                .is_err()
        );
        nudges.changed(&id("a"));
        assert!(
            timeout(Duration::from_secs(5), watch.changed())
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn who_is_told_of_a_claim_need_not_look() {
        let nudges = Nudges::new();
        let mut watch = nudges.watch(&id("a"));
        nudges.claimed(&id("a"));
        assert_eq!(watch.changed().await, Some(Status::Running));
        nudges.changed(&id("a"));
        assert_eq!(watch.changed().await, None);
    }

    #[tokio::test]
    async fn lost_nudges_have_everything_looked_at() {
        let nudges = Nudges::new();
        let mut watch = nudges.watch(&id("a"));
        nudges.missed();
        assert_eq!(watch.changed().await, None);
        nudges.due_came().await;
        nudges.missed_came().await;
    }

    #[tokio::test]
    async fn nothing_is_kept_of_an_instance_that_nobody_watches() {
        let nudges = Nudges::new();
        let (first, second) = (nudges.watch(&id("a")), nudges.watch(&id("a")));
        drop(first);
        assert_eq!(lock(&nudges.0.watched).len(), 1);
        drop(second);
        assert!(lock(&nudges.0.watched).is_empty());
    }

    #[tokio::test]
    async fn runs_to_look_at_are_merged() {
        let nudges = Nudges::new();
        nudges.look_at_run(&id("a"));
        nudges.look_at_run(&id("a"));
        assert_eq!(nudges.runs_to_look_at().await, vec![id("a")]);
        let early = timeout(Duration::from_millis(20), nudges.runs_to_look_at()).await;
        assert!(early.is_err());
    }
}
