//! What a run wrote to its outputs.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::client::Client;
use crate::lifecycle::instance;
use crate::options::options;
use crate::transport::Call;
use crate::{Error, NotFound, OutputStream};

const OFFSET_HEADER: &str = "x-runtara-log-offset";
const RUN_HEADER: &str = "x-runtara-run";

options! {
    /// Which output is read: the whole standard output of the last run, up to now, if nothing is set.
    LogQuery {
        text {}
        plain {
            /// Standard output or standard error.
            stream: OutputStream,
            /// The run; the last one if absent.
            run: u64,
            /// From which byte on, counted from the run's beginning.
            offset: u64,
            /// Whether to go on until the run ends.
            follow: bool,
        }
    }
}

/// The output of a run as it arrives.
#[derive(Debug)]
pub struct LogStream {
    client: Client,
    action: String,
    body: Incoming,
    run: Option<u64>,
    offset: u64,
}

impl LogStream {
    /// The run that wrote it, where the server says so or it was asked for.
    #[must_use]
    pub fn run(&self) -> Option<u64> {
        self.run
    }

    /// Offset of the byte that comes next, to go on from with [`LogQuery::offset`]. At the beginning it may be larger than what
    /// was asked for: of a very long output only the newest part is kept.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, or `None` at the end. While following, it waits for as long as the program is silent.
    ///
    /// # Errors
    ///
    /// [`Error::Transport`] if the connection breaks; ask again from [`LogStream::offset`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| {
                self.client
                    .transport_error(self.action.clone(), error.into())
            })?;
            let Ok(chunk) = frame.into_data() else {
                continue;
            };
            if !chunk.is_empty() {
                self.offset += chunk.len() as u64;
                return Ok(Some(chunk));
            }
        }
    }
}

impl Client {
    /// Reads the output of a run.
    ///
    /// ```no_run
    /// # async fn example(client: runtara_management_sdk::Client) -> Result<(), runtara_management_sdk::Error> {
    /// use runtara_management_sdk::{LogQuery, OutputStream};
    ///
    /// let mut log = client.logs("order-17", &LogQuery::new().stream(OutputStream::Stderr).follow(true)).await?;
    /// while let Some(chunk) = log.chunk().await? {
    ///     print!("{}", String::from_utf8_lossy(&chunk));
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the instance is unknown, or never ran, or nothing is kept of the run.
    pub async fn logs(&self, instance_id: &str, query: &LogQuery) -> Result<LogStream, Error> {
        let path = instance(instance_id)?
            .then("/logs")
            .with("stream", query.stream.as_ref())
            .with("run", query.run)
            .with("offset", query.offset)
            .with("follow", query.follow);
        let call = Call::get(path);
        let action = call.action();
        let response: Response<Incoming> = self.open(call).await?;
        if !response.status().is_success() {
            let reading = self.read(response, action.clone());
            let after = self.inner.options.request_timeout;
            let answer = tokio::time::timeout(after, reading)
                .await
                .map_err(|_| self.timeout_error(action, after))??;
            return Err(match answer.status {
                StatusCode::NOT_FOUND => Error::not_found(NotFound::Instance, instance_id),
                _ => answer.into_refusal(),
            });
        }
        let told = |header: &str| -> Option<u64> {
            let value = response.headers().get(header)?;
            value.to_str().ok()?.trim().parse().ok()
        };
        Ok(LogStream {
            client: self.clone(),
            action,
            run: told(RUN_HEADER).or(query.run),
            offset: told(OFFSET_HEADER).or(query.offset).unwrap_or_default(),
            body: response.into_body(),
        })
    }
}
