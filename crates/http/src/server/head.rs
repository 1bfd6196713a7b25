//! Bounds on the head of a request.
//!
//! They lie below those of the HTTP library, which answers what is beyond its own without a word. What is so large that even the
//! library refuses it is no honest request.

use axum::extract::Request;
use http::StatusCode;

use crate::ApiError;

/// Longest target of a request: path and query.
const TARGET_BYTES: usize = 32 * 1024;
/// Most headers. The library reads up to 100 without asking for memory.
const HEADERS: usize = 64;
/// Largest total of names and values of headers.
const HEADER_BYTES: usize = 64 * 1024;

/// Checks the size of what came.
///
/// # Errors
/// 414 `URI_TOO_LONG`, 431 `HEADERS_TOO_LARGE`.
pub(crate) fn check(request: &Request) -> Result<(), ApiError> {
    let target = request.uri();
    let bytes = target.path().len() + target.query().map_or(0, |query| query.len() + 1);
    if bytes > TARGET_BYTES {
        return Err(ApiError::new(
            StatusCode::URI_TOO_LONG,
            "URI_TOO_LONG",
            format!("the path and query have {bytes} bytes; at most {TARGET_BYTES} are allowed"),
        ));
    }
    let headers = request.headers();
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if headers.len() > HEADERS || bytes > HEADER_BYTES {
        return Err(ApiError::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "HEADERS_TOO_LARGE",
            format!(
                "there are {} headers of {bytes} bytes; at most {HEADERS} of {HEADER_BYTES} are allowed",
                headers.len()
            ),
        ));
    }
    Ok(())
}
