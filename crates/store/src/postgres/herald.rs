//! Tells other nodes that something is due, or that an instance changed that one of them may mind or wait for.
//!
//! A notification inside each transaction would halve the rate of commits, because PostgreSQL commits those one after the other. So it
//! is a statement of its own, after the commit, at most one in [`PAUSE`], and only while another node is registered. What is not told, because
//! this process dies meanwhile, is found when the others look by themselves.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use runtara_domain::InstanceId;
use sqlx::PgPool;
use tokio::sync::watch;
use uuid::Uuid;

/// The channel on which nodes are told that something is due.
pub(super) const DUE: &str = "runtara_due";
/// That instances changed. The payload is who says so, and then their ids, each in a line of its own; without ids it may be any.
pub(super) const CHANGED: &str = "runtara_changed";
/// That somebody asked something of a node.
pub(super) const NODES: &str = "runtara_nodes";
/// Between two notifications.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest payload of a notification; PostgreSQL allows less than 8,000 bytes.
const PAYLOAD_BYTES: usize = 7_900;
/// More ids than this are not told one by one.
const MOST_IDS: usize = 10_000;

/// Sends notifications for one store.
#[derive(Clone)]
pub(super) struct Herald(Arc<Inner>);

struct Inner {
    pool: PgPool,
    /// By this a listener of this store knows what it has said itself.
    sender: String,
    others: watch::Sender<bool>,
    under_way: AtomicBool,
    untold: Mutex<Untold>,
}

#[derive(Default)]
struct Untold {
    due: bool,
    nodes: bool,
    changed: HashSet<InstanceId>,
}

impl Herald {
    pub(super) fn new(pool: PgPool) -> Self {
        Self(Arc::new(Inner {
            pool,
            sender: Uuid::new_v4().simple().to_string(),
            others: watch::Sender::new(false),
            under_way: AtomicBool::new(false),
            untold: Mutex::default(),
        }))
    }

    /// Notes whether other nodes are registered.
    pub(super) fn set_others(&self, others: bool) {
        self.0
            .others
            .send_if_modified(|known| std::mem::replace(known, others) != others);
    }

    /// Tells whether other nodes are registered, now and whenever that changes.
    pub(super) fn others(&self) -> watch::Receiver<bool> {
        self.0.others.subscribe()
    }

    /// What stands before the ids of this store's notifications.
    pub(super) fn sender(&self) -> &str {
        &self.0.sender
    }

    /// Has the other nodes told soon that something is due. One that is not told finds out when it looks by itself.
    pub(super) fn due(&self) {
        self.tell(|untold| untold.due = true);
    }

    /// The same, that somebody asked something of a node.
    pub(super) fn nodes(&self) {
        self.tell(|untold| untold.nodes = true);
    }

    /// The same, that an instance changed.
    pub(super) fn changed(&self, id: &InstanceId) {
        self.tell(|untold| {
            if untold.changed.len() <= MOST_IDS {
                untold.changed.insert(id.clone());
            }
        });
    }

    fn tell(&self, note: impl FnOnce(&mut Untold)) {
        if !*self.0.others.borrow() {
            return;
        }
        note(&mut self.0.lock());
        if self.0.under_way.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::clone(&self.0);
        // Ends by itself after the pause and one statement with its time limit.
        tokio::spawn(async move {
            tokio::time::sleep(PAUSE).await;
            // What comes from here on may be too late for this statement.
            inner.under_way.store(false, Ordering::Release);
            let untold = std::mem::take(&mut *inner.lock());
            let (channels, payloads) = notifications(&inner.sender, untold);
            let sent = sqlx::query(
                "select pg_notify(t.channel, t.payload) from unnest($1::text[], $2::text[]) as t (channel, payload)",
            )
            .bind(channels)
            .bind(payloads)
            .execute(&inner.pool);
            if let Err(error) = sent.await {
                tracing::debug!(%error, "could not tell other nodes what changed");
            }
        });
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Untold> {
        // Flags and a set of plain values: a panic elsewhere cannot have left them half changed.
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts into as few notifications as can be what is to be told: their channels and payloads.
fn notifications(sender: &str, untold: Untold) -> (Vec<&'static str>, Vec<String>) {
    let (mut channels, mut payloads) = (Vec::new(), Vec::new());
    let mut add = |channel, payload| {
        channels.push(channel);
        payloads.push(payload);
    };
    if untold.due {
        add(DUE, sender.to_owned());
    }
    if untold.nodes {
        add(NODES, sender.to_owned());
    }
    if untold.changed.len() > MOST_IDS {
        add(CHANGED, sender.to_owned());
        return (channels, payloads);
    }
    let mut payload = sender.to_owned();
    for id in untold.changed {
        if payload.len() + 1 + id.as_str().len() > PAYLOAD_BYTES {
            add(CHANGED, std::mem::replace(&mut payload, sender.to_owned()));
        }
        payload.push('\n');
        payload.push_str(id.as_str());
    }
    if payload.len() > sender.len() {
        add(CHANGED, payload);
    }
    (channels, payloads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> HashSet<InstanceId> {
        let id = |n| InstanceId::new(format!("{n:0>200}")).unwrap();
        (0..count).map(id).collect()
    }

    #[test]
    fn many_ids_are_told_in_pieces_that_postgresql_takes() {
        let changed = ids(1_000);
        let untold = Untold {
            due: true,
            nodes: true,
            changed: changed.clone(),
        };
        let (channels, payloads) = notifications("me", untold);
        assert_eq!(channels[..2], [DUE, NODES]);
        assert!(channels[2..].iter().all(|channel| *channel == CHANGED));
        assert!(payloads.iter().all(|payload| payload.len() < 8_000));
        let mut told = HashSet::new();
        for payload in &payloads[2..] {
            let (sender, rest) = payload.split_once('\n').unwrap();
            assert_eq!(sender, "me");
            told.extend(rest.lines().map(|id| InstanceId::new(id).unwrap()));
        }
        assert_eq!(told, changed);
    }

    #[test]
    fn too_many_ids_are_told_as_all() {
        let untold = Untold {
            changed: ids(MOST_IDS + 1),
            ..Untold::default()
        };
        let (channels, payloads) = notifications("me", untold);
        assert_eq!((channels, payloads), (vec![CHANGED], vec!["me".to_owned()]));
        let nothing = notifications("me", Untold::default());
        assert!(nothing.0.is_empty());
    }
}
