//! How a tenant's instances ended, over time.

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::options::options;
use crate::query::Path;
use crate::transport::Call;
use crate::{Error, Granularity};

/// One hour or day.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MetricsBucket {
    /// Its beginning.
    pub bucket_time_ms: i64,
    /// Instances that ended in it.
    pub invocation_count: i64,
    /// Of these, those that completed.
    pub success_count: i64,
    /// Those that failed.
    pub failure_count: i64,
    /// Those that were cancelled.
    pub cancelled_count: i64,
    /// Mean time from start to end in milliseconds, where any ended.
    #[serde(default)]
    pub avg_duration_ms: Option<f64>,
    /// Shortest such time.
    #[serde(default)]
    pub min_duration_ms: Option<f64>,
    /// Longest such time.
    #[serde(default)]
    pub max_duration_ms: Option<f64>,
    /// Mean of their peaks of memory.
    #[serde(default)]
    pub avg_memory_bytes: Option<i64>,
    /// Highest of their peaks of memory.
    #[serde(default)]
    pub max_memory_bytes: Option<i64>,
    /// Completed ones in a hundred.
    #[serde(default)]
    pub success_rate_percent: Option<f64>,
}

/// A tenant's metrics, one bucket after the other, empty ones included.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TenantMetrics {
    /// Whose they are.
    pub tenant_id: String,
    /// Begin of the time they tell of.
    pub start_time_ms: i64,
    /// Its end.
    pub end_time_ms: i64,
    /// Length of a bucket.
    pub granularity: Granularity,
    /// The buckets, oldest first.
    pub buckets: Vec<MetricsBucket>,
}

options! {
    /// Which time is asked for: the last 24 hours, by the hour, if nothing is set.
    MetricsQuery {
        text {
            /// Whose; the client's tenant if absent.
            tenant_id,
        }
        plain {
            /// From when on.
            start_time_ms: i64,
            /// Until when.
            end_time_ms: i64,
            /// By the hour or by the day.
            granularity: Granularity,
        }
    }
}

impl Client {
    /// Gives a tenant's metrics.
    ///
    /// # Errors
    ///
    /// Those of the connection and of the server.
    pub async fn tenant_metrics(&self, query: &MetricsQuery) -> Result<TenantMetrics, Error> {
        let path = Path::new("/api/v1/tenants")
            .id("tenant id", self.tenant_or(query.tenant_id.as_deref())?)?
            .then("/metrics")
            .with("start_time_ms", query.start_time_ms)
            .with("end_time_ms", query.end_time_ms)
            .with("granularity", query.granularity.as_ref());
        self.send(Call::get(path)).await?.ok()?.json()
    }
}
