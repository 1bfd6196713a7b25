//! Nodes and their leases.

use runtara_domain::{Change, InstanceId, NodeId, NodeKey, Refusal, RunExit, Timestamp, limits};
use sqlx::postgres::PgRow;

use crate::{NodeLease, NodeRecord, NodeRemoval, NodeStanding};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::{Answer, Fault};
use super::{instances, row};

/// Registers a node or renews its lease, and counts the others, in one statement.
pub(super) async fn renew(store: &PostgresStore, lease: NodeLease) -> Answer<NodeStanding> {
    let found = sqlx::query(
        "with before as (
             select lease_until > runtara_now() and not removed as lasted,
                    case when drain_by is not null then greatest(drain_by - runtara_now(), 0) end as drain_in_ms
               from runtara_nodes where node_id = $1 for update
         ),
         renewed as (
             insert into runtara_nodes as n
                    (node_id, name, registered_at, lease_until, guarded, address, key, capacity, used)
             values ($1, $2, runtara_now(), runtara_now() + $3, $4, $5, $6, $7, $8)
             on conflict (node_id) do update
                set name = excluded.name, lease_until = excluded.lease_until, guarded = excluded.guarded,
                    address = excluded.address, key = excluded.key, capacity = excluded.capacity, used = excluded.used,
                    removed = false,
                    registered_at = case when n.lease_until <= runtara_now() or n.removed then runtara_now() else n.registered_at end
         )
         select count(*) as others,
                min(lease_until) filter (where lease_until > runtara_now()) - runtara_now() as next_end_in_ms,
                coalesce((select lasted from before), false) as lasted,
                (select drain_in_ms from before) as drain_in_ms
           from runtara_nodes where node_id <> $1",
    )
    .bind(lease.node.to_string())
    .bind(row::without_nul(&lease.name).into_owned())
    .bind(row::signed(lease.lease_ms).min(i64::MAX / 4))
    .bind(lease.guarded)
    .bind(lease.address)
    .bind(lease.key.as_ref().map(|key| key.expose().to_owned()))
    .bind(row::signed(lease.capacity))
    .bind(row::signed(lease.used))
    .one_on(&store.connections)
    .await?;
    let others = u32::try_from(row::get::<i64>(&found, "others")?).unwrap_or(u32::MAX);
    store.herald.set_others(others > 0);
    Ok(NodeStanding {
        others,
        next_end_in_ms: row::get::<Option<i64>>(&found, "next_end_in_ms")?.map(row::unsigned),
        lasted: row::get(&found, "lasted")?,
        drain_in_ms: row::get::<Option<i64>>(&found, "drain_in_ms")?.map(row::unsigned),
    })
}

/// All nodes, by name.
pub(super) async fn list(store: &PostgresStore) -> Answer<Vec<NodeRecord>> {
    let rows = sqlx::query(
        "select node_id, name, address, key, capacity, used, registered_at, lease_until - runtara_now() as lease_in_ms,
                case when drain_by is not null then greatest(drain_by - runtara_now(), 0) end as drain_in_ms, removed,
                (select count(*) from runtara_instances i where i.live_node = n.node_id) as live_runs
           from runtara_nodes n order by name, node_id limit $1",
    )
    .bind(i64::from(limits::NODES_LISTED))
    .all_on(&store.connections)
    .await?;
    rows.iter().map(record).collect()
}

fn record(found: &PgRow) -> Answer<NodeRecord> {
    Ok(NodeRecord {
        node: row::node(found, "node_id")?
            .ok_or_else(|| Fault::Stored("a node has no id".to_owned()))?,
        name: row::get(found, "name")?,
        address: row::get(found, "address")?,
        key: row::get::<Option<&str>>(found, "key")?.and_then(NodeKey::parse),
        capacity: row::unsigned(row::get(found, "capacity")?),
        used: row::unsigned(row::get(found, "used")?),
        live_runs: row::unsigned(row::get(found, "live_runs")?),
        registered_at: Timestamp(row::get(found, "registered_at")?),
        lease_in_ms: row::get(found, "lease_in_ms")?,
        drain_in_ms: row::get::<Option<i64>>(found, "drain_in_ms")?.map(row::unsigned),
        removed: row::get(found, "removed")?,
    })
}

/// Has a node drained, or go on.
pub(super) async fn drain(
    store: &PostgresStore,
    node: NodeId,
    hand_over_after_ms: Option<u64>,
) -> Answer<bool> {
    let changed =
        sqlx::query("update runtara_nodes set drain_by = runtara_now() + $2 where node_id = $1")
            .bind(node.to_string())
            .bind(hand_over_after_ms.map(|ms| row::signed(ms).min(i64::MAX / 4)))
            .execute(&store.connections.pool)
            .await?;
    store.nudges.node_asked();
    store.herald.nodes();
    Ok(changed.rows_affected() > 0)
}

/// Takes a node for one that does not come back, if its lease is over.
pub(super) async fn remove(store: &PostgresStore, node: NodeId) -> Answer<NodeRemoval> {
    let found = sqlx::query(
        "with removed as (
             update runtara_nodes set removed = true
              where node_id = $1 and (removed or lease_until <= runtara_now())
          returning node_id
         )
         select exists (select from removed) as removed, n.lease_until - runtara_now() as lease_in_ms,
                (select count(*) from runtara_instances i where i.live_node = n.node_id) as live_runs
           from runtara_nodes n where n.node_id = $1",
    )
    .bind(node.to_string())
    .optional_on(&store.connections)
    .await?;
    let Some(found) = found else {
        return Ok(NodeRemoval::NotFound);
    };
    if row::get(&found, "removed")? {
        let live_runs = row::unsigned(row::get(&found, "live_runs")?);
        return Ok(NodeRemoval::Removed { live_runs });
    }
    let lease_in_ms = row::unsigned(row::get(&found, "lease_in_ms")?);
    Ok(NodeRemoval::Alive { lease_in_ms })
}

/// Takes a node off the list, unless a run is live on it; one that is drained stays, with its lease over. Only the node itself asks for this, after
/// its last claim.
pub(super) async fn release(store: &PostgresStore, node: NodeId) -> Answer<()> {
    sqlx::query(
        "with drained as (
             update runtara_nodes set lease_until = least(lease_until, runtara_now())
              where node_id = $1 and drain_by is not null
                and not exists (select from runtara_instances where live_node = $1)
         )
         delete from runtara_nodes
          where node_id = $1 and drain_by is null
            and not exists (select from runtara_instances where live_node = $1)",
    )
    .bind(node.to_string())
    .execute(&store.connections.pool)
    .await?;
    Ok(())
}

/// Takes the runs of other nodes whose lease is over for lost, each as one change of its own. Nodes are few; their runs are found
/// along `runtara_instances_live`.
pub(super) async fn expire(
    store: &PostgresStore,
    me: NodeId,
    limit: u32,
) -> Answer<Vec<InstanceId>> {
    let rows = sqlx::query(
        "select i.instance_id, i.run_number
           from runtara_nodes n
           join runtara_instances i on i.live_node = n.node_id
          where n.node_id <> $1 and n.lease_until <= runtara_now()
            and (n.guarded or n.removed
                 or exists (select from runtara_nodes m
                             where m.node_id = $1 and m.registered_at + $3 <= runtara_now()))
          order by i.instance_id limit $2",
    )
    .bind(me.to_string())
    .bind(i64::from(limit))
    .bind(row::signed(limits::NODE_LEASE_MS))
    .all_on(&store.connections)
    .await?;
    let mut lost = Vec::with_capacity(rows.len());
    for found in &rows {
        let id = row::instance_id(found)?;
        let exit = Change::Exit {
            run_number: row::run_number(found, "run_number")?,
            exit: RunExit::lost(),
            our_fault: true,
        };
        match instances::change(store, &id, exit).await {
            Ok(_) => lost.push(id),
            // Another node was faster.
            Err(Fault::Refused(Refusal::RunSuperseded | Refusal::InstanceUnknown)) => {}
            Err(error) => return Err(error),
        }
    }
    forget_dead(store, me).await?;
    Ok(lost)
}

/// Takes nodes off the list that were removed, or died long ago. Each that is on it has every change told to all of them.
async fn forget_dead(store: &PostgresStore, me: NodeId) -> Answer<()> {
    sqlx::query(
        "delete from runtara_nodes n
          where n.node_id <> $1 and (n.removed or n.lease_until <= runtara_now() - $2)
            and not exists (select from runtara_instances i where i.live_node = n.node_id)",
    )
    .bind(me.to_string())
    .bind(row::signed(limits::NODE_KEPT_MS))
    .execute(&store.connections.pool)
    .await?;
    Ok(())
}
