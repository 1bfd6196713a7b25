//! One call over the wire: build, send, wait, repeat where that is safe, read up to the limit.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::Client;
use crate::query::Path;
use crate::{Error, NotFound};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// The header that names the tenant of a call.
pub(crate) const TENANT_HEADER: HeaderName = HeaderName::from_static("x-runtara-tenant-id");
/// Longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// One call, ready to be sent as often as need be.
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: Path,
    body: Option<Bytes>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What the server was asked to wait, on top of the request time-out.
    patience: Duration,
    repeatable: bool,
}

impl Call {
    pub(crate) fn get(path: Path) -> Self {
        Self {
            repeatable: true,
            ..Self::new(Method::GET, path)
        }
    }

    pub(crate) fn post(path: Path) -> Self {
        Self::new(Method::POST, path)
    }

    pub(crate) fn delete(path: Path) -> Self {
        Self::new(Method::DELETE, path)
    }

    fn new(method: Method, path: Path) -> Self {
        Self {
            method,
            path,
            body: None,
            headers: Vec::new(),
            patience: Duration::ZERO,
            repeatable: false,
        }
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        let bytes = serde_json::to_vec(body)
            .expect("requests are maps with text keys, which always serialize");
        self.body = Some(bytes.into());
        self.header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    pub(crate) fn repeatable(mut self, repeatable: bool) -> Self {
        self.repeatable = repeatable;
        self
    }

    /// Method and path, for messages.
    pub(crate) fn action(&self) -> String {
        format!("{} {}", self.method, self.path.without_query())
    }
}

/// An answer that was read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) action: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// Gives the answer back if its status is one of success, else the error it holds.
    pub(crate) fn ok(self) -> Result<Self, Error> {
        if self.status.is_success() {
            Ok(self)
        } else {
            Err(self.into_refusal())
        }
    }

    /// Like [`Answer::ok`], where 404 means that what was named does not exist.
    pub(crate) fn ok_or_missing(self, kind: NotFound, id: &str) -> Result<Self, Error> {
        if self.status == StatusCode::NOT_FOUND {
            return Err(Error::not_found(kind, id));
        }
        self.ok()
    }

    /// Reads the body as JSON of type `T`.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|source| {
            Error::decode(format!("the answer to {}", self.action), &self.body, source)
        })
    }

    /// The error a status of failure stands for: the server's words where it gave some.
    pub(crate) fn into_refusal(self) -> Error {
        let told: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = |key: &str| told.get(key).and_then(Value::as_str).map(str::to_owned);
        let retry_after = self
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        Error::Refused {
            status: self.status.as_u16(),
            code: text("code").unwrap_or_else(|| self.status.as_u16().to_string()),
            message: text("error")
                .unwrap_or_else(|| format!("HTTP {} error", self.status.as_u16())),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }
}

impl Client {
    /// Sends a call and reads its answer, whatever its status.
    pub(crate) async fn send(&self, call: Call) -> Result<Answer, Error> {
        let mut pause = self.inner.options.retry_pause;
        let mut left = if call.repeatable {
            self.inner.options.retries
        } else {
            0
        };
        loop {
            match self.attempt(&call).await {
                Err(Error::Transport { .. }) if left > 0 => left -= 1,
                result => return result,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Sends a read and gives its answer before the body, for streams.
    pub(crate) async fn open(&self, call: Call) -> Result<Response<Incoming>, Error> {
        let mut pause = self.inner.options.retry_pause;
        let mut left = self.inner.options.retries;
        let after = self.inner.options.request_timeout + call.patience;
        loop {
            let request = self.request(&call)?;
            match tokio::time::timeout(after, self.inner.http.request(request)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) if left == 0 => {
                    return Err(self.transport_error(call.action(), error.into()));
                }
                Ok(Err(_)) => left -= 1,
                Err(_) => return Err(self.timeout_error(call.action(), after)),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn attempt(&self, call: &Call) -> Result<Answer, Error> {
        let after = self.inner.options.request_timeout + call.patience;
        let request = self.request(call)?;
        let exchange = async {
            let sent = self.inner.http.request(request).await;
            let response =
                sent.map_err(|error| self.transport_error(call.action(), error.into()))?;
            self.read(response, call.action()).await
        };
        tokio::time::timeout(after, exchange)
            .await
            .unwrap_or_else(|_| Err(self.timeout_error(call.action(), after)))
    }

    fn request(&self, call: &Call) -> Result<Request<RequestBody>, Error> {
        let body = Full::new(call.body.clone().unwrap_or_default());
        let mut request = self.bare_request(
            &call.method,
            &call.path,
            body.map_err(|never| match never {}).boxed_unsync(),
        )?;
        request.headers_mut().extend(call.headers.iter().cloned());
        Ok(request)
    }

    /// A request with what every request carries.
    pub(crate) fn bare_request(
        &self,
        method: &Method,
        path: &Path,
        body: RequestBody,
    ) -> Result<Request<RequestBody>, Error> {
        let checked = &self.inner.checked;
        let uri = Uri::builder()
            .scheme("http")
            .authority(checked.authority.clone())
            .path_and_query(format!("{}{}", checked.prefix, path.as_str()))
            .build()
            // All parts are encoded or fixed, so length is all that is left to be wrong.
            .map_err(|_| Error::InvalidRequest {
                what: "path and query",
                found: format!("{} bytes", path.as_str().len()),
                wanted: "less than 65,535 bytes",
            })?;
        let mut request = Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        if let Some((_, tenant)) = &checked.tenant {
            request.headers_mut().insert(TENANT_HEADER, tenant.clone());
        }
        if let Some(authorization) = &checked.authorization {
            request
                .headers_mut()
                .insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }

    /// Reads an answer up to the limit.
    pub(crate) async fn read(
        &self,
        response: Response<Incoming>,
        action: String,
    ) -> Result<Answer, Error> {
        let limit = self.inner.options.max_response_bytes;
        let (parts, mut body) = response.into_parts();
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| self.transport_error(action.clone(), error.into()))?;
            let Ok(chunk) = frame.into_data() else {
                continue;
            };
            if whole.len() + chunk.len() > limit {
                return Err(Error::TooLarge { action, limit });
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(Answer {
            status: parts.status,
            action,
            headers: parts.headers,
            body: whole.freeze(),
        })
    }

    pub(crate) fn transport_error(&self, action: String, source: BoxError) -> Error {
        Error::Transport {
            server: self.server(),
            action,
            source,
        }
    }

    pub(crate) fn timeout_error(&self, action: String, after: Duration) -> Error {
        Error::Timeout {
            server: self.server(),
            action,
            after,
        }
    }
}
