//! The HTTP form of every error.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use runtara_control::ControlError;
use runtara_domain::Refusal;
use runtara_runner::CallError;
use serde_json::json;

/// How long a caller should wait before it asks again when the store is away, in seconds.
pub(crate) const RETRY_AFTER: &str = "2";
/// The same where it asks for more than a limit allows that others leave again.
const RETRY_AFTER_LIMIT: &str = "5";

/// An error as it goes over the wire: `{"success": false, "error": "…", "code": "…"}`. `success` stands in every error body because
/// published clients read some refusals as ordinary answers in which it must be present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    /// An error with this status, code and text.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
        }
    }

    pub(crate) fn bad_request(code: &'static str, message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message.to_string())
    }

    /// Whether this is a failure of ours, not of the caller.
    pub(crate) fn is_ours(&self) -> bool {
        self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "INTERNAL_ERROR",
            "internal error; the server's log says what went wrong",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({ "success": false, "error": self.message, "code": self.code });
        let mut response = (self.status, axum::Json(body)).into_response();
        let retry_after = match self.status {
            StatusCode::SERVICE_UNAVAILABLE => Some(RETRY_AFTER),
            StatusCode::TOO_MANY_REQUESTS => Some(RETRY_AFTER_LIMIT),
            _ => None,
        };
        if let Some(seconds) = retry_after {
            let value = HeaderValue::from_static(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let message = error.to_string();
        match error {
            ControlError::NotFound { what, .. } => {
                let code = match what {
                    "Image" => "IMAGE_NOT_FOUND",
                    "Log" => "LOG_NOT_FOUND",
                    "Node" => "NODE_NOT_FOUND",
                    _ => "INSTANCE_NOT_FOUND",
                };
                Self::new(StatusCode::NOT_FOUND, code, message)
            }
            ControlError::Refused { code, .. } => Self::new(StatusCode::CONFLICT, code, message),
            ControlError::Invalid { code, .. } => Self::new(StatusCode::BAD_REQUEST, code, message),
            ControlError::OverLimit { code, passes, .. } => {
                let status = match passes {
                    true => StatusCode::TOO_MANY_REQUESTS,
                    false => StatusCode::PAYLOAD_TOO_LARGE,
                };
                Self::new(status, code, message)
            }
            ControlError::Unavailable { .. } => Self::unavailable(message),
            _ => Self::internal(),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let message = refusal.to_string();
        let (status, code) = match refusal {
            Refusal::InstanceUnknown => (StatusCode::NOT_FOUND, "INSTANCE_NOT_FOUND"),
            Refusal::RunSuperseded => (StatusCode::CONFLICT, "RUN_SUPERSEDED"),
            Refusal::InstanceEnded { .. } => (StatusCode::CONFLICT, "INSTANCE_ENDED"),
            Refusal::TokenRequired => (StatusCode::UNAUTHORIZED, "TOKEN_REQUIRED"),
            Refusal::TenantMismatch => (StatusCode::FORBIDDEN, "TENANT_MISMATCH"),
            Refusal::CheckpointUnknown { .. } => (StatusCode::BAD_REQUEST, "CHECKPOINT_UNKNOWN"),
            _ => (StatusCode::CONFLICT, "WRONG_STATE"),
        };
        Self::new(status, code, message)
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refusal) => refusal.into(),
            CallError::Invalid(message) => Self::bad_request("INVALID_REQUEST", message),
            CallError::Unavailable => Self::unavailable("the environment cannot be reached now"),
            _ => Self::internal(),
        }
    }
}
