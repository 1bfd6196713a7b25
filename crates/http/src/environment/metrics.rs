//! Figures of a tenant.

use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use runtara_domain::{TenantId, Timestamp};
use runtara_store::{MetricsBucket, MetricsQuery};
use serde::Serialize;

use super::page::time;
use super::{EnvironmentState, scope, tenant_mismatch};
use crate::ApiError;
use crate::extract::{PathId, Query};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

#[derive(Serialize)]
pub(super) struct MetricsAnswer {
    tenant_id: String,
    start_time_ms: i64,
    end_time_ms: i64,
    granularity: &'static str,
    buckets: Vec<WireBucket>,
}

#[derive(Serialize)]
struct WireBucket {
    bucket_time_ms: i64,
    invocation_count: u64,
    success_count: u64,
    failure_count: u64,
    cancelled_count: u64,
    avg_duration_ms: Option<f64>,
    min_duration_ms: Option<f64>,
    max_duration_ms: Option<f64>,
    avg_memory_bytes: Option<i64>,
    max_memory_bytes: Option<i64>,
    success_rate_percent: Option<f64>,
}

impl From<MetricsBucket> for WireBucket {
    fn from(bucket: MetricsBucket) -> Self {
        let all = bucket.completed + bucket.failed + bucket.cancelled;
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let rate = (all > 0).then(|| bucket.completed as f64 * 100.0 / all as f64);
        #[expect(clippy::cast_possible_truncation, reason = "an average of byte counts")]
        let average = bucket.avg_memory_bytes.map(|bytes| bytes.round() as i64);
        Self {
            bucket_time_ms: bucket.start.0,
            invocation_count: all,
            success_count: bucket.completed,
            failure_count: bucket.failed,
            cancelled_count: bucket.cancelled,
            avg_duration_ms: bucket.avg_duration_ms,
            min_duration_ms: bucket.min_duration_ms,
            max_duration_ms: bucket.max_duration_ms,
            avg_memory_bytes: average,
            max_memory_bytes: bucket
                .max_memory_bytes
                .map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            success_rate_percent: rate,
        }
    }
}

/// `GET /tenants/{tenant_id}/metrics`
pub(super) async fn tenant(
    State(state): State<EnvironmentState>,
    PathId(tenant_id): PathId<TenantId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<MetricsAnswer>, ApiError> {
    if scope(&headers, &query)?.is_some_and(|named| named != tenant_id) {
        return Err(tenant_mismatch());
    }
    let end =
        time(&query, "end_time_ms")?.unwrap_or_else(|| Timestamp::from_system(SystemTime::now()));
    let start = time(&query, "start_time_ms")?
        .unwrap_or(Timestamp(end.0.saturating_sub(DAY_MS.cast_signed())));
    let (granularity, bucket_ms) = match query.text("granularity") {
        Some("daily") => ("daily", DAY_MS),
        _ => ("hourly", HOUR_MS),
    };
    let asked = MetricsQuery {
        tenant_id: tenant_id.clone(),
        start,
        end,
        bucket_ms,
    };
    let buckets = state.control.tenant_metrics(&asked).await?;
    Ok(Json(MetricsAnswer {
        tenant_id: tenant_id.to_string(),
        start_time_ms: start.0,
        end_time_ms: end.0,
        granularity,
        buckets: buckets.into_iter().map(WireBucket::from).collect(),
    }))
}
