//! Lists whose rows are numbered within their instance.

use runtara_domain::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};

use crate::{PageRequest, PageStart, Total, paging};

use super::PostgresStore;
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
    sql.push(format_args!(" order by {seq} {order} limit "));
    sql.push_bind(i64::from(paging::rows(page)) + 1);
    if let PageStart::Offset(offset) = page.start {
        sql.push(" offset ");
        sql.push_bind(row::signed(offset));
    }
    Ok(sql.build().fetch_all(&store.pool).await?)
}

/// The total of a statement that began with `select count(*) from (select 1` and ends with its `where`.
pub(super) async fn total(store: &PostgresStore, mut sql: QueryBuilder<Postgres>) -> Answer<Total> {
    sql.push(" limit ");
    sql.push_bind(row::signed(paging::COUNTED));
    sql.push(") counted");
    let counted: i64 = sql.build_query_scalar().fetch_one(&store.pool).await?;
    Ok(paging::total(row::unsigned(counted), None))
}
