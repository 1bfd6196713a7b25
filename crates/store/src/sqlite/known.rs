//! What the thread that writes knows of instances without asking the database.
//!
//! A run calls again and again, and each call needs the whole state of its instance; reading that from its row costs more than
//! all else that a call does. The states of the instances that run are kept here, as they are within the current transaction. That
//! is sound because nobody else writes: every change of a state goes through [`super::write::Write`], a request that is taken back
//! takes what it left here with it, and a transaction that is rolled back takes all. A change by another connection, which can only
//! be a person with a tool, is seen at the begin of the next transaction (<https://sqlite.org/pragma.html#pragma_data_version>).

use std::sync::Arc;

use hashlink::LruCache;
use runtara_domain::{InstanceId, InstanceState, Status};

use super::state::Loaded;

/// Most instances whose states are kept, of about one KiB each; those that have not been asked for longest go first.
const KEPT: usize = 16_384;

pub(super) struct Known {
    states: LruCache<InstanceId, Arc<Loaded>>,
    /// What the states are of: the database's own count of what other connections have changed.
    version: Option<i64>,
    /// What the current batch has changed, and by which request.
    changed: Vec<(usize, Arc<Loaded>)>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            states: LruCache::new(KEPT),
            version: None,
            changed: Vec::new(),
        }
    }
}

/// Whether more calls are to be expected.
fn is_worth_keeping(state: &InstanceState) -> bool {
    state.status == Status::Running
}

impl Known {
    /// Begins a transaction on the database in this version.
    pub(super) fn begin(&mut self, version: Option<i64>) {
        if version.is_none() || version != self.version {
            self.states.clear();
            self.version = version;
        }
    }

    pub(super) fn get(&mut self, id: &InstanceId) -> Option<Arc<Loaded>> {
        self.states.get(id).map(Arc::clone)
    }

    /// Keeps a state as it was found.
    pub(super) fn found(&mut self, found: &Arc<Loaded>) {
        if is_worth_keeping(&found.state) {
            let id = found.state.instance_id.clone();
            self.states.insert(id, Arc::clone(found));
        }
    }

    /// Keeps a state as a request has written it.
    pub(super) fn wrote(&mut self, request: usize, written: &Arc<Loaded>) {
        let id = &written.state.instance_id;
        if !is_worth_keeping(&written.state) {
            self.states.remove(id);
            return;
        }
        self.changed.push((request, Arc::clone(written)));
        match self.states.get_mut(id) {
            Some(kept) => *kept = Arc::clone(written),
            None => drop(self.states.insert(id.clone(), Arc::clone(written))),
        }
    }

    /// Forgets what a request has written: it is taken back.
    pub(super) fn undo(&mut self, request: usize) {
        let states = &mut self.states;
        self.changed.retain(|(by, written)| {
            let is_undone = *by == request;
            if is_undone {
                states.remove(&written.state.instance_id);
            }
            !is_undone
        });
    }

    /// Ends a batch: what it has written stays.
    pub(super) fn end(&mut self) {
        self.changed.clear();
    }

    /// Forgets everything: a transaction is rolled back.
    pub(super) fn clear(&mut self) {
        self.changed.clear();
        self.states.clear();
    }
}

#[cfg(test)]
mod tests {
    use runtara_domain::{TenantId, Timestamp};

    use super::*;

    fn loaded(id: &str, checkpoints: i64, status: Status) -> Arc<Loaded> {
        let mut state = InstanceState::self_registered(
            InstanceId::new(id).unwrap(),
            TenantId::new("acme").unwrap(),
            Timestamp(0),
        );
        state.status = status;
        Arc::new(Loaded {
            id: 1,
            state,
            events: 0,
            checkpoints,
        })
    }

    fn checkpoints(known: &mut Known, id: &str) -> Option<i64> {
        let id = InstanceId::new(id).unwrap();
        known.get(&id).map(|found| found.checkpoints)
    }

    #[test]
    fn what_a_request_wrote_is_forgotten_with_it_and_what_others_wrote_stays() {
        let mut known = Known::default();
        known.begin(Some(1));
        known.wrote(0, &loaded("a", 1, Status::Running));
        known.wrote(1, &loaded("b", 1, Status::Running));
        known.wrote(1, &loaded("a", 2, Status::Running));
        known.undo(1);
        // What `a` was before is not known any more either: it is read from its row again.
        assert_eq!(checkpoints(&mut known, "a"), None);
        assert_eq!(checkpoints(&mut known, "b"), None);
        known.wrote(2, &loaded("c", 1, Status::Running));
        known.undo(3);
        known.end();
        known.begin(Some(1));
        assert_eq!(checkpoints(&mut known, "c"), Some(1));
    }

    #[test]
    fn a_rollback_and_a_change_by_another_connection_are_the_end_of_all_that_is_known() {
        let mut known = Known::default();
        known.begin(Some(1));
        known.found(&loaded("a", 1, Status::Running));
        known.clear();
        assert_eq!(checkpoints(&mut known, "a"), None);
        for version in [Some(2), None, None] {
            known.found(&loaded("a", 1, Status::Running));
            known.begin(version);
            assert_eq!(checkpoints(&mut known, "a"), None, "{version:?}");
        }
    }

    #[test]
    fn only_running_instances_are_kept() {
        let mut known = Known::default();
        known.begin(Some(1));
        known.found(&loaded("a", 1, Status::Suspended));
        assert_eq!(checkpoints(&mut known, "a"), None);
        known.wrote(0, &loaded("a", 1, Status::Running));
        assert_eq!(checkpoints(&mut known, "a"), Some(1));
        known.wrote(1, &loaded("a", 2, Status::Completed));
        assert_eq!(checkpoints(&mut known, "a"), None);
    }
}
