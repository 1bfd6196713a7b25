//! Agents: this server links none.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode};
use runtara_domain::TenantId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{scope, tenant_mismatch};
use crate::ApiError;
use crate::extract::{self, Query, parse_id};

/// `GET /agents`
pub(super) async fn list() -> Json<Value> {
    Json(json!({ "agents": [] }))
}

#[derive(Deserialize)]
pub(super) struct TestBody {
    tenant_id: String,
    agent_id: String,
    capability_id: String,
}

/// `POST /agents/test`
pub(super) async fn test(
    headers: HeaderMap,
    query: Query,
    extract::Json(body): extract::Json<TestBody>,
) -> Result<Json<Value>, ApiError> {
    let tenant_id: TenantId = parse_id(&body.tenant_id)?;
    if scope(&headers, &query)?.is_some_and(|named| named != tenant_id) {
        return Err(tenant_mismatch());
    }
    let TestBody {
        agent_id,
        capability_id,
        ..
    } = body;
    let error = format!(
        "Test harness not available: this server links no agents, so none can be asked for {capability_id:?} of {agent_id:?}"
    );
    let answer = json!({ "success": false, "error": error, "execution_time_ms": 0 });
    Ok(Json(answer))
}

/// `GET /agents/{agent_id}/capabilities/{capability_id}`
pub(super) async fn capability() -> Response {
    let body = json!({
        "found": false,
        "success": false,
        "error": "this server links no agents",
        "code": "CAPABILITY_NOT_FOUND",
    });
    (StatusCode::NOT_FOUND, Json(body)).into_response()
}
