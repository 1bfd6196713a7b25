//! The routes for runs of this process, without a socket.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse as _;
use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use runtara_domain::{DatabaseId, Fence, TokenHash};
use runtara_runner::{CallTracker, InstanceCalls, InstanceRoutes, RouteBody};
use runtara_store::Store;
use tower::ServiceExt as _;

use super::CoreState;
use crate::environment::{MachineCheck, ServerReport};
use crate::server::{after_panic, head};

/// The routes of the instance protocol for runs of this process.
///
/// Each request has the fence of its run, which the runner gives: there is no token in its path, and no other run's is taken there.
pub struct RoutesWithin(Router);

impl RoutesWithin {
    /// The routes over the instance protocol, which calls of which runs are open, durable state for health, and what tells its database
    /// from others.
    #[must_use]
    pub fn new(
        calls: Arc<dyn InstanceCalls>,
        tracker: CallTracker,
        store: Arc<dyn Store>,
        database_id: DatabaseId,
    ) -> Self {
        let state = CoreState::new(calls, tracker, store, database_id, Arc::new(Untold));
        Self(super::router(state))
    }
}

#[async_trait]
impl InstanceRoutes for RoutesWithin {
    async fn answer(&self, run: TokenHash, request: Request<RouteBody>) -> Response<RouteBody> {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Fence::Run(run));
        let answer = async {
            match head::check(&request) {
                Ok(()) => match self.0.clone().oneshot(request).await {
                    Ok(answer) => answer,
                    Err(never) => match never {},
                },
                Err(refused) => refused.into_response(),
            }
        };
        // Nothing of the request is used after a panic.
        let answer = AssertUnwindSafe(answer).catch_unwind().await;
        let answer = answer.unwrap_or_else(|panic| after_panic(panic.as_ref()));
        answer.map(|body| body.map_err(Into::into).boxed_unsync())
    }
}

/// What a server is doing is nothing that runs are told.
struct Untold;

impl ServerReport for Untold {
    fn active_runs(&self) -> usize {
        0
    }

    fn runners(&self) -> Vec<(String, bool, String)> {
        Vec::new()
    }

    fn machine(&self) -> Vec<MachineCheck> {
        Vec::new()
    }

    fn metrics(&self) -> String {
        String::new()
    }
}
