//! The nodes that share a database: with SQLite one at a time.

use runtara_domain::{NodeId, NodeKey, Timestamp, limits};

use super::failure::broken;
use super::sql::{Columns, Row, Sql};
use super::tx::Tx;
use crate::{NodeLease, NodeRecord, NodeRemoval, NodeStanding, StoreResult};

/// Registers a node, or renews its lease; unless `several` may be, not while another has one that lasts.
pub(super) fn renew(tx: &mut Tx, lease: &NodeLease, several: bool) -> StoreResult<NodeStanding> {
    let mut sql = Sql::new(
        "select node_id, name, lease_until from runtara_nodes where node_id <> ? \
         order by lease_until desc",
    );
    sql.bind(lease.node.to_string());
    let others = tx.rows(&sql, "looking for other nodes")?;
    if let Some(latest) = others.first().filter(|_| !several) {
        let mut columns = Columns::of(latest);
        let (node, name, until) = (columns.text()?, columns.text()?, columns.time()?);
        if until > tx.now {
            let left = until.millis_since(tx.now);
            return Err(broken(format!(
                "node {name:?} ({node}) is registered in this SQLite database for {left} ms more, and SQLite serves one node \
                 at a time; wait for that, keep its data directory, or use PostgreSQL for several nodes"
            )));
        }
    }
    let before = standing(tx, lease.node)?;
    let mut sql = Sql::default();
    sql.then(
        "insert into runtara_nodes as n \
         (node_id, name, lease_until, registered_at, guarded, address, key, capacity, used) \
         values (?, ?, ?, ?, ?, ?, ?, ?, ?) \
         on conflict (node_id) do update \
         set name = excluded.name, lease_until = excluded.lease_until, guarded = excluded.guarded, \
         address = excluded.address, key = excluded.key, capacity = excluded.capacity, \
         used = excluded.used, removed = 0, \
         registered_at = case when n.lease_until <= excluded.registered_at or n.removed = 1 \
         then excluded.registered_at else n.registered_at end",
    )
    .bind(lease.node.to_string())
    .bind(lease.name.as_str())
    .bind_time(tx.now.plus_millis(lease.lease_ms))
    .bind_time(tx.now)
    .bind(i64::from(lease.guarded))
    .bind(lease.address.as_deref())
    .bind(lease.key.as_ref().map(NodeKey::expose))
    .bind_u64(lease.capacity)
    .bind_u64(lease.used);
    tx.execute(sql)?;
    let mut ends = Vec::new();
    for row in &others {
        let mut columns = Columns::of(row);
        let (_node, _name) = (columns.text()?, columns.text()?);
        ends.push(columns.time()?.millis_since(tx.now));
    }
    Ok(NodeStanding {
        next_end_in_ms: ends.into_iter().filter(|ms| *ms > 0).min(),
        others: u32::try_from(others.len()).unwrap_or(u32::MAX),
        lasted: before.as_ref().is_some_and(|node| node.lasts(tx.now)),
        drain_in_ms: before.and_then(|node| Some(node.drain_by?.millis_since(tx.now))),
    })
}

/// How a node stands.
struct Standing {
    lease_until: Timestamp,
    drain_by: Option<Timestamp>,
    removed: bool,
}

impl Standing {
    fn lasts(&self, now: Timestamp) -> bool {
        self.lease_until > now && !self.removed
    }
}

fn standing(tx: &mut Tx, node: NodeId) -> StoreResult<Option<Standing>> {
    let mut sql =
        Sql::new("select lease_until, drain_by, removed from runtara_nodes where node_id = ?");
    sql.bind(node.to_string());
    let Some(row) = tx.row(&sql, "looking for a node")? else {
        return Ok(None);
    };
    let mut columns = Columns::of(&row);
    Ok(Some(Standing {
        lease_until: columns.time()?,
        drain_by: columns.opt_time()?,
        removed: columns.flag()?,
    }))
}

/// Whether a node is given what is due.
pub(super) fn may_claim(tx: &mut Tx, node: NodeId) -> StoreResult<bool> {
    let found = standing(tx, node)?;
    Ok(found.is_some_and(|node| node.lasts(tx.now) && node.drain_by.is_none()))
}

/// All nodes, by name.
pub(super) fn list(tx: &mut Tx) -> StoreResult<Vec<NodeRecord>> {
    let mut sql = Sql::new(
        "select n.node_id, n.name, n.address, n.key, n.capacity, n.used, \
         (select count(*) from runtara_instances i where i.live_node = n.node_id), \
         n.registered_at, n.lease_until, n.drain_by, n.removed \
         from runtara_nodes n order by n.name, n.node_id limit ?",
    );
    sql.bind(limits::NODES_LISTED);
    let rows = tx.rows(&sql, "listing nodes")?;
    rows.iter().map(|row| record(row, tx.now)).collect()
}

fn record(row: &Row, now: Timestamp) -> StoreResult<NodeRecord> {
    let mut columns = Columns::of(row);
    Ok(NodeRecord {
        node: columns.parsed()?,
        name: columns.text()?,
        address: columns.opt_text()?,
        key: columns.opt_text()?.as_deref().and_then(NodeKey::parse),
        capacity: columns.number()?,
        used: columns.number()?,
        live_runs: columns.number()?,
        registered_at: columns.time()?,
        lease_in_ms: columns.time()?.0.saturating_sub(now.0),
        drain_in_ms: columns.opt_time()?.map(|by| by.millis_since(now)),
        removed: columns.flag()?,
    })
}

/// Has a node drained, or go on.
pub(super) fn drain(
    tx: &mut Tx,
    node: NodeId,
    hand_over_after_ms: Option<u64>,
) -> StoreResult<bool> {
    if standing(tx, node)?.is_none() {
        return Ok(false);
    }
    let mut sql = Sql::default();
    sql.then("update runtara_nodes set drain_by = ? where node_id = ?")
        .bind_opt_time(hand_over_after_ms.map(|ms| tx.now.plus_millis(ms)))
        .bind(node.to_string());
    tx.execute(sql)?;
    Ok(true)
}

/// Takes a node for one that does not come back, if its lease is over.
pub(super) fn remove(tx: &mut Tx, node: NodeId) -> StoreResult<NodeRemoval> {
    let Some(found) = standing(tx, node)? else {
        return Ok(NodeRemoval::NotFound);
    };
    if found.lasts(tx.now) {
        let lease_in_ms = found.lease_until.millis_since(tx.now);
        return Ok(NodeRemoval::Alive { lease_in_ms });
    }
    let mut sql = Sql::default();
    sql.then("update runtara_nodes set removed = 1 where node_id = ?")
        .bind(node.to_string());
    tx.execute(sql)?;
    let mut sql = Sql::new("select count(*) from runtara_instances where live_node = ?");
    sql.bind(node.to_string());
    let row = tx.row(&sql, "counting the runs of a node")?;
    let live_runs = row.map_or(Ok(0), |row| Columns::of(&row).number())?;
    Ok(NodeRemoval::Removed { live_runs })
}

/// Takes a node off the list, if no run is recorded as live on it; one that is drained stays, with its lease over.
pub(super) fn release(tx: &mut Tx, node: NodeId) -> StoreResult<()> {
    let mut sql = Sql::default();
    sql.then(
        "update runtara_nodes set lease_until = min(lease_until, ?) \
          where node_id = ? and drain_by is not null and not exists \
         (select 1 from runtara_instances i where i.live_node = runtara_nodes.node_id)",
    )
    .bind_time(tx.now)
    .bind(node.to_string());
    sql.then(
        "delete from runtara_nodes where node_id = ? and drain_by is null and not exists \
         (select 1 from runtara_instances i where i.live_node = runtara_nodes.node_id)",
    )
    .bind(node.to_string());
    tx.execute(sql)?;
    Ok(())
}

/// Takes nodes off the list that were removed, or died long ago, after their runs were taken for lost.
pub(super) fn forget_dead(tx: &mut Tx, me: NodeId) -> StoreResult<()> {
    let mut sql = Sql::default();
    sql.then(
        "delete from runtara_nodes where node_id <> ? and (removed = 1 or lease_until <= ?) and not exists \
         (select 1 from runtara_instances i where i.live_node = runtara_nodes.node_id)",
    )
    .bind(me.to_string())
    .bind_time(Timestamp(
        tx.now.0.saturating_sub_unsigned(limits::NODE_KEPT_MS),
    ));
    tx.execute(sql)
}
