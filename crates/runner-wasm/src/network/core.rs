//! Carries requests to the core, in this process.

use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use runtara_domain::{TokenHash, limits};
use runtara_runner::InstanceRoutes;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

use super::TARGET_BYTES;
use super::body::{Answer, Counted, Held, Sent};
use super::exchange::BETWEEN_BYTES;
use crate::drain::Door;

/// What all open calls of a guest may have sent. One body as large as the core takes has its place among them.
const HELD_BYTES: usize = limits::BODY_BYTES + 1024 * 1024;

/// The way of a guest to the core.
#[derive(Clone)]
pub(super) struct CoreWay {
    pub(super) routes: Arc<dyn InstanceRoutes>,
    /// As whom it speaks.
    pub(super) run: TokenHash,
    pub(super) door: Arc<Door>,
}

impl CoreWay {
    /// Makes a call. The answer holds what is to be kept while it is read. A run that is to be parked is, when its call is answered.
    pub(super) async fn call<K: Send + Unpin + 'static>(
        self,
        request: Request<WasiBody>,
        options: RequestOptions,
        held: Arc<Held>,
        kept: K,
    ) -> Result<Response<WasiBody>, Error> {
        let (mut parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().cloned();
        if target
            .as_ref()
            .is_some_and(|it| it.as_str().len() > TARGET_BYTES)
        {
            return Err(Error::HttpRequestUriTooLong);
        }
        // What is behind it has no use for the address.
        parts.uri = target.map_or_else(|| http::Uri::from_static("/"), Into::into);
        let sent = Sent::new(&held, HELD_BYTES);
        let body = Counted {
            body,
            sent: Arc::clone(&sent),
        };
        let body = body.map_err(Into::into).boxed_unsync();
        let answer = self
            .routes
            .answer(self.run, Request::from_parts(parts, body));
        let answer = match options.first_byte_timeout {
            Some(patience) => timeout(patience, answer)
                .await
                .map_err(|_| Error::ConnectionReadTimeout)?,
            // However long it takes: it may be a sleep that is held.
            None => answer.await,
        };
        drop(sent);
        self.door.pass().await;
        let patience = options.between_bytes_timeout.unwrap_or(BETWEEN_BYTES);
        Ok(answer.map(|body| {
            let body = body.map_err(|error| Error::InternalError(Some(error.to_string())));
            Answer::new(body, patience, kept).boxed_unsync()
        }))
    }
}
