//! Claims, and which runs are live.

use runtara_domain::{
    Change, InstanceId, Liveness, NodeId, RunExit, RunNumber, RunnerKind, TokenHash, limits,
    transition,
};
use sqlx::SqliteConnection;

use super::images::{image_columns, read_image};
use super::nodes;
use super::sql::{Columns, Question, Row, Sql, json_text};
use super::state::{read_with, state_columns};
use super::tx::Tx;
use super::write::Write;
use crate::{CLAIMED_INPUT_BYTES, Claim, ClaimedRun, LiveRun, NextDue, StoreResult, TokenOwner};
use runtara_domain::Timestamp;

/// Served by `runtara_instances_due`.
const DUE: &str = concat!(
    "select ",
    state_columns!(),
    ", ",
    image_columns!(),
    ", case when length(n.input) <= ? then n.input end, n.env, n.args, n.settings \
     from runtara_instances i indexed by runtara_instances_due \
     cross join runtara_images m on m.image_id = i.image_id \
     left join runtara_inputs n on n.instance = i.id \
     where i.due_at is not null and i.live_node is null and i.due_at <= ? \
     and i.kind in (?, ?, ?)"
);

pub(super) fn bind_kinds(sql: &mut Sql, kinds: &[RunnerKind]) {
    for at in 0..3 {
        sql.bind(kinds.get(at).or(kinds.first()).map(|kind| kind.as_str()));
    }
}

pub(super) fn due(claim: &Claim, now: Timestamp) -> StoreResult<Sql> {
    let mut sql = Sql::new(DUE);
    sql.bind_u64(CLAIMED_INPUT_BYTES as u64).bind_time(now);
    bind_kinds(&mut sql, &claim.kinds);
    sql.push(" and (i.expires_at is null or i.expires_at > ?)")
        .bind_time(now);
    if !claim.without_tenants.is_empty() {
        sql.push(" and i.tenant_id not in (select value from json_each(?))")
            .bind(json_text(&claim.without_tenants, false)?);
    }
    sql.push(" order by i.due_at, i.instance_id limit ?")
        .bind_u64(claim.tokens.len() as u64);
    Ok(sql)
}

/// What [`claim_one`] reads, of one instance.
pub(super) fn due_by_id(id: &InstanceId) -> Sql {
    const BY_ID: &str = concat!(
        "select ",
        state_columns!(),
        ", ",
        image_columns!(),
        ", case when length(n.input) <= ? then n.input end, n.env, n.args, n.settings \
         from runtara_instances i \
         cross join runtara_images m on m.image_id = i.image_id \
         left join runtara_inputs n on n.instance = i.id where i.instance_id = ?"
    );
    let mut sql = Sql::new(BY_ID);
    sql.bind_u64(CLAIMED_INPUT_BYTES as u64).bind(id.as_str());
    sql
}

/// Gives runs to instances that are due.
pub(super) fn claim(tx: &mut Tx, claim: &Claim) -> StoreResult<Vec<ClaimedRun>> {
    if claim.kinds.is_empty() || claim.tokens.is_empty() || !nodes::may_claim(tx, claim.node)? {
        return Ok(Vec::new());
    }
    if let Some(allowed) = claim.running_allowed {
        return super::limited::claim(tx, claim, allowed);
    }
    let sql = due(claim, tx.now)?;
    let rows = tx.rows(&sql, "looking for instances that are due")?;
    let mut claimed = Vec::with_capacity(rows.len());
    for (row, token) in rows.iter().zip(&claim.tokens) {
        claimed.push(claim_one(tx, row, claim.node, *token)?);
    }
    Ok(claimed)
}

pub(super) fn claim_one(
    tx: &mut Tx,
    row: &Row,
    node: NodeId,
    token: TokenHash,
) -> StoreResult<ClaimedRun> {
    let (found, mut columns) = read_with(row)?;
    let image = read_image(&mut columns)?;
    let input = columns.opt_bytes()?;
    let env = columns.json()?;
    let args = columns.json()?;
    let settings = columns.json()?;
    let due_at = found.state.due_at.unwrap_or(tx.now);
    let next = transition(&found.state, &Change::Claim { node, token }, tx.now)?;
    let written = Write::new(&found, next, tx.now).run(tx)?;
    let state = &written.state;
    Ok(ClaimedRun {
        token,
        instance_id: state.instance_id.clone(),
        tenant_id: state.tenant_id.clone(),
        run_number: state.run_number,
        due_at,
        image,
        input,
        env,
        args,
        settings,
        checkpoint_id: state.checkpoint_id.clone(),
        timeout_ms: state.timeout_ms,
        heartbeat_timeout_ms: state.heartbeat_timeout_ms,
        expires_in_ms: state.expires_at.map(|at| at.millis_since(tx.now)),
    })
}

/// Served by `runtara_instances_due`.
pub(super) fn next_due_sql(kinds: &[RunnerKind]) -> Sql {
    let mut sql = Sql::new(
        "select i.due_at from runtara_instances i indexed by runtara_instances_due \
         where i.due_at is not null and i.live_node is null and i.kind in (?, ?, ?) \
         order by i.due_at, i.instance_id limit 1",
    );
    bind_kinds(&mut sql, kinds);
    sql
}

pub(super) fn next_due(kinds: &[RunnerKind], now: Timestamp) -> Question<NextDue> {
    let sql = next_due_sql(kinds);
    Question::new(sql, "looking for the next due time", move |row| {
        let due = row.map(|row| Columns::of(row).time()).transpose()?;
        Ok(NextDue {
            in_ms: due.map(|due| due.millis_since(now)),
        })
    })
}

/// Served by `runtara_instances_due`.
pub(super) fn next_due_later(kinds: &[RunnerKind], now: Timestamp) -> Question<NextDue> {
    let mut sql = Sql::new(
        "select i.due_at from runtara_instances i indexed by runtara_instances_due \
         where i.due_at > ? and i.live_node is null and i.kind in (?, ?, ?) \
         order by i.due_at, i.instance_id limit 1",
    );
    sql.bind_time(now);
    bind_kinds(&mut sql, kinds);
    Question::new(sql, "looking for what is due later", move |row| {
        let due = row.map(|row| Columns::of(row).time()).transpose()?;
        Ok(NextDue {
            in_ms: due.map(|due| due.millis_since(now)),
        })
    })
}

const LIVE: &str = "select i.instance_id, i.run_number, i.token, i.kind, i.live_node, i.status, \
                    i.leave_by, i.asked_to_leave, i.slept_ms, i.heartbeat_timeout_ms, i.claimed_at, \
                    case when i.spoke then i.last_seen_at end, i.hold_park is not null, \
                    i.hold_until from runtara_instances i";

fn read_live(row: &Row, now: Timestamp) -> StoreResult<LiveRun> {
    let mut columns = Columns::of(row);
    let live = LiveRun {
        instance_id: columns.parsed()?,
        run_number: RunNumber(columns.number()?),
        token: TokenHash(columns.hash()?),
        kind: columns.parsed()?,
        node: columns.parsed()?,
        status: columns.parsed()?,
        leave_in_ms: columns.opt_time()?.map(|by| by.millis_since(now)),
        asked_to_leave: columns.flag()?,
        slept_ms: columns.number()?,
        heartbeat_timeout_ms: None,
        silent_in_ms: None,
    };
    let liveness = Liveness {
        status: live.status,
        heartbeat_timeout_ms: columns.opt_number()?,
        claimed_at: columns.opt_time()?,
        seen_at: columns.opt_time()?,
        is_held: columns.flag()?,
        held_until: columns.opt_time()?,
    };
    Ok(LiveRun {
        heartbeat_timeout_ms: liveness.heartbeat_timeout_ms,
        silent_in_ms: liveness.silent_in_ms(now),
        ..live
    })
}

/// Served by `runtara_instances_live`.
pub(super) fn live_runs_sql(node: NodeId, after: Option<&InstanceId>, limit: u32) -> Sql {
    let mut sql = Sql::new(LIVE);
    sql.push(" where i.live_node = ?").bind(node.to_string());
    if let Some(after) = after {
        sql.push(" and i.instance_id > ?").bind(after.as_str());
    }
    sql.push(" order by i.instance_id limit ?").bind(limit);
    sql
}

pub(super) async fn live_runs(
    connection: &mut SqliteConnection,
    (node, after, limit): (NodeId, Option<&InstanceId>, u32),
    now: Timestamp,
) -> StoreResult<Vec<LiveRun>> {
    let sql = live_runs_sql(node, after, limit);
    let rows = sql.rows(connection, "listing live runs").await?;
    rows.iter().map(|row| read_live(row, now)).collect()
}

pub(super) fn live_run(id: &InstanceId, now: Timestamp) -> Question<Option<LiveRun>> {
    let mut sql = Sql::new(LIVE);
    sql.push(" where i.instance_id = ? and i.live_node is not null")
        .bind(id.as_str());
    Question::new(sql, "looking for a live run", move |row| {
        row.map(|row| read_live(row, now)).transpose()
    })
}

/// Served by `runtara_instances_token`.
pub(super) fn owner_sql(token: TokenHash) -> Sql {
    let mut sql = Sql::new(
        "select i.instance_id, i.tenant_id, i.run_number from runtara_instances i \
         where i.token = ?",
    );
    sql.bind(token.0);
    sql
}

pub(super) fn owner(token: TokenHash) -> Question<Option<TokenOwner>> {
    let sql = owner_sql(token);
    Question::new(sql, "looking for the run of a token", |row| {
        let Some(row) = row else {
            return Ok(None);
        };
        let mut columns = Columns::of(row);
        Ok(Some(TokenOwner {
            instance_id: columns.parsed()?,
            tenant_id: columns.parsed()?,
            run_number: RunNumber(columns.number()?),
        }))
    })
}

/// Takes runs of nodes whose lease is over for lost.
pub(super) fn expire(tx: &mut Tx, me: NodeId, limit: u32) -> StoreResult<Vec<InstanceId>> {
    const EXPIRED: &str = concat!(
        "select ",
        state_columns!(),
        " from runtara_nodes n \
         cross join runtara_instances i indexed by runtara_instances_live \
         on i.live_node = n.node_id \
         where n.node_id <> ? and n.lease_until <= ? \
         and (n.guarded = 1 or n.removed = 1 or exists \
         (select 1 from runtara_nodes m where m.node_id = ? and m.registered_at <= ?)) \
         order by i.instance_id limit ?"
    );
    let long_ago = tx.now.0.saturating_sub_unsigned(limits::NODE_LEASE_MS);
    let mut sql = Sql::new(EXPIRED);
    sql.bind(me.to_string())
        .bind_time(tx.now)
        .bind(me.to_string())
        .bind(long_ago)
        .bind(limit);
    let rows = tx.rows(&sql, "looking for runs of lost nodes")?;
    let mut expired = Vec::with_capacity(rows.len());
    for row in &rows {
        let (found, _) = read_with(row)?;
        let exit = Change::Exit {
            run_number: found.state.run_number,
            exit: RunExit::lost(),
            our_fault: true,
        };
        let next = transition(&found.state, &exit, tx.now)?;
        let written = Write::new(&found, next, tx.now).run(tx)?;
        expired.push(written.state.instance_id.clone());
    }
    nodes::forget_dead(tx, me)?;
    Ok(expired)
}
