//! Registered programs.

use runtara_domain::{
    Cursor, ImageDigest, ImageId, ImageName, ImageRecord, LabelFilter, NewImage, Refusal,
    RegistrationNumber, TenantId,
};
use sqlx::{PgConnection, Postgres, QueryBuilder};

use crate::{ImageBytes, ImageDeletion, ImageFilter, Page, PageRequest, PageStart, paging};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::{Answer, Fault};
use super::instances::label_arrays;
use super::numbered;
use super::row::{self, image_columns};

/// Up to how many instances are counted that keep an image.
const COUNTED_USERS: i64 = 1_000;

/// The next number of a registration. A sequence counts on whether its transaction commits or not, and never back.
pub(super) async fn next_registration(store: &PostgresStore) -> Answer<RegistrationNumber> {
    let number: i64 = sqlx::query_scalar("select nextval('runtara_registrations')")
        .one_on(&store.connections)
        .await?;
    Ok(RegistrationNumber(row::unsigned(number)))
}

/// Registers an image, under a lock of its name: two registrations of one name come one after the other.
pub(super) async fn register(store: &PostgresStore, new: NewImage) -> Answer<ImageRecord> {
    let (keys, values) = label_arrays(&new.labels);
    let mut connection = store.connections.pool.begin().await?;
    if let Some(allowed) = new.tenant_bytes_allowed {
        check_room(&mut connection, &new, allowed).await?;
    }
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1 || chr(10) || $2, 1))")
        .bind(new.tenant_id.as_str())
        .bind(new.name.as_str())
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "update runtara_images set current = false
          where tenant_id = $1 and name = $2 and current and registration <= $4
            and not exists (select from runtara_images where image_id = $3)",
    )
    .bind(new.tenant_id.as_str())
    .bind(new.name.as_str())
    .bind(new.image_id.as_str())
    .bind(row::signed(new.number.0))
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "with made as (
             insert into runtara_images
                    (image_id, tenant_id, name, description, kind, digest, size, metadata, created_at, base,
                     settings, container, registration, current)
             values ($1, $2, $3, $4, $5, $6, $7, $8, runtara_now(), $11, $12, $13, $14,
                     not exists (select from runtara_images where tenant_id = $2 and name = $3 and current))
             on conflict (image_id) do nothing
             returning image_id
         )
         insert into runtara_image_labels (image_id, key, value)
         select image_id, l.key, l.value from made, unnest($9::text[], $10::text[]) as l (key, value)",
    )
    .bind(new.image_id.as_str())
    .bind(new.tenant_id.as_str())
    .bind(new.name.as_str())
    .bind(new.description.as_deref().map(row::without_nul))
    .bind(new.kind.as_str())
    .bind(new.digest.0)
    .bind(row::signed(new.size))
    .bind(new.metadata.as_deref().map(row::without_nul))
    .bind(keys)
    .bind(values)
    .bind(new.base.map(|base| base.0))
    .bind(row::json_text(&new.settings, new.settings.is_empty())?)
    .bind(new.container.as_deref().map(row::without_nul))
    .bind(row::signed(new.number.0))
    .execute(&mut *connection)
    .await?;
    let found = sqlx::query(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where m.image_id = $1"
    ))
    .bind(new.image_id.as_str())
    .fetch_one(&mut *connection)
    .await?;
    connection.commit().await?;
    row::image(&found)
}

/// Refuses an image whose content would take its tenant over what is allowed, under a lock of the tenant: of two at once, the second counts the
/// first. Index `runtara_images_tenant`.
async fn check_room(connection: &mut PgConnection, new: &NewImage, allowed: u64) -> Answer<()> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 2))")
        .bind(new.tenant_id.as_str())
        .execute(&mut *connection)
        .await?;
    let found = sqlx::query(
        "select coalesce(sum(size), 0)::bigint as kept, coalesce(bool_or(digest = $2), false)
                    or exists (select from runtara_images where image_id = $3) as has
           from (select distinct on (digest) digest, size from runtara_images where tenant_id = $1) kept",
    )
    .bind(new.tenant_id.as_str())
    .bind(new.digest.0)
    .bind(new.image_id.as_str())
    .fetch_one(&mut *connection)
    .await?;
    let kept = row::unsigned(row::get(&found, "kept")?);
    let (size, has): (_, bool) = (new.size, row::get(&found, "has")?);
    if !has && size.saturating_add(kept) > allowed {
        return Err(Refusal::TooManyImageBytes {
            kept,
            size,
            allowed,
        }
        .into());
    }
    Ok(())
}

/// What is kept of a tenant's images, along `runtara_images_tenant`.
pub(super) async fn bytes(
    store: &PostgresStore,
    tenant: &TenantId,
    (least, most): (u64, u64),
) -> Answer<ImageBytes> {
    let found = sqlx::query(
        "select coalesce(sum(size), 0)::bigint as kept, coalesce(bool_or(size between $2 and $3), false) as has
           from (select distinct on (digest) digest, size from runtara_images where tenant_id = $1) kept",
    )
    .bind(tenant.as_str())
    .bind(row::signed(least))
    .bind(row::signed(most))
    .one_on(&store.connections)
    .await?;
    Ok(ImageBytes {
        bytes: row::unsigned(row::get(&found, "kept")?),
        has_size: row::get(&found, "has")?,
    })
}

/// An image that is not deleted, by its primary key.
pub(super) async fn by_id(store: &PostgresStore, id: &ImageId) -> Answer<Option<ImageRecord>> {
    let found = sqlx::query(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where m.image_id = $1 and m.deleted_at is null"
    ))
    .bind(id.as_str())
    .optional_on(&store.connections)
    .await?;
    found.as_ref().map(row::image).transpose()
}

/// An image, deleted or not, by its primary key.
pub(super) async fn by_id_even_deleted(
    store: &PostgresStore,
    id: &ImageId,
) -> Answer<Option<ImageRecord>> {
    let found = sqlx::query(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where m.image_id = $1"
    ))
    .bind(id.as_str())
    .optional_on(&store.connections)
    .await?;
    found.as_ref().map(row::image).transpose()
}

/// The current image of a name, along `runtara_images_name`.
pub(super) async fn by_name(
    store: &PostgresStore,
    tenant: &TenantId,
    name: &ImageName,
) -> Answer<Option<ImageRecord>> {
    let found = sqlx::query(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m
          where m.tenant_id = $1 and m.name = $2 and m.current and m.deleted_at is null"
    ))
    .bind(tenant.as_str())
    .bind(name.as_str())
    .optional_on(&store.connections)
    .await?;
    found.as_ref().map(row::image).transpose()
}

/// Demands that a row has all these labels, along the index of labels by key and value.
pub(super) fn push_labels(
    sql: &mut QueryBuilder<Postgres>,
    table: &str,
    id: &str,
    owner: &str,
    labels: &[LabelFilter],
) {
    for label in labels {
        sql.push(format_args!(
            " and exists (select from {table} l where l.{id} = {owner}.{id} and l.key = "
        ));
        sql.push_bind(label.key.clone());
        if let Some(value) = &label.value {
            sql.push(" and l.value = ");
            sql.push_bind(value.clone());
        }
        sql.push(")");
    }
}

fn push_filter(sql: &mut QueryBuilder<Postgres>, filter: &ImageFilter) {
    sql.push(" from runtara_images m where m.current and m.deleted_at is null");
    if let Some(tenant) = &filter.tenant_id {
        sql.push(" and m.tenant_id = ");
        sql.push_bind(tenant.as_str().to_owned());
    }
    if let Some(name) = &filter.name {
        numbered::push_text(sql, "m.name", name);
    }
    push_labels(sql, "runtara_image_labels", "image_id", "m", &filter.labels);
}

/// Current images, newest first, along `runtara_images_created` or `runtara_images_tenant_created`.
pub(super) async fn list(
    store: &PostgresStore,
    filter: &ImageFilter,
    page: &PageRequest,
) -> Answer<Page<ImageRecord>> {
    let mut sql = QueryBuilder::new(concat!("select ", image_columns!()));
    push_filter(&mut sql, filter);
    let mut offset = 0;
    match &page.start {
        PageStart::Offset(skipped) => offset = *skipped,
        PageStart::After(cursor) => {
            sql.push(" and (m.created_at, m.image_id) < (");
            sql.push_bind(cursor.value.unwrap_or(i64::MIN));
            sql.push(", ");
            sql.push_bind(row::without_nul(&cursor.key).into_owned());
            sql.push(")");
        }
    }
    sql.push(" order by m.created_at desc, m.image_id desc");
    numbered::push_bounds(&mut sql, u64::from(paging::rows(page)) + 1, offset);
    let rows = sql
        .build()
        .persistent(false)
        .all_on(&store.connections)
        .await?;
    let found: Vec<_> = rows.iter().map(row::image).collect::<Answer<_>>()?;
    let mut sql = QueryBuilder::new("select count(*) from (select 1");
    push_filter(&mut sql, filter);
    let total = numbered::total(store, sql).await?;
    Ok(paging::page(found, page, total, |image| Cursor {
        value: Some(image.created_at.0),
        key: image.image_id.as_str().to_owned(),
    }))
}

/// Deletes an image. Its row is locked first, which keeps off the starts that would use it: they hold it by a lock for share.
pub(super) async fn delete(store: &PostgresStore, id: &ImageId) -> Answer<ImageDeletion> {
    let mut connection = store.connections.pool.begin().await?;
    let found = sqlx::query(
        "select image_id from runtara_images where image_id = $1 and deleted_at is null for update",
    )
    .bind(id.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    if found.is_none() {
        return Ok(ImageDeletion::NotFound);
    }
    let users: i64 = sqlx::query_scalar(
        "select count(*) from (
             select 1 from runtara_instances
              where image_id = $1 and status in ('pending', 'running', 'suspended')
              limit $2) used",
    )
    .bind(id.as_str())
    .bind(COUNTED_USERS)
    .fetch_one(&mut *connection)
    .await?;
    if users > 0 {
        return Ok(ImageDeletion::InUse(
            u32::try_from(users).unwrap_or(u32::MAX),
        ));
    }
    sqlx::query("update runtara_images set deleted_at = runtara_now() where image_id = $1")
        .bind(id.as_str())
        .execute(&mut *connection)
        .await?;
    connection.commit().await?;
    Ok(ImageDeletion::Deleted)
}

/// Removes images that nothing needs. They are locked first and looked at again in a second statement, which sees every start that
/// held one of them before.
pub(super) async fn remove_unneeded(store: &PostgresStore, limit: u32) -> Answer<Vec<ImageDigest>> {
    let mut connection = store.connections.pool.begin().await?;
    let candidates: Vec<String> = sqlx::query_scalar(
        "select m.image_id from runtara_images m
          where (not m.current or m.deleted_at is not null)
            and not exists (select from runtara_instances i where i.image_id = m.image_id)
          order by m.image_id limit $1
            for update skip locked",
    )
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await?;
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let removed: Vec<Vec<Option<Vec<u8>>>> = sqlx::query_scalar(
        "delete from runtara_images m
          where m.image_id = any($1)
            and not exists (select from runtara_instances i where i.image_id = m.image_id)
      returning array[m.digest, m.base]",
    )
    .bind(candidates)
    .fetch_all(&mut *connection)
    .await?;
    let unneeded: Vec<Vec<u8>> = sqlx::query_scalar(
        "select distinct d.digest from unnest($1::bytea[]) as d (digest)
          where not exists (select from runtara_images m where m.digest = d.digest)
            and not exists (select from runtara_images m where m.base = d.digest)
          order by d.digest",
    )
    .bind(removed.into_iter().flatten().flatten().collect::<Vec<_>>())
    .fetch_all(&mut *connection)
    .await?;
    connection.commit().await?;
    let digest = |bytes: Vec<u8>| {
        let bytes = bytes.try_into();
        bytes
            .map(ImageDigest)
            .map_err(|_| Fault::Stored("an image has no digest".to_owned()))
    };
    unneeded.into_iter().map(digest).collect()
}

/// Whether an image has this content or is laid on it, along `runtara_images_digest` and `runtara_images_base`.
pub(super) async fn is_content_needed(store: &PostgresStore, digest: &ImageDigest) -> Answer<bool> {
    let found = sqlx::query_scalar(
        "select exists (select from runtara_images where digest = $1)
             or exists (select from runtara_images where base = $1)",
    )
    .bind(digest.0)
    .one_on(&store.connections)
    .await?;
    Ok(found)
}

/// Images that nothing needs, along `runtara_images_replaced`.
pub(super) async fn unneeded(store: &PostgresStore, limit: u32) -> Answer<Vec<ImageRecord>> {
    let found = sqlx::query(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m
          where (not m.current or m.deleted_at is not null)
            and not exists (select from runtara_instances i where i.image_id = m.image_id)
          order by m.image_id limit $1"
    ))
    .bind(i64::from(limit))
    .all_on(&store.connections)
    .await?;
    found.iter().map(row::image).collect()
}

/// What makes an image `m` one that was not used for `$1` milliseconds. Served by `runtara_instances_image_used`,
/// `runtara_instances_image_created` and `runtara_images_base`.
macro_rules! is_unused {
    () => {
        "m.current and m.deleted_at is null and m.created_at <= runtara_now() - $1
            and not exists (
                select from runtara_instances i
                 where i.image_id = m.image_id and i.status in ('pending', 'running', 'suspended'))
            and not exists (
                select from runtara_instances i
                 where i.image_id = m.image_id and i.created_at > runtara_now() - $1)
            and not exists (
                select from runtara_instances i where i.image_id = m.image_id and i.status <> 'completed')
            and not exists (select from runtara_images b where b.base = m.digest)"
    };
}

/// Images that are unused, along `runtara_images_created`.
pub(super) async fn unused(
    store: &PostgresStore,
    unused_ms: u64,
    limit: u32,
) -> Answer<Vec<ImageRecord>> {
    let found = sqlx::query(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where ",
        is_unused!(),
        " order by m.created_at, m.image_id limit $2"
    ))
    .bind(row::signed(unused_ms.min(i64::MAX as u64 / 2)))
    .bind(i64::from(limit))
    .all_on(&store.connections)
    .await?;
    found.iter().map(row::image).collect()
}

/// Deletes images that are unused. They are locked first, which keeps off the starts that would use them, and looked at again in a second
/// statement, which sees every start that held one of them before; one that is held right now is in use.
pub(super) async fn delete_unused(
    store: &PostgresStore,
    unused_ms: u64,
    limit: u32,
) -> Answer<Vec<ImageRecord>> {
    let unused_ms = row::signed(unused_ms.min(i64::MAX as u64 / 2));
    let mut connection = store.connections.pool.begin().await?;
    let candidates: Vec<String> = sqlx::query_scalar(concat!(
        "select m.image_id from runtara_images m where ",
        is_unused!(),
        " order by m.created_at, m.image_id limit $2 for update skip locked"
    ))
    .bind(unused_ms)
    .bind(i64::from(limit))
    .fetch_all(&mut *connection)
    .await?;
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    let deleted: Vec<String> = sqlx::query_scalar(concat!(
        "update runtara_images m set deleted_at = runtara_now() where m.image_id = any($2) and ",
        is_unused!(),
        " returning m.image_id"
    ))
    .bind(unused_ms)
    .bind(candidates)
    .fetch_all(&mut *connection)
    .await?;
    let found = sqlx::query(concat!(
        "select ",
        image_columns!(),
        " from runtara_images m where m.image_id = any($1) order by m.created_at, m.image_id"
    ))
    .bind(deleted)
    .fetch_all(&mut *connection)
    .await?;
    connection.commit().await?;
    found.iter().map(row::image).collect()
}
