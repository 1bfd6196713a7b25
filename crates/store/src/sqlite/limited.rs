//! Claims of which each tenant has only so many run at once.
//!
//! First it looks at what is due first, as any claim does; only if that leaves room, because some of it is of tenants who have none, does it go
//! from tenant to tenant. For that there is an index, `runtara_instances_tenant_due`, which is made only where such a limit is set: each start
//! would pay for it.

use std::collections::BTreeMap;

use runtara_domain::{InstanceId, Status, TenantId, Timestamp};

use super::runs::{bind_kinds, claim_one, due_by_id};
use super::sql::{Columns, Sql};
use super::tx::Tx;
use crate::{Claim, ClaimedRun, StoreResult};

/// How many are looked at for each that is wanted.
const LOOKED_AT: usize = 4;

/// What makes the index.
pub(super) const MAKE_INDEX: &str = "create index if not exists runtara_instances_tenant_due \
     on runtara_instances (tenant_id, due_at, instance_id, kind) \
     where due_at is not null and live_node is null";
/// What takes it away where it is not needed.
pub(super) const DROP_INDEX: &str = "drop index if exists runtara_instances_tenant_due";

/// The first that are due. Served by `runtara_instances_due`.
pub(super) fn first_due(claim: &Claim, now: Timestamp, most: usize) -> Sql {
    let mut sql = Sql::new(
        "select i.instance_id, i.tenant_id, i.due_at \
         from runtara_instances i indexed by runtara_instances_due \
         where i.due_at is not null and i.live_node is null and i.due_at <= ? \
         and i.kind in (?, ?, ?)",
    );
    sql.bind_time(now);
    bind_kinds(&mut sql, &claim.kinds);
    sql.push(
        " and (i.expires_at is null or i.expires_at > ?) order by i.due_at, i.instance_id limit ?",
    )
    .bind_time(now)
    .bind_u64(most as u64);
    sql
}

/// Who has something that is due now or later, hopping along `runtara_instances_tenant_due`, and what he runs.
pub(super) const TENANTS: &str = "with recursive tenants (tenant_id) as ( \
         select (select i.tenant_id from runtara_instances i \
                  where i.due_at is not null and i.live_node is null order by i.tenant_id limit 1) \
         union all \
         select (select i.tenant_id from runtara_instances i \
                  where i.due_at is not null and i.live_node is null and i.tenant_id > t.tenant_id \
                  order by i.tenant_id limit 1) \
           from tenants t where t.tenant_id is not null) \
     select t.tenant_id, coalesce(c.instances, 0) from tenants t \
     left join runtara_counts c on c.tenant_id = t.tenant_id and c.status = 'running' \
     where t.tenant_id is not null";

/// The first of a tenant that are due. Served by `runtara_instances_tenant_due`.
pub(super) fn first_of(claim: &Claim, tenant: &TenantId, now: Timestamp, most: usize) -> Sql {
    let mut sql = Sql::new(
        "select i.instance_id, i.tenant_id, i.due_at from runtara_instances i \
         where i.tenant_id = ? and i.due_at is not null and i.live_node is null and i.due_at <= ? \
         and i.kind in (?, ?, ?)",
    );
    sql.bind(tenant.as_str()).bind_time(now);
    bind_kinds(&mut sql, &claim.kinds);
    sql.push(
        " and (i.expires_at is null or i.expires_at > ?) order by i.due_at, i.instance_id limit ?",
    )
    .bind_time(now)
    .bind_u64(most as u64);
    sql
}

type Due = (Timestamp, InstanceId, TenantId);

fn ask(tx: &mut Tx, sql: &Sql) -> StoreResult<Vec<Due>> {
    let rows = tx.rows(sql, "looking for instances that are due")?;
    let read = |row| {
        let mut columns = Columns::of(row);
        let (id, tenant) = (columns.parsed()?, columns.parsed()?);
        Ok((columns.time()?, id, tenant))
    };
    rows.iter().map(read).collect()
}

/// Claims what is due, so that no more than `allowed` of each tenant are running.
pub(super) fn claim(tx: &mut Tx, claim: &Claim, allowed: u32) -> StoreResult<Vec<ClaimedRun>> {
    let wanted = claim.tokens.len();
    let mut picked = Vec::new();
    let mut hops = true;
    if claim.without_tenants.is_empty() {
        let most = wanted * LOOKED_AT;
        let due = ask(tx, &first_due(claim, tx.now, most))?;
        hops = due.len() == most;
        let mut rooms = BTreeMap::new();
        for (due_at, id, tenant) in due {
            let room = match rooms.get_mut(&tenant) {
                Some(room) => room,
                None => {
                    let running = tx.instances_of(&tenant, Status::Running)?;
                    let room = u64::from(allowed).saturating_sub(running);
                    rooms.entry(tenant.clone()).or_insert(room)
                }
            };
            if *room > 0 && picked.len() < wanted {
                *room -= 1;
                picked.push((due_at, id, tenant));
            }
        }
    }
    if hops && picked.len() < wanted {
        picked = of_each(tx, claim, allowed)?;
    }
    let mut claimed = Vec::with_capacity(picked.len());
    for ((_, id, _), token) in picked.iter().zip(&claim.tokens) {
        if let Some(row) = tx.row(&due_by_id(id), "loading an instance that is due")? {
            claimed.push(claim_one(tx, &row, claim.node, *token)?);
        }
    }
    Ok(claimed)
}

/// Goes from tenant to tenant, and picks the first that are due of those who have room.
fn of_each(tx: &mut Tx, claim: &Claim, allowed: u32) -> StoreResult<Vec<Due>> {
    let wanted = claim.tokens.len();
    let rows = tx.rows(&Sql::new(TENANTS), "looking for who has something due")?;
    let mut due = Vec::new();
    for row in &rows {
        let mut columns = Columns::of(row);
        let tenant: TenantId = columns.parsed()?;
        let running = columns.int()? + tx.changed_counts(&tenant, Status::Running);
        let room = usize::try_from(i64::from(allowed) - running).unwrap_or(0);
        if room > 0 && !claim.without_tenants.contains(&tenant) {
            let first = first_of(claim, &tenant, tx.now, room.min(wanted));
            due.extend(ask(tx, &first)?);
        }
    }
    due.sort();
    due.truncate(wanted);
    Ok(due)
}
