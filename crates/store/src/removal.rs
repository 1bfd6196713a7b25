//! How ended instances are removed when their time is over.
//!
//! An instance may have a million events, and one statement that removes them all would keep others waiting. So it is first taken away
//! ([`Store::remove_ended`](crate::Store::remove_ended)): from then on it is gone for everybody, whatever is left of it. That is removed in
//! pieces ([`Store::remove_remains`](crate::Store::remove_remains)), by whoever comes next if the server is killed in between.

use runtara_domain::{InstanceId, Status, TenantId, Timestamp};

/// Whose instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owners {
    /// Those of this tenant.
    Only(TenantId),
    /// Those of all tenants but these.
    AllBut(Vec<TenantId>),
}

impl Owners {
    /// Whether a tenant is among them.
    #[must_use]
    pub fn contains(&self, tenant: &TenantId) -> bool {
        match self {
            Self::Only(only) => only == tenant,
            Self::AllBut(others) => !others.contains(tenant),
        }
    }
}

/// A place in the order in which instances ended. Ties are settled by id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EndPlace {
    /// When the instance ended.
    pub finished_at: Timestamp,
    /// Which it is.
    pub instance_id: InstanceId,
}

/// A demand for ended instances whose time is over. All conditions must be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// Whose they are.
    pub owners: Owners,
    /// How they ended.
    pub statuses: Vec<Status>,
    /// For how many milliseconds, by the store's clock, they have been ended at least.
    pub ended_ms: u64,
    /// After this place.
    pub after: Option<EndPlace>,
    /// How many ended instances are looked at, whether they are meant or not. What it costs is bounded by that.
    pub limit: u32,
}

/// An ended instance whose time is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedInstance {
    /// Its id.
    pub instance_id: InstanceId,
    /// Its owner.
    pub tenant_id: TenantId,
    /// How it ended.
    pub status: Status,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// Ended instances whose time is over, oldest end first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExpiredPage {
    /// Those that can be removed.
    pub instances: Vec<EndedInstance>,
    /// Whether there were some that are meant, and whose process may still live: they are to be looked for again.
    pub leaving: bool,
    /// The last place that was looked at, if any was.
    pub reached: Option<EndPlace>,
    /// Whether there may be more after that.
    pub more: bool,
}

impl ExpiredPage {
    /// Adds what was looked at, in its order. `live` says whether its process may still live.
    pub(crate) fn look_at(&mut self, demand: &Expired, ended: EndedInstance, live: bool) {
        self.reached = Some(EndPlace {
            finished_at: ended.finished_at,
            instance_id: ended.instance_id.clone(),
        });
        if !demand.statuses.contains(&ended.status) || !demand.owners.contains(&ended.tenant_id) {
            return;
        }
        if live {
            self.leaving = true;
        } else {
            self.instances.push(ended);
        }
    }
}

/// What came of a demand to remove remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remains {
    /// How many rows were removed: checkpoints, events, waits, signals.
    pub rows: u64,
    /// How many bytes the states of these checkpoints and the payloads of these events had.
    pub bytes: u64,
    /// Whether there may be more.
    pub more: bool,
}

/// What one piece of a removal may cost. A row counts as one, and as one more for each so many bytes that it carries.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) const WEIGHT_BYTES: i64 = 64 * 1024;
/// How many instances that were taken away are looked at for one piece.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) const INSTANCES_AT_ONCE: u32 = 100;
/// Most rows of a piece when somebody waits for all pieces.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) const PIECE: u32 = 1_000;
