//! The nodes that share a database: with SQLite one at a time.

use runtara_domain::{NodeId, Timestamp, limits};

use super::failure::broken;
use super::sql::{Columns, Sql};
use super::tx::Tx;
use crate::{NodeLease, NodeStanding, StoreResult};

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
    let mut sql = Sql::default();
    sql.then(
        "insert into runtara_nodes as n (node_id, name, lease_until, up_since) values (?, ?, ?, ?) \
         on conflict (node_id) do update \
         set name = excluded.name, lease_until = excluded.lease_until, \
         up_since = case when n.lease_until <= excluded.up_since then excluded.up_since else n.up_since end",
    )
    .bind(lease.node.to_string())
    .bind(lease.name.as_str())
    .bind_time(tx.now.plus_millis(lease.lease_ms))
    .bind_time(tx.now);
    tx.execute(sql)?;
    Ok(NodeStanding {
        others: u32::try_from(others.len()).unwrap_or(u32::MAX),
    })
}

/// Takes a node off the list, if no run is recorded as live on it.
pub(super) fn release(tx: &mut Tx, node: NodeId) -> StoreResult<()> {
    let mut sql = Sql::default();
    sql.then(
        "delete from runtara_nodes where node_id = ? and not exists \
         (select 1 from runtara_instances i where i.live_node = runtara_nodes.node_id)",
    )
    .bind(node.to_string());
    tx.execute(sql)?;
    Ok(())
}

/// Takes nodes off the list that died long ago, after their runs were taken for lost.
pub(super) fn forget_dead(tx: &mut Tx, me: NodeId) -> StoreResult<()> {
    let mut sql = Sql::default();
    sql.then(
        "delete from runtara_nodes where node_id <> ? and lease_until <= ? and not exists \
         (select 1 from runtara_instances i where i.live_node = runtara_nodes.node_id)",
    )
    .bind(me.to_string())
    .bind_time(Timestamp(
        tx.now.0.saturating_sub_unsigned(limits::NODE_KEPT_MS),
    ));
    tx.execute(sql)
}
