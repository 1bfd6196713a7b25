//! How the answers say whether a server can work.

use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, header};
use serde_json::{Map, Value};

use crate::environment::ServerReport;
use crate::error::RETRY_AFTER;

/// 200 if all is well, otherwise 503 with the time after which to ask again.
pub(crate) fn answer(good: bool, body: Value) -> Response {
    if good {
        return axum::Json(body).into_response();
    }
    let retry = [(header::RETRY_AFTER, RETRY_AFTER)];
    (StatusCode::SERVICE_UNAVAILABLE, retry, axum::Json(body)).into_response()
}

/// Of each kind of image `true`, or why those are refused.
pub(crate) fn runners(report: &dyn ServerReport) -> Map<String, Value> {
    let stands = |(kind, ready, detail): (String, bool, String)| {
        let stands = if ready { true.into() } else { detail.into() };
        (kind, stands)
    };
    report.runners().into_iter().map(stands).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whoever_is_told_no_is_told_when_to_ask_again() {
        let no = answer(false, json!({ "ready": false }));
        assert_eq!(no.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(no.headers().contains_key(header::RETRY_AFTER));
        assert_eq!(answer(true, json!({})).status(), StatusCode::OK);
    }
}
