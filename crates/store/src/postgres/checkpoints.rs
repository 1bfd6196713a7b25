//! Questions about checkpoints.

use bytes::Bytes;
use runtara_domain::{CheckpointId, InstanceId, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};

use crate::{CheckpointFilter, CheckpointSummary, Page, PageRequest, StoredCheckpoint, paging};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::Answer;
use super::{numbered, row};

fn push_filter(sql: &mut QueryBuilder<Postgres>, id: &InstanceId, filter: &CheckpointFilter) {
    sql.push(" from runtara_checkpoints c where c.instance_id = ");
    sql.push_bind(id.as_str().to_owned());
    numbered::push_not_removed(sql, id);
    if let Some(name) = &filter.checkpoint_id {
        numbered::push_text(sql, "c.checkpoint_id", name);
    }
    numbered::push_time(
        sql,
        "c.created_at",
        filter.created_after,
        filter.created_before,
    );
}

fn summary(found: &PgRow) -> Answer<CheckpointSummary> {
    Ok(CheckpointSummary {
        seq: row::unsigned(row::get(found, "seq")?),
        checkpoint_id: row::get(found, "checkpoint_id")?,
        created_at: Timestamp(row::get(found, "created_at")?),
        size: row::unsigned(row::get(found, "size")?),
        run_number: row::run_number(found, "run_number")?,
    })
}

/// Checkpoints without their states, newest first, along the primary key or, for one name, `runtara_checkpoints_name`.
pub(super) async fn list(
    store: &PostgresStore,
    id: &InstanceId,
    filter: &CheckpointFilter,
    page: &PageRequest,
) -> Answer<Page<CheckpointSummary>> {
    let mut sql =
        QueryBuilder::new("select c.seq, c.checkpoint_id, c.created_at, c.size, c.run_number");
    push_filter(&mut sql, id, filter);
    let rows = numbered::rows(store, sql, "c.seq", false, page).await?;
    let mut sql = QueryBuilder::new("select count(*) from (select 1");
    push_filter(&mut sql, id, filter);
    let total = numbered::total(store, sql).await?;
    let found: Vec<_> = rows.iter().map(summary).collect::<Answer<_>>()?;
    Ok(paging::page(found, page, total, |row| {
        paging::cursor_at(row.seq)
    }))
}

/// The newest record of a name, along `runtara_checkpoints_name`: that of a retry has version 0, so what was saved comes first.
pub(super) async fn newest(
    store: &PostgresStore,
    id: &InstanceId,
    checkpoint_id: &CheckpointId,
) -> Answer<Option<StoredCheckpoint>> {
    let found = sqlx::query(
        "select state, created_at from runtara_checkpoints
          where instance_id = $1 and checkpoint_id = $2
            and exists (select from runtara_instances where instance_id = $1)
          order by version desc limit 1",
    )
    .bind(id.as_str())
    .bind(checkpoint_id.as_str())
    .optional_on(&store.connections)
    .await?;
    let Some(found) = found else {
        return Ok(None);
    };
    Ok(Some(StoredCheckpoint {
        state: Bytes::from(row::get::<Vec<u8>>(&found, "state")?),
        created_at: Timestamp(row::get(&found, "created_at")?),
    }))
}
