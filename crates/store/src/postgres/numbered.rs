//! Lists whose rows are numbered within their instance.

use runtara_domain::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};

use crate::{PageRequest, PageStart, Total, paging};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::Answer;
use super::row;

/// Demands a text. One with a NUL is nowhere stored.
pub(super) fn push_text(sql: &mut QueryBuilder<Postgres>, column: &str, wanted: &str) {
    if wanted.contains('\0') {
        sql.push(" and false");
        return;
    }
    sql.push(format_args!(" and {column} = "));
    sql.push_bind(wanted.to_owned());
}

/// Demands a time within bounds.
pub(super) fn push_time(
    sql: &mut QueryBuilder<Postgres>,
    column: &str,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
) {
    if let Some(after) = after {
        sql.push(format_args!(" and {column} >= "));
        sql.push_bind(after.0);
    }
    if let Some(before) = before {
        sql.push(format_args!(" and {column} < "));
        sql.push_bind(before.0);
    }
}

/// The rows of a page and one more, of a statement that ends with its `where`.
pub(super) async fn rows(
    store: &PostgresStore,
    mut sql: QueryBuilder<Postgres>,
    seq: &str,
    ascending: bool,
    page: &PageRequest,
) -> Answer<Vec<PgRow>> {
    let Ok(after) = paging::seq_after(&page.start) else {
        return Ok(Vec::new());
    };
    let (beyond, order) = if ascending {
        (">", "asc")
    } else {
        ("<", "desc")
    };
    if let Some(after) = after {
        sql.push(format_args!(" and {seq} {beyond} "));
        sql.push_bind(row::signed(after));
    }
    sql.push(format_args!(" order by {seq} {order}"));
    let offset = match page.start {
        PageStart::Offset(offset) => offset,
        PageStart::After(_) => 0,
    };
    push_bounds(&mut sql, u64::from(paging::rows(page)) + 1, offset);
    Ok(sql
        .build()
        .persistent(false)
        .all_on(&store.connections)
        .await?)
}

/// Ends a statement with its bounds. They are written out, not bound: not knowing them the server plans for a tenth of the table.
/// Statements of many forms are not worth being kept by each connection, so they are not.
pub(super) fn push_bounds(sql: &mut QueryBuilder<Postgres>, rows: u64, offset: u64) {
    let (rows, offset) = (row::signed(rows), row::signed(offset));
    sql.push(format_args!(" limit {rows} offset {offset}"));
}

/// Counts the rows of a statement that began with `select count(*) from (select 1` and ends with its `where`, as far as is counted.
pub(super) async fn counted(
    store: &PostgresStore,
    sql: &mut QueryBuilder<Postgres>,
) -> Answer<u64> {
    push_bounds(sql, paging::COUNTED, 0);
    sql.push(") counted");
    let counting = sql.build().persistent(false);
    let counted = counting.one_on(&store.connections).await?;
    Ok(row::unsigned(row::get(&counted, "count")?))
}

/// The total of a statement that began with `select count(*) from (select 1` and ends with its `where`.
pub(super) async fn total(store: &PostgresStore, mut sql: QueryBuilder<Postgres>) -> Answer<Total> {
    Ok(paging::total(counted(store, &mut sql).await?, None))
}
