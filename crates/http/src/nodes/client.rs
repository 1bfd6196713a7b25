//! Asks other nodes.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use runtara_domain::{InstanceId, RunNumber};
use runtara_store::NodeRecord;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::SCHEME;
use crate::environment::logs::LogRequest;

/// How long another node may take to take a connection, and then to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a node could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeUnreachable {
    /// It has not said where.
    #[error("it has no address; set RUNTARA_NODE_ADDR there")]
    NoAddress,
    /// It has no lease.
    #[error("its server does not live")]
    Dead,
    /// It cannot be connected to, or broke off.
    #[error("it cannot be reached at {address}")]
    Failed {
        address: String,
        #[source]
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("it did not answer at {address} in time")]
    Late { address: String },
    /// It answered with something else.
    #[error("it answered with {status} at {address}")]
    Strange { address: String, status: StatusCode },
}

/// Asks a node for an output of a run; `None` if it has no files of that run.
pub(crate) async fn log_of(
    node: &NodeRecord,
    id: &InstanceId,
    run: RunNumber,
    asked: &LogRequest,
) -> Result<Option<Response>, NodeUnreachable> {
    let (Some(address), Some(key)) = (&node.address, &node.key) else {
        return Err(NodeUnreachable::NoAddress);
    };
    if node.lease_in_ms <= 0 {
        return Err(NodeUnreachable::Dead);
    }
    let failed = |source| NodeUnreachable::Failed {
        address: address.clone(),
        source,
    };
    let uri = Uri::builder()
        .path_and_query(path(id, run, asked))
        .build()
        .map_err(|error| failed(io::Error::other(error)))?;
    let request = Request::get(uri)
        .header(header::HOST, address)
        .header(header::AUTHORIZATION, format!("{SCHEME}{}", key.expose()))
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(io::Error::other(error)))?;
    let response = timeout(PATIENCE, ask(address, request))
        .await
        .map_err(|_| NodeUnreachable::Late {
            address: address.clone(),
        })?
        .map_err(failed)?;
    match response.status() {
        StatusCode::OK => Ok(Some(response.map(Body::new).into_response())),
        StatusCode::NOT_FOUND => Ok(None),
        status => Err(NodeUnreachable::Strange {
            address: address.clone(),
            status,
        }),
    }
}

fn path(id: &InstanceId, run: RunNumber, asked: &LogRequest) -> String {
    let mut path = "/node/v1/instances/".to_owned();
    for byte in id.as_str().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                path.push(char::from(byte));
            }
            other => path.push_str(&format!("%{other:02X}")),
        }
    }
    path.push_str(&format!(
        "/logs?stream={}&run={run}&offset={}&follow={}",
        asked.stream.as_str(),
        asked.offset,
        asked.follow
    ));
    path
}

/// One request on a connection of its own, which ends with the body of the answer.
async fn ask(
    address: &str,
    request: Request<Empty<Bytes>>,
) -> io::Result<http::Response<Incoming>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Ends with the connection, which ends when nobody reads the answer any more.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtara_runner::shim::LogStream;

    #[test]
    fn any_id_stands_in_a_path() {
        let asked = LogRequest {
            stream: LogStream::Stderr,
            run: None,
            offset: 7,
            follow: true,
        };
        let id = InstanceId::new("a b&c=ä").unwrap();
        assert_eq!(
            path(&id, RunNumber(2), &asked),
            "/node/v1/instances/a%20b%26c%3D%C3%A4/logs?stream=stderr&run=2&offset=7&follow=true"
        );
    }
}
