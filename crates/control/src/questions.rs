//! Lists and figures.

use std::collections::BTreeMap;

use bytes::Bytes;
use runtara_domain::{CheckpointId, ImageRecord, InstanceId, Timestamp};
use runtara_store::{
    CheckpointFilter, CheckpointSummary, EventFilter, ImageFilter, InstanceFilter, InstanceOrder,
    InstanceSummary, MetricsBucket, MetricsQuery, Page, PageRequest, Scope as StoredScope,
    StepFilter, StepStatus, StepSummary, StoredCheckpoint, StoredEvent,
};
use serde_json::Value;

use crate::{Control, ControlError, ControlResult, Scope};

/// Most buckets of one answer: more than a year of hours.
const BUCKETS: u64 = 10_000;

/// A scope of a program.
#[derive(Debug, Clone, PartialEq)]
pub struct Ancestor {
    /// Its id.
    pub scope_id: String,
    /// The scope around it.
    pub parent_scope_id: Option<String>,
    /// The step that opened it.
    pub step_id: String,
    /// The name of that step.
    pub step_name: Option<String>,
    /// The type of that step.
    pub step_type: String,
    /// Which turn of a loop it is.
    pub index: Option<u32>,
    /// When it was entered.
    pub created_at: Timestamp,
}

/// A step of a program.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its id.
    pub step_id: String,
    /// Its name.
    pub step_name: Option<String>,
    /// Its type.
    pub step_type: String,
    /// How it stands.
    pub status: StepStatus,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What it was given.
    pub inputs: Option<Value>,
    /// What it gave.
    pub outputs: Option<Value>,
    /// Why it failed.
    pub error: Option<Value>,
    /// The scope it is in.
    pub scope_id: Option<String>,
    /// The scope around that.
    pub parent_scope_id: Option<String>,
}

/// The keys of a JSON payload; none if it is no object.
struct Keys(BTreeMap<String, Value>);

impl Keys {
    fn of(payload: &Bytes) -> Self {
        Self(serde_json::from_slice(payload).unwrap_or_default())
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.take(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }
}

impl From<StoredScope> for Ancestor {
    fn from(scope: StoredScope) -> Self {
        let mut keys = Keys::of(&scope.payload);
        Self {
            scope_id: keys.text("scope_id").unwrap_or_default(),
            parent_scope_id: keys.text("parent_scope_id"),
            step_id: keys.text("step_id").unwrap_or_default(),
            step_name: keys.text("step_name"),
            step_type: keys.text("step_type").unwrap_or_default(),
            index: keys
                .take("index")
                .and_then(|index| index.as_u64())
                .and_then(|index| u32::try_from(index).ok()),
            created_at: scope.created_at,
        }
    }
}

impl From<StepSummary> for Step {
    fn from(step: StepSummary) -> Self {
        let mut start = Keys::of(&step.start);
        let mut end = step
            .end
            .as_ref()
            .map_or_else(|| Keys(BTreeMap::new()), Keys::of);
        Self {
            step_id: start.text("step_id").unwrap_or_default(),
            step_name: start.text("step_name"),
            step_type: start.text("step_type").unwrap_or_default(),
            status: step.status,
            started_at: step.started_at,
            ended_at: step.ended_at,
            inputs: start.take("inputs"),
            outputs: end.take("outputs"),
            error: end.take("error"),
            scope_id: start.text("scope_id"),
            parent_scope_id: start.text("parent_scope_id"),
        }
    }
}

impl Control {
    /// Whether the scope may see an instance. Lists of one that it may not see are empty, as those of an unknown one.
    async fn may_see(&self, scope: &Scope, id: &InstanceId) -> ControlResult<bool> {
        match self.find(scope, id).await {
            Ok(_) => Ok(true),
            Err(ControlError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Current images, newest first.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`].
    pub async fn list_images(
        &self,
        filter: &ImageFilter,
        page: &PageRequest,
    ) -> ControlResult<Page<ImageRecord>> {
        Ok(self.store.list_images(filter, page).await?)
    }

    /// Instances.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`].
    pub async fn list_instances(
        &self,
        filter: &InstanceFilter,
        order: InstanceOrder,
        page: &PageRequest,
    ) -> ControlResult<Page<InstanceSummary>> {
        Ok(self.store.list_instances(filter, order, page).await?)
    }

    /// Checkpoints of an instance, newest first.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`].
    pub async fn list_checkpoints(
        &self,
        scope: &Scope,
        id: &InstanceId,
        filter: &CheckpointFilter,
        page: &PageRequest,
    ) -> ControlResult<Page<CheckpointSummary>> {
        if !self.may_see(scope, id).await? {
            return Ok(Page::empty());
        }
        Ok(self.store.list_checkpoints(id, filter, page).await?)
    }

    /// The newest state that was saved under a name.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`].
    pub async fn checkpoint(
        &self,
        scope: &Scope,
        id: &InstanceId,
        checkpoint_id: &CheckpointId,
    ) -> ControlResult<Option<StoredCheckpoint>> {
        if !self.may_see(scope, id).await? {
            return Ok(None);
        }
        Ok(self.store.checkpoint(id, checkpoint_id).await?)
    }

    /// Events of an instance.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`].
    pub async fn list_events(
        &self,
        scope: &Scope,
        id: &InstanceId,
        filter: &EventFilter,
        page: &PageRequest,
    ) -> ControlResult<Page<StoredEvent>> {
        if !self.may_see(scope, id).await? {
            return Ok(Page::empty());
        }
        Ok(self.store.list_events(id, filter, page).await?)
    }

    /// Steps of an instance.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`].
    pub async fn list_steps(
        &self,
        scope: &Scope,
        id: &InstanceId,
        filter: &StepFilter,
        page: &PageRequest,
    ) -> ControlResult<Page<Step>> {
        if !self.may_see(scope, id).await? {
            return Ok(Page::empty());
        }
        let page = self.store.list_steps(id, filter, page).await?;
        Ok(Page {
            rows: page.rows.into_iter().map(Step::from).collect(),
            next: page.next,
            total: page.total,
        })
    }

    /// A scope and those around it, outward.
    ///
    /// # Errors
    /// [`ControlError::Unavailable`].
    pub async fn scope_ancestors(
        &self,
        scope: &Scope,
        id: &InstanceId,
        scope_id: &str,
    ) -> ControlResult<Vec<Ancestor>> {
        if !self.may_see(scope, id).await? {
            return Ok(Vec::new());
        }
        let scopes = self.store.scope_ancestors(id, scope_id).await?;
        Ok(scopes.into_iter().map(Ancestor::from).collect())
    }

    /// How a tenant's instances ended: every bucket from that of the start to that of the end, empty ones included.
    ///
    /// # Errors
    /// [`ControlError::Invalid`] if the range ends before it begins or has too many buckets.
    pub async fn tenant_metrics(&self, query: &MetricsQuery) -> ControlResult<Vec<MetricsBucket>> {
        // Within one bucket a range that runs backwards would have that bucket.
        if query.end < query.start {
            return Err(ControlError::invalid(
                "INVALID_RANGE",
                format!(
                    "the range from {} to {} ends before it begins",
                    query.start, query.end
                ),
            ));
        }
        let width = i64::try_from(query.bucket_ms).unwrap_or(i64::MAX);
        let first = query.start.0.div_euclid(width);
        let last = query.end.0.div_euclid(width);
        let buckets = u64::try_from(last.saturating_sub(first)).map_or(0, |count| count + 1);
        if buckets > BUCKETS {
            return Err(ControlError::invalid(
                "INVALID_RANGE",
                format!(
                    "the range from {} to {} has {buckets} buckets; at most {BUCKETS} are allowed",
                    query.start, query.end
                ),
            ));
        }
        let found = self.store.tenant_metrics(query).await?;
        let mut found: BTreeMap<_, _> = found
            .into_iter()
            .map(|bucket| (bucket.start, bucket))
            .collect();
        Ok((first..=last)
            .map(|number| {
                let start = Timestamp(number * width);
                found.remove(&start).unwrap_or(MetricsBucket {
                    start,
                    completed: 0,
                    failed: 0,
                    cancelled: 0,
                    avg_duration_ms: None,
                    min_duration_ms: None,
                    max_duration_ms: None,
                    avg_memory_bytes: None,
                    max_memory_bytes: None,
                })
            })
            .collect())
    }
}
