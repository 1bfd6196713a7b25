//! Questions about events, and what is derived from them: steps and scopes.

use bytes::Bytes;
use runtara_domain::{EventKind, InstanceId, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};

use crate::{
    EventFilter, Page, PageRequest, Scope, StepFilter, StepStatus, StepSummary, StoredEvent, paging,
};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::Answer;
use super::{numbered, row};

fn push_text(sql: &mut QueryBuilder<Postgres>, column: &str, wanted: Option<&String>) {
    if let Some(wanted) = wanted {
        numbered::push_text(sql, column, wanted);
    }
}

fn push_filter(sql: &mut QueryBuilder<Postgres>, id: &InstanceId, filter: &EventFilter) {
    sql.push(" from runtara_events e where e.instance_id = ");
    sql.push_bind(id.as_str().to_owned());
    numbered::push_not_removed(sql, id);
    if let Some(kind) = filter.kind {
        sql.push(" and e.kind = ");
        sql.push_bind(kind.as_str());
        if kind != EventKind::Custom {
            // Said in the words of the index, so that it serves whatever plan is made.
            sql.push(" and e.kind <> 'custom'");
        }
    }
    push_text(sql, "e.subtype", filter.subtype.as_ref());
    numbered::push_time(
        sql,
        "e.created_at",
        filter.created_after,
        filter.created_before,
    );
    push_text(sql, "e.scope_id", filter.scope_id.as_ref());
    push_text(sql, "e.parent_scope_id", filter.parent_scope_id.as_ref());
    if filter.root_scopes_only {
        sql.push(" and e.parent_scope_id is null");
    }
    if let Some(text) = &filter.payload_contains {
        // In collation "C" only letters of ASCII have another case.
        sql.push(" and strpos(lower(runtara_payload_text(e.payload) collate \"C\"), lower(");
        sql.push_bind(text.replace('\0', "\u{1}"));
        sql.push(" collate \"C\")) > 0");
    }
}

fn event(found: &PgRow) -> Answer<StoredEvent> {
    Ok(StoredEvent {
        seq: row::unsigned(row::get(found, "seq")?),
        kind: row::get::<&str>(found, "kind")?.parse()?,
        subtype: row::get(found, "subtype")?,
        checkpoint_id: row::checkpoint_id(found)?,
        payload: row::bytes(found, "payload")?,
        created_at: Timestamp(row::get(found, "created_at")?),
        run_number: row::run_number(found, "run_number")?,
    })
}

/// Events by their number, along the primary key, or the index of a filter: `runtara_events_kind`, `…_subtype`, `…_scope`,
/// `…_parent_scope`, `…_created`.
pub(super) async fn list(
    store: &PostgresStore,
    id: &InstanceId,
    filter: &EventFilter,
    page: &PageRequest,
) -> Answer<Page<StoredEvent>> {
    let heavy = numbered::Heavy {
        selected: "e.seq, coalesce(octet_length(e.payload), 0) as size",
        seq: "e.seq",
        read: "s.seq, s.kind::text as kind, s.subtype, s.checkpoint_id, s.payload, s.created_at, s.run_number
                 from page join runtara_events s on s.seq = page.seq",
    };
    let push = |sql: &mut QueryBuilder<Postgres>| push_filter(sql, id, filter);
    let (rows, there) = heavy.rows(store, push, id, filter.ascending, page).await?;
    let mut sql = QueryBuilder::new("select count(*) from (select 1");
    push_filter(&mut sql, id, filter);
    let total = numbered::total(store, sql).await?;
    let found: Vec<_> = rows.iter().map(event).collect::<Answer<_>>()?;
    Ok(paging::page_of(found, there, page, total, |row| {
        paging::cursor_at(row.seq)
    }))
}

/// A step is a start with the first end of the same step that follows it before the next start of the same: the next event of the
/// same key, if that is an end.
fn push_steps(sql: &mut QueryBuilder<Postgres>, id: &InstanceId, filter: &StepFilter) {
    if filter.status == Some(StepStatus::Failed) {
        push_failed(sql, id);
    } else {
        sql.push(
            " from runtara_events s
              left join lateral (
                   select n.seq, n.subtype, n.payload, n.step_failed from runtara_events n
                    where n.instance_id = s.instance_id and n.step_key = s.step_key and n.seq > s.seq
                    order by n.seq limit 1) n on n.subtype = 'step_debug_end'
             where s.instance_id = ",
        );
        sql.push_bind(id.as_str().to_owned());
        sql.push(" and s.subtype = 'step_debug_start' and s.step_key is not null");
    }
    numbered::push_not_removed(sql, id);
    match filter.status {
        None | Some(StepStatus::Failed) => {}
        Some(StepStatus::Running) => {
            sql.push(" and n.subtype is null");
        }
        Some(StepStatus::Completed) => {
            sql.push(" and not n.step_failed");
        }
    }
    push_text(sql, "s.step_type", filter.step_type.as_ref());
    push_text(sql, "s.scope_id", filter.scope_id.as_ref());
    push_text(sql, "s.parent_scope_id", filter.parent_scope_id.as_ref());
    if filter.root_scopes_only {
        sql.push(" and s.parent_scope_id is null");
    }
    if !filter.step_ids.is_empty() {
        sql.push(" and s.step_id = any(");
        let ids = filter.step_ids.iter().filter(|id| !id.contains('\0'));
        sql.push_bind(ids.cloned().collect::<Vec<_>>());
        sql.push(")");
    }
}

/// Few steps fail: they are found from their ends, along `runtara_events_step_failed`. The start is the event of the same key before
/// it, if that is one.
fn push_failed(sql: &mut QueryBuilder<Postgres>, id: &InstanceId) {
    sql.push(
        " from runtara_events n
          join lateral (
               select b.instance_id, b.seq, b.subtype, b.payload, b.step_type, b.scope_id, b.parent_scope_id, b.step_id
                 from runtara_events b
                where b.instance_id = n.instance_id and b.step_key = n.step_key and b.seq < n.seq
                order by b.seq desc limit 1) s on s.subtype = 'step_debug_start'
         where n.instance_id = ",
    );
    sql.push_bind(id.as_str().to_owned());
    sql.push(" and n.subtype = 'step_debug_end' and n.step_failed");
}

fn step(found: &PgRow) -> Answer<StepSummary> {
    let failed: Option<bool> = row::get(found, "step_failed")?;
    let ended_at = row::time(found, "ended_at")?;
    Ok(StepSummary {
        seq: row::unsigned(row::get(found, "seq")?),
        start: row::bytes(found, "start_payload")?.unwrap_or_default(),
        started_at: Timestamp(row::get(found, "started_at")?),
        end: match ended_at {
            Some(_) => Some(row::bytes(found, "end_payload")?.unwrap_or_default()),
            None => None,
        },
        ended_at,
        status: match failed.filter(|_| ended_at.is_some()) {
            None => StepStatus::Running,
            Some(false) => StepStatus::Completed,
            Some(true) => StepStatus::Failed,
        },
    })
}

/// Steps by the number of their start, along `runtara_events_subtype`, or the index of a filter: `runtara_events_step_type`,
/// `runtara_events_step_failed`; each with its end along `runtara_events_step`.
pub(super) async fn steps(
    store: &PostgresStore,
    id: &InstanceId,
    filter: &StepFilter,
    page: &PageRequest,
) -> Answer<Page<StepSummary>> {
    let heavy = numbered::Heavy {
        selected: "s.seq, n.seq as end_seq,
                   coalesce(octet_length(s.payload), 0) + coalesce(octet_length(n.payload), 0) as size",
        seq: "s.seq",
        read: "s.seq, s.payload as start_payload, s.created_at as started_at, n.payload as end_payload,
               n.created_at as ended_at, n.step_failed
                 from page join runtara_events s on s.seq = page.seq
                 left join runtara_events n on n.instance_id = s.instance_id and n.seq = page.end_seq",
    };
    let push = |sql: &mut QueryBuilder<Postgres>| push_steps(sql, id, filter);
    let (rows, there) = heavy.rows(store, push, id, filter.ascending, page).await?;
    let mut sql = QueryBuilder::new("select count(*) from (select 1");
    push_steps(&mut sql, id, filter);
    let total = numbered::total(store, sql).await?;
    let found: Vec<_> = rows.iter().map(step).collect::<Answer<_>>()?;
    Ok(paging::page_of(found, there, page, total, |row| {
        paging::cursor_at(row.seq)
    }))
}

/// A scope and those around it, each along `runtara_events_scope`.
pub(super) async fn scope_ancestors(
    store: &PostgresStore,
    id: &InstanceId,
    scope_id: &str,
) -> Answer<Vec<Scope>> {
    let rows = sqlx::query(
        "with recursive outward as (
             (select 1 as depth, e.scope_id, e.parent_scope_id, e.payload, e.created_at, array[e.scope_id] as met
                from runtara_events e
               where e.instance_id = $1 and e.scope_id = $2 and e.subtype = 'scope_enter' and e.kind = 'custom'
               order by e.seq desc limit 1)
             union all
             select o.depth + 1, p.scope_id, p.parent_scope_id, p.payload, p.created_at, o.met || p.scope_id
               from outward o
              cross join lateral (
                    select e.scope_id, e.parent_scope_id, e.payload, e.created_at from runtara_events e
                     where e.instance_id = $1 and e.scope_id = o.parent_scope_id and e.subtype = 'scope_enter'
                       and e.kind = 'custom'
                     order by e.seq desc limit 1) p
              where o.depth < 1000 and p.scope_id <> all(o.met)
         )
         select payload, created_at from outward
          where exists (select from runtara_instances where instance_id = $1)
          order by depth",
    )
    .bind(id.as_str())
    .bind(row::without_nul(scope_id))
    .all_on(&store.connections)
    .await?;
    let scope = |found: &PgRow| {
        Ok(Scope {
            payload: row::bytes(found, "payload")?.unwrap_or_else(Bytes::new),
            created_at: Timestamp(row::get(found, "created_at")?),
        })
    };
    rows.iter().map(scope).collect()
}
