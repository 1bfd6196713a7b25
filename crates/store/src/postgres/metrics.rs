//! How instances ended.

use runtara_domain::Timestamp;
use sqlx::postgres::PgRow;

use crate::{MetricsBucket, MetricsQuery};

use super::PostgresStore;
use super::connections::Fetch as _;
use super::error::Answer;
use super::row;

/// Endings of a tenant by bucket, along `runtara_instances_tenant_finished`.
pub(super) async fn of_tenant(
    store: &PostgresStore,
    query: &MetricsQuery,
) -> Answer<Vec<MetricsBucket>> {
    // Times before 1970 round down as others do.
    let rows = sqlx::query(
        "select floor(finished_at::numeric / $4)::bigint * $4 as start,
                count(*) filter (where status = 'completed') as completed,
                count(*) filter (where status = 'failed') as failed,
                count(*) filter (where status = 'cancelled') as cancelled,
                avg(took::double precision) as avg_duration,
                min(took::double precision) as min_duration,
                max(took::double precision) as max_duration,
                avg(memory_peak_bytes::double precision) filter (where memory_peak_bytes > 0) as avg_memory,
                max(memory_peak_bytes) filter (where memory_peak_bytes > 0) as max_memory
           from (select finished_at, status, memory_peak_bytes, tenant_id,
                        case when started_at is not null then greatest(finished_at - started_at, 0) end as took
                   from runtara_instances) i
          where tenant_id = $1 and finished_at >= $2 and finished_at < $3
          group by 1 order by 1",
    )
    .bind(query.tenant_id.as_str())
    .bind(query.start.0)
    .bind(query.end.0)
    .bind(row::signed(query.bucket_ms.max(1)))
    .all_on(&store.connections)
    .await?;
    rows.iter().map(bucket).collect()
}

fn bucket(found: &PgRow) -> Answer<MetricsBucket> {
    let count = |column| Ok::<_, super::error::Fault>(row::unsigned(row::get(found, column)?));
    Ok(MetricsBucket {
        start: Timestamp(row::get(found, "start")?),
        completed: count("completed")?,
        failed: count("failed")?,
        cancelled: count("cancelled")?,
        avg_duration_ms: row::get(found, "avg_duration")?,
        min_duration_ms: row::get(found, "min_duration")?,
        max_duration_ms: row::get(found, "max_duration")?,
        avg_memory_bytes: row::get(found, "avg_memory")?,
        max_memory_bytes: row::get::<Option<i64>>(found, "max_memory")?.map(row::unsigned),
    })
}
