//! What nodes tell a store of themselves, and what they are told.

use runtara_domain::{NodeId, NodeKey, Timestamp};

/// What a node says of itself when it registers, or renews its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLease {
    /// The node.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// How long the lease lasts from now, in milliseconds.
    pub lease_ms: u64,
    /// Whether its runs are ended, whatever hangs, if the lease cannot be renewed in time. Those of one that is not guarded are taken over
    /// only after it has had the time to learn that it is not alone.
    pub guarded: bool,
    /// Where other nodes reach it, as `host:port`.
    pub address: Option<String>,
    /// What they show for themselves there.
    pub key: Option<NodeKey>,
    /// The room for runs that it has.
    pub capacity: u64,
    /// How much of it is taken.
    pub used: u64,
}

impl NodeLease {
    /// The lease of a node that says nothing else of itself.
    #[must_use]
    pub fn new(node: NodeId, name: impl Into<String>, lease_ms: u64) -> Self {
        Self {
            node,
            name: name.into(),
            lease_ms,
            guarded: false,
            address: None,
            key: None,
            capacity: 0,
            used: 0,
        }
    }
}

/// How a node stands among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeStanding {
    /// How many other nodes are registered, with a lease that lasts or not.
    pub others: u32,
    /// In how many milliseconds the next lease of another node ends, unless that node renews it; `None` if none lasts.
    pub next_end_in_ms: Option<u64>,
    /// Whether it had a lease until now. If not, others may have taken its runs over.
    pub lasted: bool,
    /// If it is being drained: in how many milliseconds what still runs on it is to be handed over, 0 if now.
    pub drain_in_ms: Option<u64>,
}

/// A node as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its id.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    /// Where other nodes reach it.
    pub address: Option<String>,
    /// What they show for themselves there.
    pub key: Option<NodeKey>,
    /// The room for runs that it has.
    pub capacity: u64,
    /// How much of it was taken when it said so last.
    pub used: u64,
    /// How many runs are recorded as live on it.
    pub live_runs: u64,
    /// When it joined.
    pub registered_at: Timestamp,
    /// How much longer its lease lasts, in milliseconds; negative if it is over, for so long.
    pub lease_in_ms: i64,
    /// If it is being drained: in how many milliseconds what still runs on it is handed over, 0 if now.
    pub drain_in_ms: Option<u64>,
    /// Whether it was removed, and its last runs are just being taken over.
    pub removed: bool,
}

/// What came of a demand to remove a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRemoval {
    /// It is gone, or will be once its runs, so many, are taken over: [`crate::Store::expire_nodes`] does that at once.
    Removed {
        /// How many runs were recorded as live on it.
        live_runs: u64,
    },
    /// There is none of that id.
    NotFound,
    /// It lives: its lease lasts this much longer.
    Alive {
        /// In milliseconds.
        lease_in_ms: u64,
    },
}
