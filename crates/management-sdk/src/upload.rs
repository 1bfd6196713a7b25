//! Streaming upload of an image: `multipart/form-data` (RFC 7578), written while the content is read.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::Path as FilePath;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};
use tokio::sync::oneshot;

use crate::client::Client;
use crate::images::registered;
use crate::query::{Path, non_empty};
use crate::transport::BoxError;
use crate::{Error, ImageRegistration, RegisteredImage};

/// Bytes read at a time: large enough to keep the system calls few, small enough to hold thousands of uploads.
const CHUNK_BYTES: usize = 128 * 1024;

/// How far an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UploadProgress {
    /// Bytes of the content handed to the connection.
    pub sent_bytes: u64,
    /// Size of the content, where it is known.
    pub total_bytes: Option<u64>,
}

type Callback = Box<dyn FnMut(UploadProgress) + Send>;

impl Client {
    /// Registers the image in a file. The file is read twice: once for its digest, which the server checks, once to send it.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), runtara_management_sdk::Error> {
    /// use runtara_management_sdk::{Client, ImageRegistration};
    ///
    /// let client = Client::builder("http://127.0.0.1:8002").tenant("acme").build()?;
    /// let registration = ImageRegistration::new("orders");
    /// let image = client
    ///     .upload_image_file(&registration, "./orders", |progress| eprintln!("{} bytes", progress.sent_bytes))
    ///     .await?;
    /// println!("{}", image.image_id);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::File`] if it cannot be read, [`Error::Checksum`] if it changes meanwhile, [`Error::Refused`] with the server's
    /// reason.
    pub async fn upload_image_file(
        &self,
        registration: &ImageRegistration,
        path: impl AsRef<FilePath>,
        progress: impl FnMut(UploadProgress) + Send + 'static,
    ) -> Result<RegisteredImage, Error> {
        let path = path.as_ref();
        let failed = |source| Error::File {
            path: path.display().to_string(),
            source,
        };
        let (digest, size) = digest_of(path).await.map_err(failed)?;
        if let Some(wanted) = registration
            .sha256
            .as_ref()
            .filter(|wanted| !wanted.eq_ignore_ascii_case(&digest))
        {
            return Err(Error::Checksum {
                found: digest,
                wanted: wanted.clone(),
            });
        }
        let file = tokio::fs::File::open(path).await.map_err(failed)?;
        let registration = registration.clone().sha256(digest);
        self.upload_image(&registration, file, Some(size), progress)
            .await
    }

    /// Registers an image whose content comes from a reader. It is never held in memory.
    ///
    /// With a `size` the server is told the length, and content of another length is refused here; without, it is sent in
    /// chunks. The digest is checked against [`ImageRegistration::sha256`] where that is given, and is told in the answer.
    /// `progress` is called from the sending task and must not block.
    ///
    /// # Errors
    ///
    /// [`Error::Checksum`] if the content is not what was announced, [`Error::Refused`] with the server's reason,
    /// [`Error::Timeout`] if nothing moves for [`crate::ClientBuilder::upload_idle_timeout`].
    pub async fn upload_image(
        &self,
        registration: &ImageRegistration,
        content: impl AsyncRead + Send + 'static,
        size: Option<u64>,
        progress: impl FnMut(UploadProgress) + Send + 'static,
    ) -> Result<RegisteredImage, Error> {
        const ACTION: &str = "POST /api/v1/images/upload";
        let boundary = boundary();
        let head = form_head(
            &boundary,
            self.tenant_or(registration.tenant_id.as_deref())?,
            registration,
        );
        let shared = Arc::new(Shared::default());
        // The connection would send the rest of a refused upload; this ends it when the call ends, however it does.
        let (_in_call, call_ended) = oneshot::channel();
        let body = UploadBody {
            head: Some(head.into()),
            tail: Some(format!("\r\n--{boundary}--\r\n").into()),
            content: Some(Box::pin(content)),
            buffer: vec![0; CHUNK_BYTES],
            hash: Sha256::new(),
            sent: 0,
            size,
            wanted: registration.sha256.clone(),
            shared: Arc::clone(&shared),
            call_ended,
            progress: Box::new(progress),
        };
        let mut request = self.bare_request(
            &Method::POST,
            &Path::new("/api/v1/images/upload"),
            body.boxed_unsync(),
        )?;
        let content_type =
            HeaderValue::from_str(&format!("multipart/form-data; boundary={boundary}"));
        request.headers_mut().insert(
            CONTENT_TYPE,
            content_type.expect("a boundary is hexadecimal"),
        );

        let exchange = async {
            let sent = self.inner.http.request(request).await;
            // The connection only knows that its body failed; why is kept beside it.
            let response = sent.map_err(|error| match shared.take_failure() {
                Some(failure) => failure,
                None => self.transport_error(ACTION.to_owned(), error.into()),
            })?;
            self.read(response, ACTION.to_owned()).await
        };
        let answer = self.until_idle(exchange, &shared, ACTION).await?;
        registered(answer, shared.take_digest())
    }

    /// Waits for `exchange` as long as bytes move.
    async fn until_idle<T>(
        &self,
        exchange: impl Future<Output = Result<T, Error>>,
        shared: &Shared,
        action: &str,
    ) -> Result<T, Error> {
        let idle = self.inner.options.upload_idle_timeout;
        let mut exchange = std::pin::pin!(exchange);
        loop {
            let before = shared.sent.load(Ordering::Relaxed);
            match tokio::time::timeout(idle, &mut exchange).await {
                Ok(result) => return result,
                Err(_) if shared.sent.load(Ordering::Relaxed) != before => {}
                Err(_) => return Err(self.timeout_error(action.to_owned(), idle)),
            }
        }
    }
}

/// What the body tells the call that sends it.
#[derive(Default)]
struct Shared {
    sent: AtomicU64,
    outcome: std::sync::Mutex<(Option<Error>, Option<String>)>,
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, (Option<Error>, Option<String>)> {
        self.outcome
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn take_failure(&self) -> Option<Error> {
        self.lock().0.take()
    }

    fn take_digest(&self) -> Option<String> {
        self.lock().1.take()
    }
}

/// The form: its head, the content as it is read, its tail.
struct UploadBody {
    head: Option<Bytes>,
    tail: Option<Bytes>,
    content: Option<Pin<Box<dyn AsyncRead + Send>>>,
    buffer: Vec<u8>,
    hash: Sha256,
    sent: u64,
    size: Option<u64>,
    wanted: Option<String>,
    shared: Arc<Shared>,
    call_ended: oneshot::Receiver<Infallible>,
    progress: Callback,
}

impl UploadBody {
    fn chunk(&mut self, length: usize) -> Result<Bytes, Error> {
        let chunk = Bytes::copy_from_slice(&self.buffer[..length]);
        self.hash.update(&chunk);
        self.sent += length as u64;
        self.check_size(self.sent, false)?;
        self.shared.sent.store(self.sent, Ordering::Relaxed);
        (self.progress)(UploadProgress {
            sent_bytes: self.sent,
            total_bytes: self.size,
        });
        Ok(chunk)
    }

    /// Refuses content that is longer than announced at once, and shorter content at its end.
    fn check_size(&self, read: u64, at_end: bool) -> Result<(), Error> {
        match self.size {
            Some(size) if read > size || (at_end && read < size) => Err(Error::InvalidRequest {
                what: "length of the content",
                found: format!("{} {read} bytes", if at_end { "only" } else { "at least" }),
                wanted: "the size that was given",
            }),
            _ => Ok(()),
        }
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.content = None;
        self.check_size(self.sent, true)?;
        let found = hex(&std::mem::take(&mut self.hash).finalize());
        if let Some(wanted) = self
            .wanted
            .take()
            .filter(|wanted| !wanted.eq_ignore_ascii_case(&found))
        {
            return Err(Error::Checksum { found, wanted });
        }
        self.shared.lock().1 = Some(found);
        Ok(())
    }

    /// Keeps the reason and breaks the body off, so that the server sees an upload that was cut.
    fn fail(&mut self, error: Error) -> BoxError {
        self.content = None;
        self.tail = None;
        let text = error.to_string();
        self.shared.lock().0 = Some(error);
        text.into()
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(head) = this.head.take() {
            return Poll::Ready(Some(Ok(Frame::data(head))));
        }
        if let Some(content) = &mut this.content {
            if Pin::new(&mut this.call_ended).poll(context).is_ready() {
                (this.content, this.tail) = (None, None);
                return Poll::Ready(Some(Err("the upload was given up".into())));
            }
            let mut buffer = ReadBuf::new(&mut this.buffer);
            let read = ready!(content.as_mut().poll_read(context, &mut buffer));
            let length = buffer.filled().len();
            let step = match read {
                Err(source) => Err(Error::File {
                    path: "the content".to_owned(),
                    source,
                }),
                Ok(()) if length > 0 => this.chunk(length).map(Some),
                Ok(()) => this.finish().map(|()| None),
            };
            match step {
                Ok(Some(chunk)) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(this.fail(error)))),
            }
        }
        Poll::Ready(this.tail.take().map(|tail| Ok(Frame::data(tail))))
    }

    fn size_hint(&self) -> SizeHint {
        let fixed = |part: &Option<Bytes>| part.as_ref().map_or(0, |part| part.len() as u64);
        let around = fixed(&self.head) + fixed(&self.tail);
        match self.size {
            Some(size) => SizeHint::with_exact(around + size.saturating_sub(self.sent)),
            None => SizeHint::default(),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_none() && self.content.is_none() && self.tail.is_none()
    }
}

/// Everything in front of the content. The content comes last, so that a server knows what it is before it arrives.
fn form_head(boundary: &str, tenant: &str, registration: &ImageRegistration) -> String {
    let mut head = String::new();
    let mut part = |name: &str, value: &str| {
        write!(
            head,
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        )
        .expect("writing to a String never fails");
    };
    part("tenant_id", tenant);
    part("name", &registration.name);
    if let Some(description) = &registration.description {
        part("description", description);
    }
    if let Some(kind) = &registration.runner_type {
        part("runner_type", kind.as_str());
    }
    if let Some(metadata) = &registration.metadata {
        part("metadata", &metadata.to_string());
    }
    if let Some(labels) = non_empty(&registration.labels) {
        part("labels", &serde_json::json!(labels).to_string());
    }
    for (name, value) in registration.extensions() {
        match value.as_str() {
            Some(text) => part(name, text),
            None => part(name, &value.to_string()),
        }
    }
    if let Some(digest) = &registration.sha256 {
        part("sha256", &digest.to_ascii_lowercase());
    }
    head.push_str("--");
    head.push_str(boundary);
    head.push_str("\r\nContent-Disposition: form-data; name=\"binary\"; filename=\"binary\"\r\n");
    head.push_str("Content-Type: application/octet-stream\r\n\r\n");
    head
}

/// A boundary that no content can foresee. `RandomState` is seeded from the system's randomness once per thread; the rest makes
/// each one differ.
fn boundary() -> String {
    let word = || RandomState::new().build_hasher().finish();
    format!("runtara-{:016x}{:016x}", word(), word())
}

/// Digest and size of a file, read in chunks.
async fn digest_of(path: &FilePath) -> std::io::Result<(String, u64)> {
    let mut file = tokio::fs::File::open(path).await?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let (mut hash, mut size) = (Sha256::new(), 0);
    loop {
        match file.read(&mut buffer).await? {
            0 => return Ok((hex(&hash.finalize()), size)),
            length => {
                hash.update(&buffer[..length]);
                size += length as u64;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String never fails");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NetworkMode, ResourceLimits, RunnerKind};

    #[test]
    fn parts_come_in_the_order_of_the_wire() {
        let registration = ImageRegistration::new("n")
            .description("d")
            .runner_type(RunnerKind::Native)
            .metadata(serde_json::json!({"a": 1}))
            .label("k", "v")
            .base("python")
            .limits(ResourceLimits::new().memory_bytes(5).open_files(6))
            .network(NetworkMode::Host)
            .allowed_host("h")
            .read_only(true)
            .sha256("ABC");
        let head = form_head("B", "t", &registration);
        let names: Vec<_> = head
            .split("name=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        let wanted = [
            "tenant_id",
            "name",
            "description",
            "runner_type",
            "metadata",
            "labels",
            "base",
            "limits",
            "network",
            "allowed_hosts",
            "read_only",
            "sha256",
            "binary",
        ];
        // `filename="binary"` also matches, and comes last.
        assert_eq!(names[..13], wanted);
        assert!(head.contains("\r\n\r\n{\"k\":\"v\"}\r\n"), "{head}");
        assert!(head.contains("\r\n\r\nabc\r\n"), "{head}");
        for text in [
            "python",
            r#"{"memory_bytes":5,"open_files":6}"#,
            "host",
            "true",
        ] {
            let part = format!("\r\n\r\n{text}\r\n");
            assert!(head.contains(&part), "{text}: {head}");
        }
    }

    #[test]
    fn what_is_not_said_is_not_sent() {
        let head = form_head("B", "t", &ImageRegistration::new("n"));
        assert_eq!(head.matches("--B\r\n").count(), 3, "{head}");
    }

    #[test]
    fn boundaries_differ() {
        assert_ne!(boundary(), boundary());
    }
}
