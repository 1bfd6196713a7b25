//! What is kept of an instance's life: checkpoints, events, steps, scopes; and how a tenant's instances ended.

use std::collections::BTreeSet;

use runtara_domain::{CheckpointId, EventKind, InstanceId, RunNumber};
use sqlx::SqliteConnection;

use super::lists::{numbers, within};
use super::numbered::{Driver, Numbered, Question};
use super::sql::{Columns, Row, Sql, json_text};
use super::state::seq_of;
use crate::paging::{self, cursor_at};
use crate::{
    CheckpointFilter, CheckpointSummary, EventFilter, MetricsBucket, MetricsQuery, Page,
    PageRequest, Scope, StepFilter, StepStatus, StepSummary, StoreResult, StoredCheckpoint,
    StoredEvent,
};

/// Most scopes of one answer.
const SCOPES: usize = 1_000;

const CHECKPOINTS: Question = Question {
    table: "runtara_checkpoints c",
    instance: "c.instance",
    place: "c.place",
    size: "0",
    columns: "c.place, c.checkpoint_id, c.created_at, c.size, c.run_number",
};

pub(super) const EVENTS: Question = Question {
    table: "runtara_events e",
    instance: "e.instance",
    place: "e.place",
    size: "coalesce(length(e.payload), 0)",
    columns: "e.place, e.kind, e.subtype, e.checkpoint_id, e.payload, e.created_at, e.run_number",
};

pub(super) const STEPS: Question = Question {
    table: "runtara_steps t",
    instance: "t.instance",
    place: "t.place",
    size: "coalesce((select length(s.payload) from runtara_events s where s.place = t.place), 0) \
           + coalesce((select length(e.payload) from runtara_events e where e.place = t.end_place), 0)",
    columns: "t.place, t.status, \
               (select s.payload from runtara_events s where s.place = t.place), \
               (select s.created_at from runtara_events s where s.place = t.place), \
               (select e.payload from runtara_events e where e.place = t.end_place), \
               (select e.created_at from runtara_events e where e.place = t.end_place)",
};

fn empty<T>(page: &PageRequest) -> Page<T> {
    paging::page(Vec::new(), page, paging::total(0, None), |_| cursor_at(0))
}

fn seq(columns: &mut Columns<'_>) -> StoreResult<u64> {
    Ok(seq_of(columns.int()?).unsigned_abs())
}

pub(super) async fn list_checkpoints(
    connection: &mut SqliteConnection,
    id: &InstanceId,
    filter: &CheckpointFilter,
    page: &PageRequest,
) -> StoreResult<Page<CheckpointSummary>> {
    let Some((instance, saved, _)) = numbers(connection, id).await? else {
        return Ok(empty(page));
    };
    let list = Numbered {
        instance,
        all: (*filter == CheckpointFilter::default()).then_some(saved),
        ascending: false,
        page,
        // The index of names is found without being told.
        driver: None,
    };
    let conditions = |sql: &mut Sql| {
        if let Some(name) = &filter.checkpoint_id {
            sql.push(" and c.instance = ? and c.checkpoint_id = ?")
                .bind(instance)
                .bind(name.as_str());
        }
        within(
            sql,
            "c.created_at",
            filter.created_after,
            filter.created_before,
        );
        Ok(())
    };
    let read = |row: &Row| {
        let mut columns = Columns::of(row);
        Ok(CheckpointSummary {
            seq: seq(&mut columns)?,
            checkpoint_id: columns.text()?,
            created_at: columns.time()?,
            size: columns.number()?,
            run_number: RunNumber(columns.number()?),
        })
    };
    list.ask(connection, &CHECKPOINTS, conditions, read, |row| row.seq)
        .await
}

/// Served by `runtara_checkpoints_name`.
pub(super) async fn checkpoint(
    connection: &mut SqliteConnection,
    id: &InstanceId,
    checkpoint_id: &CheckpointId,
) -> StoreResult<Option<StoredCheckpoint>> {
    // The record of a retry has version -1. What was saved comes first.
    for saved in ["c.version >= 0", "c.version < 0"] {
        let mut sql = Sql::new(
            "select c.state, c.created_at from runtara_instances i \
             cross join runtara_checkpoints c on c.instance = i.id \
             where i.instance_id = ? and c.checkpoint_id = ? and ",
        );
        sql.push(saved);
        sql.push(" order by c.place desc limit 1");
        sql.bind(id.as_str()).bind(checkpoint_id.as_str());
        if let Some(row) = sql.row(connection, "loading a checkpoint").await? {
            let mut columns = Columns::of(&row);
            return Ok(Some(StoredCheckpoint {
                state: columns.bytes()?,
                created_at: columns.time()?,
            }));
        }
    }
    Ok(None)
}

pub(super) async fn list_events(
    connection: &mut SqliteConnection,
    id: &InstanceId,
    filter: &EventFilter,
    page: &PageRequest,
) -> StoreResult<Page<StoredEvent>> {
    let Some((instance, _, recorded)) = numbers(connection, id).await? else {
        return Ok(empty(page));
    };
    let all = EventFilter {
        ascending: filter.ascending,
        ..EventFilter::default()
    };
    let list = Numbered {
        instance,
        all: recorded.filter(|_| *filter == all),
        ascending: filter.ascending,
        page,
        driver: Driver::of_events(filter),
    };
    let read = |row: &Row| {
        let mut columns = Columns::of(row);
        Ok(StoredEvent {
            seq: seq(&mut columns)?,
            kind: columns.parsed()?,
            subtype: columns.opt_text()?,
            checkpoint_id: columns.opt_parsed()?,
            payload: columns.opt_bytes()?,
            created_at: columns.time()?,
            run_number: RunNumber(columns.number()?),
        })
    };
    let conditions = |sql: &mut Sql| {
        event_conditions(sql, filter);
        Ok(())
    };
    list.ask(connection, &EVENTS, conditions, read, |row| row.seq)
        .await
}

pub(super) fn event_conditions(sql: &mut Sql, filter: &EventFilter) {
    if let Some(kind) = filter.kind {
        sql.push(" and e.kind = ?").bind(kind.as_str());
        if kind != EventKind::Custom {
            // Said in the words of the index: it does not serve otherwise.
            sql.push(" and e.kind <> 'custom'");
        }
    }
    for (condition, value) in [
        (" and e.subtype = ?", &filter.subtype),
        (" and e.scope_id = ?", &filter.scope_id),
        (" and e.parent_scope_id = ?", &filter.parent_scope_id),
    ] {
        if let Some(value) = value {
            sql.push(condition).bind(value.as_str());
        }
    }
    if filter.root_scopes_only {
        sql.push(" and e.parent_scope_id is null");
    }
    within(
        sql,
        "e.created_at",
        filter.created_after,
        filter.created_before,
    );
    if let Some(text) = &filter.payload_contains {
        // `lower` changes letters of ASCII alone; as bytes, because a text may hold a NUL.
        sql.push(
            " and e.is_text = 1 \
             and instr(cast(lower(cast(e.payload as text)) as blob), ?) > 0",
        )
        .bind(text.to_ascii_lowercase().into_bytes());
    }
}

fn status_word(status: StepStatus) -> &'static str {
    match status {
        StepStatus::Running => "running",
        StepStatus::Completed => "completed",
        StepStatus::Failed => "failed",
    }
}

pub(super) fn step_conditions(sql: &mut Sql, filter: &StepFilter) -> StoreResult<()> {
    if let Some(status) = filter.status {
        sql.push(" and t.status = ?").bind(status_word(status));
    }
    for (condition, value) in [
        (" and t.step_type = ?", &filter.step_type),
        (" and t.scope_id = ?", &filter.scope_id),
        (" and t.parent_scope_id = ?", &filter.parent_scope_id),
    ] {
        if let Some(value) = value {
            sql.push(condition).bind(value.as_str());
        }
    }
    if filter.root_scopes_only {
        sql.push(" and t.parent_scope_id is null");
    }
    if !filter.step_ids.is_empty() {
        sql.push(" and +t.step_id in (select value from json_each(?))")
            .bind(json_text(&filter.step_ids, false)?);
    }
    Ok(())
}

pub(super) async fn list_steps(
    connection: &mut SqliteConnection,
    id: &InstanceId,
    filter: &StepFilter,
    page: &PageRequest,
) -> StoreResult<Page<StepSummary>> {
    let Some((instance, ..)) = numbers(connection, id).await? else {
        return Ok(empty(page));
    };
    let list = Numbered {
        instance,
        all: None,
        ascending: filter.ascending,
        page,
        driver: Driver::of_steps(filter),
    };
    let read = |row: &Row| {
        let mut columns = Columns::of(row);
        let seq = seq(&mut columns)?;
        let status = match columns.text()?.as_str() {
            "failed" => StepStatus::Failed,
            "completed" => StepStatus::Completed,
            _ => StepStatus::Running,
        };
        let start = columns.opt_bytes()?.unwrap_or_default();
        let started_at = columns.time()?;
        let end = columns.opt_bytes()?;
        let ended_at = columns.opt_time()?;
        Ok(StepSummary {
            seq,
            start,
            started_at,
            end: ended_at.map(|_| end.unwrap_or_default()),
            ended_at,
            status,
        })
    };
    let conditions = |sql: &mut Sql| step_conditions(sql, filter);
    list.ask(connection, &STEPS, conditions, read, |row| row.seq)
        .await
}

/// Served by `runtara_events_scope_enter`.
pub(super) async fn scope_ancestors(
    connection: &mut SqliteConnection,
    id: &InstanceId,
    scope_id: &str,
) -> StoreResult<Vec<Scope>> {
    let Some((instance, ..)) = numbers(connection, id).await? else {
        return Ok(Vec::new());
    };
    let mut outward = Vec::new();
    let mut met = BTreeSet::new();
    let mut next = Some(scope_id.to_owned());
    while let Some(scope) = next.filter(|_| outward.len() < SCOPES) {
        let mut sql = Sql::new(
            "select payload, created_at, parent_scope_id from runtara_events \
             indexed by runtara_events_scope_enter \
             where instance = ? and scope_id = ? and subtype = 'scope_enter' and kind = 'custom' \
             order by place desc limit 1",
        );
        sql.bind(instance).bind(scope.as_str());
        let Some(row) = sql.row(connection, "looking for a scope").await? else {
            break;
        };
        if !met.insert(scope) {
            break;
        }
        let mut columns = Columns::of(&row);
        outward.push(Scope {
            payload: columns.opt_bytes()?.unwrap_or_default(),
            created_at: columns.time()?,
        });
        next = columns.opt_text()?;
    }
    Ok(outward)
}

/// Served by `runtara_instances_tenant_finished`.
pub(super) fn metrics_sql(query: &MetricsQuery) -> Sql {
    let width = i64::try_from(query.bucket_ms.max(1)).unwrap_or(i64::MAX);
    // Division cuts towards zero; times before the epoch have buckets below it.
    let mut sql = Sql::new(
        "select (i.finished_at - ((i.finished_at % ?1) + ?1) % ?1) as bucket, \
         sum(i.status = 'completed'), sum(i.status = 'failed'), sum(i.status = 'cancelled'), \
         avg(max(i.finished_at - i.started_at, 0)), \
         cast(min(max(i.finished_at - i.started_at, 0)) as real), \
         cast(max(max(i.finished_at - i.started_at, 0)) as real), \
         avg(nullif(i.memory_peak_bytes, 0)), max(nullif(i.memory_peak_bytes, 0)) \
         from runtara_instances i indexed by runtara_instances_tenant_finished \
         where i.tenant_id = ?2 and i.finished_at >= ?3 and i.finished_at < ?4 \
         group by bucket order by bucket",
    );
    sql.bind(width)
        .bind(query.tenant_id.as_str())
        .bind_time(query.start)
        .bind_time(query.end);
    sql
}

pub(super) async fn metrics(
    connection: &mut SqliteConnection,
    query: &MetricsQuery,
) -> StoreResult<Vec<MetricsBucket>> {
    let sql = metrics_sql(query);
    let rows = sql.rows(connection, "counting endings").await?;
    let read = |row: &Row| {
        let mut columns = Columns::of(row);
        Ok(MetricsBucket {
            start: columns.time()?,
            completed: columns.number()?,
            failed: columns.number()?,
            cancelled: columns.number()?,
            avg_duration_ms: columns.opt_float()?,
            min_duration_ms: columns.opt_float()?,
            max_duration_ms: columns.opt_float()?,
            avg_memory_bytes: columns.opt_float()?,
            max_memory_bytes: columns.opt_number()?,
        })
    };
    rows.iter().map(read).collect()
}
