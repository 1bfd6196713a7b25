//! One time that a reconciler is done.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{UpkeepEvent, UpkeepRequest};

/// How often it is said how far it is.
const PROGRESS: Duration = Duration::from_secs(1);
/// The shortest and the longest pause between two batches.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));

/// One time that a reconciler is done: as a chore or by hand, in earnest or not.
pub(crate) struct Pass {
    /// Whether nothing is removed, and only said what would be.
    pub(crate) dry_run: bool,
    closing: CancellationToken,
    /// When a chore is to give way to the next time.
    deadline: Option<Instant>,
    /// Who listens, if it is done by hand.
    listener: Option<Listener>,
    most_names: usize,
    counted: Mutex<Counted>,
}

struct Listener {
    name: &'static str,
    events: mpsc::Sender<UpkeepEvent>,
    told: Mutex<Instant>,
}

/// What was removed.
#[derive(Debug, Clone, Default)]
pub(super) struct Counted {
    pub(super) items: u64,
    pub(super) bytes: u64,
    pub(super) names: Vec<String>,
    pub(super) stopped: bool,
}

impl Pass {
    pub(super) fn chore(closing: &CancellationToken, budget: Duration) -> Self {
        Self {
            dry_run: false,
            closing: closing.clone(),
            deadline: Some(Instant::now() + budget),
            listener: None,
            most_names: 0,
            counted: Mutex::default(),
        }
    }

    pub(super) fn by_hand(
        closing: &CancellationToken,
        request: &UpkeepRequest,
        name: &'static str,
        events: mpsc::Sender<UpkeepEvent>,
    ) -> Self {
        Self {
            dry_run: request.dry_run,
            closing: closing.clone(),
            deadline: None,
            listener: Some(Listener {
                name,
                events,
                told: Mutex::new(Instant::now()),
            }),
            most_names: request.names,
            counted: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counted(&self) -> Counted {
        self.lock().clone()
    }

    /// Whether somebody asked for it.
    pub(super) fn is_by_hand(&self) -> bool {
        self.listener.is_some()
    }

    /// Whether no further batch is to begin. To be asked when there is more to do: it counts as stopped then.
    pub(super) fn is_over(&self) -> bool {
        let is_late = self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline);
        let is_alone = self
            .listener
            .as_ref()
            .is_some_and(|listener| listener.events.is_closed());
        let is_over = is_late || is_alone || self.closing.is_cancelled();
        if is_over {
            self.lock().stopped = true;
        }
        is_over
    }

    /// Notes that there may be more than was looked at.
    pub(super) fn ends_early(&self) {
        self.lock().stopped = true;
    }

    /// Counts something that was removed, or would be.
    pub(super) fn item(&self, name: impl FnOnce() -> String, bytes: u64) {
        let mut counted = self.lock();
        counted.items += 1;
        counted.bytes += bytes;
        if counted.names.len() < self.most_names {
            counted.names.push(name());
        }
        self.tell(&counted);
    }

    /// Counts so many things that go by one name.
    pub(super) fn items(&self, items: u64, name: impl FnOnce() -> String) {
        if items == 0 {
            return;
        }
        let mut counted = self.lock();
        counted.items += items;
        if counted.names.len() < self.most_names {
            counted.names.push(name());
        }
        self.tell(&counted);
    }

    /// Counts bytes of what was counted already.
    pub(super) fn bytes(&self, bytes: u64) {
        let mut counted = self.lock();
        counted.bytes += bytes;
        self.tell(&counted);
    }

    fn tell(&self, counted: &Counted) {
        let Some(listener) = &self.listener else {
            return;
        };
        let mut told = listener.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() < PROGRESS {
            return;
        }
        *told = Instant::now();
        // Whoever is behind is told the next time.
        let _behind = listener.events.try_send(UpkeepEvent::Progress {
            name: listener.name,
            items: counted.items,
            bytes: counted.bytes,
        });
    }

    /// Lets others have their turn for as long as a batch took.
    pub(super) async fn give_way(&self, took: Duration) {
        tokio::select! {
            () = self.closing.cancelled() => {}
            () = sleep(took.clamp(PAUSES.0, PAUSES.1)) => {}
        }
    }
}
