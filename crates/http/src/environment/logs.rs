//! What runs wrote.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, header};
use runtara_control::Log;
use runtara_domain::{InstanceId, RunNumber};
use runtara_runner::shim::LogStream;

use super::{EnvironmentState, scope};
use crate::ApiError;
use crate::extract::{PathId, Query};

/// `GET /instances/{id}/logs?stream=stdout|stderr&run=&offset=&follow=`
///
/// Answers with text; the header `X-Runtara-Log-Offset` says where in the output its first byte stands, and `X-Runtara-Run` of which
/// run it is.
pub(super) async fn get(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let stream = match query.text("stream") {
        None | Some("stdout") => LogStream::Stdout,
        Some("stderr") => LogStream::Stderr,
        Some(other) => {
            return Err(ApiError::bad_request(
                "INVALID_QUERY",
                format!("stream={other:?}; stdout or stderr is wanted"),
            ));
        }
    };
    let run = query.parsed("run")?.map(RunNumber);
    let offset = query.parsed("offset")?.unwrap_or(0);
    let follow = query.parsed("follow")?.unwrap_or(false);
    let scope = scope(&headers, &query)?;
    let log = state
        .control
        .log(&scope, &id, stream, run, offset, follow)
        .await?;
    let first = HeaderValue::from(log.offset());
    let run = HeaderValue::from(log.run_number().0);
    let pieces = futures_util::stream::unfold(Some(log), next_piece);
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert("x-runtara-log-offset", first);
    headers.insert("x-runtara-run", run);
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, text);
    let plain = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, plain);
    Ok(response)
}

type Piece = Result<bytes::Bytes, std::io::Error>;

/// An error in the middle breaks the body off, so that the reader asks again from where it is.
async fn next_piece(log: Option<Log>) -> Option<(Piece, Option<Log>)> {
    let mut log = log?;
    match log.next().await {
        Ok(Some(piece)) => Some((Ok(piece), Some(log))),
        Ok(None) => None,
        Err(error) => Some((Err(std::io::Error::other(error)), None)),
    }
}
