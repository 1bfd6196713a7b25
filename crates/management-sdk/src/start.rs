//! Starting an instance.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{Client, refusal};
use crate::query::Path;
use crate::transport::Call;
use crate::{Error, Labels, NetworkMode, NotFound, ResourceLimits};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// What is to be started, and how.
///
/// ```
/// use std::time::Duration;
///
/// use runtara_management_sdk::StartRequest;
///
/// let request = StartRequest::new("4f3c").instance_id("order-17").delay(Duration::from_secs(60)).env("MODE", "test");
/// assert_eq!(request.delay_ms, Some(60_000));
/// ```
#[derive(Clone, Default, Serialize)]
#[non_exhaustive]
pub struct StartRequest {
    /// The image to run.
    pub image_id: String,
    /// The owner; the client's tenant if absent.
    pub tenant_id: Option<String>,
    /// The new instance's id; the server makes one if absent. The same start with the same id is one start.
    pub instance_id: Option<String>,
    /// The input, any JSON.
    pub input: Option<Value>,
    /// Longest running time of one run in seconds, from the moment at which its program was started; held sleeps are not counted.
    pub timeout_seconds: Option<u64>,
    /// Environment variables of the program.
    pub env: BTreeMap<String, String>,
    /// Labels of the instance.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Not before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_at_ms: Option<i64>,
    /// Not before this many milliseconds have passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Launches without progress that are allowed, the first included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// For how many seconds a run may be silent, that is, make no call of the instance protocol, before it is ended and launched again; at least
    /// 10. A program that never speaks that protocol is silent from its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_timeout_seconds: Option<u64>,
    /// When the instance has ended at the latest, wherever it stands: a time such as `2030-01-31T08:00:00Z` (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// After how many seconds it has, instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
    /// How many events of the instance are kept, at least 100; 0 for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_events: Option<u32>,
    /// Arguments of the program.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// What the program may take, over what its image says. Only for containers.
    #[serde(skip_serializing_if = "ResourceLimits::is_empty")]
    pub limits: ResourceLimits,
    /// What it reaches over the network, over what its image says. Only for containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Which hosts it reaches, of those that it could with its network, over what its image says: `api.example.com`,
    /// `*.example.com:443`. Only for WebAssembly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_hosts: Option<Vec<String>>,
    /// Whether the root of its file system is read-only, over what its image says. Its run directory and its places for temporary
    /// files are not. Only for containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Makes repeated starts without an id the same start.
    #[serde(skip)]
    pub idempotency_key: Option<String>,
}

impl StartRequest {
    /// Begins a start of the image with this id.
    #[must_use]
    pub fn new(image_id: impl Into<String>) -> Self {
        Self {
            image_id: image_id.into(),
            ..Self::default()
        }
    }

    /// Names the owner.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant_id = Some(tenant.into());
        self
    }

    /// Names the instance.
    #[must_use]
    pub fn instance_id(mut self, id: impl Into<String>) -> Self {
        self.instance_id = Some(id.into());
        self
    }

    /// Gives the input.
    #[must_use]
    pub fn input(mut self, input: Value) -> Self {
        self.input = Some(input);
        self
    }

    /// Bounds the running time of one run. It counts in whole seconds and is rounded up.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout_seconds = Some(whole_seconds(timeout));
        self
    }

    /// Sets one environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Attaches a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Starts at this time, in milliseconds since the epoch.
    #[must_use]
    pub fn start_at_ms(mut self, at: i64) -> Self {
        self.start_at_ms = Some(at);
        self
    }

    /// Starts after this time.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay_ms = Some(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Bounds the launches without progress.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// Bounds for how long a run may be silent. It counts in whole seconds and is rounded up; the server allows 10 s and more.
    #[must_use]
    pub fn heartbeat_timeout(mut self, timeout: Duration) -> Self {
        self.heartbeat_timeout_seconds = Some(whole_seconds(timeout));
        self
    }

    /// Ends the instance at this time at the latest, such as `2030-01-31T08:00:00Z`, wherever it stands.
    #[must_use]
    pub fn expires_at(mut self, moment: impl Into<String>) -> Self {
        self.expires_at = Some(moment.into());
        self
    }

    /// Ends the instance after this time at the latest, wherever it stands. It counts in whole seconds and is rounded up.
    #[must_use]
    pub fn expires_in(mut self, time: Duration) -> Self {
        self.expires_in_seconds = Some(whole_seconds(time));
        self
    }

    /// Bounds the events that are kept, to at least 100; 0 keeps all. The oldest that the program has reported are folded into one.
    #[must_use]
    pub fn max_events(mut self, events: u32) -> Self {
        self.max_events = Some(events);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Limits what the program may take, whatever its image says. Only for containers.
    #[must_use]
    pub fn limits(mut self, limits: ResourceLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Says what the program reaches over the network, whatever its image says. Only for containers.
    #[must_use]
    pub fn network(mut self, mode: NetworkMode) -> Self {
        self.network = Some(mode);
        self
    }

    /// Adds a host to those that the program reaches, of those that it could with its network, whatever its image says. Only for WebAssembly.
    #[must_use]
    pub fn allowed_host(mut self, host: impl Into<String>) -> Self {
        self.allowed_hosts.get_or_insert_default().push(host.into());
        self
    }

    /// Says whether the root of the program's file system is read-only, whatever its image says. Only for containers.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = Some(read_only);
        self
    }

    /// Makes repeated starts without an id the same start.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }
}

/// The wire knows whole seconds. Half a second is not none, so what is left of one counts as one.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs()
        .saturating_add(u64::from(time.subsec_nanos() > 0))
}

impl fmt::Debug for StartRequest {
    /// Shows neither the input nor the values of the environment: both hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StartRequest")
            .field("image_id", &self.image_id)
            .field("tenant_id", &self.tenant_id)
            .field("instance_id", &self.instance_id)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("labels", &self.labels)
            .finish_non_exhaustive()
    }
}

/// The answer to a start: the instance is durable. It need not run yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Started {
    /// The instance's id.
    pub instance_id: String,
    /// Whether the same start had been made before, and this is its instance.
    pub deduplicated: bool,
}

#[derive(Deserialize)]
struct StartAnswer {
    success: bool,
    instance_id: Option<String>,
    deduplicated: Option<bool>,
    error: Option<String>,
    code: Option<String>,
}

impl Client {
    /// Starts an instance. With an id or an idempotency key it is repeated when the connection fails.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), runtara_management_sdk::Error> {
    /// use runtara_management_sdk::{Client, StartRequest};
    ///
    /// let client = Client::builder("127.0.0.1:8002").tenant("acme").build()?;
    /// let image = client.find_image("orders").await?;
    /// let request = StartRequest::new(image.image_id).input(serde_json::json!({"order": 17})).idempotency_key("order-17");
    /// println!("{}", client.start(&request).await?.instance_id);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the image is unknown or another tenant's, [`Error::Refused`] if the id is in use for something
    /// else, or for any other reason the server gives.
    pub async fn start(&self, request: &StartRequest) -> Result<Started, Error> {
        let mut request = request.clone();
        request.tenant_id = Some(self.tenant_or(request.tenant_id.as_deref())?.to_owned());
        let is_named = request
            .instance_id
            .as_ref()
            .is_some_and(|id| !id.is_empty());
        let mut call = Call::post(Path::new("/api/v1/instances")).json(&request);
        if let Some(key) = &request.idempotency_key {
            let value = HeaderValue::from_str(key)
                .ok()
                .filter(|value| !value.is_empty());
            let value = value.ok_or_else(|| Error::InvalidRequest {
                what: "idempotency key",
                found: key.clone(),
                wanted: "non-empty text without control characters",
            })?;
            call = call.header(IDEMPOTENCY_KEY, value);
        }
        let answer = self
            .send(call.repeatable(is_named || request.idempotency_key.is_some()))
            .await?;
        if !answer.status.is_success() && answer.status != StatusCode::BAD_REQUEST {
            return Err(answer.into_refusal());
        }
        // A 400 of another origin, such as a proxy, has no `success`: its words still count.
        let told: StartAnswer = match answer.json() {
            Err(_) if !answer.status.is_success() => return Err(answer.into_refusal()),
            told => told?,
        };
        match told.instance_id {
            Some(instance_id) if told.success => Ok(Started {
                instance_id,
                deduplicated: told.deduplicated.unwrap_or_default(),
            }),
            _ => {
                let code = told.code.as_deref().unwrap_or("START_FAILED");
                Err(refusal(
                    NotFound::Image,
                    &request.image_id,
                    answer.status.as_u16(),
                    code,
                    told.error,
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_holds_what_published_servers_expect_and_extensions_only_when_set() {
        let plain = serde_json::to_value(StartRequest::new("i").tenant("t")).unwrap();
        assert_eq!(
            plain,
            serde_json::json!({"image_id": "i", "tenant_id": "t", "instance_id": null, "input": null, "timeout_seconds": null, "env": {}})
        );
        let full = StartRequest::new("i")
            .label("k", "v")
            .start_at_ms(5)
            .delay(Duration::from_secs(1))
            .max_attempts(2)
            .max_events(1_000)
            .arg("-x")
            .limits(ResourceLimits::new().pids(7))
            .network(NetworkMode::Egress)
            .allowed_host("h")
            .read_only(false);
        let full = serde_json::to_value(full.idempotency_key("key")).unwrap();
        for (key, value) in [
            ("labels", serde_json::json!({"k": "v"})),
            ("start_at_ms", 5.into()),
            ("delay_ms", 1000.into()),
            ("max_attempts", 2.into()),
            ("max_events", 1_000.into()),
            ("args", serde_json::json!(["-x"])),
            ("limits", serde_json::json!({"pids": 7})),
            ("network", "egress".into()),
            ("allowed_hosts", serde_json::json!(["h"])),
            ("read_only", false.into()),
        ] {
            assert_eq!(full[key], value, "{key}");
        }
        assert_eq!(full.get("idempotency_key"), None);
    }

    #[test]
    fn a_part_of_a_second_counts_as_one() {
        for (milliseconds, seconds) in [(0, 0), (1, 1), (500, 1), (1_000, 1), (1_001, 2)] {
            let request = StartRequest::new("i").timeout(Duration::from_millis(milliseconds));
            assert_eq!(request.timeout_seconds, Some(seconds), "{milliseconds} ms");
        }
        assert_eq!(whole_seconds(Duration::MAX), u64::MAX);
    }

    #[test]
    fn values_of_the_environment_are_not_shown() {
        let text = format!(
            "{:?}",
            StartRequest::new("i")
                .env("PASSWORD", "s3cret")
                .input("s3cret".into())
        );
        assert!(
            text.contains("PASSWORD") && !text.contains("s3cret"),
            "{text}"
        );
    }
}
