//! Bounds the events of long instances.

use runtara_domain::{InstanceId, RunNumber};
use sqlx::SqliteConnection;

use super::sql::{Columns, Row, Sql, json_text};
use super::state::{load, place, seq_of};
use super::tx::Tx;
use crate::folding::{Foldable, fold, to_take};
use crate::{Folded, StoreResult};

/// Which events may be folded: as [`crate::folding::is_foldable`] says.
macro_rules! foldable {
    () => {
        "kind = 'custom' and (subtype is null or substr(subtype, 1, 8) <> 'runtara.' \
         or subtype in ('runtara.retry', 'runtara.folded'))"
    };
}

/// Those of these instances that have too many events, by the keys of the tables.
pub(super) async fn overfull(
    connection: &mut SqliteConnection,
    ids: &[InstanceId],
) -> StoreResult<Vec<InstanceId>> {
    let mut sql = Sql::new(
        "select i.instance_id from json_each(?) w \
         cross join runtara_instances i on i.instance_id = w.value \
         cross join runtara_inputs n on n.instance = i.id \
         where i.events_recorded - n.events_folded > n.max_events",
    );
    sql.bind(json_text(&ids, false)?);
    let rows = sql.rows(connection, "looking for instances with many events");
    let found = rows.await?;
    let found = found.iter().map(|row| Columns::of(row).parsed());
    found.collect()
}

/// Folds the oldest events of an instance along their places.
pub(super) fn fold_oldest(tx: &mut Tx, id: &InstanceId, limit: u32) -> StoreResult<Folded> {
    let Some(found) = load(tx, id)? else {
        return Ok(Folded::default());
    };
    let instance = found.id;
    let mut sql = Sql::new(
        "select max_events, events_folded from runtara_inputs \
         where instance = ? and max_events is not null",
    );
    sql.bind(instance);
    let Some(bound) = tx.row(&sql, "looking for the bound of events")? else {
        return Ok(Folded::default());
    };
    let mut columns = Columns::of(&bound);
    let max_events: u32 = columns.number()?;
    let folded: i64 = columns.int()?;
    let kept = u64::try_from(found.events - folded).unwrap_or(0);
    let Some(take) = to_take(max_events, kept, limit) else {
        return Ok(Folded::default());
    };
    let mut sql = Sql::new(concat!(
        "select place, created_at, run_number, \
         case subtype when 'runtara.folded' then payload end from runtara_events \
         where place between ? and ? and ",
        foldable!(),
        " order by place limit ?"
    ));
    sql.bind(place(instance, 0))
        .bind(place(instance + 1, 0) - 1)
        .bind(take);
    let oldest = tx.rows(&sql, "looking for the oldest events")?;
    let oldest: Vec<_> = oldest.iter().map(read).collect::<StoreResult<_>>()?;
    let (Some(event), Some(first), Some(last)) = (fold(&oldest), oldest.first(), oldest.last())
    else {
        return Ok(Folded::default());
    };
    let at = |seq: u64| place(instance, i64::try_from(seq).unwrap_or(i64::MAX));
    let gone = oldest.len() as u64 - 1;
    let mut sql = Sql::default();
    sql.then(concat!(
        "delete from runtara_events where place >= ? and place < ? and ",
        foldable!()
    ))
    .bind(at(first.seq))
    .bind(at(last.seq));
    // Steps stand at the places of the events by which they began.
    sql.then("delete from runtara_steps where place between ? and ?")
        .bind(at(first.seq))
        .bind(at(last.seq));
    sql.then(
        "update runtara_events set subtype = ?, payload = ?, is_text = 1, checkpoint_id = null, \
         scope_id = null, parent_scope_id = null, request_id = null where place = ?",
    )
    .bind(event.subtype.as_deref())
    .bind_bytes(event.payload.as_ref())
    .bind(at(last.seq));
    sql.then("update runtara_inputs set events_folded = events_folded + ? where instance = ?")
        .bind_u64(gone)
        .bind(instance);
    tx.execute(sql)?;
    Ok(Folded {
        events: gone,
        more: to_take(max_events, kept - gone, limit).is_some(),
    })
}

fn read(row: &Row) -> StoreResult<Foldable> {
    let mut columns = Columns::of(row);
    let seq = seq_of(columns.int()?).unsigned_abs();
    let created_at = columns.time()?;
    let run_number = RunNumber(columns.number()?);
    let folded = columns.opt_bytes()?;
    Ok(Foldable {
        seq,
        created_at,
        run_number,
        folded: folded.and_then(|payload| serde_json::from_slice(&payload).ok()),
    })
}
