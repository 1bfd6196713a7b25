//! One call over the wire: sent, repeated until it gets through, its answer read up to a limit.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

use crate::error::chain;
use crate::{Error, Settings};

const TENANT_HEADER: HeaderName = HeaderName::from_static("x-runtara-tenant-id");
const INSTANCE_HEADER: HeaderName = HeaderName::from_static("x-runtara-instance-id");
/// Largest answer that is read: the largest state that the server takes, in base64, and what is around it.
const ANSWER_BYTES: usize = 65 * 1024 * 1024;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause that a server may ask for.
const LONGEST_ASKED_PAUSE: Duration = Duration::from_secs(60);

/// One call, ready to be sent as often as need be.
pub(crate) struct Call {
    method: Method,
    path: String,
    body: Bytes,
    /// The server answers late on purpose: a time-out is no trouble.
    held: bool,
}

impl Call {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            body: Bytes::new(),
            held: false,
        }
    }

    pub(crate) fn post(path: impl Into<String>, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body)
            .expect("requests are structs of texts and numbers, which always serialize");
        Self {
            method: Method::POST,
            body: body.into(),
            ..Self::get(path)
        }
    }

    pub(crate) fn held(mut self) -> Self {
        self.held = true;
        self
    }

    fn action(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// The connections to the server.
pub(crate) struct Transport {
    pub(crate) settings: Settings,
    http: Client<HttpConnector, Full<Bytes>>,
    tenant: HeaderValue,
    instance: HeaderValue,
}

/// What became of one attempt.
enum Attempt {
    Done(Bytes),
    Refused(Error),
    /// It may get through later, not before the pause that the server asked for.
    Again {
        why: String,
        pause: Duration,
    },
    /// It was held to the end of the time-out.
    HeldOn,
}

impl Transport {
    pub(crate) fn new(settings: Settings) -> Result<Self, Error> {
        let header = |variable, value: &str| {
            HeaderValue::from_str(value).map_err(|_| Error::Settings {
                variable,
                found: format!("{value:?}"),
                wanted: "an id without control characters",
            })
        };
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_keepalive(Some(Duration::from_secs(60)));
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        let http = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self {
            tenant: header("RUNTARA_TENANT_ID", &settings.tenant_id)?,
            instance: header("RUNTARA_INSTANCE_ID", &settings.instance_id)?,
            settings,
            http,
        })
    }

    /// Sends a call until it is answered, for as long as the settings say, and reads the answer as JSON. `None` if the server
    /// held it to the end of the time-out.
    pub(crate) async fn call<A: DeserializeOwned>(&self, call: &Call) -> Result<Option<A>, Error> {
        let Some(body) = self.send(call).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&body)
            .map(Some)
            .map_err(|error| Error::Answer {
                action: call.action(),
                problem: error.to_string(),
            })
    }

    async fn send(&self, call: &Call) -> Result<Option<Bytes>, Error> {
        let deadline = self.settings.retry_deadline;
        let mut trouble_since = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let begun = Instant::now();
            let (why, asked) = match self.attempt(call).await {
                Attempt::Done(body) => return Ok(Some(body)),
                Attempt::Refused(error) => return Err(error),
                Attempt::Again { why, pause } => (why, pause),
                Attempt::HeldOn => return Ok(None),
            };
            if call.held && begun.elapsed() > 2 * LONGEST_PAUSE {
                // It was held for most of that time: this trouble is a new one.
                trouble_since = None;
                pause = FIRST_PAUSE;
            }
            let since = *trouble_since.get_or_insert_with(Instant::now);
            let next = asked.max(jittered(pause));
            if since.elapsed() + next > deadline {
                return Err(Error::Unreachable {
                    action: call.action(),
                    server: self.settings.endpoint.to_string(),
                    tried_for: since.elapsed(),
                    last: self.settings.endpoint.redact(&why),
                });
            }
            sleep(next).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, call: &Call) -> Attempt {
        let again = |why| Attempt::Again {
            why,
            pause: Duration::ZERO,
        };
        let request = match self.request(call) {
            Ok(request) => request,
            Err(error) => return Attempt::Refused(error),
        };
        let after = self.settings.request_timeout;
        match timeout(after, self.exchange(call, request)).await {
            Ok(Ok(attempt)) => attempt,
            Ok(Err(why)) => again(why),
            Err(_) if call.held => Attempt::HeldOn,
            Err(_) => again(format!("no answer within {after:?}")),
        }
    }

    async fn exchange(
        &self,
        call: &Call,
        request: Request<Full<Bytes>>,
    ) -> Result<Attempt, String> {
        let response = self.http.request(request).await;
        let response = response.map_err(|error| chain(&error))?;
        let (parts, mut body) = response.into_parts();
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| chain(&error))?;
            let Ok(chunk) = frame.into_data() else {
                continue;
            };
            if whole.len() + chunk.len() > ANSWER_BYTES {
                return Ok(Attempt::Refused(Error::Answer {
                    action: call.action(),
                    problem: format!("it is longer than {ANSWER_BYTES} bytes"),
                }));
            }
            whole.extend_from_slice(&chunk);
        }
        if parts.status.is_success() {
            return Ok(Attempt::Done(whole.freeze()));
        }
        if matches!(parts.status.as_u16(), 429 | 502 | 503 | 504) {
            let asked = parts.headers.get(RETRY_AFTER);
            let seconds = asked.and_then(|value| value.to_str().ok()?.trim().parse().ok());
            return Ok(Attempt::Again {
                why: format!("HTTP {}", parts.status),
                pause: Duration::from_secs(seconds.unwrap_or(0)).min(LONGEST_ASKED_PAUSE),
            });
        }
        Ok(Attempt::Refused(self.refusal(call, parts.status, &whole)))
    }

    fn refusal(&self, call: &Call, status: StatusCode, body: &[u8]) -> Error {
        let told: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |key: &str| told.get(key).and_then(serde_json::Value::as_str);
        match text("code") {
            Some("RUN_SUPERSEDED") if status == StatusCode::CONFLICT => Error::Superseded,
            Some("INSTANCE_ENDED") if status == StatusCode::CONFLICT => Error::Ended,
            code => Error::Refused {
                action: call.action(),
                status: status.as_u16(),
                code: code.map_or_else(|| status.as_u16().to_string(), str::to_owned),
                message: self
                    .settings
                    .endpoint
                    .redact(text("error").unwrap_or("no reason given")),
            },
        }
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, Error> {
        let endpoint = &self.settings.endpoint;
        let uri = Uri::builder()
            .scheme("http")
            .authority(endpoint.authority.clone())
            .path_and_query(format!("{}{}", endpoint.prefix, call.path))
            .build()
            // All parts are encoded or were read from a URL, so length is all that is left to be wrong.
            .map_err(|_| Error::Settings {
                variable: "RUNTARA_INSTANCE_ID",
                found: format!("{} bytes long", self.settings.instance_id.len()),
                wanted: "an id of at most 255 bytes",
            })?;
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(TENANT_HEADER, self.tenant.clone());
        headers.insert(INSTANCE_HEADER, self.instance.clone());
        if call.method == Method::POST {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Ok(request)
    }
}

/// Percent-encodes a text for use as one segment of a path (RFC 3986, section 3.3).
pub(crate) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:@!$&'()*+,;=".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Gives a text that no other call has, so that its repetition is recognised.
pub(crate) fn request_id() -> String {
    format!("{:016x}{:016x}", random(), random())
}

/// Half the pause to all of it: programs that lost the same server come back apart.
fn jittered(pause: Duration) -> Duration {
    let share = u32::try_from(random() % 512).unwrap_or(0) + 512;
    pause * share / 1024
}

/// A number nobody has to guess: unique, not secret. Each `RandomState` has keys of its own, that come from the system's
/// randomness once in a thread and differ by a counter after that.
fn random() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::hash::RandomState::new().hash_one(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_segment_holds_any_text() {
        assert_eq!(segment("a-b_1:2"), "a-b_1:2");
        assert_eq!(segment("a/b?c#d%é"), "a%2Fb%3Fc%23d%25%C3%A9");
    }

    #[test]
    fn request_ids_differ() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| request_id()).collect();
        assert_eq!(ids.len(), 10_000);
    }

    #[test]
    fn pauses_stay_between_half_and_all() {
        for _ in 0..1_000 {
            let pause = jittered(LONGEST_PAUSE);
            assert!(
                pause >= LONGEST_PAUSE / 2 && pause <= LONGEST_PAUSE,
                "{pause:?}"
            );
        }
    }
}
