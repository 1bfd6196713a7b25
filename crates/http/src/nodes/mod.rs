//! What nodes ask of one another: the outputs of runs, which lie on the disk of the node that had them.
//!
//! Each node listens at an address of its own for that, and answers those alone who show its key, which they find in the database that
//! all of them share.

mod client;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use runtara_control::Control;
use runtara_domain::{InstanceId, NodeKey};
use tower::util::BoxCloneSyncService;

use crate::ApiError;
use crate::environment::logs::{LogRequest, answer};
use crate::extract::{PathId, Query, unknown_method, unknown_route};

pub(crate) use client::{NodeUnreachable, log_of};

/// A service that can be served.
pub type NodeService = BoxCloneSyncService<Request, Response, Infallible>;

/// What stands before the key in the header `Authorization`.
const SCHEME: &str = "Bearer ";

/// What a node answers to others.
#[must_use]
pub fn service(control: Control, key: NodeKey) -> NodeService {
    let router = Router::new()
        .route("/node/v1/instances/{instance_id}/logs", get(logs))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .with_state(control)
        .layer(from_fn_with_state(Arc::new(key), only_with_key));
    BoxCloneSyncService::new(router)
}

async fn only_with_key(
    State(key): State<Arc<NodeKey>>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Response {
    let shown = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix(SCHEME))
        .and_then(NodeKey::parse);
    if shown.as_ref() == Some(key.as_ref()) {
        return next.run(request).await;
    }
    let text = "this address is for the other nodes of this database, which show its key";
    ApiError::new(StatusCode::UNAUTHORIZED, "NODE_KEY_REQUIRED", text).into_response()
}

/// `GET /node/v1/instances/{id}/logs?stream=&run=&offset=&follow=`: the output of a run whose files are here. Whoever asks has seen to it that
/// its own caller may see the instance.
async fn logs(
    State(control): State<Control>,
    PathId(id): PathId<InstanceId>,
    query: Query,
) -> Result<Response, ApiError> {
    let asked = LogRequest::read(&query)?;
    if !control.has_log(&id, asked.run).await? {
        return Err(ApiError::new(
            StatusCode::NOT_FOUND,
            "LOG_NOT_FOUND",
            "this node has no files of that run",
        ));
    }
    answer(&control, &None, &id, asked).await
}
