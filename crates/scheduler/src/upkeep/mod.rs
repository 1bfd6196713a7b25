//! What is not needed any more goes.
//!
//! | name | what it removes |
//! |---|---|
//! | `instances` | ended instances beyond their retention, with all that belongs to them |
//! | `events` | the oldest events of instances that have more than their start allows, folded into one |
//! | `run-files` | files of runs that are over, and of instances that are gone |
//! | `logs` | what ended runs have written: by age, and the oldest where all together are too large |
//! | `images` | images that were deleted, replaced or unused for long, and that no instance needs |
//! | `contents` | content that no image has, and what broken uploads have left |
//!
//! Each is a [`Reconciler`]: one function without input that compares what is there with what should be. The same function runs as a chore,
//! by hand ([`Scheduler::maintain`](crate::Scheduler::maintain)) and as a dry run, in which it only says what it would remove; never twice
//! at one time. It works in small batches and gives way between two of them.

mod contents;
mod events;
mod images;
mod instances;
mod logs;
mod pass;
mod run_files;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use runtara_domain::{Keep, Retention};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use crate::Shared;

pub(crate) use self::events::EndedRuns;
pub(crate) use self::pass::Pass;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long a chore works at a time.
const BUDGET: Duration = Duration::from_secs(30);
/// The pause before a chore goes on that had more to do.
const AGAIN: Duration = Duration::from_secs(5);

/// What is kept, and for how long.
#[derive(Debug, Clone)]
pub struct UpkeepConfig {
    /// Ended instances.
    pub retention: Retention,
    /// What ended runs have written, after they wrote it last.
    pub logs_max_age: Keep,
    /// What ended runs have written, all together on this node, in bytes; `None` for as much as there is.
    pub logs_max_bytes: Option<u64>,
    /// Registered images from which nothing is started.
    pub images_unused: Keep,
}

impl Default for UpkeepConfig {
    /// Instances and logs for 30 days, logs up to 10 GiB; images for ever.
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            logs_max_age: Keep::days(30),
            logs_max_bytes: Some(10 << 30),
            images_unused: Keep::Forever,
        }
    }
}

/// Keeps one thing in order.
#[async_trait]
trait Reconciler: Send + Sync {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// What it removes, for people.
    fn about(&self) -> &'static str;

    /// How often it is done.
    fn period(&self) -> Duration;

    /// Does it, or says what it would do. It asks the pass before each batch whether it may go on, and gives way after each.
    async fn reconcile(&self, shared: &Shared, pass: &Pass) -> Result<(), Failure>;
}

/// What one reconciler has done since the server started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpkeepFigures {
    /// How often it was done; dry runs are not counted in any of these.
    pub runs: u64,
    /// How often it failed.
    pub failures: u64,
    /// How long the last time took.
    pub last_duration: Duration,
    /// How many things were removed.
    pub items: u64,
    /// How many bytes these had, as far as that is known.
    pub bytes: u64,
}

#[derive(Default)]
struct Counters {
    runs: AtomicU64,
    failures: AtomicU64,
    last_micros: AtomicU64,
    items: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    fn figures(&self) -> UpkeepFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UpkeepFigures {
            runs: read(&self.runs),
            failures: read(&self.failures),
            last_duration: Duration::from_micros(read(&self.last_micros)),
            items: read(&self.items),
            bytes: read(&self.bytes),
        }
    }

    fn count(&self, report: &UpkeepReport) {
        let add = |counter: &AtomicU64, by| counter.fetch_add(by, Ordering::Relaxed);
        add(&self.runs, 1);
        add(&self.failures, u64::from(report.error.is_some()));
        add(&self.items, report.items);
        add(&self.bytes, report.bytes);
        let micros = u64::try_from(report.took.as_micros()).unwrap_or(u64::MAX);
        self.last_micros.store(micros, Ordering::Relaxed);
    }
}

/// Which reconcilers are done by hand, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpkeepRequest {
    /// Whether nothing is removed, and only said what would be.
    pub dry_run: bool,
    /// The names of those that are done; all if none is named.
    pub only: Vec<String>,
    /// How many things are named of what each removes.
    pub names: usize,
}

/// What one reconciler did, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpkeepReport {
    /// Its name.
    pub name: &'static str,
    /// What it removes.
    pub about: &'static str,
    /// How many things.
    pub items: u64,
    /// How many bytes these have, as far as that is known.
    pub bytes: u64,
    /// Some of them.
    pub names: Vec<String>,
    /// How long it took.
    pub took: Duration,
    /// Whether it was stopped before its end.
    pub stopped: bool,
    /// What stood in its way, if something did.
    pub error: Option<String>,
}

/// What is said while reconcilers are done by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpkeepEvent {
    /// One goes on: its name, and how many things and bytes by now.
    Progress {
        /// Its name.
        name: &'static str,
        /// How many things.
        items: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// One is done.
    Done(UpkeepReport),
}

/// Says that there is no reconciler of a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nothing is called {name:?}; {known} are known", known = NAMES.join(", "))]
pub struct NoSuchUpkeep {
    /// The name.
    pub name: String,
}

/// The names of all reconcilers, in the order in which they are done: what one removes may be what the next was waiting for.
pub const NAMES: [&str; 6] = [
    "instances",
    "events",
    "run-files",
    "logs",
    "images",
    "contents",
];

/// All reconcilers.
pub(crate) struct Upkeep(Vec<Entry>);

struct Entry {
    reconciler: Box<dyn Reconciler>,
    /// Held while it is done.
    turn: Mutex<()>,
    counters: Counters,
}

impl Upkeep {
    pub(crate) fn new() -> Self {
        let all: Vec<Box<dyn Reconciler>> = vec![
            Box::new(instances::Instances::default()),
            Box::new(events::Events),
            Box::new(run_files::RunFiles),
            Box::new(logs::Logs),
            Box::new(images::Images),
            Box::new(contents::Contents),
        ];
        let entry = |reconciler| Entry {
            reconciler,
            turn: Mutex::default(),
            counters: Counters::default(),
        };
        Self(all.into_iter().map(entry).collect())
    }

    pub(crate) fn figures(&self) -> Vec<(&'static str, UpkeepFigures)> {
        let of = |entry: &Entry| (entry.reconciler.name(), entry.counters.figures());
        self.0.iter().map(of).collect()
    }
}

impl Entry {
    async fn run(&self, shared: &Shared, pass: Pass) -> UpkeepReport {
        let _turn = self.turn.lock().await;
        let began = Instant::now();
        let done = self.reconciler.reconcile(shared, &pass).await;
        let counted = pass.counted();
        let report = UpkeepReport {
            name: self.reconciler.name(),
            about: self.reconciler.about(),
            items: counted.items,
            bytes: counted.bytes,
            names: counted.names,
            took: began.elapsed(),
            stopped: counted.stopped,
            error: done.err().map(|error| with_causes(error.as_ref())),
        };
        if !pass.dry_run {
            self.counters.count(&report);
        }
        let (name, items, bytes) = (report.name, report.items, report.bytes);
        match &report.error {
            Some(error) => warn!(chore = name, error, "failed; it is tried again"),
            None if pass.dry_run => {}
            None if items > 0 => info!(
                chore = name,
                items, bytes, "removed what is not needed any more"
            ),
            None => debug!(chore = name, "done"),
        }
        report
    }
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Starts all of them as chores.
pub(crate) fn start(shared: &Arc<Shared>) {
    for index in 0..shared.upkeep.0.len() {
        let owned = Arc::clone(shared);
        shared.tasks.spawn(async move {
            let entry = &owned.upkeep.0[index];
            let mut ticks = interval(entry.reconciler.period());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = owned.closing.cancelled() => return,
                    _ = ticks.tick() => {}
                }
                while entry
                    .run(&owned, Pass::chore(&owned.closing, BUDGET))
                    .await
                    .stopped
                {
                    tokio::select! {
                        () = owned.closing.cancelled() => return,
                        () = sleep(AGAIN) => {}
                    }
                }
            }
        });
    }
}

/// Does some of them once, one after the other, and says what each did. Ends between two batches when nobody listens any more.
pub(crate) async fn by_hand(
    shared: &Shared,
    request: &UpkeepRequest,
    events: &mpsc::Sender<UpkeepEvent>,
) -> Result<(), NoSuchUpkeep> {
    check(request)?;
    let is_wanted = |entry: &&Entry| {
        let name = entry.reconciler.name();
        request.only.is_empty() || request.only.iter().any(|only| only == name)
    };
    for entry in shared.upkeep.0.iter().filter(is_wanted) {
        let name = entry.reconciler.name();
        let pass = Pass::by_hand(&shared.closing, request, name, events.clone());
        let report = entry.run(shared, pass).await;
        if events.send(UpkeepEvent::Done(report)).await.is_err() || shared.closing.is_cancelled() {
            break;
        }
    }
    Ok(())
}

/// Whether all names that a request names are known.
pub(crate) fn check(request: &UpkeepRequest) -> Result<(), NoSuchUpkeep> {
    let unknown = |name: &&String| !NAMES.contains(&name.as_str());
    match request.only.iter().find(unknown) {
        Some(name) => Err(NoSuchUpkeep { name: name.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reconciler_is_named() {
        let upkeep = Upkeep::new();
        let names: Vec<_> = upkeep
            .0
            .iter()
            .map(|entry| entry.reconciler.name())
            .collect();
        assert_eq!(names, NAMES);
    }
}
