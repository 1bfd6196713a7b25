//! The nodes that share a database.

use std::time::Duration;

use axum::extract::{Path, State};
use runtara_control::Drain;
use runtara_store::NodeRecord;
use serde::{Deserialize, Serialize};

use super::EnvironmentState;
use crate::ApiError;
use crate::extract::Json;

/// How long what runs on a drained node may go on if nothing is said.
const HAND_OVER_AFTER_SECONDS: u64 = 60;

#[derive(Serialize)]
pub(super) struct NodeBody {
    node_id: String,
    name: String,
    /// `alive`, `draining`, `dead` or `removed`.
    state: &'static str,
    address: Option<String>,
    capacity: u64,
    used: u64,
    live_runs: u64,
    registered_at_ms: i64,
    /// Negative if it is over.
    lease_in_ms: i64,
    hand_over_in_ms: Option<u64>,
    is_this: bool,
}

impl NodeBody {
    fn of(node: NodeRecord, this: runtara_domain::NodeId) -> Self {
        let state = match &node {
            NodeRecord { removed: true, .. } => "removed",
            node if node.lease_in_ms <= 0 => "dead",
            node if node.drain_in_ms.is_some() => "draining",
            _ => "alive",
        };
        Self {
            is_this: node.node == this,
            node_id: node.node.to_string(),
            name: node.name,
            state,
            address: node.address,
            capacity: node.capacity,
            used: node.used,
            live_runs: node.live_runs,
            registered_at_ms: node.registered_at.0,
            lease_in_ms: node.lease_in_ms,
            hand_over_in_ms: node.drain_in_ms,
        }
    }
}

#[derive(Serialize)]
pub(super) struct NodesBody {
    nodes: Vec<NodeBody>,
}

/// `GET /nodes`
pub(super) async fn list(
    State(state): State<EnvironmentState>,
) -> Result<axum::Json<NodesBody>, ApiError> {
    let this = state.control.config().node;
    let nodes = state.control.nodes().await?;
    let nodes = nodes.into_iter().map(|node| NodeBody::of(node, this));
    Ok(axum::Json(NodesBody {
        nodes: nodes.collect(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrainBody {
    /// False to have it go on as usual.
    #[serde(default = "yes")]
    drain: bool,
    hand_over_after_seconds: Option<u64>,
}

fn yes() -> bool {
    true
}

/// `POST /nodes/{id or name}/drain`
pub(super) async fn drain(
    State(state): State<EnvironmentState>,
    Path(node): Path<String>,
    Json(body): Json<DrainBody>,
) -> Result<axum::Json<NodeBody>, ApiError> {
    let after = body
        .hand_over_after_seconds
        .unwrap_or(HAND_OVER_AFTER_SECONDS);
    let drain = match body.drain {
        true => Drain::HandOverAfter(Duration::from_secs(after)),
        false => Drain::Off,
    };
    let node = state.control.drain_node(&node, drain).await?;
    let this = state.control.config().node;
    Ok(axum::Json(NodeBody::of(node, this)))
}

#[derive(Serialize)]
pub(super) struct RemovedBody {
    success: bool,
    /// How many runs were recorded as live on it: their instances run again elsewhere.
    live_runs: u64,
}

/// `DELETE /nodes/{id or name}`
pub(super) async fn remove(
    State(state): State<EnvironmentState>,
    Path(node): Path<String>,
) -> Result<axum::Json<RemovedBody>, ApiError> {
    let live_runs = state.control.remove_node(&node).await?;
    Ok(axum::Json(RemovedBody {
        success: true,
        live_runs,
    }))
}
