//! Removes ended instances: first they are taken away, then what belonged to them is removed in pieces.

use runtara_domain::{InstanceId, Labels, Timestamp};
use sqlx::SqliteConnection;

use super::sql::{Columns, Row, Sql};
use super::state::{Loaded, place, read_with, state_columns};
use super::tx::{After, Tx};
use crate::removal::{INSTANCES_AT_ONCE, PIECE, WEIGHT_BYTES};
use crate::{EndedInstance, Expired, ExpiredPage, Owners, Purge, Remains, StoreResult};

/// Ended instances whose time is over. Served by `runtara_instances_finished` and `runtara_instances_tenant_finished`.
pub(super) fn expired_sql(demand: &Expired, now: Timestamp) -> Sql {
    let mut sql = Sql::new(
        "select i.instance_id, i.tenant_id, i.status, i.finished_at, i.live_node is not null \
         from runtara_instances i where i.finished_at <= ?",
    );
    let ended_ms = i64::try_from(demand.ended_ms).unwrap_or(i64::MAX);
    sql.bind(now.0.saturating_sub(ended_ms));
    if let Owners::Only(tenant) = &demand.owners {
        sql.push(" and i.tenant_id = ?").bind(tenant.as_str());
    }
    if let Some(after) = &demand.after {
        sql.push(" and (i.finished_at, i.instance_id) > (?, ?)")
            .bind_time(after.finished_at)
            .bind(after.instance_id.as_str());
    }
    sql.push(" order by i.finished_at, i.instance_id limit ?")
        .bind(demand.limit);
    sql
}

pub(super) async fn expired(
    connection: &mut SqliteConnection,
    demand: &Expired,
    now: Timestamp,
) -> StoreResult<ExpiredPage> {
    let rows =
        expired_sql(demand, now).rows(connection, "looking for instances whose time is over");
    let rows = rows.await?;
    let mut page = ExpiredPage {
        more: rows.len() >= demand.limit as usize,
        ..ExpiredPage::default()
    };
    for row in &rows {
        let mut columns = Columns::of(row);
        let ended = EndedInstance {
            instance_id: columns.parsed()?,
            tenant_id: columns.parsed()?,
            status: columns.parsed()?,
            finished_at: columns.time()?,
        };
        page.look_at(demand, ended, columns.flag()?);
    }
    Ok(page)
}

/// Takes instances away: their rows, and what there is one of for each.
///
/// What is left of them cannot grow, as everything that belongs to an instance is written by whoever has found its row. It is found by the
/// number of the instance, which [`insert`](super::state::insert) does not give again meanwhile; so an instance of the same id may come at
/// any time.
pub(super) fn take_away(tx: &mut Tx, ended: &[EndedInstance]) -> StoreResult<Vec<InstanceId>> {
    let mut gone = Vec::new();
    for ended in ended {
        let Some((found, labels)) = find(tx, &ended.instance_id)? else {
            continue;
        };
        let state = &found.state;
        let is_as_found = state.finished_at == Some(ended.finished_at);
        if is_as_found && state.status.is_end() && state.live_node.is_none() {
            take_one(tx, found, &labels)?;
            gone.push(ended.instance_id.clone());
        }
    }
    Ok(gone)
}

fn find(tx: &mut Tx, id: &InstanceId) -> StoreResult<Option<(Loaded, Labels)>> {
    const FIND: &str = concat!(
        "select ",
        state_columns!(),
        ", i.labels from runtara_instances i where i.instance_id = ?"
    );
    let mut sql = Sql::new(FIND);
    sql.bind(id.as_str());
    let Some(row) = tx.row(&sql, "loading an instance")? else {
        return Ok(None);
    };
    let (found, mut columns) = read_with(&row)?;
    Ok(Some((found, columns.json()?)))
}

fn take_one(tx: &mut Tx, found: Loaded, labels: &Labels) -> StoreResult<()> {
    let mut sql = Sql::default();
    for statement in [
        "delete from runtara_inputs where instance = ?",
        "delete from runtara_results where instance = ?",
        "delete from runtara_instances where id = ?",
        "insert into runtara_removals (instance) values (?)",
    ] {
        sql.then(statement).bind(found.id);
    }
    let state = &found.state;
    for (key, value) in labels.iter() {
        sql.then(
            "delete from runtara_instance_labels where tenant_id = ? and key = ? and value = ? \
             and created_at = ? and instance_id = ?",
        )
        .bind(state.tenant_id.as_str())
        .bind(key)
        .bind(value)
        .bind_time(state.created_at)
        .bind(state.instance_id.as_str());
    }
    tx.execute(sql)?;
    tx.left(state);
    tx.nudge_after(After::Made(Box::new(found.state)));
    Ok(())
}

/// Removes an ended instance with everything that belongs to it, or so much of it as one piece may have: then its number is answered.
pub(super) fn purge(tx: &mut Tx, id: &InstanceId) -> StoreResult<(Purge, Option<i64>)> {
    let Some((found, labels)) = find(tx, id)? else {
        return Ok((Purge::NotFound, None));
    };
    let state = &found.state;
    if !state.status.is_end() {
        return Ok((Purge::NotEnded(state.status), None));
    }
    if state.live_node.is_some() {
        return Ok((Purge::ProcessLeaving, None));
    }
    let instance = found.id;
    take_one(tx, found, &labels)?;
    let left = remove_piece_of(tx, instance)?;
    Ok((Purge::Purged, left.then_some(instance)))
}

/// Removes a piece of what is left of one instance. Says whether there is more.
pub(super) fn remove_piece_of(tx: &mut Tx, instance: i64) -> StoreResult<bool> {
    let mut sql = Sql::new("select 1 from runtara_removals where instance = ?");
    sql.bind(instance);
    // Somebody else may have removed the rest, and then the number may be that of another instance.
    if tx
        .row(&sql, "looking for what is left of an instance")?
        .is_none()
    {
        return Ok(false);
    }
    let mut piece = Piece::of(PIECE);
    piece.remove(tx, instance)?;
    Ok(piece.is_full())
}

/// Removes a piece of what is left of those that were taken away.
pub(super) fn remove_remains(tx: &mut Tx, rows: u32) -> StoreResult<Remains> {
    let mut sql = Sql::new("select instance from runtara_removals order by instance limit ?");
    sql.bind(INSTANCES_AT_ONCE);
    let noted = tx.rows(&sql, "looking for what is left of instances")?;
    let mut piece = Piece::of(rows);
    for row in &noted {
        piece.remove(tx, Columns::of(row).int()?)?;
        if piece.is_full() {
            break;
        }
    }
    piece.removed.more = piece.is_full() || noted.len() >= INSTANCES_AT_ONCE as usize;
    Ok(piece.removed)
}

/// A part of a removal whose cost is bounded.
struct Piece {
    /// How much more it may weigh.
    left: i64,
    removed: Remains,
}

/// A table whose rows are ordered by their places: how they are found, and how a stretch of them is removed.
struct Placed {
    find: &'static str,
    remove: &'static [&'static str],
}

const PLACED: [Placed; 2] = [
    Placed {
        find: "select place, size from runtara_checkpoints where place between ? and ? order by place limit ?",
        remove: &["delete from runtara_checkpoints where place between ? and ?"],
    },
    // A step stands at the place of the event by which it began.
    Placed {
        find: "select place, coalesce(length(payload), 0) from runtara_events \
               where place between ? and ? order by place limit ?",
        remove: &[
            "delete from runtara_events where place between ? and ?",
            "delete from runtara_steps where place between ? and ?",
        ],
    },
];

/// Tables whose rows are few and small.
const KEYED: [&str; 2] = [
    "delete from runtara_waits where (instance, kind, key, n) in \
     (select instance, kind, key, n from runtara_waits where instance = ? order by kind, key, n limit ?) returning 0",
    "delete from runtara_signals where (instance, signal_id, n) in \
     (select instance, signal_id, n from runtara_signals where instance = ? order by signal_id, n limit ?) \
     returning coalesce(length(payload), 0)",
];

impl Piece {
    fn of(rows: u32) -> Self {
        Self {
            left: i64::from(rows.max(1)),
            removed: Remains::default(),
        }
    }

    fn is_full(&self) -> bool {
        self.left <= 0
    }

    /// Removes what is left of an instance as far as the piece reaches, and the note of it if that is all.
    fn remove(&mut self, tx: &mut Tx, instance: i64) -> StoreResult<()> {
        for table in &PLACED {
            if !self.is_full() {
                self.remove_placed(tx, instance, table)?;
            }
        }
        for table in KEYED {
            if !self.is_full() {
                self.remove_keyed(tx, instance, table)?;
            }
        }
        if self.is_full() {
            return Ok(());
        }
        let mut sql = Sql::default();
        sql.then("delete from runtara_removals where instance = ?")
            .bind(instance);
        tx.execute(sql)
    }

    fn count(&mut self, bytes: i64) {
        self.left -= 1 + bytes / WEIGHT_BYTES;
        self.removed.rows += 1;
        self.removed.bytes += bytes.unsigned_abs();
    }

    fn remove_placed(&mut self, tx: &mut Tx, instance: i64, table: &Placed) -> StoreResult<()> {
        let mut sql = Sql::new(table.find);
        sql.bind(place(instance, 0))
            .bind(place(instance + 1, 0) - 1)
            .bind(self.left);
        let found = tx.rows(&sql, "looking for what is left of an instance")?;
        let mut stretch = None;
        for row in &found {
            if self.is_full() {
                break;
            }
            let mut columns = Columns::of(row);
            let at = columns.int()?;
            stretch = Some((stretch.map_or(at, |(first, _)| first), at));
            self.count(columns.int()?);
        }
        let Some((first, last)) = stretch else {
            return Ok(());
        };
        let mut sql = Sql::default();
        for statement in table.remove {
            sql.then(*statement).bind(first).bind(last);
        }
        tx.execute(sql)
    }

    fn remove_keyed(
        &mut self,
        tx: &mut Tx,
        instance: i64,
        statement: &'static str,
    ) -> StoreResult<()> {
        let mut sql = Sql::default();
        sql.then(statement).bind(instance).bind(self.left);
        for row in &tx.execute_for_rows(sql)? {
            self.count(size(row)?);
        }
        Ok(())
    }
}

fn size(row: &Row) -> StoreResult<i64> {
    Columns::of(row).int()
}
