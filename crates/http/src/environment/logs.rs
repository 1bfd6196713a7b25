//! What runs wrote.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use runtara_control::{Control, Log, LogPlace, Scope};
use runtara_domain::{InstanceId, RunNumber};
use runtara_runner::describe;
use runtara_runner::shim::LogStream;
use runtara_store::NodeRecord;

use super::{EnvironmentState, scope};
use crate::ApiError;
use crate::extract::{PathId, Query};
use crate::nodes;

/// Which part of which output is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogRequest {
    pub(crate) stream: LogStream,
    /// The latest if there is none.
    pub(crate) run: Option<RunNumber>,
    pub(crate) offset: u64,
    pub(crate) follow: bool,
}

impl LogRequest {
    pub(crate) fn read(query: &Query) -> Result<Self, ApiError> {
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
        Ok(Self {
            stream,
            run: query.parsed("run")?.map(RunNumber),
            offset: query.parsed("offset")?.unwrap_or(0),
            follow: query.parsed("follow")?.unwrap_or(false),
        })
    }
}

/// `GET /instances/{id}/logs?stream=stdout|stderr&run=&offset=&follow=`
///
/// Answers with text; the header `X-Runtara-Log-Offset` says where in the output its first byte stands, and `X-Runtara-Run` of which
/// run it is. What lies on another node is fetched from there.
pub(super) async fn get(
    State(state): State<EnvironmentState>,
    PathId(id): PathId<InstanceId>,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let asked = LogRequest::read(&query)?;
    let scope = scope(&headers, &query)?;
    match state.control.place_of_log(&scope, &id, asked.run).await? {
        LogPlace::Here => {}
        LogPlace::Elsewhere {
            run_number,
            nodes,
            is_over,
        } => {
            let found = fetch(&nodes, &id, run_number, &asked, is_over).await?;
            if let Some(response) = found {
                return Ok(response);
            }
        }
    }
    answer(&state.control, &scope, &id, asked).await
}

/// Answers with what is here.
pub(crate) async fn answer(
    control: &Control,
    scope: &Scope,
    id: &InstanceId,
    asked: LogRequest,
) -> Result<Response, ApiError> {
    let log = control
        .log(
            scope,
            id,
            asked.stream,
            asked.run,
            asked.offset,
            asked.follow,
        )
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

/// Asks all of these nodes, and takes the answer of the one that has the files. `None` if none has any, and the run need not have left some.
async fn fetch(
    nodes: &[NodeRecord],
    id: &InstanceId,
    run: RunNumber,
    asked: &LogRequest,
    is_over: bool,
) -> Result<Option<Response>, ApiError> {
    let asking = nodes.iter().map(|node| nodes::log_of(node, id, run, asked));
    let mut unreachable = Vec::new();
    for (node, answer) in nodes.iter().zip(join_all(asking).await) {
        match answer {
            Ok(Some(response)) => return Ok(Some(response)),
            Ok(None) => {}
            // One that has died long ago has taken its files along; what it had is not to be had.
            Err(nodes::NodeUnreachable::Dead) if is_over => {}
            Err(error) => unreachable.push(format!("'{}': {}", node.name, describe(&error))),
        }
    }
    if unreachable.is_empty() {
        return Ok(None);
    }
    let error = format!(
        "the output of run {run} of '{id}' lies on another node, and not every node could be asked: {}",
        unreachable.join("; ")
    );
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "NODE_UNREACHABLE",
        error,
    ))
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
