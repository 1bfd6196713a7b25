//! The instance protocol over HTTP.
//!
//! A launched instance reaches its routes under `/r/<token>`, which the environment has put into its `RUNTARA_HTTP_URL`; the token
//! says who calls. Instances that registered themselves call without one, and only from this machine.

mod routes;
mod session;
mod tenants;
mod wire;
mod within;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::uri::PathAndQuery;
use http::{StatusCode, Uri};
use runtara_domain::{DatabaseId, Fence, RunToken};
use runtara_runner::{CallTracker, InstanceCalls};
use runtara_store::Store;
use tower::util::BoxCloneSyncService;
use tower::{ServiceExt as _, service_fn};

use self::tenants::Tenants;
use crate::environment::ServerReport;
use crate::extract::{unknown_method, unknown_route};
use crate::server::Peer;
use crate::{ApiError, HostPolicy};

pub use self::within::RoutesWithin;

/// What the routes work with.
#[derive(Clone)]
pub struct CoreState(Arc<Shared>);

/// What all requests share.
struct Shared {
    calls: Arc<dyn InstanceCalls>,
    tracker: CallTracker,
    store: Arc<dyn Store>,
    database_id: DatabaseId,
    report: Arc<dyn ServerReport>,
    tenants: Tenants,
}

impl CoreState {
    /// The instance protocol, which calls of which runs are open, durable state for health, what tells its database from others, and
    /// what the server is doing.
    #[must_use]
    pub fn new(
        calls: Arc<dyn InstanceCalls>,
        tracker: CallTracker,
        store: Arc<dyn Store>,
        database_id: DatabaseId,
        report: Arc<dyn ServerReport>,
    ) -> Self {
        Self(Arc::new(Shared {
            calls,
            tracker,
            store,
            database_id,
            report,
            tenants: Tenants::default(),
        }))
    }
}

/// A service that can be served.
pub type CoreService = BoxCloneSyncService<Request, Response, Infallible>;

/// Who may call without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokenless {
    /// Processes of this machine.
    Local,
    /// Nobody: what listens here is for launched runs alone.
    Nobody,
}

/// The routes of the instance protocol.
#[must_use]
pub fn service(state: CoreState, tokenless: Tokenless, hosts: HostPolicy) -> CoreService {
    let router = router(state);
    let service = service_fn(move |mut request: Request| {
        let router = router.clone();
        let admitted = admit(&mut request, tokenless, &hosts);
        async move {
            match admitted {
                Ok(()) => router.oneshot(request).await,
                Err(error) => Ok(error.into_response()),
            }
        }
    });
    BoxCloneSyncService::new(service)
}

/// The routes, for requests that are admitted: each has the fence of its caller.
fn router(state: CoreState) -> Router {
    // One level: each nested one would box and match every request once more.
    let of_instance = |path| format!("/api/v1/instances/{{instance_id}}/{path}");
    Router::new()
        .route("/health", get(routes::health))
        .route("/ready", get(routes::ready))
        .route(&of_instance("register"), post(routes::register))
        .route(&of_instance("checkpoint"), post(routes::checkpoint))
        .route(&of_instance("signals"), get(routes::poll_signal))
        .route(
            &of_instance("signals/ack"),
            post(routes::acknowledge).get(routes::take_signal_ack),
        )
        .route(
            &of_instance("signals/wait"),
            post(routes::wait_signal).get(routes::take_signal_wait),
        )
        .route(
            &of_instance("signals/{signal_id}"),
            get(routes::take_signal),
        )
        .route(&of_instance("events"), post(routes::event))
        .route(&of_instance("completed"), post(routes::completed))
        .route(&of_instance("failed"), post(routes::failed))
        .route(&of_instance("suspended"), post(routes::suspended))
        .route(&of_instance("retry"), post(routes::retry))
        .route(&of_instance("status"), get(routes::status))
        .route(&of_instance("input"), get(routes::input))
        .route(&of_instance("sleep"), post(routes::sleep))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .with_state(state)
}

/// Takes the token out of the path, and turns away who may not call.
fn admit(request: &mut Request, tokenless: Tokenless, hosts: &HostPolicy) -> Result<(), ApiError> {
    if let Some((token, rest)) = split_token(request.uri().path()) {
        let token = RunToken::parse(token).ok_or_else(|| {
            ApiError::new(
                StatusCode::UNAUTHORIZED,
                "INVALID_TOKEN",
                "the path does not hold a run's token after /r/",
            )
        })?;
        let fence = Fence::Run(token.hash());
        let rest = rest.to_owned();
        set_path(request, &rest)?;
        request.extensions_mut().insert(fence);
        return Ok(());
    }
    hosts.check(request)?;
    let is_local = request
        .extensions()
        .get::<Peer>()
        .is_some_and(Peer::is_local);
    let path = request.uri().path();
    let asks_health = matches!(path, "/health" | "/ready") && tokenless == Tokenless::Local;
    if !asks_health && (tokenless == Tokenless::Nobody || !is_local) {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "TOKEN_REQUIRED",
            "only launched runs may call here, with the URL that they were given",
        ));
    }
    request.extensions_mut().insert(Fence::SelfRegistered);
    Ok(())
}

fn split_token(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/r/")?;
    let end = rest.find('/').unwrap_or(rest.len());
    Some(rest.split_at(end))
}

/// Replaces the path of a request, so that nothing behind this sees the token.
fn set_path(request: &mut Request, path: &str) -> Result<(), ApiError> {
    let path = if path.is_empty() { "/" } else { path };
    let whole = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let bad = || ApiError::bad_request("INVALID_PATH", "the path behind the token cannot be read");
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(whole).map_err(|_| bad())?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| bad())?;
    Ok(())
}
