//! Places within long lists, so that a page far from the beginning need not count its way there.
//!
//! Of a list of all instances, or of those of a tenant or in a status, every so-manieth key is remembered with its rank, from the
//! oldest on. New instances come at the end and leave these ranks as they are; a removal, or a change of status where the list
//! is of one status, makes them worthless, and then a page is counted for until they are taken anew. So a page is
//! always exactly what `OFFSET` would give.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use runtara_domain::{Status, TenantId, Timestamp};
use sqlx::SqliteConnection;

use super::lists::{from_where, in_order};
use super::sql::{Columns, Sql};
use crate::{InstanceFilter, InstanceOrder, StoreResult};

/// How many rows lie between two keys that are remembered.
pub(super) const DISTANCE: u64 = 2_048;
/// From which offset on it is worth while.
pub(super) const FAR: u64 = 20_000;
/// Of how many lists keys are remembered at most.
const LISTS: usize = 16;

/// Which instances a list is of, where it is by tenant and status alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    tenant: Option<TenantId>,
    status: Option<Status>,
}

impl Scope {
    pub(super) fn of(filter: &InstanceFilter) -> Self {
        Self {
            tenant: filter.tenant_id.clone(),
            status: filter.status,
        }
    }

    fn filter(&self) -> InstanceFilter {
        InstanceFilter {
            tenant_id: self.tenant.clone(),
            status: self.status,
            ..InstanceFilter::default()
        }
    }
}

/// A remembered key: of the row of rank `DISTANCE`, of `2 * DISTANCE`, and so on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) created_at: i64,
    pub(super) instance_id: String,
}

#[derive(Debug)]
struct List {
    /// The state of the counters when its keys were taken, or when it was last asked for in vain.
    age: (u64, u64),
    keys: Option<Arc<[Key]>>,
    /// Whether anybody asked for it since keys were last taken in the background.
    asked: bool,
}

/// How a far page is found.
#[derive(Debug)]
pub(super) enum Known {
    /// By counting.
    Nothing,
    /// By keys that are worth taking now: nothing has changed since the list was last asked for.
    WorthTaking,
    /// By these keys.
    Keys(Arc<[Key]>),
}

/// How a change touches the lists that an instance is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Membership {
    /// It is new.
    Came,
    /// It has another status.
    Moved,
    /// It is gone.
    Left,
}

/// The remembered keys of lists, and what has happened since.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    /// How many instances were removed, or came with an earlier time than one before them.
    removed: AtomicU64,
    /// How many changed their status.
    moved: AtomicU64,
    /// The latest time of a start.
    latest: AtomicI64,
    lists: Mutex<HashMap<Scope, List>>,
}

impl Anchors {
    /// Notes a committed change, before anybody is told of it.
    pub(super) fn note(&self, created_at: Timestamp, membership: Membership) {
        let worthless = match membership {
            // A clock that was set back puts new instances among the old ones.
            Membership::Came => {
                created_at.0 < self.latest.fetch_max(created_at.0, Ordering::SeqCst)
            }
            Membership::Moved => {
                self.moved.fetch_add(1, Ordering::SeqCst);
                false
            }
            Membership::Left => true,
        };
        if worthless {
            self.removed.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn age(&self, scope: &Scope) -> (u64, u64) {
        let removed = self.removed.load(Ordering::SeqCst);
        let moved = scope.status.map(|_| self.moved.load(Ordering::SeqCst));
        (removed, moved.unwrap_or(0))
    }

    fn lists(&self) -> MutexGuard<'_, HashMap<Scope, List>> {
        // A map of whole values: a panic elsewhere cannot have left it half changed.
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether keys of a list are known, and notes that it was asked for.
    pub(super) fn look(&self, scope: &Scope) -> Known {
        let age = self.age(scope);
        let mut lists = self.lists();
        if !lists.contains_key(scope) && lists.len() >= LISTS {
            lists.retain(|_, list| list.asked);
            if lists.len() >= LISTS {
                return Known::Nothing;
            }
        }
        let list = lists.entry(scope.clone()).or_insert_with(|| List {
            age: (u64::MAX, u64::MAX),
            keys: None,
            asked: true,
        });
        list.asked = true;
        if list.age != age {
            *list = List {
                age,
                keys: None,
                asked: true,
            };
            return Known::Nothing;
        }
        match &list.keys {
            Some(keys) => Known::Keys(Arc::clone(keys)),
            None => Known::WorthTaking,
        }
    }

    /// Takes the keys of a list.
    pub(super) async fn take(
        &self,
        connection: &mut SqliteConnection,
        scope: &Scope,
    ) -> StoreResult<Arc<[Key]>> {
        let age = self.age(scope);
        let mut keys = Vec::new();
        let rows = keys_sql(scope).rows(connection, "taking keys of a list");
        for row in &rows.await? {
            let mut columns = Columns::of(row);
            keys.push(Key {
                created_at: columns.int()?,
                instance_id: columns.text()?,
            });
        }
        let newest = newest_sql(scope).row(connection, "taking keys of a list");
        let newest = match newest.await? {
            Some(row) => Columns::of(&row).int()?,
            None => 0,
        };
        // One that comes at the same moment may stand before the newest that are there, but not before older ones.
        self.latest.fetch_max(newest, Ordering::SeqCst);
        let old = keys.iter().position(|key| key.created_at >= newest);
        keys.truncate(old.unwrap_or(keys.len()));
        let keys: Arc<[Key]> = keys.into();
        if self.age(scope) == age
            && let Some(list) = self.lists().get_mut(scope)
        {
            list.age = age;
            list.keys = Some(Arc::clone(&keys));
        }
        Ok(keys)
    }

    /// The lists whose keys are to be taken anew: those that were asked for since this was last called, and have changed.
    pub(super) fn outdated(&self) -> Vec<Scope> {
        let mut outdated = Vec::new();
        for (scope, list) in self.lists().iter_mut() {
            let asked = std::mem::take(&mut list.asked);
            if asked && (list.keys.is_none() || list.age != self.age(scope)) {
                outdated.push(scope.clone());
            }
        }
        outdated
    }
}

/// The keys of the ranks that are remembered, in their order.
pub(super) fn keys_sql(scope: &Scope) -> Sql {
    let mut sql = Sql::new(
        "select created_at, instance_id from (select i.created_at, i.instance_id, \
         row_number() over (order by i.created_at, i.instance_id) as n",
    );
    let filter = scope.filter();
    let driver = in_order(&filter, InstanceOrder::CreatedAscending);
    from_where(&mut sql, &filter, driver);
    sql.push(") where n % ? = 0").bind_u64(DISTANCE);
    sql
}

fn newest_sql(scope: &Scope) -> Sql {
    let mut sql = Sql::new("select i.created_at");
    let filter = scope.filter();
    let driver = in_order(&filter, InstanceOrder::CreatedAscending);
    from_where(&mut sql, &filter, driver);
    sql.push(" order by i.created_at desc, i.instance_id desc limit 1");
    sql
}

/// From where a page is counted for, in place of the beginning of its list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortcut {
    /// The row of this key is the first that is counted.
    pub(super) key: Key,
    /// How many rows are left out from there on.
    pub(super) skipped: u64,
}

/// The shortcut to the row at an offset of a list of so many rows; none if the beginning is as near.
pub(super) fn shortcut(keys: &[Key], ascending: bool, rows: u64, offset: u64) -> Option<Shortcut> {
    // Ranks are counted from 1, from the oldest row on.
    let (at, skipped) = if ascending {
        let rank = offset + 1;
        let known = (rank / DISTANCE).min(keys.len() as u64);
        (known, rank - known * DISTANCE)
    } else {
        let rank = rows.checked_sub(offset)?;
        let known = rank.div_ceil(DISTANCE);
        (known, known * DISTANCE - rank)
    };
    let key = keys.get(usize::try_from(at.checked_sub(1)?).ok()?)?;
    Some(Shortcut {
        key: key.clone(),
        skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(how_many: u64) -> Vec<Key> {
        let key = |number| Key {
            created_at: (number * DISTANCE) as i64,
            instance_id: String::new(),
        };
        (1..=how_many).map(key).collect()
    }

    #[test]
    fn a_shortcut_leads_to_the_row_of_the_offset() {
        // The row of rank n was started at time n.
        let rows = 10 * DISTANCE + 77;
        for offset in [0, 1, DISTANCE - 1, DISTANCE, 5 * DISTANCE + 3, rows - 1] {
            let reached = |ascending| {
                let found = shortcut(&keys(10), ascending, rows, offset)?;
                let at = found.key.created_at as u64;
                Some(if ascending {
                    at + found.skipped
                } else {
                    at - found.skipped
                })
            };
            if let Some(rank) = reached(true) {
                assert_eq!(rank, offset + 1, "ascending {offset}");
            }
            if let Some(rank) = reached(false) {
                assert_eq!(rank, rows - offset, "descending {offset}");
            }
        }
        assert!(shortcut(&keys(10), true, rows, DISTANCE).is_some());
        assert!(shortcut(&keys(10), false, rows, DISTANCE).is_some());
    }

    #[test]
    fn keys_are_forgotten_when_ranks_change() {
        let anchors = Anchors::default();
        let all = Scope::of(&InstanceFilter::default());
        let running = Scope {
            tenant: None,
            status: Some(Status::Running),
        };
        let is_known = |scope: &Scope| {
            let known = matches!(anchors.look(scope), Known::Keys(_));
            let age = anchors.age(scope);
            let mut lists = anchors.lists();
            let list = lists.get_mut(scope).unwrap();
            (list.age, list.keys) = (age, Some(keys(1).into()));
            known
        };
        assert!(!is_known(&all) && !is_known(&running));
        assert!(is_known(&all) && is_known(&running));
        anchors.note(Timestamp(5), Membership::Came);
        assert!(is_known(&all) && is_known(&running));
        anchors.note(Timestamp(5), Membership::Moved);
        assert!(is_known(&all) && !is_known(&running));
        anchors.note(Timestamp(4), Membership::Came);
        assert!(!is_known(&all) && !is_known(&running));
        anchors.note(Timestamp(5), Membership::Left);
        assert!(!is_known(&all));
    }
}
