//! Asks the server that holds the data directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Event, NAMES, Request, SOCKET};
use crate::Error;

/// How long the server may take to take the call.
const CONNECTING: Duration = Duration::from_secs(10);
/// Longest line of an answer. Names are bounded in number and length.
const LINE_BYTES: usize = 16 << 20;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Has it done there, and passes on what the server says. Ends, and with it what the server does, when nobody listens any more.
pub(super) async fn ask(
    data_dir: &Path,
    holder: &str,
    request: &Request,
    events: &mpsc::Sender<Event>,
) -> Result<(), Error> {
    let asked = tokio::select! {
        asked = converse(data_dir, request, events) => asked,
        () = events.closed() => Ok(()),
    };
    asked.map_err(|source| Error::Maintain {
        reason: format!(
            "the data directory {} is in use by process {holder}, which cannot be asked to do it: {source}",
            data_dir.display()
        ),
    })
}

async fn converse(
    data_dir: &Path,
    request: &Request,
    events: &mpsc::Sender<Event>,
) -> Result<(), Failure> {
    let connecting = timeout(CONNECTING, connect(data_dir));
    let stream = connecting
        .await
        .map_err(|_| "it does not take the call in time")??;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let call = http::Request::post("/maintain")
        .header(http::header::HOST, "localhost")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(request)?)))?;
    let answered = async {
        let answer = sender.send_request(call).await?;
        if !answer.status().is_success() {
            let status = answer.status();
            let text = answer.into_body().collect().await?.to_bytes();
            return Err(format!("it answers {status}: {}", String::from_utf8_lossy(&text)).into());
        }
        read(answer.into_body(), request, events).await
    };
    tokio::pin!(answered);
    tokio::select! {
        answered = &mut answered => answered,
        closed = connection => match closed {
            Ok(()) => answered.await,
            Err(error) => Err(error.into()),
        },
    }
}

async fn connect(data_dir: &Path) -> Result<UnixStream, Failure> {
    // A name of any length: see where the socket is bound.
    let directory = std::fs::File::open(data_dir)?;
    let short = PathBuf::from(format!(
        "/proc/self/fd/{}/{SOCKET}",
        std::os::fd::AsRawFd::as_raw_fd(&directory)
    ));
    UnixStream::connect(short).await.map_err(|error| {
        format!(
            "it does not listen on {SOCKET} there ({error}); it may just be starting, or leaving"
        )
        .into()
    })
}

async fn read(
    mut body: Incoming,
    request: &Request,
    events: &mpsc::Sender<Event>,
) -> Result<(), Failure> {
    let wanted = match request.only.len() {
        0 => NAMES.len(),
        _ => NAMES
            .iter()
            .filter(|name| request.only.iter().any(|only| only == *name))
            .count(),
    };
    let (mut rest, mut done) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let event: Event = serde_json::from_slice(&line)?;
            done += usize::from(matches!(event, Event::Done(_)));
            if events.send(event).await.is_err() {
                return Ok(());
            }
        }
        if rest.len() > LINE_BYTES {
            return Err("its answer has a line without an end".into());
        }
    }
    if done < wanted {
        return Err("its answer ended before all was done; it may have left".into());
    }
    Ok(())
}
