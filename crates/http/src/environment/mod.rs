//! The environment protocol over HTTP: what people and the management client ask.

mod agents;
mod events;
mod feed;
mod health;
mod images;
mod instances;
pub(crate) mod logs;
mod machine;
mod metrics;
mod nodes;
mod page;
mod settings;
mod signals;
mod upload;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post};
use http::{HeaderMap, StatusCode};
use runtara_control::{Control, Scope};
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt as _, service_fn};

use crate::extract::{Query, parse_id, unknown_method, unknown_route};
use crate::{ApiError, HostPolicy};

pub use machine::{CheckResult, MachineCheck};

/// Says what this server is doing, for health and readiness.
pub trait ServerReport: Send + Sync {
    /// How many runs are live here.
    fn active_runs(&self) -> usize;

    /// What each runner says of itself: its kind, whether it is ready, and what it uses or lacks.
    fn runners(&self) -> Vec<(String, bool, String)>;

    /// What was found out about this machine when the server started.
    fn machine(&self) -> Vec<MachineCheck>;

    /// The figures of this server in the text format of OpenMetrics, from what is kept in memory.
    fn metrics(&self) -> String;
}

/// What the routes work with.
#[derive(Clone)]
pub struct EnvironmentState {
    /// The operations.
    pub control: Control,
    /// What the server is doing.
    pub report: Arc<dyn ServerReport>,
    /// When it started.
    pub started: Instant,
    /// Its version.
    pub version: &'static str,
}

/// A service that can be served.
pub type EnvironmentService = BoxCloneSyncService<Request, Response, Infallible>;

/// The routes of the environment protocol.
#[must_use]
pub fn service(state: EnvironmentState, hosts: HostPolicy) -> EnvironmentService {
    let instance = Router::new()
        .route("/", get(instances::get).delete(instances::purge))
        .route("/stop", post(instances::stop))
        .route("/resume", post(instances::resume))
        .route("/signals", post(signals::send))
        .route("/signals/custom", post(signals::send_custom))
        .route("/checkpoints", get(events::checkpoints))
        .route("/checkpoints/{checkpoint_id}", get(events::checkpoint))
        .route("/events", get(events::list))
        .route("/steps", get(events::steps))
        .route("/scopes/{scope_id}/ancestors", get(events::ancestors))
        .route("/logs", get(logs::get));
    let api = Router::new()
        .route("/health", get(health::health))
        .route("/machine", get(machine::machine))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{node}", delete(nodes::remove))
        .route("/nodes/{node}/drain", post(nodes::drain))
        .route("/images", get(images::list).post(images::register))
        .route("/images/upload", post(upload::register))
        .route(
            "/images/{image_id}",
            get(images::get).delete(images::delete),
        )
        .route("/instances", get(instances::list).post(instances::start))
        .nest("/instances/{instance_id}", instance)
        .route("/tenants/{tenant_id}/metrics", get(metrics::tenant))
        .route("/agents", get(agents::list))
        .route("/agents/test", post(agents::test))
        .route(
            "/agents/{agent_id}/capabilities/{capability_id}",
            get(agents::capability),
        );
    let router = Router::new()
        .route("/health", get(health::alive))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .nest("/api/v1", api)
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .with_state(state);
    let service = service_fn(move |request: Request| {
        let router = router.clone();
        let checked = hosts.check(&request);
        async move {
            match checked {
                Ok(()) => router.oneshot(request).await,
                Err(error) => Ok(error.into_response()),
            }
        }
    });
    BoxCloneSyncService::new(service)
}

/// The tenant that a caller names in the header or the query; both must agree.
fn scope(headers: &HeaderMap, query: &Query) -> Result<Scope, ApiError> {
    let header = headers
        .get("x-runtara-tenant-id")
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .filter(|tenant| !tenant.is_empty());
    let named = query.text("tenant_id");
    match (header, named) {
        (Some(header), Some(named)) if header != named => Err(tenant_mismatch()),
        (Some(tenant), _) => parse_id(&tenant).map(Some),
        (None, Some(tenant)) => parse_id(tenant).map(Some),
        (None, None) => Ok(None),
    }
}

fn tenant_mismatch() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "TENANT_MISMATCH",
        "the request names two different tenants",
    )
}
