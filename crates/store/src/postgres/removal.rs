//! Removes ended instances: first they are taken away, then what belonged to them is removed in pieces.

use runtara_domain::{InstanceId, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Postgres, QueryBuilder};

use crate::removal::{INSTANCES_AT_ONCE, PIECE, WEIGHT_BYTES};
use crate::{EndedInstance, Expired, ExpiredPage, Owners, Purge, Remains};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::{Answer, Fault};
use super::numbered::push_bounds;
use super::row;
use super::write::TRIES;

/// Ended instances whose time is over, along `runtara_instances_finished` or `runtara_instances_tenant_finished`.
pub(super) async fn expired(store: &PostgresStore, demand: &Expired) -> Answer<ExpiredPage> {
    let mut sql = QueryBuilder::<Postgres>::new(
        "select instance_id, tenant_id, status::text as status, finished_at, live_node is not null as live
           from runtara_instances
          where finished_at is not null and finished_at <= runtara_now() - ",
    );
    sql.push_bind(row::signed(demand.ended_ms.min(i64::MAX as u64 / 2)));
    if let Owners::Only(tenant) = &demand.owners {
        sql.push(" and tenant_id = ");
        sql.push_bind(tenant.as_str().to_owned());
    }
    if let Some(after) = &demand.after {
        sql.push(" and (finished_at, instance_id) > (");
        sql.push_bind(after.finished_at.0);
        sql.push(", ");
        sql.push_bind(after.instance_id.as_str().to_owned());
        sql.push(")");
    }
    sql.push(" order by finished_at, instance_id");
    push_bounds(&mut sql, u64::from(demand.limit), 0);
    let found = sql.build().persistent(false);
    let found = found.all_on(&store.connections).await?;
    let mut page = ExpiredPage {
        more: found.len() >= demand.limit as usize,
        ..ExpiredPage::default()
    };
    for row in &found {
        page.look_at(demand, ended(row)?, row::get(row, "live")?);
    }
    Ok(page)
}

fn ended(found: &PgRow) -> Answer<EndedInstance> {
    Ok(EndedInstance {
        instance_id: row::instance_id(found)?,
        tenant_id: row::tenant_id(found)?,
        status: row::status(found)?,
        finished_at: Timestamp(row::get(found, "finished_at")?),
    })
}

/// Takes instances away: their rows, and what there is one of for each. One that somebody holds or has changed stays.
///
/// What is left of them cannot grow: everything that belongs to an instance is written under the lock of its row. Nor does an instance of
/// the same id come before nothing is left: both ways to make one look into `runtara_removals`.
pub(super) async fn take_away(
    store: &PostgresStore,
    ended: &[EndedInstance],
) -> Answer<Vec<InstanceId>> {
    if ended.is_empty() {
        return Ok(Vec::new());
    }
    let ids = ended.iter().map(|ended| ended.instance_id.as_str());
    let ends = ended.iter().map(|ended| ended.finished_at.0);
    let gone: Vec<String> = sqlx::query_scalar(
        "with found as (
             select i.instance_id
               from unnest($1::text[], $2::bigint[]) as w (instance_id, finished_at)
               join runtara_instances i on i.instance_id = w.instance_id
              where i.finished_at = w.finished_at and i.status in ('completed', 'failed', 'cancelled')
                and i.live_node is null
              order by i.instance_id
                for update of i skip locked
         ),
         gone as (
             delete from runtara_instances i using found
              where i.instance_id = found.instance_id
          returning i.instance_id
         ),
         noted as (insert into runtara_removals (instance_id, since) select instance_id, runtara_now() from gone),
         labels as (delete from runtara_instance_labels t using gone where t.instance_id = gone.instance_id),
         inputs as (delete from runtara_instance_inputs t using gone where t.instance_id = gone.instance_id),
         results as (delete from runtara_instance_results t using gone where t.instance_id = gone.instance_id)
         select instance_id from gone order by instance_id",
    )
    .bind(ids.map(str::to_owned).collect::<Vec<_>>())
    .bind(ends.collect::<Vec<_>>())
    .all_on(&store.connections)
    .await?;
    let known = ended.iter().map(|ended| &ended.instance_id);
    let is_gone = |id: &&InstanceId| gone.iter().any(|gone| gone == id.as_str());
    let gone: Vec<InstanceId> = known.filter(is_gone).cloned().collect();
    for id in &gone {
        store.nudges.changed(id);
        store.herald.changed(id);
    }
    Ok(gone)
}

/// Removes what is left of instances that were taken away, of one or of those that wait longest: one piece in one transaction, under
/// the lock of their notes.
pub(super) async fn remove_remains(
    store: &PostgresStore,
    id: Option<&InstanceId>,
    rows: u32,
) -> Answer<Remains> {
    let mut connection = store.connections.pool.begin().await?;
    // Whoever waits for one waits for those who remove it already; others leave it to them.
    let noted: Vec<String> = match id {
        Some(id) => {
            sqlx::query_scalar(
                "select instance_id from runtara_removals where instance_id = $1 for update",
            )
            .bind(id.as_str())
            .fetch_all(&mut *connection)
            .await?
        }
        None => {
            sqlx::query_scalar(
                "select instance_id from runtara_removals order by since, instance_id limit $1 for update skip locked",
            )
            .bind(i64::from(INSTANCES_AT_ONCE))
            .fetch_all(&mut *connection)
            .await?
        }
    };
    if noted.is_empty() {
        return Ok(Remains::default());
    }
    let mut removed = Remains::default();
    let mut left = i64::from(rows);
    for statement in [CHECKPOINTS, EVENTS, WAITS, SIGNALS] {
        if left > 0 {
            left -= remove_piece(&mut connection, statement, &noted, left, &mut removed).await?;
        }
    }
    let whole: i64 = sqlx::query_scalar(
        "with whole as (
             delete from runtara_removals r
              where r.instance_id = any($1)
                and not exists (select from runtara_checkpoints t where t.instance_id = r.instance_id)
                and not exists (select from runtara_events t where t.instance_id = r.instance_id)
                and not exists (select from runtara_waits t where t.instance_id = r.instance_id)
                and not exists (select from runtara_signals t where t.instance_id = r.instance_id)
          returning 1
         )
         select count(*) from whole",
    )
    .bind(&noted)
    .fetch_one(&mut *connection)
    .await?;
    connection.commit().await?;
    removed.more = row::unsigned(whole) < noted.len() as u64
        || noted.len() as u64 >= u64::from(INSTANCES_AT_ONCE);
    Ok(removed)
}

/// Removes rows of one table, in the order of its key, until what they weigh reaches `$2`: at least one. `$3` is what each weighs more for.
macro_rules! piece {
    ($table:literal, $order:literal, $size:literal) => {
        concat!(
            "with these as (
                 select t.ctid as place, ", $size, " as size from ", $table, " t
                  where t.instance_id = any($1) order by ", $order, " limit $2
             ),
             weighed as (
                 select place, size, sum(1 + size / $3) over (rows unbounded preceding) - size / $3 as before from these
             ),
             gone as (
                 delete from ", $table, " t
                  where t.ctid = any(array(select place from weighed where before <= $2))
              returning ", $size, " as size
             )
             select count(*) as rows, coalesce(sum(size), 0)::bigint as bytes,
                    coalesce(sum(1 + size / $3), 0)::bigint as weight
               from gone"
        )
    };
}

const CHECKPOINTS: &str = piece!("runtara_checkpoints", "t.instance_id, t.seq", "t.size");
const EVENTS: &str = piece!(
    "runtara_events",
    "t.instance_id, t.seq",
    "coalesce(octet_length(t.payload), 0)::bigint"
);
const WAITS: &str = piece!(
    "runtara_waits",
    "t.instance_id, t.kind, t.key, t.n",
    "0::bigint"
);
const SIGNALS: &str = piece!(
    "runtara_signals",
    "t.instance_id, t.signal_id, t.n",
    "coalesce(octet_length(t.payload), 0)::bigint"
);

/// Answers with what was removed weighs.
async fn remove_piece(
    connection: &mut PgConnection,
    statement: &'static str,
    noted: &[String],
    most: i64,
    removed: &mut Remains,
) -> Answer<i64> {
    let counted = sqlx::query(statement)
        .bind(noted)
        .bind(most)
        .bind(WEIGHT_BYTES)
        .fetch_one(connection)
        .await?;
    removed.rows += row::unsigned(row::get(&counted, "rows")?);
    removed.bytes += row::unsigned(row::get(&counted, "bytes")?);
    row::get(&counted, "weight")
}

/// Removes an ended instance with everything that belongs to it.
pub(super) async fn purge(store: &PostgresStore, id: &InstanceId) -> Answer<Purge> {
    for _ in 0..TRIES {
        let found = sqlx::query(
            "select instance_id, tenant_id, status::text as status, coalesce(finished_at, 0) as finished_at,
                    live_node is not null as live
               from runtara_instances where instance_id = $1",
        )
        .bind(id.as_str())
        .optional_on(&store.connections)
        .await?;
        let Some(found) = found else {
            return Ok(Purge::NotFound);
        };
        let status = row::status(&found)?;
        if !status.is_end() {
            return Ok(Purge::NotEnded(status));
        }
        if row::get(&found, "live")? {
            return Ok(Purge::ProcessLeaving);
        }
        if !take_away(store, &[ended(&found)?]).await?.is_empty() {
            while remove_remains(store, Some(id), PIECE).await?.more {}
            return Ok(Purge::Purged);
        }
    }
    Err(Fault::Contended)
}
