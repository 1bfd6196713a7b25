//! Whether the server is alive, and whether it can work.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::header::CONTENT_TYPE;
use serde_json::json;
use tokio::time::timeout;

use super::EnvironmentState;
use crate::standing;

/// How long the store may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

async fn store_answers(state: &EnvironmentState) -> bool {
    let ping = timeout(PATIENCE, state.control.store().ping()).await;
    matches!(ping, Ok(Ok(())))
}

/// `GET /api/v1/health`, as published clients read it.
pub(super) async fn health(State(state): State<EnvironmentState>) -> Response {
    let healthy = store_answers(&state).await;
    let uptime = i64::try_from(state.started.elapsed().as_millis()).unwrap_or(i64::MAX);
    let body = json!({
        "healthy": healthy,
        "version": state.version,
        "uptime_ms": uptime,
        "active_instances": state.report.active_runs(),
    });
    standing::answer(healthy, body)
}

/// `GET /health`: the process is alive and answers.
pub(super) async fn alive() -> Response {
    axum::Json(json!({ "status": "alive" })).into_response()
}

/// `GET /ready`: the store answers (its migrations are done before the port opens), so every request is served. Of each kind of image it
/// says `true`, or why those are refused: a server that launches none still keeps what there is, and answers for it.
pub(super) async fn ready(State(state): State<EnvironmentState>) -> Response {
    let ready = store_answers(&state).await;
    let runners = standing::runners(state.report.as_ref());
    let body = json!({
        "ready": ready,
        "database": ready,
        "version": state.version,
        "runners": runners,
        "active_instances": state.report.active_runs(),
    });
    standing::answer(ready, body)
}

/// `GET /metrics`: the figures of this server in the text format of OpenMetrics. Asks nobody, so that it answers whatever else is away.
pub(super) async fn metrics(State(state): State<EnvironmentState>) -> Response {
    const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, KIND)], state.report.metrics()).into_response()
}
