//! Kept counts and places, which spare long lists the counting and the skipping of a million rows.
//!
//! Up to [`runtara_domain::limits::EXACT_TOTAL`] everything is counted and skipped for each page, and exact. Above that a list by
//! tenant and status alone has a kept count. Each thousandth row of it, newest first, has a kept place, and so have lists by image
//! and those of a tenant in the order of their ends; from either end of a list a place is found by its number. All are as of the
//! last time that [`refresh`] found something changed: a page that begins by offset far down the list may be off by the
//! instances that came or changed since.

use std::time::Instant;

use runtara_domain::{Cursor, limits};

use crate::{InstanceFilter, InstanceOrder, paging};

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

/// The list whose places serve a filter and an order: what it is ordered by, tenant, status, image. `None` if there are none.
fn places_of(
    filter: &InstanceFilter,
    order: InstanceOrder,
) -> Option<(&'static str, &str, &'static str, &str)> {
    let by_finish = order.is_by_finish();
    if let Some(image) = &filter.image_id {
        let by_image_alone = InstanceFilter {
            // An image has one tenant: whoever names another finds nothing anywhere.
            tenant_id: filter.tenant_id.clone(),
            image_id: filter.image_id.clone(),
            ..InstanceFilter::default()
        };
        let kept = !by_finish && *filter == by_image_alone;
        return kept.then_some(("created", "", "", image.as_str()));
    }
    let (tenant, status) = key(filter)?;
    match by_finish {
        false => Some(("created", tenant, status, "")),
        true if status.is_empty() => Some(("finished", tenant, "", "")),
        true => None,
    }
}

/// A kept place from which a page that begins far down a list is found, and how many rows are left to be skipped from there. By primary
/// key.
pub(super) async fn place_before(
    store: &PostgresStore,
    filter: &InstanceFilter,
    order: InstanceOrder,
    offset: u64,
) -> Answer<Option<(Cursor, u64)>> {
    let Some((ordered_by, tenant, status, image)) = places_of(filter, order) else {
        return Ok(None);
    };
    let from_newest = order.is_descending();
    // Counted from the oldest, the row before the page has the number `length - offset + 1`.
    let found = sqlx::query(if from_newest {
        "select place, at, instance_id, place as length from runtara_places
          where ordered_by = $1 and tenant_id = $2 and status = $3 and image_id = $4 and place <= $5
            and exists (select from runtara_places f
                         where f.ordered_by = $1 and f.tenant_id = $2 and f.status = $3 and f.image_id = $4 and f.place > $5)
          order by place desc limit 1"
    } else {
        "select p.place, p.at, p.instance_id, l.length
           from (select max(place) as length from runtara_places
                  where ordered_by = $1 and tenant_id = $2 and status = $3 and image_id = $4) l
          cross join lateral (
                select place, at, instance_id from runtara_places
                 where ordered_by = $1 and tenant_id = $2 and status = $3 and image_id = $4 and place > l.length - $5
                   and l.length > $5
                 order by place limit 1) p"
    })
    .bind(ordered_by)
    .bind(tenant)
    .bind(status)
    .bind(image)
    .bind(row::signed(offset))
    .optional_on(&store.connections)
    .await?;
    let Some(found) = found else {
        return Ok(None);
    };
    let place = row::unsigned(row::get(&found, "place")?);
    let length = row::unsigned(row::get(&found, "length")?);
    let up_to = if from_newest {
        place
    } else {
        length - place + 1
    };
    let cursor = Cursor {
        value: Some(row::get(&found, "at")?),
        key: row::get(&found, "instance_id")?,
    };
    Ok(Some((cursor, offset.saturating_sub(up_to))))
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

/// Keeps the places of long lists: each walks one index. Parameters: the distance, and the length from which on.
macro_rules! places {
    ($ordered_by:literal, $column:literal, $lists:literal, $names:literal, $filter:literal) => {
        concat!(
            "insert into runtara_places (ordered_by, tenant_id, status, image_id, place, at, instance_id)
             select '",
            $ordered_by,
            "', ",
            $names,
            ", p.n, p.at, p.instance_id
               from ",
            $lists,
            "
              cross join lateral (
                    select i.",
            $column,
            " as at, i.instance_id,
                           row_number() over w as n, lead(i.instance_id) over w is null as is_last
                      from runtara_instances i where ",
            $filter,
            " window w as (order by i.",
            $column,
            " desc, i.instance_id desc)) p
              where p.n >= $2 and (p.n % $1 = 0 or p.is_last)"
        )
    };
}

/// The statements of all lists.
const PLACES: &[&str] = &[
    places!("created", "created_at", "(select) c", "'', '', ''", "true"),
    places!(
        "created",
        "created_at",
        "(select tenant_id from runtara_counts where tenant_id <> '' and status = '') c",
        "c.tenant_id, '', ''",
        "i.tenant_id = c.tenant_id"
    ),
    places!(
        "created",
        "created_at",
        "(select status from runtara_counts where tenant_id = '' and status <> '') c",
        "'', c.status, ''",
        "i.status = c.status"
    ),
    places!(
        "created",
        "created_at",
        "(select tenant_id, status from runtara_counts where tenant_id <> '' and status <> '') c",
        "c.tenant_id, c.status, ''",
        "i.tenant_id = c.tenant_id and i.status = c.status"
    ),
    places!(
        "created",
        "created_at",
        "(select image_id from runtara_instances where image_id is not null
           group by image_id having count(*) >= $2) c",
        "'', '', c.image_id",
        "i.image_id = c.image_id"
    ),
    places!(
        "finished",
        "finished_at",
        "(select) c",
        "'', '', ''",
        "i.finished_at is not null"
    ),
    places!(
        "finished",
        "finished_at",
        "(select tenant_id from runtara_counts where tenant_id <> '' and status = '') c",
        "c.tenant_id, '', ''",
        "i.tenant_id = c.tenant_id and i.finished_at is not null"
    ),
];
