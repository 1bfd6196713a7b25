//! Kept counts and places, which spare long lists the counting and the skipping of a million rows.
//!
//! Up to [`runtara_domain::limits::EXACT_TOTAL`] everything is counted and skipped for each page, and exact. Above that a list by
//! tenant and status alone has a kept count, and each thousandth of its rows, newest first, has a kept place. Both are as of the
//! last time that [`refresh`] found something changed: a page that begins by offset far down the list may be off by the
//! instances that came or changed since.

use std::time::Instant;

use runtara_domain::{Cursor, limits};

use crate::{InstanceFilter, paging};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::Answer;
use super::row;

/// The distance between kept places.
const STRIDE: i64 = 1_000;
/// A refresh waits at least so many times as long as the last one took, so that counting never takes more than a twentieth.
const REST: i64 = 20;

/// The key of a list by tenant and status alone; `None` for any other.
fn key(filter: &InstanceFilter) -> Option<(&str, &'static str)> {
    let by_these_alone = InstanceFilter {
        tenant_id: filter.tenant_id.clone(),
        status: filter.status,
        ..InstanceFilter::default()
    };
    if *filter != by_these_alone {
        return None;
    }
    let tenant = filter
        .tenant_id
        .as_ref()
        .map_or("", |tenant| tenant.as_str());
    let status = filter.status.map_or("", |status| status.as_str());
    Some((tenant, status))
}

/// The kept count of a list, by primary key.
pub(super) async fn kept(store: &PostgresStore, filter: &InstanceFilter) -> Answer<Option<u64>> {
    let Some((tenant, status)) = key(filter) else {
        return Ok(None);
    };
    let count: Option<i64> =
        sqlx::query_scalar("select count from runtara_counts where tenant_id = $1 and status = $2")
            .bind(tenant)
            .bind(status)
            .optional_on(&store.connections)
            .await?;
    Ok(count.map(row::unsigned))
}

/// The last kept place before an offset, and how many rows lie up to it, by primary key.
pub(super) async fn place_before(
    store: &PostgresStore,
    filter: &InstanceFilter,
    offset: u64,
) -> Answer<Option<(u64, Cursor)>> {
    let Some((tenant, status)) = key(filter) else {
        return Ok(None);
    };
    let found = sqlx::query(
        "select place, created_at, instance_id from runtara_places
          where tenant_id = $1 and status = $2 and place <= $3
          order by place desc limit 1",
    )
    .bind(tenant)
    .bind(status)
    .bind(row::signed(offset))
    .optional_on(&store.connections)
    .await?;
    let Some(found) = found else {
        return Ok(None);
    };
    let cursor = Cursor {
        value: Some(row::get(&found, "created_at")?),
        key: row::get(&found, "instance_id")?,
    };
    Ok(Some((row::unsigned(row::get(&found, "place")?), cursor)))
}

/// Brings counts and places up to date, if instances have changed since and the last time is long enough ago. One server at a time.
pub(super) async fn refresh(store: &PostgresStore) -> Answer<()> {
    let Some(changes) = due(store).await? else {
        return Ok(());
    };
    let mut connection = store.connections.pool.begin().await?;
    let alone: bool = sqlx::query_scalar(
        "select pg_try_advisory_xact_lock(hashtextextended('runtara_counts', 1))",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !alone {
        return Ok(());
    }
    let began = Instant::now();
    sqlx::query("delete from runtara_counts")
        .execute(&mut *connection)
        .await?;
    sqlx::query("delete from runtara_places")
        .execute(&mut *connection)
        .await?;
    // Groups along `runtara_instances_tenant_status_created`, without touching the rows.
    sqlx::query(
        "insert into runtara_counts (tenant_id, status, count)
         select coalesce(tenant_id, ''), coalesce(status, ''), sum(n)::bigint
           from (select tenant_id, status, count(*) as n from runtara_instances group by tenant_id, status) counted
          group by grouping sets ((tenant_id, status), (tenant_id), (status), ())
         having sum(n) > $1",
    )
    .bind(row::signed(paging::COUNTED))
    .execute(&mut *connection)
    .await?;
    for statement in PLACES {
        sqlx::query(*statement)
            .bind(STRIDE)
            .bind(row::signed(limits::EXACT_TOTAL))
            .execute(&mut *connection)
            .await?;
    }
    let took = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
    sqlx::query(
        "insert into runtara_counted (changes, at, took_ms) values ($1, runtara_now(), $2)
         on conflict (only_row) do update
            set changes = excluded.changes, at = excluded.at, took_ms = excluded.took_ms",
    )
    .bind(changes)
    .bind(took)
    .execute(&mut *connection)
    .await?;
    connection.commit().await?;
    Ok(())
}

/// The number of changes there have been by now, if it is another than when counts were last refreshed, and that is long enough
/// ago. The database counts changes anyway.
async fn due(store: &PostgresStore) -> Answer<Option<i64>> {
    let changes: Option<i64> = sqlx::query_scalar(
        "select s.changes
           from (select coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint as changes,
                        coalesce(max(n_live_tup), 0) as rows
                   from pg_stat_user_tables where relid = to_regclass('runtara_instances')) s
           left join runtara_counted c on true
          where c.changes is distinct from s.changes
            and coalesce(c.at + $1 * c.took_ms <= runtara_now(), true)
            and (s.rows >= $2 or c.changes is not null)",
    )
    .bind(REST)
    .bind(row::signed(limits::EXACT_TOTAL))
    .optional_on(&store.connections)
    .await?;
    Ok(changes)
}

/// Each walks one index for the lists that are long enough to need it. Parameters: the distance, and the length from which on.
const PLACES: &[&str] = &[
    "insert into runtara_places (tenant_id, status, place, created_at, instance_id)
     select '', '', n, created_at, instance_id
       from (select created_at, instance_id, row_number() over (order by created_at desc, instance_id desc) as n
               from runtara_instances) numbered
      where n % $1 = 0 and n >= $2",
    "insert into runtara_places (tenant_id, status, place, created_at, instance_id)
     select c.tenant_id, '', p.n, p.created_at, p.instance_id
       from runtara_counts c
      cross join lateral (
            select created_at, instance_id, row_number() over (order by created_at desc, instance_id desc) as n
              from runtara_instances i where i.tenant_id = c.tenant_id) p
      where c.tenant_id <> '' and c.status = '' and p.n % $1 = 0 and p.n >= $2",
    "insert into runtara_places (tenant_id, status, place, created_at, instance_id)
     select '', c.status, p.n, p.created_at, p.instance_id
       from runtara_counts c
      cross join lateral (
            select created_at, instance_id, row_number() over (order by created_at desc, instance_id desc) as n
              from runtara_instances i where i.status = c.status) p
      where c.tenant_id = '' and c.status <> '' and p.n % $1 = 0 and p.n >= $2",
    "insert into runtara_places (tenant_id, status, place, created_at, instance_id)
     select c.tenant_id, c.status, p.n, p.created_at, p.instance_id
       from runtara_counts c
      cross join lateral (
            select created_at, instance_id, row_number() over (order by created_at desc, instance_id desc) as n
              from runtara_instances i where i.tenant_id = c.tenant_id and i.status = c.status) p
      where c.tenant_id <> '' and c.status <> '' and p.n % $1 = 0 and p.n >= $2",
];
