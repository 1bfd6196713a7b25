//! The instance protocol as the published blocking client speaks it: one connection, one call at a time, nothing is ever
//! repeated, and the whole URL stands in its errors.

use std::env;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::http::Client;

/// Why a call failed.
#[derive(Debug)]
pub enum Failure {
    /// It did not get through.
    Transport(String),
    /// It was refused.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The body.
        body: String,
    },
    /// The answer is not what it should be, or the program cannot do what it is told.
    Other(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(text) => write!(f, "HTTP request failed: {text}"),
            Self::Refused { status, body } => write!(f, "HTTP {status}: {body}"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// What was saved, and what the answer showed beside it.
#[derive(Debug)]
pub struct Checkpointed {
    /// What was saved before, if something was.
    pub found: Option<Vec<u8>>,
    /// The signal that waits.
    pub signal: Option<String>,
}

/// The instance.
pub struct Instance {
    client: Client,
    authority: String,
    prefix: String,
    id: String,
    tenant: String,
}

impl Instance {
    /// Reads the environment.
    ///
    /// # Errors
    /// The variable that is missing or wrong.
    pub fn from_env() -> Result<Self, Failure> {
        let required =
            |name: &str| env::var(name).map_err(|_| Failure::Other(format!("{name} is not set")));
        let url = env::var("RUNTARA_HTTP_URL").unwrap_or_else(|_| fallback_url());
        let wrong = || Failure::Other(format!("{url} is not http://host:port"));
        let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let timeout = env::var("RUNTARA_REQUEST_TIMEOUT_MS").ok();
        let timeout = timeout.and_then(|text| text.parse().ok()).unwrap_or(30_000);
        let prefix = match prefix.trim_end_matches('/') {
            "" => String::new(),
            prefix => format!("/{prefix}"),
        };
        Ok(Self {
            client: Client::new(authority, Duration::from_millis(timeout)),
            authority: authority.to_owned(),
            prefix,
            id: required("RUNTARA_INSTANCE_ID")?,
            tenant: required("RUNTARA_TENANT_ID")?,
        })
    }

    /// Sees that the server is there, and registers.
    ///
    /// # Errors
    /// If either fails.
    pub fn connect(&mut self) -> Result<(), Failure> {
        self.expect_success("GET", "/health", None)?;
        let body = json!({"tenant_id": self.tenant, "checkpoint_id": null});
        self.post("register", &body).map(drop)
    }

    /// The input; `null` if there is none.
    ///
    /// # Errors
    /// If the call fails.
    pub fn input(&mut self) -> Result<Value, Failure> {
        let answer = self.get("input")?;
        match &answer["input"] {
            Value::Null => Ok(Value::Null),
            input => serde_json::from_slice(&decode(input)?)
                .map_err(|error| Failure::Other(format!("the input: {error}"))),
        }
    }

    /// Gets a checkpoint, or saves it; with an empty state it only looks.
    ///
    /// # Errors
    /// If the call fails.
    pub fn checkpoint(&mut self, id: &str, state: &[u8]) -> Result<Checkpointed, Failure> {
        let body = json!({"checkpoint_id": id, "state": STANDARD.encode(state)});
        let answer = self.post("checkpoint", &body)?;
        let found = match answer["found"].as_bool() {
            Some(true) if answer["state"].is_null() => Some(Vec::new()),
            Some(true) => Some(decode(&answer["state"])?),
            Some(false) => None,
            None => return Err(Failure::Other(format!("found is missing in {answer}"))),
        };
        Ok(Checkpointed {
            found,
            signal: signal_type(&answer),
        })
    }

    /// The signal that waits.
    ///
    /// # Errors
    /// If the call fails.
    pub fn poll_signal(&mut self) -> Result<Option<String>, Failure> {
        let answer = self.get("signals")?;
        Ok(signal_type(&answer))
    }

    /// Takes a custom signal, if it is there: its payload as text.
    ///
    /// # Errors
    /// If the call fails.
    pub fn take_signal(&mut self, id: &str) -> Result<Option<Value>, Failure> {
        let answer = self.get(&format!("signals/{}", encoded(id)))?;
        payload_of(&answer["custom_signal"])
    }

    /// Waits for a custom signal in one call. The published client has none such.
    ///
    /// # Errors
    /// If the call fails.
    pub fn wait_signal(
        &mut self,
        id: &str,
        timeout_ms: Option<u64>,
    ) -> Result<Option<Value>, Failure> {
        let body = json!({"signal_id": id, "timeout_ms": timeout_ms, "park": true});
        let answer = self.post("signals/wait", &body)?;
        payload_of(&answer["signal"])
    }

    /// Sleeps durably.
    ///
    /// # Errors
    /// If the call fails.
    pub fn sleep(&mut self, id: &str, millis: u64, state: &[u8]) -> Result<(), Failure> {
        let state = STANDARD.encode(state);
        let body = json!({"duration_ms": millis, "checkpoint_id": id, "state": state});
        self.post("sleep", &body).map(drop)
    }

    /// Records an event.
    ///
    /// # Errors
    /// If the call fails.
    pub fn event(&mut self, subtype: &str, payload: &Value) -> Result<(), Failure> {
        let payload = STANDARD.encode(payload.to_string());
        let body = json!({"event_type": "custom", "subtype": subtype, "payload": payload});
        self.post("events", &body).map(drop)
    }

    /// Gives a sign of life. What comes of it is ignored.
    pub fn heartbeat(&mut self) {
        let _ = self.post("events", &json!({"event_type": "heartbeat"}));
    }

    /// Records that a step is tried again. What comes of it is ignored.
    pub fn retry(&mut self, id: &str, attempt: u32, error: &str) {
        let body = json!({"checkpoint_id": id, "attempt": attempt, "error_message": error});
        let _ = self.post("retry", &body);
    }

    /// Says that a signal is obeyed.
    ///
    /// # Errors
    /// If the call fails.
    pub fn acknowledge(&mut self, signal_type: &str) -> Result<(), Failure> {
        self.post("signals/ack", &json!({"signal_type": signal_type}))
            .map(drop)
    }

    /// Says that it is done.
    ///
    /// # Errors
    /// If the call fails.
    pub fn completed(&mut self, output: &Value) -> Result<(), Failure> {
        let output = STANDARD.encode(output.to_string());
        self.post("completed", &json!({"output": output})).map(drop)
    }

    /// Says that it cannot go on.
    ///
    /// # Errors
    /// If the call fails.
    pub fn failed(&mut self, error: &str) -> Result<(), Failure> {
        self.post("failed", &json!({"error": error})).map(drop)
    }

    /// Says that it leaves and wants to be resumed.
    ///
    /// # Errors
    /// If the call fails.
    pub fn suspended(&mut self) -> Result<(), Failure> {
        self.post("suspended", &json!({})).map(drop)
    }

    /// Says that it leaves and wants to be woken.
    ///
    /// # Errors
    /// If the call fails.
    pub fn suspended_until(
        &mut self,
        id: &str,
        wake_at_ms: i64,
        state: &[u8],
    ) -> Result<(), Failure> {
        let payload = json!({"wake_at_ms": wake_at_ms, "state": STANDARD.encode(state)});
        let payload = STANDARD.encode(payload.to_string());
        let body = json!({"event_type": "suspended", "checkpoint_id": id, "payload": payload});
        self.post("events", &body).map(drop)
    }

    /// Where an instance stands.
    ///
    /// # Errors
    /// If the call fails.
    pub fn status_of(&mut self, id: &str) -> Result<Value, Failure> {
        self.expect_success("GET", &format!("/api/v1/instances/{id}/status"), None)
    }

    /// Any call: status and body, whatever they are.
    ///
    /// # Errors
    /// If the call does not get through.
    pub fn call(&mut self, method: &str, path: &str, body: &Value) -> Result<Value, Failure> {
        let path = path.replace("{id}", &self.id);
        let body = (!body.is_null()).then(|| body.to_string());
        let (status, body) = self.send(method, &path, body.as_deref())?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let body = serde_json::from_slice(&body).unwrap_or(Value::String(text));
        Ok(json!({"status": status, "body": body}))
    }

    fn get(&mut self, what: &str) -> Result<Value, Failure> {
        let path = format!("/api/v1/instances/{}/{what}", self.id);
        self.expect_success("GET", &path, None)
    }

    fn post(&mut self, what: &str, body: &Value) -> Result<Value, Failure> {
        let path = format!("/api/v1/instances/{}/{what}", self.id);
        self.expect_success("POST", &path, Some(&body.to_string()))
    }

    fn expect_success(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> Result<Value, Failure> {
        let (status, body) = self.send(method, path, body)?;
        if status >= 400 {
            let body = String::from_utf8_lossy(&body).into_owned();
            return Err(Failure::Refused { status, body });
        }
        if path == "/health" {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .map_err(|error| Failure::Other(format!("the answer to {method} {path}: {error}")))
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&str>,
    ) -> Result<(u16, Vec<u8>), Failure> {
        let whole = format!("{}{path}", self.prefix);
        let headers = [
            ("x-runtara-tenant-id", self.tenant.as_str()),
            ("x-runtara-instance-id", self.id.as_str()),
        ];
        let headers: &[_] = if path == "/health" { &[] } else { &headers };
        let answer = self.client.request(method, &whole, headers, body);
        answer.map_err(|error| {
            Failure::Transport(format!(
                "{method} http://{}{whole}: {error}",
                self.authority
            ))
        })
    }
}

fn fallback_url() -> String {
    let port = env::var("RUNTARA_CORE_HTTP_PORT").ok();
    let address = env::var("RUNTARA_SERVER_ADDR").ok();
    let address = address.as_deref().and_then(|address| {
        let (host, port) = address.rsplit_once(':')?;
        Some((host.to_owned(), port.parse::<u16>().ok()?.checked_add(2)?))
    });
    let (host, rule) = address.unwrap_or_else(|| ("127.0.0.1".to_owned(), 8003));
    format!("http://{host}:{}", port.unwrap_or_else(|| rule.to_string()))
}

fn signal_type(answer: &Value) -> Option<String> {
    answer["signal"]["signal_type"].as_str().map(str::to_owned)
}

fn payload_of(signal: &Value) -> Result<Option<Value>, Failure> {
    if signal.is_null() {
        return Ok(None);
    }
    let bytes = match &signal["payload"] {
        Value::Null => Vec::new(),
        payload => decode(payload)?,
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Some(
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    ))
}

fn decode(value: &Value) -> Result<Vec<u8>, Failure> {
    let text = value.as_str().unwrap_or_default();
    STANDARD
        .decode(text)
        .map_err(|error| Failure::Other(format!("base64: {error}")))
}

/// Percent-encodes every byte that is not an ASCII letter or digit.
fn encoded(id: &str) -> String {
    id.bytes().fold(String::new(), |text, byte| {
        if byte.is_ascii_alphanumeric() {
            text + &char::from(byte).to_string()
        } else {
            format!("{text}%{byte:02X}")
        }
    })
}
