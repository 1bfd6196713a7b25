//! Images.

use std::collections::{BTreeMap, BTreeSet};

use runtara_domain::{
    Cursor, ImageDigest, ImageId, ImageName, ImageRecord, LabelFilter, NewImage, Refusal, TenantId,
    Timestamp,
};
use sqlx::SqliteConnection;

use super::sql::{Columns, Row, Sql, json_text};
use super::tx::Tx;
use crate::paging::{self, COUNTED};
use crate::{
    ImageBytes, ImageDeletion, ImageFilter, InstanceSummary, Page, PageRequest, PageStart,
    StoreResult,
};

/// The columns that [`read_image`] reads, of a table called `m`.
macro_rules! image_columns {
    () => {
        "m.image_id, m.tenant_id, m.name, m.description, m.kind, m.digest, m.base, m.size, \
         m.metadata, m.labels, m.settings, m.container, m.created_at, m.current"
    };
}
pub(super) use image_columns;

/// Reads [`image_columns`].
pub(super) fn read_image(columns: &mut Columns<'_>) -> StoreResult<ImageRecord> {
    Ok(ImageRecord {
        image_id: columns.parsed()?,
        tenant_id: columns.parsed()?,
        name: columns.parsed()?,
        description: columns.opt_text()?,
        kind: columns.parsed()?,
        digest: ImageDigest(columns.hash()?),
        base: columns.opt_hash()?.map(ImageDigest),
        size: columns.number()?,
        metadata: columns.opt_text()?,
        labels: columns.json()?,
        settings: columns.json()?,
        container: columns.opt_text()?,
        created_at: columns.time()?,
        current: columns.flag()?,
    })
}

/// The highest number of a registration whose image is still here. A higher one may have been given by an earlier process: registrations
/// that had no row by then ended with it, so that there is none left to be compared with.
pub(super) async fn last_registration(connection: &mut SqliteConnection) -> StoreResult<u64> {
    let sql = Sql::new("select coalesce(max(registration), 0) from runtara_images");
    let row = sql.row(connection, "looking for the last registration");
    row.await?.map_or(Ok(0), |row| Columns::of(&row).number())
}

/// Registers an image, unless that was done under this id before.
pub(super) fn register(tx: &mut Tx, image: NewImage) -> StoreResult<ImageRecord> {
    let mut known = Sql::new(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where m.image_id = ?"
    ));
    known.bind(image.image_id.as_str());
    if let Some(row) = tx.row(&known, "looking before a registration")? {
        return read_image(&mut Columns::of(&row));
    }
    if let Some(allowed) = image.tenant_bytes_allowed {
        check_room(tx, &image, allowed)?;
    }
    let mut newer = Sql::new(
        "select 1 from runtara_images where tenant_id = ? and name = ? and current = 1 \
         and registration > ?",
    );
    newer
        .bind(image.tenant_id.as_str())
        .bind(image.name.as_str())
        .bind_u64(image.number.0);
    let newer = tx.row(&newer, "looking for a newer registration")?;
    let current = newer.is_none();
    let mut sql = Sql::default();
    sql.then(
        "update runtara_images set current = 0 where tenant_id = ? and name = ? and current = 1 \
         and registration <= ?",
    )
    .bind(image.tenant_id.as_str())
    .bind(image.name.as_str())
    .bind_u64(image.number.0)
    .then(
        "insert into runtara_images (image_id, tenant_id, name, description, kind, digest, base, \
         size, metadata, labels, settings, container, registration, current, created_at) \
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(image.image_id.as_str())
    .bind(image.tenant_id.as_str())
    .bind(image.name.as_str())
    .bind(image.description.as_deref())
    .bind(image.kind.as_str())
    .bind(image.digest.0)
    .bind(image.base.map(|base| base.0))
    .bind_u64(image.size)
    .bind(image.metadata.as_deref())
    .bind(json_text(&image.labels, image.labels.is_empty())?)
    .bind(json_text(&image.settings, image.settings.is_empty())?)
    .bind(image.container.as_deref())
    .bind_u64(image.number.0)
    .bind(i64::from(current))
    .bind_time(tx.now);
    tx.execute(sql)?;
    Ok(ImageRecord {
        image_id: image.image_id,
        tenant_id: image.tenant_id,
        name: image.name,
        description: image.description,
        kind: image.kind,
        digest: image.digest,
        base: image.base,
        size: image.size,
        metadata: image.metadata,
        labels: image.labels,
        settings: image.settings,
        container: image.container,
        created_at: tx.now,
        current,
    })
}

/// Served by `runtara_images_tenant`.
pub(super) const CONTENTS: &str =
    "select digest, max(size) from runtara_images where tenant_id = ? group by digest";

fn contents(tx: &mut Tx, tenant: &TenantId) -> StoreResult<Vec<(ImageDigest, u64)>> {
    let mut sql = Sql::new(CONTENTS);
    sql.bind(tenant.as_str());
    let rows = tx.rows(&sql, "adding up the images of a tenant")?;
    let read = |row| {
        let mut columns = Columns::of(row);
        Ok((ImageDigest(columns.hash()?), columns.number()?))
    };
    rows.iter().map(read).collect()
}

/// Refuses an image whose content would take its tenant over what is allowed.
fn check_room(tx: &mut Tx, image: &NewImage, allowed: u64) -> StoreResult<()> {
    let contents = contents(tx, &image.tenant_id)?;
    let kept = contents.iter().map(|(_, size)| size).sum();
    let has = contents.iter().any(|(digest, _)| *digest == image.digest);
    if !has && image.size.saturating_add(kept) > allowed {
        return Err(Refusal::TooManyImageBytes {
            kept,
            size: image.size,
            allowed,
        }
        .into());
    }
    Ok(())
}

/// What is kept of a tenant's images.
pub(super) fn bytes(
    tx: &mut Tx,
    tenant: &TenantId,
    (least, most): (u64, u64),
) -> StoreResult<ImageBytes> {
    let contents = contents(tx, tenant)?;
    Ok(ImageBytes {
        bytes: contents.iter().map(|(_, size)| size).sum(),
        has_size: contents
            .iter()
            .any(|(_, size)| (least..=most).contains(size)),
    })
}

async fn one(connection: &mut SqliteConnection, sql: Sql) -> StoreResult<Option<ImageRecord>> {
    let row = sql.row(connection, "loading an image").await?;
    row.map(|row| read_image(&mut Columns::of(&row)))
        .transpose()
}

pub(super) async fn by_id(
    connection: &mut SqliteConnection,
    id: &ImageId,
) -> StoreResult<Option<ImageRecord>> {
    let mut sql = of_id(id);
    sql.push(" and m.deleted = 0");
    one(connection, sql).await
}

pub(super) async fn by_id_even_deleted(
    connection: &mut SqliteConnection,
    id: &ImageId,
) -> StoreResult<Option<ImageRecord>> {
    one(connection, of_id(id)).await
}

fn of_id(id: &ImageId) -> Sql {
    let mut sql = Sql::new(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where m.image_id = ?"
    ));
    sql.bind(id.as_str());
    sql
}

pub(super) async fn by_name(
    connection: &mut SqliteConnection,
    tenant: &TenantId,
    name: &ImageName,
) -> StoreResult<Option<ImageRecord>> {
    let mut sql = Sql::new(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where m.tenant_id = ? and m.name = ? and m.current = 1 \
         and m.deleted = 0"
    ));
    sql.bind(tenant.as_str()).bind(name.as_str());
    one(connection, sql).await
}

/// Which current images are meant. Labels are read from the row: a tenant has few images.
fn conditions(sql: &mut Sql, filter: &ImageFilter) {
    sql.push(" from runtara_images m where m.current = 1 and m.deleted = 0");
    if let Some(tenant) = &filter.tenant_id {
        sql.push(" and m.tenant_id = ?").bind(tenant.as_str());
    }
    if let Some(name) = &filter.name {
        sql.push(" and m.name = ?").bind(name.as_str());
    }
    for LabelFilter { key, value } in &filter.labels {
        sql.push(" and exists (select 1 from json_each(m.labels) l where l.key = ?")
            .bind(key.as_str());
        if let Some(value) = value {
            sql.push(" and l.value = ?").bind(value.as_str());
        }
        sql.push(")");
    }
}

pub(super) fn list_sql(filter: &ImageFilter, page: &PageRequest) -> Sql {
    let mut sql = Sql::new(concat!("select ", image_columns!()));
    conditions(&mut sql, filter);
    if let PageStart::After(after) = &page.start {
        sql.push(" and (m.created_at, m.image_id) < (?, ?)")
            .bind(after.value)
            .bind(after.key.as_str());
    }
    sql.push(" order by m.created_at desc, m.image_id desc limit ? offset ?")
        .bind(paging::rows(page) + 1)
        .bind_u64(offset(page));
    sql
}

/// How many rows stand before a page, if it says so.
pub(super) fn offset(page: &PageRequest) -> u64 {
    match page.start {
        PageStart::Offset(offset) => offset,
        PageStart::After(_) => 0,
    }
}

/// Counts the rows of a question, so far as they are counted.
pub(super) async fn count(connection: &mut SqliteConnection, sql: Sql) -> StoreResult<u64> {
    let row = sql.row(connection, "counting a list").await?;
    row.map_or(Ok(0), |row| Columns::of(&row).number())
}

/// The names of images, each by its id.
pub(super) fn names_sql(ids: &BTreeSet<ImageId>) -> StoreResult<Sql> {
    let mut sql = Sql::new(
        "select m.image_id, m.name from runtara_images m \
         where m.image_id in (select value from json_each(?))",
    );
    sql.bind(json_text(ids, false)?);
    Ok(sql)
}

/// Tells rows of a list the names of their images. A page has few images: so they are looked up once it is cut, and not for each
/// row that is sorted for it.
pub(super) async fn name_images(
    connection: &mut SqliteConnection,
    rows: &mut [InstanceSummary],
) -> StoreResult<()> {
    let ids: BTreeSet<_> = rows.iter().filter_map(|row| row.image_id.clone()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let found = names_sql(&ids)?
        .rows(connection, "looking for the names of images")
        .await?;
    let mut names = BTreeMap::new();
    for row in &found {
        let mut columns = Columns::of(row);
        names.insert(columns.parsed::<ImageId>()?, columns.text()?);
    }
    for row in rows {
        row.image_name = row.image_id.as_ref().and_then(|id| names.get(id).cloned());
    }
    Ok(())
}

pub(super) async fn list(
    connection: &mut SqliteConnection,
    filter: &ImageFilter,
    page: &PageRequest,
) -> StoreResult<Page<ImageRecord>> {
    let mut sql = Sql::new("select count(*) from (select 1");
    conditions(&mut sql, filter);
    sql.push(" limit ?)").bind_u64(COUNTED);
    let counted = count(connection, sql).await?;
    let rows = list_sql(filter, page)
        .rows(connection, "listing images")
        .await?;
    let found = rows.iter().map(|row| read_image(&mut Columns::of(row)));
    let found = found.collect::<StoreResult<Vec<_>>>()?;
    Ok(paging::page(
        found,
        page,
        paging::total(counted, None),
        |image| Cursor {
            value: Some(image.created_at.0),
            key: image.image_id.as_str().to_owned(),
        },
    ))
}

/// Most instances that a refusal to delete counts.
const COUNTED_IN_USE: u32 = 1_000;

pub(super) fn delete(tx: &mut Tx, id: &ImageId) -> StoreResult<ImageDeletion> {
    let mut sql = Sql::new(
        "select (select count(*) from (select 1 from runtara_instances i \
         where i.image_id = m.image_id and i.finished_at is null limit ?)) \
         from runtara_images m where m.image_id = ? and m.deleted = 0",
    );
    sql.bind(COUNTED_IN_USE).bind(id.as_str());
    let row = tx.row(&sql, "looking whether an image is in use")?;
    let Some(row) = row else {
        return Ok(ImageDeletion::NotFound);
    };
    let in_use = Columns::of(&row).number()?;
    if in_use > 0 {
        return Ok(ImageDeletion::InUse(in_use));
    }
    let mut sql = Sql::default();
    sql.then("update runtara_images set deleted = 1 where image_id = ?")
        .bind(id.as_str());
    tx.execute(sql)?;
    Ok(ImageDeletion::Deleted)
}

pub(super) fn remove_unneeded(tx: &mut Tx, limit: u32) -> StoreResult<Vec<ImageDigest>> {
    let mut sql = Sql::new(
        "select m.image_id, m.digest, m.base from runtara_images m where (m.current = 0 or m.deleted = 1) and not exists \
         (select 1 from runtara_instances i where i.image_id = m.image_id) \
         order by m.image_id limit ?",
    );
    sql.bind(limit);
    let rows = tx.rows(&sql, "looking for images that nobody needs")?;
    let mut digests = Vec::new();
    for row in &rows {
        let mut columns = Columns::of(row);
        let mut sql = Sql::default();
        sql.then("delete from runtara_images where image_id = ?")
            .bind(columns.text()?);
        digests.push(ImageDigest(columns.hash()?));
        digests.extend(columns.opt_hash()?.map(ImageDigest));
        tx.execute(sql)?;
    }
    digests.sort_unstable();
    digests.dedup();
    let mut unneeded = Vec::new();
    for digest in digests {
        let row = tx.row(&content_sql(&digest), "looking for an image's content");
        if row?.is_none() {
            unneeded.push(digest);
        }
    }
    Ok(unneeded)
}

/// Served by `runtara_images_digest` and `runtara_images_base`.
pub(super) fn content_sql(digest: &ImageDigest) -> Sql {
    let mut sql = Sql::new(
        "select 1 from runtara_images where digest = ? \
         union all select 1 from runtara_images where base = ? limit 1",
    );
    sql.bind(digest.0).bind(digest.0);
    sql
}

pub(super) async fn is_content_needed(
    connection: &mut SqliteConnection,
    digest: &ImageDigest,
) -> StoreResult<bool> {
    let row = content_sql(digest)
        .row(connection, "looking for an image's content")
        .await?;
    Ok(row.is_some())
}

fn all(rows: &[Row]) -> StoreResult<Vec<ImageRecord>> {
    let images = rows.iter().map(|row| read_image(&mut Columns::of(row)));
    images.collect()
}

/// Served by `runtara_images_replaced` and `runtara_images_deleted`.
pub(super) async fn unneeded(
    connection: &mut SqliteConnection,
    limit: u32,
) -> StoreResult<Vec<ImageRecord>> {
    let mut sql = Sql::new(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where (m.current = 0 or m.deleted = 1) and not exists \
         (select 1 from runtara_instances i where i.image_id = m.image_id) \
         order by m.image_id limit ?"
    ));
    sql.bind(limit);
    all(&sql
        .rows(connection, "looking for images that nobody needs")
        .await?)
}

/// Images that are unused, oldest first. Served by `runtara_images_created`, for each image by
/// `runtara_instances_image_created` and `runtara_images_base`.
pub(super) fn unused_sql(unused_ms: u64, limit: u32, now: Timestamp) -> Sql {
    let unused_ms = i64::try_from(unused_ms).unwrap_or(i64::MAX);
    let horizon = now.0.saturating_sub(unused_ms);
    let mut sql = Sql::new(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where m.current = 1 and m.deleted = 0 and m.created_at <= ? \
         and not exists (select 1 from runtara_instances i \
         where i.image_id = m.image_id and i.created_at > ?) \
         and not exists (select 1 from runtara_instances i \
         where i.image_id = m.image_id and i.status <> 'completed') \
         and not exists (select 1 from runtara_images b where b.base = m.digest) \
         order by m.created_at, m.image_id limit ?"
    ));
    sql.bind(horizon).bind(horizon).bind(limit);
    sql
}

pub(super) async fn unused(
    connection: &mut SqliteConnection,
    unused_ms: u64,
    limit: u32,
    now: Timestamp,
) -> StoreResult<Vec<ImageRecord>> {
    let sql = unused_sql(unused_ms, limit, now);
    all(&sql.rows(connection, "looking for unused images").await?)
}

pub(super) fn delete_unused(
    tx: &mut Tx,
    unused_ms: u64,
    limit: u32,
) -> StoreResult<Vec<ImageRecord>> {
    let sql = unused_sql(unused_ms, limit, tx.now);
    let unused = all(&tx.rows(&sql, "looking for unused images")?)?;
    let mut sql = Sql::default();
    for image in &unused {
        sql.then("update runtara_images set deleted = 1 where image_id = ?")
            .bind(image.image_id.as_str());
    }
    tx.execute(sql)?;
    Ok(unused)
}
