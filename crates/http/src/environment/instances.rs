//! Instances: start, look, stop, resume, remove.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use runtara_control::{ControlError, InstanceView, StartInstance};
use runtara_domain::{
    InstanceId, InstanceState, Labels, Reason, SignalKind, Status, TenantId, TimeInStates,
    Timestamp,
};
use runtara_store::{InstanceFilter, InstanceOrder, InstanceSummary, Page};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::page::{OrderedBy, PageInfo, labels, page_request, time};
use super::settings::settings;
use super::{EnvironmentState, scope, tenant_mismatch};
use crate::ApiError;
use crate::extract::{self, PathId, Query, encode, parse_id};

#[derive(Deserialize)]
pub(super) struct StartBody {
    image_id: String,
    tenant_id: String,
    instance_id: Option<String>,
    /// Not read here: it may be large, and how it is read is decided where its size has been looked at.
    input: Option<Box<RawValue>>,
    timeout_seconds: Option<u64>,
    #[serde(default)]
    env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    start_at_ms: Option<i64>,
    delay_ms: Option<u64>,
    max_attempts: Option<u32>,
    heartbeat_timeout_seconds: Option<u64>,
    /// RFC 3339.
    expires_at: Option<String>,
    expires_in_seconds: Option<u64>,
    max_events: Option<u32>,
    limits: Option<Box<RawValue>>,
    network: Option<String>,
    allowed_hosts: Option<Vec<String>>,
    read_only: Option<bool>,
}

fn start_of(
    body: StartBody,
    headers: &HeaderMap,
    query: &Query,
) -> Result<StartInstance, ApiError> {
    let tenant_id: TenantId = parse_id(&body.tenant_id)?;
    if scope(headers, query)?.is_some_and(|named| named != tenant_id) {
        return Err(tenant_mismatch());
    }
    let instance_id = match body.instance_id.as_deref() {
        None | Some("") => None,
        Some(id) => Some(parse_id(id)?),
    };
    let labels = Labels::new(body.labels.unwrap_or_default())
        .map_err(|error| ApiError::bad_request("INVALID_LABEL", error))?;
    let idempotency_key = headers
        .get("idempotency-key")
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    Ok(StartInstance {
        image_id: parse_id(&body.image_id)?,
        tenant_id,
        instance_id,
        idempotency_key,
        input: body.input,
        env: body.env.unwrap_or_default(),
        args: body.args.unwrap_or_default(),
        labels,
        settings: settings(
            body.limits.as_deref(),
            body.network.as_deref(),
            body.allowed_hosts.as_deref(),
            body.read_only,
        )?,
        timeout_seconds: body.timeout_seconds,
        max_attempts: body.max_attempts,
        max_events: body.max_events,
        start_at: body.start_at_ms.map(Timestamp),
        delay_ms: body.delay_ms,
        heartbeat_timeout_seconds: body.heartbeat_timeout_seconds,
        expires_at: body.expires_at.as_deref().map(moment).transpose()?,
        expires_in_seconds: body.expires_in_seconds,
    })
}

/// The time that a text of RFC 3339 names; of a part of a millisecond the whole one that ends with it.
fn moment(text: &str) -> Result<Timestamp, ApiError> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339).map_err(|error| {
        let found: String = text.chars().take(64).collect();
        ApiError::bad_request(
            "INVALID_EXPIRY",
            format!("expires_at is {found:?}, and a time such as 2030-01-31T08:00:00Z is wanted (RFC 3339): {error}"),
        )
    })?;
    let nanos = parsed.unix_timestamp_nanos();
    let millis = nanos.div_euclid(1_000_000) + i128::from(nanos.rem_euclid(1_000_000) > 0);
    // RFC 3339 has four digits for a year: far from what 64 bits hold.
    Ok(Timestamp(i64::try_from(millis).unwrap_or(i64::MAX)))
}

/// `POST /instances`
///
/// What cannot be started is a 400 with `success: false`: published clients read exactly that as an ordinary refusal.
pub(super) async fn start(
    State(state): State<EnvironmentState>,
    headers: HeaderMap,
    query: Query,
    extract::Json(body): extract::Json<StartBody>,
) -> Result<Response, ApiError> {
    let start = start_of(body, &headers, &query)?;
    match state.control.start(start).await {
        Ok(started) => {
            let status = if started.deduplicated {
                StatusCode::OK
            } else {
                StatusCode::CREATED
            };
            let body = json!({
                "success": true,
                "instance_id": started.state.instance_id,
                "deduplicated": started.deduplicated,
            });
            Ok((status, Json(body)).into_response())
        }
        Err(error @ (ControlError::NotFound { .. } | ControlError::Refused { .. })) => {
            let error = ApiError::from(error);
            Ok(refused_start(&error))
        }
        Err(error) => Err(error.into()),
    }
}

fn refused_start(error: &ApiError) -> Response {
    ApiError::new(StatusCode::BAD_REQUEST, error.code(), error.message()).into_response()
}

#[derive(Serialize)]
struct StatusAnswer {
    found: bool,
    instance_id: InstanceId,
    tenant_id: String,
    status: Status,
    status_reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_id: Option<String>,
    created_at_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
    retry_count: u32,
    max_retries: u32,
    run_number: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_peak_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_usage_usec: Option<u64>,
    time_in_states_ms: WireTimeInStates,
    #[serde(skip_serializing_if = "Option::is_none")]
    termination_reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal_pending: Option<SignalKind>,
    labels: Labels,
}

/// Milliseconds in each status by now, the current one included.
#[derive(Serialize)]
struct WireTimeInStates {
    pending: u64,
    running: u64,
    suspended: u64,
}

impl From<TimeInStates> for WireTimeInStates {
    fn from(time: TimeInStates) -> Self {
        Self {
            pending: time.pending_ms,
            running: time.running_ms,
            suspended: time.suspended_ms,
        }
    }
}

impl From<InstanceView> for StatusAnswer {
    fn from(view: InstanceView) -> Self {
        let state = view.record.state;
        let values = view.values;
        let used = state.usage.running_ms > 0 || state.usage.memory_peak_bytes > 0;
        Self {
            found: true,
            tenant_id: state.tenant_id.to_string(),
            status: state.status,
            status_reason: state.reason,
            image_id: state.image_id.as_ref().map(ToString::to_string),
            image_name: view.record.image_name,
            checkpoint_id: state.checkpoint_id.as_ref().map(ToString::to_string),
            created_at_ms: state.created_at.0,
            started_at_ms: state.started_at.map(|at| at.0),
            finished_at_ms: state.finished_at.map(|at| at.0),
            heartbeat_at_ms: state.last_seen_at.map(|at| at.0),
            due_at_ms: state.due_at.map(|at| at.0),
            expires_at_ms: state.expires_at.map(|at| at.0),
            heartbeat_timeout_ms: state.heartbeat_timeout_ms,
            input: values.input.map(shown_input).map(encode),
            output: values.output.map(encode),
            error: values.error,
            stderr: values.stderr,
            retry_count: state.attempts.retries(),
            max_retries: state.attempts.allowed_retries(),
            run_number: state.run_number.0,
            memory_peak_bytes: used.then_some(state.usage.memory_peak_bytes),
            cpu_usage_usec: used.then_some(state.usage.cpu_usec),
            time_in_states_ms: view.record.time_in_states.into(),
            termination_reason: termination_reason(&state),
            exit_code: state.exit_code,
            signal_pending: state.pending.visible().map(|(kind, _)| kind),
            labels: view.record.labels,
            instance_id: state.instance_id,
        }
    }
}

/// The reason under the name that published clients read; they know no reason for being launched again.
fn termination_reason(state: &InstanceState) -> Option<Reason> {
    state
        .reason
        .filter(|_| state.status.is_end() || state.status == Status::Suspended)
}

/// The input as people are shown it: without those of its variables whose name begins with `_`. The instance itself is given all.
fn shown_input(input: Bytes) -> Bytes {
    let Ok(mut value) = serde_json::from_slice::<Value>(&input) else {
        return input;
    };
    if let Some(Value::Object(variables)) = value.get_mut("variables") {
        variables.retain(|name, _| !name.starts_with('_'));
    }
    value.to_string().into()
}

/// `GET /instances/{id}`
pub(super) async fn get(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let scope = scope(&headers, &query)?;
    let wait = Duration::from_millis(query.parsed("wait_ms")?.unwrap_or(0));
    match state.control.instance(&scope, &id, wait).await {
        Ok(view) => Ok(Json(StatusAnswer::from(view)).into_response()),
        Err(ControlError::NotFound { .. }) => {
            Ok(Json(json!({ "found": false, "instance_id": id })).into_response())
        }
        Err(error) => Err(error.into()),
    }
}

#[derive(Serialize)]
pub(super) struct ListAnswer {
    instances: Vec<WireSummary>,
    #[serde(flatten)]
    page: PageInfo,
}

#[derive(Serialize)]
struct WireSummary {
    instance_id: InstanceId,
    tenant_id: String,
    status: Status,
    status_reason: Option<Reason>,
    created_at_ms: i64,
    has_error: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at_ms: Option<i64>,
    labels: Labels,
}

impl From<InstanceSummary> for WireSummary {
    fn from(row: InstanceSummary) -> Self {
        Self {
            instance_id: row.instance_id,
            tenant_id: row.tenant_id.to_string(),
            status: row.status,
            status_reason: row.reason,
            created_at_ms: row.created_at.0,
            has_error: row.has_error,
            image_id: row.image_id.map(String::from),
            image_name: row.image_name,
            started_at_ms: row.started_at.map(|at| at.0),
            finished_at_ms: row.finished_at.map(|at| at.0),
            due_at_ms: row.due_at.map(|at| at.0),
            labels: row.labels,
        }
    }
}

/// `GET /instances`
pub(super) async fn list(
    State(state): State<EnvironmentState>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<ListAnswer>, ApiError> {
    // Published clients have a word for a status they do not know, and ask for it: no instance stands so.
    let (status, impossible) = match query.text("status") {
        Some("unknown") => (None, true),
        _ => (query.parsed("status")?, false),
    };
    let filter = InstanceFilter {
        tenant_id: scope(&headers, &query)?,
        status,
        image_id: query.text("image_id").map(parse_id).transpose()?,
        image_name_prefix: query.text("image_name_prefix").map(str::to_owned),
        created_after: time(&query, "created_after_ms")?,
        created_before: time(&query, "created_before_ms")?,
        finished_after: time(&query, "finished_after_ms")?,
        finished_before: time(&query, "finished_before_ms")?,
        labels: labels(&query)?,
    };
    let (order, by) = match query.text("order_by") {
        Some("created_at_asc") => (InstanceOrder::CreatedAscending, OrderedBy::Time),
        Some("finished_at_desc") => (InstanceOrder::FinishedDescending, OrderedBy::End),
        Some("finished_at_asc") => (InstanceOrder::FinishedAscending, OrderedBy::End),
        _ => (InstanceOrder::CreatedDescending, OrderedBy::Time),
    };
    let request = page_request(&query, by)?;
    let page = if impossible {
        Page::empty()
    } else {
        state
            .control
            .list_instances(&filter, order, &request)
            .await?
    };
    Ok(Json(ListAnswer {
        page: PageInfo::new(&page, &request),
        instances: page.rows.into_iter().map(WireSummary::from).collect(),
    }))
}

#[derive(Deserialize)]
pub(super) struct StopBody {
    reason: Option<String>,
    grace_period_seconds: Option<u64>,
}

const DEFAULT_GRACE_SECONDS: u64 = 5;

/// A refusal that published clients read out of a 200.
fn refused(error: ControlError) -> Result<Json<Value>, ApiError> {
    match error {
        ControlError::NotFound { .. } | ControlError::Refused { .. } => {
            let error = ApiError::from(error);
            let body = json!({
                "success": false,
                "error": error.message(),
                "code": error.code(),
            });
            Ok(Json(body))
        }
        other => Err(other.into()),
    }
}

/// `POST /instances/{id}/stop`
///
/// `success: true` says that the stop is durable, and nothing can call it back. `process_gone` says whether the process has left by
/// now: with a grace of more than 23 s the answer may come before, because published clients wait no longer than 30 s. `status` is
/// `running` then; the process is killed when the grace is over, and a look with `wait_ms` tells when.
pub(super) async fn stop(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
    extract::Json(body): extract::Json<StopBody>,
) -> Result<Json<Value>, ApiError> {
    let scope = scope(&headers, &query)?;
    let grace = body.grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
    let reason = body.reason.unwrap_or_default();
    match state.control.stop(&scope, &id, grace, &reason).await {
        Ok(stopped) => Ok(Json(json!({
            "success": true,
            "status": stopped.state.status,
            "process_gone": stopped.process_gone,
        }))),
        Err(error) => refused(error),
    }
}

/// `POST /instances/{id}/resume`, with or without a body.
pub(super) async fn resume(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let scope = scope(&headers, &query)?;
    match state.control.resume(&scope, &id).await {
        Ok(()) => Ok(Json(json!({ "success": true }))),
        Err(error) => refused(error),
    }
}

/// `DELETE /instances/{id}`
pub(super) async fn purge(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let scope = scope(&headers, &query)?;
    state.control.purge(&scope, &id).await?;
    Ok(Json(json!({ "success": true })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_variables_are_not_shown() {
        let shown = |text: &str| {
            let shown = shown_input(Bytes::from(text.to_owned()));
            String::from_utf8(shown.to_vec()).unwrap()
        };
        assert_eq!(
            shown(r#"{"variables":{"_secret":1,"a":2}}"#),
            r#"{"variables":{"a":2}}"#
        );
        assert_eq!(shown("[1,2]"), "[1,2]");
        assert_eq!(shown("no json"), "no json");
    }
}
