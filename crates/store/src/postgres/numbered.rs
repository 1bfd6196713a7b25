//! Lists whose rows are numbered within their instance.

use runtara_domain::{InstanceId, Timestamp, limits};
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

/// Demands that the instance is there: of one that was taken away a part may be left.
pub(super) fn push_not_removed(sql: &mut QueryBuilder<Postgres>, id: &InstanceId) {
    sql.push(" and exists (select from runtara_instances where instance_id = ");
    sql.push_bind(id.as_str().to_owned());
    sql.push(")");
}

fn push_page(
    sql: &mut QueryBuilder<Postgres>,
    seq: &str,
    ascending: bool,
    page: &PageRequest,
) -> Result<(), paging::NoSuchPlace> {
    let after = paging::seq_after(&page.start)?;
    if let Some(after) = after {
        let beyond = if ascending { ">" } else { "<" };
        sql.push(format_args!(" and {seq} {beyond} "));
        sql.push_bind(row::signed(after));
    }
    sql.push(format_args!(" order by {seq} {}", direction(ascending)));
    let offset = match page.start {
        PageStart::Offset(offset) => offset,
        PageStart::After(_) => 0,
    };
    push_bounds(sql, u64::from(paging::rows(page)) + 1, offset);
    Ok(())
}

fn direction(ascending: bool) -> &'static str {
    if ascending { "asc" } else { "desc" }
}

/// The rows of a page and one more, of a statement that ends with its `where`.
pub(super) async fn rows(
    store: &PostgresStore,
    mut sql: QueryBuilder<Postgres>,
    seq: &str,
    ascending: bool,
    page: &PageRequest,
) -> Answer<Vec<PgRow>> {
    match push_page(&mut sql, seq, ascending, page) {
        Ok(()) => Ok(sql
            .build()
            .persistent(false)
            .all_on(&store.connections)
            .await?),
        Err(paging::NoSuchPlace) => Ok(Vec::new()),
    }
}

/// A list whose rows carry much, so that a page of them also ends by its bytes.
pub(super) struct Heavy<'a> {
    /// Which rows: what is selected of each, among it `seq` and `size`. The size of a value that is stored out of line is known
    /// without reading it.
    pub(super) selected: &'a str,
    /// The column by which rows are numbered.
    pub(super) seq: &'a str,
    /// What is read of those on the page, from `page` joined with the tables that hold it; the condition of the joins follows.
    pub(super) read: &'a str,
}

impl Heavy<'_> {
    /// The rows of a page as far as its bytes reach, and how many there would be, with one more if there are more.
    pub(super) async fn rows(
        &self,
        store: &PostgresStore,
        push_filter: impl Fn(&mut QueryBuilder<Postgres>),
        id: &InstanceId,
        ascending: bool,
        page: &PageRequest,
    ) -> Answer<(Vec<PgRow>, usize)> {
        let direction = direction(ascending);
        let mut sql = QueryBuilder::new(format!(
            "with page as (
                 select p.*, count(*) over () as there, sum(p.size) over (order by p.seq {direction}) - p.size as before
                   from (select {}",
            self.selected
        ));
        push_filter(&mut sql);
        if push_page(&mut sql, self.seq, ascending, page).is_err() {
            return Ok((Vec::new(), 0));
        }
        sql.push(format_args!(
            ") p) select page.there, {} where page.before < {} and s.instance_id = ",
            self.read,
            limits::PAGE_BYTES
        ));
        sql.push_bind(id.as_str().to_owned());
        sql.push(format_args!(" order by page.seq {direction}"));
        let rows = sql
            .build()
            .persistent(false)
            .all_on(&store.connections)
            .await?;
        let there = match rows.first() {
            Some(first) => row::unsigned(row::get(first, "there")?),
            None => 0,
        };
        Ok((rows, usize::try_from(there).unwrap_or(usize::MAX)))
    }
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
