//! What a server does when it is asked: one request, and one line of JSON for each event.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream::unfold;
use http::{StatusCode, header};
use runtara_scheduler::{Scheduler, UpkeepEvent};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Event, Request};

/// Events that wait for whoever asked.
const WAITING: usize = 16;

/// The one route.
pub(crate) fn service(scheduler: Scheduler) -> Router {
    Router::new()
        .route("/maintain", post(maintain))
        .with_state(scheduler)
}

async fn maintain(State(scheduler): State<Scheduler>, Json(request): Json<Request>) -> Response {
    if let Err(error) = Scheduler::knows(&(&request).into()) {
        let refused = Json(json!({ "error": error.to_string() }));
        return (StatusCode::BAD_REQUEST, refused).into_response();
    }
    let (events, told) = mpsc::channel(WAITING);
    // Ends with its listener: whoever asked goes away, or the server closes its connection.
    tokio::spawn(async move {
        let done = scheduler.maintain(&(&request).into(), &events).await;
        if let Err(error) = done {
            tracing::warn!(%error, "a maintenance by hand was refused");
        }
    });
    let lines = unfold(told, async |mut told| {
        let event = told.recv().await?;
        Some((line(event), told))
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(lines)).into_response()
}

fn line(event: UpkeepEvent) -> Result<Bytes, Infallible> {
    let event = Event::from(event);
    let mut line = serde_json::to_vec(&event).unwrap_or_default();
    line.push(b'\n');
    Ok(line.into())
}
