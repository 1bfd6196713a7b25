//! What is silent for too long, and what outlives its deadline.

use runtara_domain::{Change, InstanceId, Timestamp, silence_allowed_ms, transition};

use super::sql::{Columns, Row, Sql};
use super::state::{read_with, state_columns};
use super::tx::Tx;
use super::write::Write;
use crate::{Overdue, StoreResult};

/// Served by `runtara_instances_expires`.
pub(super) fn over_sql(now: Timestamp, limit: u32) -> Sql {
    const OVER: &str = concat!(
        "select ",
        state_columns!(),
        " from runtara_instances i \
         where i.expires_at is not null and i.finished_at is null and i.expires_at <= ? \
         order by i.expires_at, i.instance_id limit ?"
    );
    let mut sql = Sql::new(OVER);
    sql.bind_time(now).bind(limit);
    sql
}

/// Served by the same index.
pub(super) const NEXT_OVER: &str = "select i.expires_at from runtara_instances i \
     where i.expires_at is not null and i.finished_at is null \
     order by i.expires_at, i.instance_id limit 1";

/// Served by `runtara_instances_self`.
pub(super) fn silent_sql(by: Timestamp, now: Timestamp, limit: u32) -> Sql {
    const SILENT: &str = concat!(
        "select ",
        state_columns!(),
        " from runtara_instances i indexed by runtara_instances_self \
         where i.origin = 'self_registered' and i.status = 'running' \
         and not (i.hold_park is not null and i.hold_until is null) \
         and max(i.claimed_at, case when i.spoke then coalesce(i.last_seen_at, 0) else 0 end, \
         coalesce(i.hold_until, 0)) <= ? \
         and not exists (select 1 from runtara_nodes n where n.lease_until between ? and ? \
         or n.registered_at > ?) \
         order by i.instance_id limit ?"
    );
    let mut sql = Sql::new(SILENT);
    sql.bind_time(by)
        .bind_time(by)
        .bind_time(now)
        .bind_time(by)
        .bind(limit);
    sql
}

/// Ends what has outlived its deadline.
pub(super) fn expire(tx: &mut Tx, limit: u32) -> StoreResult<Overdue> {
    let rows = tx.rows(&over_sql(tx.now, limit), "looking for what is over")?;
    let instances = end_each(tx, &rows, &Change::Expire)?;
    let next = tx.row(&Sql::new(NEXT_OVER), "looking for what is over next")?;
    let next = next.map(|row| Columns::of(&row).time()).transpose()?;
    Ok(Overdue {
        instances,
        next_in_ms: next.map(|at| at.millis_since(tx.now)),
    })
}

/// Ends what registered itself and was not heard of any more.
pub(super) fn lapse(tx: &mut Tx, timeout_ms: u64, limit: u32) -> StoreResult<Vec<InstanceId>> {
    let allowed = silence_allowed_ms(timeout_ms);
    let by = Timestamp(tx.now.0.saturating_sub_unsigned(allowed));
    let rows = tx.rows(&silent_sql(by, tx.now, limit), "looking for what is silent")?;
    end_each(tx, &rows, &Change::Lapse { timeout_ms })
}

fn end_each(tx: &mut Tx, rows: &[Row], change: &Change) -> StoreResult<Vec<InstanceId>> {
    let mut ended = Vec::with_capacity(rows.len());
    for row in rows {
        let (found, _) = read_with(row)?;
        let next = transition(&found.state, change, tx.now)?;
        if next.applied {
            let written = Write::new(&found, next, tx.now).run(tx)?;
            ended.push(written.state.instance_id.clone());
        }
    }
    Ok(ended)
}
