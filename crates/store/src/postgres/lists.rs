//! Lists of instances.

use runtara_domain::{Cursor, Timestamp, limits};
use sqlx::postgres::PgRow;
use sqlx::{Postgres, QueryBuilder};

use crate::{
    InstanceFilter, InstanceOrder, InstanceSummary, Page, PageRequest, PageStart, Total, paging,
};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::Answer;
use super::{counts, images, numbered, row};

const COLUMNS: &str =
    "select i.instance_id, i.tenant_id, i.image_id, i.status::text as status, i.reason::text as reason, i.due_at, i.created_at,
        i.started_at, i.finished_at, i.has_error,
        (select m.name from runtara_images m where m.image_id = i.image_id) as image_name,
        (select json_object_agg(l.key, l.value)::text
           from runtara_instance_labels l where l.instance_id = i.instance_id) as labels";

fn summary(found: &PgRow) -> Answer<InstanceSummary> {
    Ok(InstanceSummary {
        instance_id: row::instance_id(found)?,
        tenant_id: row::tenant_id(found)?,
        image_id: row::image_id(found)?,
        image_name: row::get(found, "image_name")?,
        status: row::status(found)?,
        reason: row::reason(found)?,
        due_at: row::time(found, "due_at")?,
        created_at: Timestamp(row::get(found, "created_at")?),
        started_at: row::time(found, "started_at")?,
        finished_at: row::time(found, "finished_at")?,
        has_error: row::get(found, "has_error")?,
        labels: row::labels(found)?,
    })
}

fn push_filter(sql: &mut QueryBuilder<Postgres>, filter: &InstanceFilter) {
    sql.push(" from runtara_instances i where true");
    if let Some(tenant) = &filter.tenant_id {
        sql.push(" and i.tenant_id = ");
        sql.push_bind(tenant.as_str().to_owned());
    }
    if let Some(status) = filter.status {
        sql.push(" and i.status = ");
        sql.push_bind(status.as_str());
    }
    if let Some(image) = &filter.image_id {
        sql.push(" and i.image_id = ");
        sql.push_bind(image.as_str().to_owned());
    }
    if let Some(prefix) = &filter.image_name_prefix {
        // `^@` compares the text as it is: nothing in it is a pattern.
        sql.push(
            " and i.image_id = any(array(select m.image_id from runtara_images m where m.name ^@ ",
        );
        sql.push_bind(row::without_nul(prefix).into_owned());
        if let Some(tenant) = &filter.tenant_id {
            sql.push(" and m.tenant_id = ");
            sql.push_bind(tenant.as_str().to_owned());
        }
        sql.push("))");
    }
    numbered::push_time(
        sql,
        "i.created_at",
        filter.created_after,
        filter.created_before,
    );
    numbered::push_time(
        sql,
        "i.finished_at",
        filter.finished_after,
        filter.finished_before,
    );
    images::push_labels(
        sql,
        "runtara_instance_labels",
        "instance_id",
        "i",
        &filter.labels,
    );
}

/// One stretch of a list: all of it, or of a list by finish time those that have one or those that have none.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stretch {
    ByCreation,
    Finished,
    Unfinished,
}

impl Stretch {
    fn of(order: InstanceOrder) -> &'static [Self] {
        if order.is_by_finish() {
            &[Self::Finished, Self::Unfinished]
        } else {
            &[Self::ByCreation]
        }
    }

    fn push(self, sql: &mut QueryBuilder<Postgres>) {
        match self {
            Self::ByCreation => {}
            Self::Finished => {
                sql.push(" and i.finished_at is not null");
            }
            Self::Unfinished => {
                sql.push(" and i.finished_at is null and i.status in ('pending', 'running', 'suspended')");
            }
        }
    }

    fn push_after(self, sql: &mut QueryBuilder<Postgres>, beyond: &str, cursor: &Cursor) {
        let column = match self {
            Self::ByCreation => "i.created_at",
            Self::Finished => "i.finished_at",
            Self::Unfinished => {
                sql.push(format_args!(" and i.instance_id {beyond} "));
                sql.push_bind(row::without_nul(&cursor.key).into_owned());
                return;
            }
        };
        sql.push(format_args!(" and ({column}, i.instance_id) {beyond} ("));
        sql.push_bind(cursor.value.unwrap_or_default());
        sql.push(", ");
        sql.push_bind(row::without_nul(&cursor.key).into_owned());
        sql.push(")");
    }

    fn push_order(self, sql: &mut QueryBuilder<Postgres>, direction: &str) {
        match self {
            Self::ByCreation => sql.push(format_args!(
                " order by i.created_at {direction}, i.instance_id {direction}"
            )),
            Self::Finished => sql.push(format_args!(
                " order by i.finished_at {direction}, i.instance_id {direction}"
            )),
            Self::Unfinished => sql.push(format_args!(" order by i.instance_id {direction}")),
        };
    }
}

/// Where within a list, or a stretch of it, a page begins.
#[derive(Clone)]
struct Beginning {
    after: Option<Cursor>,
    offset: u64,
}

/// Instances, along the index that their filter and order have: `runtara_instances_created`, `…_tenant_created`,
/// `…_status_created`, `…_tenant_status_created`, `…_image_created`, `…_finished`, `…_tenant_finished`.
pub(super) async fn list(
    store: &PostgresStore,
    filter: &InstanceFilter,
    order: InstanceOrder,
    page: &PageRequest,
) -> Answer<Page<InstanceSummary>> {
    let total = total(store, filter).await?;
    let mut beginning = match &page.start {
        PageStart::Offset(offset) => Beginning {
            after: None,
            offset: *offset,
        },
        PageStart::After(cursor) => Beginning {
            after: Some(cursor.clone()),
            offset: 0,
        },
    };
    if beginning.offset > limits::EXACT_TOTAL {
        let kept = counts::place_before(store, filter, order, beginning.offset).await?;
        if let Some((cursor, left)) = kept {
            beginning.offset = left;
            beginning.after = Some(cursor);
        }
    }
    let wanted = paging::rows(page) as usize + 1;
    let mut found = Vec::new();
    for stretch in Stretch::of(order) {
        let missing = wanted - found.len();
        if missing == 0 {
            break;
        }
        // A cursor without a value stands among those without a finish time, after all that have one.
        let is_past = beginning
            .after
            .as_ref()
            .is_some_and(|after| after.value.is_none());
        if *stretch == Stretch::Finished && is_past {
            continue;
        }
        let rows = stretch_rows(store, filter, order, *stretch, &beginning, missing).await?;
        if *stretch == Stretch::Finished {
            let skipped = beginning.offset;
            beginning = Beginning {
                after: None,
                offset: 0,
            };
            if rows.is_empty() && skipped > 0 {
                let all = count_stretch(store, filter, *stretch).await?;
                beginning.offset = skipped.saturating_sub(all);
            }
        }
        found.extend(rows);
    }
    Ok(paging::page(found, page, total, |row| Cursor {
        value: if order.is_by_finish() {
            row.finished_at.map(|at| at.0)
        } else {
            Some(row.created_at.0)
        },
        key: row.instance_id.as_str().to_owned(),
    }))
}

async fn stretch_rows(
    store: &PostgresStore,
    filter: &InstanceFilter,
    order: InstanceOrder,
    stretch: Stretch,
    beginning: &Beginning,
    rows: usize,
) -> Answer<Vec<InstanceSummary>> {
    let (beyond, direction) = if order.is_descending() {
        ("<", "desc")
    } else {
        (">", "asc")
    };
    let mut sql = QueryBuilder::new(COLUMNS);
    // The place is found in the index alone; only the rows of the page are read.
    sql.push(" from (select i.instance_id");
    push_filter(&mut sql, filter);
    stretch.push(&mut sql);
    if let Some(cursor) = &beginning.after {
        stretch.push_after(&mut sql, beyond, cursor);
    }
    stretch.push_order(&mut sql, direction);
    numbered::push_bounds(&mut sql, rows as u64, beginning.offset);
    sql.push(") p join runtara_instances i on i.instance_id = p.instance_id");
    stretch.push_order(&mut sql, direction);
    let rows = sql
        .build()
        .persistent(false)
        .all_on(&store.connections)
        .await?;
    rows.iter().map(summary).collect()
}

/// How many rows a stretch has. Only a page beyond the last row that has ended asks for this.
async fn count_stretch(
    store: &PostgresStore,
    filter: &InstanceFilter,
    stretch: Stretch,
) -> Answer<u64> {
    let mut sql = QueryBuilder::new("select count(*)");
    push_filter(&mut sql, filter);
    stretch.push(&mut sql);
    let counted: i64 = sql.build_query_scalar().one_on(&store.connections).await?;
    Ok(row::unsigned(counted))
}

/// Counts what matches, up to one more than is exact; above that the kept count is taken, where there is one.
async fn total(store: &PostgresStore, filter: &InstanceFilter) -> Answer<Total> {
    let kept = counts::kept(store, filter).await?;
    // Far above the bound counting would end at the bound, each time anew.
    if let Some(kept) = kept.filter(|kept| *kept > 2 * paging::COUNTED) {
        return Ok(paging::total(paging::COUNTED, Some(kept)));
    }
    let mut sql = QueryBuilder::new("select count(*) from (select 1");
    push_filter(&mut sql, filter);
    let counted = numbered::counted(store, &mut sql).await?;
    Ok(paging::total(counted, kept))
}
