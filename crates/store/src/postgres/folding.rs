//! Bounds the events of long instances.

use runtara_domain::{InstanceId, Timestamp};
use sqlx::postgres::PgRow;

use crate::Folded;
use crate::folding::{Foldable, fold, to_take};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::Answer;
use super::row;

/// Which events `e` may be folded: as [`crate::folding::is_foldable`] says.
macro_rules! foldable {
    () => {
        "e.kind = 'custom' and (e.subtype is null or e.subtype not like 'runtara.%'
             or e.subtype in ('runtara.retry', 'runtara.folded'))"
    };
}

/// Those of these instances that have too many events, by primary keys.
pub(super) async fn overfull(store: &PostgresStore, ids: &[InstanceId]) -> Answer<Vec<InstanceId>> {
    let asked: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
    let found: Vec<String> = sqlx::query_scalar(
        "select i.instance_id
           from unnest($1::text[]) as w (instance_id)
           join runtara_instances i on i.instance_id = w.instance_id
           join runtara_instance_inputs b on b.instance_id = w.instance_id
          where i.event_seq - b.events_folded > b.max_events",
    )
    .bind(asked)
    .all_on(&store.connections)
    .await?;
    let is_found = |id: &&InstanceId| found.iter().any(|found| found == id.as_str());
    Ok(ids.iter().filter(is_found).cloned().collect())
}

/// Folds the oldest events of an instance along their primary key, under the lock of its bound: nobody else folds them meanwhile, and events
/// that come meanwhile are newer.
pub(super) async fn fold_oldest(
    store: &PostgresStore,
    id: &InstanceId,
    limit: u32,
) -> Answer<Folded> {
    let mut connection = store.connections.pool.begin().await?;
    let bound = sqlx::query(
        "select b.max_events, i.event_seq - b.events_folded as kept
           from runtara_instance_inputs b join runtara_instances i on i.instance_id = b.instance_id
          where b.instance_id = $1 and b.max_events is not null
            for update of b",
    )
    .bind(id.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    let Some(bound) = bound else {
        return Ok(Folded::default());
    };
    let max_events = row::small(row::get(&bound, "max_events")?);
    let kept = row::unsigned(row::get(&bound, "kept")?);
    let Some(take) = to_take(max_events, kept, limit) else {
        return Ok(Folded::default());
    };
    let oldest = sqlx::query(concat!(
        "select e.seq, e.created_at, e.run_number, case e.subtype when 'runtara.folded' then e.payload end as folded
           from runtara_events e where e.instance_id = $1 and ",
        foldable!(),
        " order by e.seq limit $2"
    ))
    .bind(id.as_str())
    .bind(i64::from(take))
    .fetch_all(&mut *connection)
    .await?;
    let oldest: Vec<_> = oldest.iter().map(read).collect::<Answer<_>>()?;
    let (Some(event), Some(first), Some(last)) = (fold(&oldest), oldest.first(), oldest.last())
    else {
        return Ok(Folded::default());
    };
    let gone = oldest.len() as u64 - 1;
    sqlx::query(concat!(
        "delete from runtara_events e where e.instance_id = $1 and e.seq >= $2 and e.seq < $3 and ",
        foldable!()
    ))
    .bind(id.as_str())
    .bind(row::signed(first.seq))
    .bind(row::signed(last.seq))
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "update runtara_events
            set subtype = $3, payload = $4, checkpoint_id = null, scope_id = null, parent_scope_id = null, step_id = null,
                step_type = null, step_key = null, step_failed = null, request_key = null
          where instance_id = $1 and seq = $2",
    )
    .bind(id.as_str())
    .bind(row::signed(last.seq))
    .bind(event.subtype.as_deref())
    .bind(event.payload.as_deref())
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "update runtara_instance_inputs set events_folded = events_folded + $2 where instance_id = $1",
    )
    .bind(id.as_str())
    .bind(row::signed(gone))
    .execute(&mut *connection)
    .await?;
    connection.commit().await?;
    Ok(Folded {
        events: gone,
        more: to_take(max_events, kept - gone, limit).is_some(),
    })
}

fn read(found: &PgRow) -> Answer<Foldable> {
    let folded = row::bytes(found, "folded")?;
    Ok(Foldable {
        seq: row::unsigned(row::get(found, "seq")?),
        created_at: Timestamp(row::get(found, "created_at")?),
        run_number: row::run_number(found, "run_number")?,
        folded: folded.and_then(|payload| serde_json::from_slice(&payload).ok()),
    })
}
