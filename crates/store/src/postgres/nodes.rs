//! Nodes and their leases.

use runtara_domain::{Change, InstanceId, NodeId, Refusal, RunExit, limits};

use crate::{NodeLease, NodeStanding};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::{Answer, Fault};
use super::{instances, row};

/// Registers a node or renews its lease, and counts the others, in one statement.
pub(super) async fn renew(store: &PostgresStore, lease: NodeLease) -> Answer<NodeStanding> {
    let others: i64 = sqlx::query_scalar(
        "with renewed as (
             insert into runtara_nodes as n (node_id, name, registered_at, lease_until)
             values ($1, $2, runtara_now(), runtara_now() + $3)
             on conflict (node_id) do update
                set name = excluded.name, lease_until = excluded.lease_until,
                    registered_at = case when n.lease_until <= runtara_now() then runtara_now() else n.registered_at end
         )
         select count(*) from runtara_nodes where node_id <> $1",
    )
    .bind(lease.node.to_string())
    .bind(row::without_nul(&lease.name).into_owned())
    .bind(row::signed(lease.lease_ms).min(i64::MAX / 4))
    .one_on(&store.connections)
    .await?;
    let others = u32::try_from(others).unwrap_or(u32::MAX);
    store.herald.set_others(others > 0);
    Ok(NodeStanding { others })
}

/// Takes a node off the list, unless a run is live on it. Only the node itself asks for this, after its last claim.
pub(super) async fn release(store: &PostgresStore, node: NodeId) -> Answer<()> {
    sqlx::query(
        "delete from runtara_nodes
          where node_id = $1 and not exists (select from runtara_instances where live_node = $1)",
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
          order by i.instance_id limit $2",
    )
    .bind(me.to_string())
    .bind(i64::from(limit))
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

/// Takes nodes off the list that died long ago. Each that is on it has every change told to all of them.
async fn forget_dead(store: &PostgresStore, me: NodeId) -> Answer<()> {
    sqlx::query(
        "delete from runtara_nodes n
          where n.node_id <> $1 and n.lease_until <= runtara_now() - $2
            and not exists (select from runtara_instances i where i.live_node = n.node_id)",
    )
    .bind(me.to_string())
    .bind(row::signed(limits::NODE_KEPT_MS))
    .execute(&store.connections.pool)
    .await?;
    Ok(())
}
