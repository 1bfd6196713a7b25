//! Reads requests, and answers in JSON what cannot be read.

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::request::Parts;
use http::{StatusCode, header};
use runtara_domain::limits;
use serde::de::DeserializeOwned;
use tokio::task::spawn_blocking;

use crate::ApiError;
use crate::body::BodyReader;

/// From this size on a body is parsed on a thread of its own: shorter ones take less than the change of the thread.
const LARGE_BYTES: usize = 256 * 1024;

/// A JSON body of at most [`limits::BODY_BYTES`].
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned + Send + 'static, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let is_json = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .map(str::trim)
            .is_some_and(|kind| kind.eq_ignore_ascii_case("application/json"));
        if !is_json {
            return Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UNSUPPORTED_MEDIA_TYPE",
                "the body must be JSON; send it with the header `Content-Type: application/json`",
            ));
        }
        let body = BodyReader::new(request.into_body());
        let body = body.whole(limits::BODY_BYTES).await?;
        if body.len() < LARGE_BYTES {
            return parse_json(&body).map(Self);
        }
        let parsed = spawn_blocking(move || parse_json(&body)).await;
        parsed.map_err(|_| ApiError::internal())?.map(Self)
    }
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "INVALID_BODY",
            format!("the body does not have the form that is wanted: {error}"),
        ),
        _ => ApiError::bad_request("INVALID_JSON", format!("the body is not JSON: {error}")),
    })
}

/// The pairs of a query, in their order, decoded once.
pub(crate) struct Query(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|pairs| Self(pairs.0))
            .map_err(|error| ApiError::bad_request("INVALID_QUERY", error))
    }
}

impl Query {
    /// The value of a key; an empty one counts as missing.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, value)| name == key && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// All values of a key.
    pub(crate) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The value of a key, parsed.
    ///
    /// # Errors
    /// 400 `INVALID_QUERY` naming the key, what was found and why it cannot be taken.
    pub(crate) fn parsed<T>(&self, key: &str) -> Result<Option<T>, ApiError>
    where
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        self.text(key)
            .map(|value| {
                value.parse().map_err(|error| {
                    ApiError::bad_request("INVALID_QUERY", format!("{key}={value:?}: {error}"))
                })
            })
            .transpose()
    }
}

/// The one parameter of a path, decoded once and checked.
pub(crate) struct PathId<T>(pub(crate) T);

impl<T, S> FromRequestParts<S> for PathId<T>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad_request("INVALID_PATH", error))?;
        parse_id(&text).map(Self)
    }
}

/// The two parameters of a path, decoded once and checked.
pub(crate) struct PathIds<T, U>(pub(crate) T, pub(crate) U);

impl<T, U, S> FromRequestParts<S> for PathIds<T, U>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
    U: std::str::FromStr<Err: std::fmt::Display>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((first, second)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad_request("INVALID_PATH", error))?;
        Ok(Self(parse_id(&first)?, parse_id(&second)?))
    }
}

/// Checks an id that came from outside.
pub(crate) fn parse_id<T>(text: &str) -> Result<T, ApiError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse()
        .map_err(|error: T::Err| ApiError::bad_request("INVALID_ID", error))
}

/// Decodes standard base64 with padding (RFC 4648, section 4).
pub(crate) fn decode(text: &str, code: &'static str, what: &str) -> Result<Bytes, ApiError> {
    STANDARD
        .decode(text)
        .map(Bytes::from)
        .map_err(|error| ApiError::bad_request(code, format!("{what} is not base64: {error}")))
}

/// Encodes to standard base64 with padding (RFC 4648, section 4).
pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

/// The fallback for paths that no route knows.
pub(crate) async fn unknown_route(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "UNKNOWN_ROUTE",
        format!("there is no {} {}", request.method(), request.uri().path()),
    )
}

/// The fallback for methods that a known path does not have.
pub(crate) async fn unknown_method(request: Request) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "METHOD_NOT_ALLOWED",
        format!(
            "{} does not take {}",
            request.uri().path(),
            request.method()
        ),
    )
}
