//! Lists of instances.
//!
//! Each list names the index that drives it, so that it does not depend on what the planner guesses. Where rows are wanted in
//! the order of that index, a page costs what the page has; a filter that the index does not serve is counted first (up to
//! where counting stops anyway), and if it selects few rows, those are found by its own index and sorted.

use runtara_domain::{Cursor, InstanceId, Timestamp};
use sqlx::SqliteConnection;

use super::anchors::{self, Anchors, FAR, Key, Known, Scope};
use super::images::{count, name_images, offset};
use super::sql::{Columns, Row, Sql};
use crate::paging::{self, COUNTED};
use crate::{
    InstanceFilter, InstanceOrder, InstanceSummary, Page, PageRequest, PageStart, StoreResult,
    Total,
};

const COLUMNS: &str = "select i.instance_id, i.tenant_id, i.image_id, i.status, i.reason, i.due_at, \
                       i.created_at, i.started_at, i.finished_at, i.has_error, i.labels";

fn read_summary(row: &Row) -> StoreResult<InstanceSummary> {
    let mut columns = Columns::of(row);
    Ok(InstanceSummary {
        instance_id: columns.parsed()?,
        tenant_id: columns.parsed()?,
        image_id: columns.opt_parsed()?,
        // Once the page is cut.
        image_name: None,
        status: columns.parsed()?,
        reason: columns.opt_parsed()?,
        due_at: columns.opt_time()?,
        created_at: columns.time()?,
        started_at: columns.opt_time()?,
        finished_at: columns.opt_time()?,
        has_error: columns.flag()?,
        labels: columns.json()?,
    })
}

fn by_finish(order: InstanceOrder) -> bool {
    matches!(
        order,
        InstanceOrder::FinishedDescending | InstanceOrder::FinishedAscending
    )
}

fn ascending(order: InstanceOrder) -> bool {
    matches!(
        order,
        InstanceOrder::CreatedAscending | InstanceOrder::FinishedAscending
    )
}

/// What drives a list: a table of labels or an index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Driver {
    /// Rows of the first label that is asked for, in the order of the starts.
    Label,
    /// An index of the instances.
    Index(&'static str),
}

/// The driver whose order is that of the list.
pub(super) fn in_order(filter: &InstanceFilter, order: InstanceOrder) -> Driver {
    let (tenant, status) = (filter.tenant_id.is_some(), filter.status.is_some());
    if !filter.labels.is_empty() {
        return Driver::Label;
    }
    Driver::Index(match (by_finish(order), tenant, status) {
        (true, true, _) => "runtara_instances_tenant_finished",
        (true, false, _) => "runtara_instances_finished",
        (false, ..) if filter.image_id.is_some() => "runtara_instances_image_created",
        (false, true, true) => "runtara_instances_tenant_status_created",
        (false, true, false) => "runtara_instances_tenant_created",
        (false, false, true) => "runtara_instances_status_created",
        (false, false, false) => "runtara_instances_created",
    })
}

/// The driver that selects best, if that is another one than [`in_order`] gives.
pub(super) fn selective(filter: &InstanceFilter, order: InstanceOrder) -> Option<Driver> {
    let finished = filter.finished_after.is_some() || filter.finished_before.is_some();
    if !filter.labels.is_empty() {
        return None;
    }
    if filter.image_id.is_some() || filter.image_name_prefix.is_some() {
        let by_image = Driver::Index("runtara_instances_image_created");
        return Some(by_image).filter(|driver| *driver != in_order(filter, order));
    }
    if by_finish(order) {
        let others = filter.status.is_some()
            || filter.created_after.is_some()
            || filter.created_before.is_some();
        return (others && !finished).then(|| in_order(filter, InstanceOrder::CreatedDescending));
    }
    finished.then(|| in_order(filter, InstanceOrder::FinishedDescending))
}

/// From where the rows come, and all conditions.
pub(super) fn from_where(sql: &mut Sql, filter: &InstanceFilter, driver: Driver) {
    match driver {
        Driver::Label => from_label(sql, filter),
        Driver::Index(index) => {
            sql.push(" from runtara_instances i indexed by ")
                .push(index);
            sql.push(" where 1");
        }
    }
    if let Some(tenant) = &filter.tenant_id {
        sql.push(" and i.tenant_id = ?").bind(tenant.as_str());
    }
    if let Some(status) = filter.status {
        sql.push(" and i.status = ?").bind(status.as_str());
    }
    if let Some(image) = &filter.image_id {
        sql.push(" and i.image_id = ?").bind(image.as_str());
    }
    if let Some(prefix) = &filter.image_name_prefix {
        let by_image = driver == Driver::Index("runtara_instances_image_created");
        // The plus keeps SQLite from driving by this list where another index was named for its order.
        let column = if by_image {
            " and i.image_id"
        } else {
            " and +i.image_id"
        };
        sql.push(column)
            .push(" in (select m.image_id from runtara_images m where m.name >= ?")
            .bind(prefix.as_str());
        if let Some(end) = after_prefix(prefix) {
            sql.push(" and m.name < ?").bind(end);
        }
        sql.push(")");
    }
    within(
        sql,
        "i.created_at",
        filter.created_after,
        filter.created_before,
    );
    within(
        sql,
        "i.finished_at",
        filter.finished_after,
        filter.finished_before,
    );
    let served = usize::from(driver == Driver::Label);
    for label in filter.labels.iter().skip(served) {
        sql.push(
            " and exists (select 1 from runtara_instance_labels l where l.tenant_id = i.tenant_id \
             and l.created_at = i.created_at and l.instance_id = i.instance_id and l.key = ?",
        )
        .bind(label.key.as_str());
        if let Some(value) = &label.value {
            sql.push(" and l.value = ?").bind(value.as_str());
        }
        sql.push(")");
    }
}

fn from_label(sql: &mut Sql, filter: &InstanceFilter) {
    sql.push(" from runtara_instance_labels d");
    let Some(label) = filter.labels.first() else {
        return;
    };
    if label.value.is_none() || filter.tenant_id.is_none() {
        sql.push(match (&filter.tenant_id, &label.value) {
            (Some(_), _) => " indexed by runtara_instance_labels_tenant_key",
            (None, Some(_)) => " indexed by runtara_instance_labels_value",
            (None, None) => " indexed by runtara_instance_labels_key",
        });
    }
    sql.push(" cross join runtara_instances i on i.instance_id = d.instance_id where d.key = ?")
        .bind(label.key.as_str());
    if let Some(value) = &label.value {
        sql.push(" and d.value = ?").bind(value.as_str());
    }
    if let Some(tenant) = &filter.tenant_id {
        sql.push(" and d.tenant_id = ?").bind(tenant.as_str());
    }
    within(
        sql,
        "d.created_at",
        filter.created_after,
        filter.created_before,
    );
}

pub(super) fn within(
    sql: &mut Sql,
    column: &'static str,
    after: Option<Timestamp>,
    before: Option<Timestamp>,
) {
    if let Some(after) = after {
        sql.push(" and ")
            .push(column)
            .push(" >= ?")
            .bind_time(after);
    }
    if let Some(before) = before {
        sql.push(" and ")
            .push(column)
            .push(" < ?")
            .bind_time(before);
    }
}

/// The least text that is greater than every text that begins so; `None` if there is none.
fn after_prefix(prefix: &str) -> Option<String> {
    let mut letters: Vec<char> = prefix.chars().collect();
    while let Some(last) = letters.pop() {
        // Surrogates are no characters: after U+D7FF comes U+E000.
        let next = if last == '\u{d7ff}' {
            Some('\u{e000}')
        } else {
            char::from_u32(u32::from(last) + 1)
        };
        if let Some(next) = next {
            letters.push(next);
            return Some(letters.into_iter().collect());
        }
    }
    None
}

/// Which part of a list by finish time: those that have ended come first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// All of a list that is ordered by the start.
    All,
    Ended,
    NotEnded,
}

/// Where in a part of a list its rows are counted from.
#[derive(Clone, Copy, Debug)]
pub(super) enum From<'a> {
    Beginning,
    /// Right after the row where the page before ended.
    After(&'a Cursor),
    /// The row of this key.
    At(&'a Key),
}

/// One part of a list, from where the page begins in it.
pub(super) fn part_sql(
    filter: &InstanceFilter,
    order: InstanceOrder,
    driver: Driver,
    part: Part,
    from: From<'_>,
    (limit, offset): (u64, u64),
) -> Sql {
    let mut sql = Sql::new(COLUMNS);
    from_where(&mut sql, filter, driver);
    let labelled = driver == Driver::Label;
    let (value, key) = match part {
        Part::All if labelled => ("d.created_at", "d.instance_id"),
        Part::All => ("i.created_at", "i.instance_id"),
        Part::Ended | Part::NotEnded => ("i.finished_at", "i.instance_id"),
    };
    match part {
        Part::All => {}
        Part::Ended => {
            sql.push(" and i.finished_at is not null");
        }
        Part::NotEnded => {
            sql.push(" and i.finished_at is null");
        }
    }
    let direction = if ascending(order) { "" } else { " desc" };
    let (than, place) = match (from, ascending(order)) {
        (From::Beginning, _) => ("", None),
        (From::After(cursor), true) => (" > ", Some((cursor.value, cursor.key.as_str()))),
        (From::After(cursor), false) => (" < ", Some((cursor.value, cursor.key.as_str()))),
        (From::At(key), true) => (" >= ", Some((Some(key.created_at), &*key.instance_id))),
        (From::At(key), false) => (" <= ", Some((Some(key.created_at), &*key.instance_id))),
    };
    if let Some((at, id)) = place {
        if part == Part::NotEnded {
            sql.push(" and ").push(key).push(than).push("?");
        } else {
            sql.push(" and (")
                .push(value)
                .push(", ")
                .push(key)
                .push(")");
            sql.push(than).push("(?, ?)").bind(at);
        }
        sql.bind(id);
    }
    sql.push(" order by ");
    if part != Part::NotEnded {
        sql.push(value).push(direction).push(", ");
    }
    sql.push(key).push(direction).push(" limit ? offset ?");
    sql.bind_u64(limit).bind_u64(offset);
    sql
}

/// Counts a list, up to where counting stops.
pub(super) fn count_sql(filter: &InstanceFilter, driver: Driver, part: Part, limit: u64) -> Sql {
    let mut sql = Sql::new("select count(*) from (select 1");
    from_where(&mut sql, filter, driver);
    if part == Part::Ended {
        sql.push(" and i.finished_at is not null");
    }
    sql.push(" limit ?)").bind_u64(limit);
    sql
}

/// Whether a list is one of those whose number is kept.
fn is_counted(filter: &InstanceFilter) -> bool {
    let plain = InstanceFilter {
        tenant_id: filter.tenant_id.clone(),
        status: filter.status,
        ..InstanceFilter::default()
    };
    *filter == plain
}

/// The kept number of instances of a tenant and in a status.
pub(super) fn kept_sql(filter: &InstanceFilter) -> Sql {
    let mut sql = Sql::new("select coalesce(sum(instances), 0) from runtara_counts where 1");
    if let Some(tenant) = &filter.tenant_id {
        sql.push(" and tenant_id = ?").bind(tenant.as_str());
    }
    if let Some(status) = filter.status {
        sql.push(" and status = ?").bind(status.as_str());
    }
    sql
}

/// What is known of a list before its page is made.
struct Look {
    total: Total,
    /// How many rows there are, where that is kept.
    kept: Option<u64>,
    driver: Driver,
}

async fn look(
    connection: &mut SqliteConnection,
    filter: &InstanceFilter,
    order: InstanceOrder,
) -> StoreResult<Look> {
    let ordered = in_order(filter, order);
    let selective = selective(filter, order);
    let mut kept = None;
    let counted = if is_counted(filter) {
        // Kept with each change, so it is as good as counted.
        let found = count(connection, kept_sql(filter)).await?;
        kept = Some(found);
        found.min(COUNTED)
    } else {
        let sql = count_sql(filter, selective.unwrap_or(ordered), Part::All, COUNTED);
        count(connection, sql).await?
    };
    let few = counted < COUNTED;
    Ok(Look {
        total: paging::total(counted, kept),
        kept,
        driver: selective.filter(|_| few).unwrap_or(ordered),
    })
}

/// A page of instances.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    anchors: &Anchors,
    (filter, order): (&InstanceFilter, InstanceOrder),
    page: &PageRequest,
) -> StoreResult<Page<InstanceSummary>> {
    let look = look(connection, filter, order).await?;
    let listing = Listing {
        filter,
        order,
        driver: look.driver,
        limit: u64::from(paging::rows(page)) + 1,
    };
    let found = if by_finish(order) {
        listing.by_finish(connection, page).await?
    } else {
        listing
            .by_start(connection, anchors, look.kept, page)
            .await?
    };
    let mut page = paging::page(found, page, look.total, |row| Cursor {
        value: if by_finish(order) {
            row.finished_at.map(|at| at.0)
        } else {
            Some(row.created_at.0)
        },
        key: row.instance_id.as_str().to_owned(),
    });
    name_images(connection, &mut page.rows).await?;
    Ok(page)
}

/// Takes the keys anew of far lists that were asked for and have changed.
pub(super) async fn refresh(
    connection: &mut SqliteConnection,
    anchors: &Anchors,
) -> StoreResult<()> {
    for scope in anchors.outdated() {
        anchors.take(connection, &scope).await?;
    }
    Ok(())
}

struct Listing<'a> {
    filter: &'a InstanceFilter,
    order: InstanceOrder,
    driver: Driver,
    limit: u64,
}

impl Listing<'_> {
    /// Rows in the order of the starts. `kept` is how many there are, where that is known.
    async fn by_start(
        &self,
        connection: &mut SqliteConnection,
        anchors: &Anchors,
        kept: Option<u64>,
        page: &PageRequest,
    ) -> StoreResult<Vec<InstanceSummary>> {
        let offset = match &page.start {
            PageStart::After(cursor) => {
                let from = From::After(cursor);
                return self
                    .part(connection, Part::All, from, (self.limit, 0))
                    .await;
            }
            PageStart::Offset(offset) => *offset,
        };
        if kept.is_some_and(|rows| offset >= rows) {
            return Ok(Vec::new());
        }
        let mut shortcut = None;
        if let Some(rows) = kept.filter(|_| offset >= FAR) {
            let scope = Scope::of(self.filter);
            let keys = match anchors.look(&scope) {
                Known::Nothing => None,
                Known::Keys(keys) => Some(keys),
                Known::WorthTaking => Some(anchors.take(connection, &scope).await?),
            };
            shortcut =
                keys.and_then(|keys| anchors::shortcut(&keys, ascending(self.order), rows, offset));
        }
        let (from, skipped) = match &shortcut {
            Some(shortcut) => (From::At(&shortcut.key), shortcut.skipped),
            None => (From::Beginning, offset),
        };
        self.part(connection, Part::All, from, (self.limit, skipped))
            .await
    }

    /// Rows in the order of their ends: first those that have ended.
    async fn by_finish(
        &self,
        connection: &mut SqliteConnection,
        page: &PageRequest,
    ) -> StoreResult<Vec<InstanceSummary>> {
        let offset = offset(page);
        let (ended, rest) = match &page.start {
            PageStart::Offset(_) => (Some(From::Beginning), From::Beginning),
            PageStart::After(cursor) if cursor.value.is_none() => (None, From::After(cursor)),
            PageStart::After(cursor) => (Some(From::After(cursor)), From::Beginning),
        };
        let mut found = Vec::new();
        if let Some(from) = ended {
            let limits = (self.limit, offset);
            found = self.part(connection, Part::Ended, from, limits).await?;
        }
        let missing = self.limit - found.len() as u64;
        if missing == 0 {
            return Ok(found);
        }
        let mut skipped = 0;
        if found.is_empty() && offset > 0 {
            let ended = count_sql(self.filter, self.driver, Part::Ended, offset);
            skipped = offset - count(connection, ended).await?;
        }
        let limits = (missing, skipped);
        found.extend(self.part(connection, Part::NotEnded, rest, limits).await?);
        Ok(found)
    }

    async fn part(
        &self,
        connection: &mut SqliteConnection,
        part: Part,
        from: From<'_>,
        limits: (u64, u64),
    ) -> StoreResult<Vec<InstanceSummary>> {
        let sql = part_sql(self.filter, self.order, self.driver, part, from, limits);
        let rows = sql.rows(connection, "listing instances").await?;
        rows.iter().map(read_summary).collect()
    }
}

/// The small number of an instance, by which what belongs to it is kept, and how many checkpoints and events it has, if these are numbered
/// without a gap.
pub(super) async fn numbers(
    connection: &mut SqliteConnection,
    id: &InstanceId,
) -> StoreResult<Option<(i64, u64, Option<u64>)>> {
    let mut sql = Sql::new(
        "select i.id, i.checkpoints_saved, i.events_recorded, coalesce(n.events_folded, 0) \
         from runtara_instances i left join runtara_inputs n on n.instance = i.id \
         where i.instance_id = ?",
    );
    sql.bind(id.as_str());
    let Some(row) = sql.row(connection, "looking for an instance").await? else {
        return Ok(None);
    };
    let mut columns = Columns::of(&row);
    let (instance, saved) = (columns.int()?, columns.number()?);
    let recorded = columns.number()?;
    let folded = columns.int()?;
    Ok(Some((instance, saved, (folded == 0).then_some(recorded))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_text_that_does_not_begin_so() {
        assert_eq!(after_prefix("ab").as_deref(), Some("ac"));
        assert_eq!(after_prefix("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(after_prefix("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(after_prefix("\u{10ffff}"), None);
        assert_eq!(after_prefix(""), None);
    }
}
