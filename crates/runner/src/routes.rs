//! The instance protocol as its routes over HTTP, for runs of this process that speak it without a socket.

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use runtara_domain::TokenHash;

/// The body of a request or an answer, part by part.
pub type RouteBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// The routes of the instance protocol.
#[async_trait]
pub trait InstanceRoutes: Send + Sync {
    /// Answers a request of the run that this is the token of, whatever the request says of itself. Failures are answers as well; a
    /// request whose future is dropped counts as one whose client went away.
    async fn answer(&self, run: TokenHash, request: Request<RouteBody>) -> Response<RouteBody>;
}
