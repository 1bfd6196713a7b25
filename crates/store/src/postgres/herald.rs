//! Tells other nodes that something is due.
//!
//! A notification inside each transaction would halve the rate of commits, because PostgreSQL commits those one after the other. So it
//! is a statement of its own, after the commit, at most one in [`PAUSE`], and only while another node is registered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::PgPool;

/// The channel on which nodes are told that something is due.
pub(super) const CHANNEL: &str = "runtara_due";
/// Between two notifications.
const PAUSE: Duration = Duration::from_millis(10);

/// Sends notifications for one store.
#[derive(Clone)]
pub(super) struct Herald(Arc<Inner>);

struct Inner {
    pool: PgPool,
    others: AtomicBool,
    under_way: AtomicBool,
}

impl Herald {
    pub(super) fn new(pool: PgPool) -> Self {
        Self(Arc::new(Inner {
            pool,
            others: AtomicBool::new(false),
            under_way: AtomicBool::new(false),
        }))
    }

    /// Notes whether other nodes are registered.
    pub(super) fn set_others(&self, others: bool) {
        self.0.others.store(others, Ordering::Relaxed);
    }

    /// Has the other nodes told soon. One that is not told finds out when it looks by itself.
    pub(super) fn due(&self) {
        if !self.0.others.load(Ordering::Relaxed) || self.0.under_way.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::clone(&self.0);
        // Ends by itself after the pause and one statement with its time limit.
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            // What becomes due from here on may be too late for this statement.
            inner.under_way.store(false, Ordering::Release);
            let sent = sqlx::query("select pg_notify($1, '')")
                .bind(CHANNEL)
                .execute(&inner.pool);
            if let Err(error) = sent.await {
                tracing::debug!(%error, "could not tell other nodes that something is due");
            }
        });
    }
}
