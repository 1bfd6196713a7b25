//! What an instance has recorded: checkpoints, events, steps, scopes.

use axum::Json;
use axum::extract::State;
use http::HeaderMap;
use runtara_control::{Ancestor, Step};
use runtara_domain::{CheckpointId, EventKind, InstanceId};
use runtara_store::{
    CheckpointFilter, CheckpointSummary, EventFilter, Page, StepFilter, StepStatus, StoredEvent,
};
use serde::Serialize;
use serde_json::Value;

use super::page::{OrderedBy, PageInfo, page_request, time};
use super::{EnvironmentState, scope};
use crate::ApiError;
use crate::extract::{PathId, PathIds, Query, encode};

#[derive(Serialize)]
pub(super) struct CheckpointsAnswer {
    checkpoints: Vec<WireCheckpoint>,
    #[serde(flatten)]
    page: PageInfo,
}

#[derive(Serialize)]
struct WireCheckpoint {
    checkpoint_id: String,
    instance_id: String,
    created_at_ms: i64,
    data_size_bytes: u64,
    run_number: u32,
    seq: u64,
}

impl WireCheckpoint {
    fn new(id: &InstanceId, checkpoint: CheckpointSummary) -> Self {
        Self {
            checkpoint_id: checkpoint.checkpoint_id,
            instance_id: id.to_string(),
            created_at_ms: checkpoint.created_at.0,
            data_size_bytes: checkpoint.size,
            run_number: checkpoint.run_number.0,
            seq: checkpoint.seq,
        }
    }
}

/// `GET /instances/{id}/checkpoints`
pub(super) async fn checkpoints(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<CheckpointsAnswer>, ApiError> {
    let filter = CheckpointFilter {
        checkpoint_id: query.text("checkpoint_id").map(str::to_owned),
        created_after: time(&query, "created_after_ms")?,
        created_before: time(&query, "created_before_ms")?,
    };
    let request = page_request(&query, OrderedBy::Number)?;
    let scope = scope(&headers, &query)?;
    let page = state
        .control
        .list_checkpoints(&scope, &id, &filter, &request)
        .await?;
    Ok(Json(CheckpointsAnswer {
        page: PageInfo::new(&page, &request),
        checkpoints: page
            .rows
            .into_iter()
            .map(|row| WireCheckpoint::new(&id, row))
            .collect(),
    }))
}

#[derive(Serialize)]
pub(super) struct CheckpointAnswer {
    found: bool,
    checkpoint_id: String,
    instance_id: String,
    created_at_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

/// `GET /instances/{id}/checkpoints/{checkpoint_id}`
pub(super) async fn checkpoint(
    State(state): State<EnvironmentState>,
    PathIds(id, checkpoint_id): PathIds<InstanceId, CheckpointId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<CheckpointAnswer>, ApiError> {
    let scope = scope(&headers, &query)?;
    let found = state
        .control
        .checkpoint(&scope, &id, &checkpoint_id)
        .await?;
    Ok(Json(CheckpointAnswer {
        found: found.is_some(),
        checkpoint_id: checkpoint_id.to_string(),
        instance_id: id.to_string(),
        created_at_ms: found.as_ref().map_or(0, |found| found.created_at.0),
        // That of a retry holds nothing, and published clients read as JSON whatever there is.
        data: found
            .filter(|found| !found.state.is_empty())
            .map(|found| encode(found.state)),
    }))
}

#[derive(Serialize)]
pub(super) struct EventsAnswer {
    events: Vec<WireEvent>,
    #[serde(flatten)]
    page: PageInfo,
}

#[derive(Serialize)]
struct WireEvent {
    id: i64,
    instance_id: String,
    event_type: EventKind,
    created_at_ms: i64,
    run_number: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtype: Option<String>,
}

impl WireEvent {
    fn new(id: &InstanceId, event: StoredEvent) -> Self {
        Self {
            id: i64::try_from(event.seq).unwrap_or(i64::MAX),
            instance_id: id.to_string(),
            event_type: event.kind,
            created_at_ms: event.created_at.0,
            run_number: event.run_number.0,
            checkpoint_id: event.checkpoint_id.map(String::from),
            payload: event.payload.map(encode),
            subtype: event.subtype,
        }
    }
}

fn is_true(query: &Query, key: &str) -> bool {
    query.text(key) == Some("true")
}

fn is_ascending(query: &Query) -> bool {
    query.text("sort_order") == Some("asc")
}

/// `GET /instances/{id}/events`
pub(super) async fn list(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<EventsAnswer>, ApiError> {
    // A word of the original's that no event has.
    let (kind, impossible) = match query.text("event_type") {
        Some("progress") => (None, true),
        _ => (query.parsed("event_type")?, false),
    };
    let filter = EventFilter {
        kind,
        subtype: query.text("subtype").map(str::to_owned),
        created_after: time(&query, "created_after_ms")?,
        created_before: time(&query, "created_before_ms")?,
        payload_contains: query.text("payload_contains").map(str::to_owned),
        scope_id: query.text("scope_id").map(str::to_owned),
        parent_scope_id: query.text("parent_scope_id").map(str::to_owned),
        root_scopes_only: is_true(&query, "root_scopes_only"),
        ascending: is_ascending(&query),
    };
    let request = page_request(&query, OrderedBy::Number)?;
    let scope = scope(&headers, &query)?;
    let page = if impossible {
        Page::empty()
    } else {
        state
            .control
            .list_events(&scope, &id, &filter, &request)
            .await?
    };
    Ok(Json(EventsAnswer {
        page: PageInfo::new(&page, &request),
        events: page
            .rows
            .into_iter()
            .map(|row| WireEvent::new(&id, row))
            .collect(),
    }))
}

#[derive(Serialize)]
pub(super) struct StepsAnswer {
    steps: Vec<WireStep>,
    #[serde(flatten)]
    page: PageInfo,
}

#[derive(Serialize)]
struct WireStep {
    step_id: String,
    step_type: String,
    status: &'static str,
    started_at_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inputs: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outputs: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_scope_id: Option<String>,
}

impl From<Step> for WireStep {
    fn from(step: Step) -> Self {
        let duration = step
            .ended_at
            .map(|end| end.0.saturating_sub(step.started_at.0));
        Self {
            step_id: step.step_id,
            step_type: step.step_type,
            status: match step.status {
                StepStatus::Running => "running",
                StepStatus::Completed => "completed",
                StepStatus::Failed => "failed",
            },
            started_at_ms: step.started_at.0,
            step_name: step.step_name,
            completed_at_ms: step.ended_at.map(|end| end.0),
            duration_ms: duration,
            inputs: step.inputs,
            outputs: step.outputs,
            error: step.error,
            scope_id: step.scope_id,
            parent_scope_id: step.parent_scope_id,
        }
    }
}

/// `GET /instances/{id}/steps`
pub(super) async fn steps(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<StepsAnswer>, ApiError> {
    let filter = StepFilter {
        // Published clients send any other word to mean no filter.
        status: match query.text("status") {
            Some("running") => Some(StepStatus::Running),
            Some("completed") => Some(StepStatus::Completed),
            Some("failed") => Some(StepStatus::Failed),
            _ => None,
        },
        step_type: query.text("step_type").map(str::to_owned),
        scope_id: query.text("scope_id").map(str::to_owned),
        parent_scope_id: query.text("parent_scope_id").map(str::to_owned),
        root_scopes_only: is_true(&query, "root_scopes_only"),
        step_ids: query
            .text("step_ids")
            .map(|ids| ids.split(',').map(str::to_owned).collect())
            .unwrap_or_default(),
        ascending: is_ascending(&query),
    };
    let request = page_request(&query, OrderedBy::Number)?;
    let scope = scope(&headers, &query)?;
    let page = state
        .control
        .list_steps(&scope, &id, &filter, &request)
        .await?;
    Ok(Json(StepsAnswer {
        page: PageInfo::new(&page, &request),
        steps: page.rows.into_iter().map(WireStep::from).collect(),
    }))
}

#[derive(Serialize)]
pub(super) struct AncestorsAnswer {
    ancestors: Vec<WireAncestor>,
}

#[derive(Serialize)]
struct WireAncestor {
    scope_id: String,
    step_id: String,
    step_type: String,
    created_at_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_scope_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u32>,
}

impl From<Ancestor> for WireAncestor {
    fn from(scope: Ancestor) -> Self {
        Self {
            scope_id: scope.scope_id,
            step_id: scope.step_id,
            step_type: scope.step_type,
            created_at_ms: scope.created_at.0,
            parent_scope_id: scope.parent_scope_id,
            step_name: scope.step_name,
            index: scope.index,
        }
    }
}

/// `GET /instances/{id}/scopes/{scope_id}/ancestors`
pub(super) async fn ancestors(
    State(state): State<EnvironmentState>,
    PathIds(id, scope_id): PathIds<InstanceId, String>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<AncestorsAnswer>, ApiError> {
    let scope = scope(&headers, &query)?;
    let ancestors = state
        .control
        .scope_ancestors(&scope, &id, &scope_id)
        .await?;
    Ok(Json(AncestorsAnswer {
        ancestors: ancestors.into_iter().map(WireAncestor::from).collect(),
    }))
}
