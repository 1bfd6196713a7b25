//! Lists whose rows are numbered within their instance.

use runtara_domain::{EventKind, limits};
use sqlx::SqliteConnection;

use super::images::{count, offset};
use super::sql::{Columns, Row, Sql};
use super::state::place;
use crate::paging::{self, COUNTED, cursor_at, seq_after};
use crate::{EventFilter, Page, PageRequest, StepFilter, StoreResult};

/// Rows of one instance, numbered in the order of their places.
pub(super) struct Numbered<'a> {
    pub(super) instance: i64,
    /// How many there are, if all of them match: they are numbered from 1 without a gap then.
    pub(super) all: Option<u64>,
    pub(super) ascending: bool,
    pub(super) page: &'a PageRequest,
    /// The index that serves the filter best, if one does.
    pub(super) driver: Option<Driver>,
}

/// An index that drives a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Driver {
    /// After `from`, with what it needs to be used.
    indexed: &'static str,
    /// Whether its rows come in the order of the list. If not, those that match are sorted, unless they are many.
    ordered: bool,
}

impl Driver {
    fn ordered(indexed: &'static str) -> Self {
        Self {
            indexed,
            ordered: true,
        }
    }

    /// The index for a filter of events: the narrowest that it names.
    pub(super) fn of_events(filter: &EventFilter) -> Option<Self> {
        let is_rare = filter.kind.is_some_and(|kind| kind != EventKind::Custom);
        if filter.scope_id.is_some() {
            Some(Self::ordered(" indexed by runtara_events_scope"))
        } else if is_rare {
            Some(Self::ordered(" indexed by runtara_events_kind"))
        } else if filter.parent_scope_id.is_some() {
            Some(Self::ordered(" indexed by runtara_events_parent_scope"))
        } else if filter.subtype.is_some() {
            Some(Self::ordered(" indexed by runtara_events_subtype"))
        } else if filter.created_after.is_some() || filter.created_before.is_some() {
            Some(Self {
                indexed: " indexed by runtara_events_created",
                ordered: false,
            })
        } else {
            None
        }
    }

    /// The index for a filter of steps.
    pub(super) fn of_steps(filter: &StepFilter) -> Option<Self> {
        if filter.scope_id.is_some() {
            Some(Self::ordered(" indexed by runtara_steps_scope"))
        } else if filter.step_type.is_some() {
            Some(Self::ordered(" indexed by runtara_steps_type"))
        } else if filter.parent_scope_id.is_some() {
            Some(Self::ordered(" indexed by runtara_steps_parent_scope"))
        } else if filter.status.is_some() {
            Some(Self::ordered(" indexed by runtara_steps_status"))
        } else {
            None
        }
    }
}

impl Numbered<'_> {
    /// Selects the places of the page, after the conditions, with its order and its limit.
    fn cut(&self, sql: &mut Sql, column: &'static str) -> Result<(), paging::NoSuchPlace> {
        let mut skipped = offset(self.page);
        let (mut first, mut last) = (place(self.instance, 0), place(self.instance + 1, 0) - 1);
        let whole = i64::from(u32::MAX);
        if let Some(after) = seq_after(&self.page.start)? {
            let after = i64::try_from(after).unwrap_or(whole).min(whole);
            if self.ascending {
                first = place(self.instance, after) + 1;
            } else {
                last = place(self.instance, after) - 1;
            }
        } else if let Some(all) = self.all {
            let before = i64::try_from(skipped.min(all)).unwrap_or(whole);
            if self.ascending {
                first = place(self.instance, before) + 1;
            } else {
                let kept = i64::try_from(all).unwrap_or(whole) - before;
                last = place(self.instance, kept);
            }
            skipped = 0;
        }
        sql.push(" and ")
            .push(column)
            .push(" between ? and ?")
            .bind(first)
            .bind(last);
        // It may have been taken away since its number was looked up, and a part of it removed.
        sql.push(" and exists (select 1 from runtara_instances where id = ?)")
            .bind(self.instance);
        let direction = if self.ascending { "" } else { " desc" };
        sql.push(" order by ").push(column).push(direction);
        sql.push(" limit ? offset ?")
            .bind(paging::rows(self.page) + 1)
            .bind_u64(skipped);
        Ok(())
    }

    fn span(&self, sql: &mut Sql, column: &'static str) {
        sql.push(" and ")
            .push(column)
            .push(" between ? and ? limit ?)")
            .bind(place(self.instance, 0))
            .bind(place(self.instance + 1, 0) - 1)
            .bind_u64(COUNTED);
    }

    /// Asks for a page and its total.
    pub(super) async fn ask<T>(
        &self,
        connection: &mut SqliteConnection,
        question: &Question,
        conditions: impl Fn(&mut Sql) -> StoreResult<()>,
        read: impl Fn(&Row) -> StoreResult<T>,
        seq: impl Fn(&T) -> u64,
    ) -> StoreResult<Page<T>> {
        let counted = match self.all {
            Some(all) => all.min(COUNTED),
            None => count(connection, self.count_sql(question, &conditions)?).await?,
        };
        let total = paging::total(counted, None);
        let few = counted < COUNTED;
        let driver = self.driver.filter(|driver| few || driver.ordered);
        let Some(sql) = self.page_sql(question, driver, &conditions)? else {
            return Ok(paging::page(Vec::new(), self.page, total, |row| {
                cursor_at(seq(row))
            }));
        };
        let rows = sql.rows(connection, "listing a history").await?;
        let there = match rows.first() {
            Some(first) => there(first)?,
            None => 0,
        };
        let found = rows.iter().map(read).collect::<StoreResult<Vec<_>>>()?;
        Ok(paging::page_of(found, there, self.page, total, |row| {
            cursor_at(seq(row))
        }))
    }

    pub(super) fn count_sql(
        &self,
        question: &Question,
        conditions: &impl Fn(&mut Sql) -> StoreResult<()>,
    ) -> StoreResult<Sql> {
        let mut sql = Sql::new("select count(*) from (select 1 from ");
        self.from(&mut sql, question, self.driver);
        conditions(&mut sql)?;
        self.span(&mut sql, question.place);
        Ok(sql)
    }

    fn from(&self, sql: &mut Sql, question: &Question, driver: Option<Driver>) {
        sql.push(question.table);
        match driver {
            Some(driver) => sql
                .push(driver.indexed)
                .push(" where ")
                .push(question.instance)
                .push(" = ?")
                .bind(self.instance),
            None => sql.push(" where 1"),
        };
    }

    /// First the places of the page and the sizes of what its rows carry, which are known without reading it; then the rows themselves,
    /// as far as the bytes of a page reach. None if the page begins nowhere in this list.
    pub(super) fn page_sql(
        &self,
        question: &Question,
        driver: Option<Driver>,
        conditions: &impl Fn(&mut Sql) -> StoreResult<()>,
    ) -> StoreResult<Option<Sql>> {
        let direction = if self.ascending { "" } else { " desc" };
        let mut sql = Sql::new("with q as (select p.at, count(*) over () as there, ");
        sql.push("sum(p.size) over (order by p.at").push(direction);
        sql.push(" rows unbounded preceding) - p.size as before from (select ");
        sql.push(question.place).push(" as at, ");
        sql.push(question.size).push(" as size from ");
        self.from(&mut sql, question, driver);
        conditions(&mut sql)?;
        if self.cut(&mut sql, question.place).is_err() {
            return Ok(None);
        }
        sql.push(") p) select ").push(question.columns);
        sql.push(", q.there as there from q cross join ");
        sql.push(question.table).push(" on ");
        sql.push(question.place).push(" = q.at where q.before < ?");
        sql.bind_u64(limits::PAGE_BYTES);
        sql.push(" order by q.at").push(direction);
        Ok(Some(sql))
    }
}

/// What is asked of a numbered list.
pub(super) struct Question {
    /// The table and its short name.
    pub(super) table: &'static str,
    /// The column of the instance.
    pub(super) instance: &'static str,
    /// The column of its places.
    pub(super) place: &'static str,
    /// How many bytes a row carries.
    pub(super) size: &'static str,
    /// What is read of each row.
    pub(super) columns: &'static str,
}

/// How many rows a page would have, were its bytes not bounded.
fn there(row: &Row) -> StoreResult<usize> {
    let there = Columns::last(row).int()?;
    Ok(usize::try_from(there).unwrap_or(0))
}
