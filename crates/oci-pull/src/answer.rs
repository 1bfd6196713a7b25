//! Answers: read up to a bound and within a deadline, and their errors.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::RETRY_AFTER;
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use crate::PullError;
use crate::client::{failed, host};
use crate::error::Shown;
use crate::options::{PullOptions, check_amount};

/// Most that is read of an answer that tells of an error, in bytes.
const ERROR_BYTES: u64 = 16 * 1024;

/// Errors as registries tell them (OCI distribution specification, "Error Codes").
#[derive(Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OneError {
    code: Option<String>,
    message: Option<String>,
}

/// Reads the whole body, at most `most` bytes, within the deadline of a document.
pub(crate) async fn document(
    mut response: Response,
    what: &str,
    most: u64,
    options: &PullOptions,
) -> Result<Vec<u8>, PullError> {
    let url = response.url().clone();
    check_amount(what, response.content_length().unwrap_or(0), most)?;
    let read = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = chunk(&mut response, &url, what, options).await? {
            check_amount(what, (bytes.len() + chunk.len()) as u64, most)?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    let deadline = options.deadlines.document;
    match tokio::time::timeout(deadline, read).await {
        Ok(result) => result,
        Err(_) => Err(stalled(&url, what, deadline)),
    }
}

/// Reads the next bytes of a body, of which `None` is the end.
pub(crate) async fn chunk(
    response: &mut Response,
    url: &Url,
    what: &str,
    options: &PullOptions,
) -> Result<Option<Bytes>, PullError> {
    let idle = options.deadlines.idle;
    match tokio::time::timeout(idle, response.chunk()).await {
        Ok(read) => read.map_err(|error| failed(url, error)),
        Err(_) => Err(stalled(url, what, idle)),
    }
}

pub(crate) fn stalled(url: &Url, what: &str, after: Duration) -> PullError {
    PullError::Stalled {
        host: host(url),
        what: what.to_owned(),
        after,
    }
}

/// Makes an error of an answer that is none of those that are wanted. What 401, 403 and 404 mean, the caller knows better.
pub(crate) async fn refusal(response: Response, what: &str, options: &PullOptions) -> PullError {
    let (status, host) = (response.status(), host(response.url()));
    let after = retry_after(&response);
    let message = message(response, options).await;
    if status == StatusCode::TOO_MANY_REQUESTS {
        return PullError::Busy {
            host,
            after,
            message,
        };
    }
    PullError::Answer {
        host,
        what: what.to_owned(),
        status: status.as_u16(),
        message,
    }
}

/// What the registry says of an error, in one line; nothing if it says nothing that can be understood.
pub(crate) async fn message(response: Response, options: &PullOptions) -> String {
    let Ok(body) = document(response, "an error", ERROR_BYTES, options).await else {
        return String::new();
    };
    let Ok(Errors { errors }) = serde_json::from_slice(&body) else {
        return String::new();
    };
    let first = errors.into_iter().next().unwrap_or_default();
    let words = [first.code, first.message];
    let words: Vec<String> = words
        .into_iter()
        .flatten()
        .map(|text| Shown(&text).to_string())
        .collect();
    words.join(": ")
}

/// How long a registry asks to wait. Its other form, a date, is not sent by registries.
fn retry_after(response: &Response) -> Option<Duration> {
    let value = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}
