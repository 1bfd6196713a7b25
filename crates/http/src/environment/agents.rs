//! Agents: this server links none.

use axum::Json;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde_json::{Value, json};

/// `GET /agents`
pub(super) async fn list() -> Json<Value> {
    Json(json!({ "agents": [] }))
}

/// `POST /agents/test`
pub(super) async fn test(
    crate::extract::Json(_request): crate::extract::Json<Value>,
) -> Json<Value> {
    Json(json!({
        "success": false,
        "error": "Test harness not available: this server links no agents",
        "execution_time_ms": 0,
    }))
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
