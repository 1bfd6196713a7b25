//! Signals.

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use http::HeaderMap;
use runtara_domain::{InstanceId, SignalId, SignalKind};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{EnvironmentState, scope};
use crate::ApiError;
use crate::extract::{self, PathId, Query};

#[derive(Deserialize)]
pub(super) struct SignalBody {
    signal_type: String,
    payload: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct CustomSignalBody {
    #[serde(alias = "signal_id")]
    checkpoint_id: String,
    payload: Option<String>,
}

fn payload(text: Option<String>) -> Option<Bytes> {
    text.filter(|text| !text.is_empty())
        .map(|text| Bytes::from(text.into_bytes()))
}

/// `POST /instances/{id}/signals`
pub(super) async fn send(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
    extract::Json(body): extract::Json<SignalBody>,
) -> Result<Json<Value>, ApiError> {
    let kind: SignalKind = body
        .signal_type
        .parse()
        .map_err(|error| ApiError::bad_request("INVALID_SIGNAL_TYPE", error))?;
    let scope = scope(&headers, &query)?;
    state
        .control
        .signal(&scope, &id, kind, payload(body.payload))
        .await?;
    Ok(Json(json!({ "success": true })))
}

/// `POST /instances/{id}/signals/custom`
pub(super) async fn send_custom(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
    extract::Json(body): extract::Json<CustomSignalBody>,
) -> Result<Json<Value>, ApiError> {
    let signal_id = SignalId::new(&body.checkpoint_id)
        .map_err(|error| ApiError::bad_request("INVALID_REQUEST", error))?;
    let scope = scope(&headers, &query)?;
    state
        .control
        .custom_signal(&scope, &id, &signal_id, payload(body.payload))
        .await?;
    Ok(Json(json!({ "success": true })))
}
