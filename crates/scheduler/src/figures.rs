//! What the scheduler has done since it was made, in numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use runtara_domain::{InstanceState, RunnerKind};

/// Counts what happens. Nothing waits for it.
#[derive(Default)]
pub(crate) struct Counters {
    claims: AtomicU64,
    launches: [AtomicU64; RunnerKind::ALL.len()],
    failed_launches: AtomicU64,
    store_errors: AtomicU64,
    /// A few words, each once for an exit.
    exits: Mutex<BTreeMap<&'static str, u64>>,
}

/// What a scheduler has done since it was made, and what it has now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerFigures {
    /// How many runs are live here.
    pub live_runs: usize,
    /// How many may be at once.
    pub capacity: usize,
    /// How many instances were claimed.
    pub claims: u64,
    /// How many runs were launched, by their kind.
    pub launches: Vec<(RunnerKind, u64)>,
    /// How many that were claimed could not be launched then.
    pub failed_launches: u64,
    /// How many exits were recorded, by what became of their instances.
    pub exits: Vec<(&'static str, u64)>,
    /// How often the store did not do what it was asked for.
    pub store_errors: u64,
}

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    pub(crate) fn claimed(&self, instances: usize) {
        add(&self.claims, instances as u64);
    }

    pub(crate) fn launched(&self, kind: RunnerKind) {
        let at = RunnerKind::ALL.iter().position(|known| *known == kind);
        if let Some(counter) = at.and_then(|at| self.launches.get(at)) {
            add(counter, 1);
        }
    }

    pub(crate) fn not_launched(&self) {
        add(&self.failed_launches, 1);
    }

    pub(crate) fn store_failed(&self) {
        add(&self.store_errors, 1);
    }

    /// Counts an exit by the state into which its instance came.
    pub(crate) fn exited(&self, state: &InstanceState) {
        let outcome = match state.reason {
            Some(reason) => reason.as_str(),
            None => state.status.as_str(),
        };
        let mut exits = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
        *exits.entry(outcome).or_default() += 1;
    }

    pub(crate) fn figures(&self, live_runs: usize, capacity: usize) -> SchedulerFigures {
        let exits = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
        SchedulerFigures {
            live_runs,
            capacity,
            claims: read(&self.claims),
            launches: RunnerKind::ALL
                .iter()
                .copied()
                .zip(self.launches.iter().map(read))
                .collect(),
            failed_launches: read(&self.failed_launches),
            exits: exits
                .iter()
                .map(|(outcome, count)| (*outcome, *count))
                .collect(),
            store_errors: read(&self.store_errors),
        }
    }
}
