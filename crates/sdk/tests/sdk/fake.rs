//! A small server that speaks the instance protocol, keeps what it is told, and fails as a test says.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use runtara_sdk::{Instance, Settings};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// The secret in the address; nothing may ever print it.
pub(crate) const SECRET: &str = "s3cr3t-t0ken";
/// A wait longer than this is parked: never answered, if it says that it may be.
const HOLD: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

/// What goes wrong with one call.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection is cut before the call is done.
    Cut,
    /// The call is done and the connection cut in place of the answer.
    CutAfter,
    /// Another answer is given.
    Answer(u16, Option<&'static str>, Value),
    /// An answer without an end.
    Endless,
}

/// One call.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// What follows the id of the instance in the path.
    pub(crate) what: String,
    pub(crate) body: Value,
    pub(crate) target: String,
    pub(crate) instance_header: Option<String>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) input: Option<Value>,
    /// What is saved, and by which call.
    pub(crate) checkpoints: BTreeMap<String, (Vec<u8>, Option<String>)>,
    pub(crate) pending: Option<&'static str>,
    pub(crate) custom: BTreeMap<String, Option<String>>,
    pub(crate) asked: Vec<Asked>,
    faults: VecDeque<(String, Fault)>,
}

impl State {
    pub(crate) fn saved(&self, id: &str) -> Option<Value> {
        let (state, _) = self.checkpoints.get(id)?;
        serde_json::from_slice(state).ok()
    }

    pub(crate) fn calls(&self, what: &str) -> Vec<Value> {
        let calls = self.asked.iter().filter(|asked| asked.what == what);
        calls.map(|asked| asked.body.clone()).collect()
    }

    fn signal(&self) -> Value {
        self.pending
            .map_or(Value::Null, |kind| json!({"signal_type": kind}))
    }

    fn fault(&mut self, what: &str) -> Option<Fault> {
        let index = self.faults.iter().position(|(on, _)| on == what)?;
        self.faults.remove(index).map(|(_, fault)| fault)
    }
}

/// The server; it ends with the value.
pub(crate) struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    accepting: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let state = Arc::new(Mutex::new(State::default()));
        let changed = Arc::new(Notify::new());
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state), Arc::clone(&changed)));
        Self {
            address,
            state,
            changed,
            accepting,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/r/{SECRET}", self.address)
    }

    pub(crate) fn settings(&self) -> Settings {
        Settings::new("order-17", "acme", &self.url())
            .expect("a good address")
            .retry_deadline(Duration::from_secs(10))
    }

    /// A run of the instance.
    pub(crate) async fn run(&self) -> Instance {
        Instance::connect(self.settings()).await.expect("connected")
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no handler panics")
    }

    /// Lets the next call of this kind go wrong.
    pub(crate) fn fault(&self, what: &str, fault: Fault) {
        self.state().faults.push_back((what.to_owned(), fault));
    }

    /// Lets a cancel or a pause wait.
    pub(crate) fn signal(&self, kind: &'static str) {
        self.state().pending = Some(kind);
        self.changed.notify_waiters();
    }

    /// Sends a custom signal.
    pub(crate) fn custom(&self, id: &str, payload: &[u8]) {
        let payload = (!payload.is_empty()).then(|| STANDARD.encode(payload));
        self.state().custom.insert(id.to_owned(), payload);
        self.changed.notify_waiters();
    }

    pub(crate) fn calls(&self, what: &str) -> Vec<Value> {
        self.state().calls(what)
    }

    /// Waits until the calls are as awaited.
    pub(crate) async fn until(&self, what: &str, there: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !there(&self.state()) {
            assert!(
                Instant::now() < deadline,
                "waited for {what}; was asked {:#?}",
                self.state().asked
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, changed: Arc<Notify>) {
    // A set, so that all connections end with the server.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (state, changed) = (Arc::clone(&state), Arc::clone(&changed));
        connections.spawn(async move {
            let service =
                service_fn(move |request| serve(request, Arc::clone(&state), Arc::clone(&changed)));
            // An error is a client that went away or a cut that a test asked for.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Served = Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>>;

async fn serve(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
) -> Served {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let target = parts.uri.to_string();
    let prefix = format!("/r/{SECRET}/api/v1/instances/order-17/");
    let what = target.strip_prefix(&prefix).unwrap_or(&target).to_owned();
    let header = parts.headers.get("x-runtara-instance-id");
    let asked = Asked {
        what: what.clone(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        target,
        instance_header: header.and_then(|value| value.to_str().ok().map(str::to_owned)),
    };
    let fault = {
        let mut state = state.lock().expect("no handler panics");
        state.asked.push(asked.clone());
        state.fault(&what)
    };
    match fault {
        Some(Fault::Cut) => return Err("cut".into()),
        Some(Fault::Answer(status, retry_after, body)) => {
            let mut response = Response::builder().status(status);
            if let Some(after) = retry_after {
                response = response.header("retry-after", after);
            }
            return Ok(response.body(Full::new(body.to_string().into()))?);
        }
        Some(Fault::Endless) => {
            return Ok(Response::new(Full::new(
                vec![b' '; 70 * 1024 * 1024].into(),
            )));
        }
        Some(Fault::CutAfter) | None => {}
    }
    let answer = answer(&what, &asked.body, &state, &changed).await;
    if matches!(fault, Some(Fault::CutAfter)) {
        return Err("cut".into());
    }
    Ok(Response::new(Full::new(answer.to_string().into())))
}

async fn answer(what: &str, body: &Value, state: &Mutex<State>, changed: &Notify) -> Value {
    let lock = || state.lock().expect("no handler panics");
    match what {
        "input" => {
            let input = lock()
                .input
                .as_ref()
                .map(|it| STANDARD.encode(it.to_string()));
            json!({"found": true, "input": input})
        }
        "checkpoint" => checkpoint(&mut lock(), body),
        "signals" => json!({"signal": lock().signal()}),
        "sleep" => {
            let id = body["checkpoint_id"].as_str().unwrap_or_default();
            let state_sent = STANDARD.decode(body["state"].as_str().unwrap_or_default());
            lock()
                .checkpoints
                .insert(id.to_owned(), (state_sent.expect("base64"), None));
            let over = Duration::from_millis(body["duration_ms"].as_u64().expect("a duration"));
            hold(over, body, changed, || lock().pending.map(|_| ())).await;
            json!({"success": true})
        }
        "signals/wait" => {
            let over = body["timeout_ms"]
                .as_u64()
                .map_or(Duration::MAX, Duration::from_millis);
            let id = body["signal_id"].as_str().expect("an id").to_owned();
            let came = hold(over, body, changed, || {
                let mut state = lock();
                let taken = state.custom.remove(&id);
                match taken {
                    Some(payload) => Some(Some(json!({"signal_id": id, "payload": payload}))),
                    None => state.pending.map(|_| None),
                }
            })
            .await;
            json!({"signal": came.clone().flatten(), "timed_out": came.is_none()})
        }
        _ => json!({"success": true}),
    }
}

fn checkpoint(state: &mut State, body: &Value) -> Value {
    let id = body["checkpoint_id"].as_str().expect("an id").to_owned();
    let sent = STANDARD
        .decode(body["state"].as_str().expect("a state"))
        .expect("base64");
    let request_id = body["request_id"].as_str().map(str::to_owned);
    let signal = state.signal();
    if let Some((stored, by)) = state.checkpoints.get(&id).cloned() {
        let own = by.is_some() && by == request_id;
        let custom = state.custom.remove(&id);
        let custom = custom.map(|payload| json!({"checkpoint_id": id, "payload": payload}));
        return json!({
            "found": !own, "state": STANDARD.encode(stored), "signal": signal, "custom_signal": custom,
        });
    }
    if !sent.is_empty() {
        state.checkpoints.insert(id, (sent, request_id));
    }
    json!({"found": false, "signal": signal})
}

/// Holds a call until it is over or `there` gives something. A far one that may be parked is never answered.
async fn hold<T>(
    over: Duration,
    body: &Value,
    changed: &Notify,
    there: impl Fn() -> Option<T>,
) -> Option<T> {
    let deadline = Instant::now().checked_add(over);
    loop {
        let notified = changed.notified();
        if let Some(there) = there() {
            return Some(there);
        }
        if body["park"] == true && over > HOLD {
            std::future::pending::<()>().await;
        }
        match deadline {
            None => notified.await,
            Some(deadline) => {
                if tokio::time::timeout_at(deadline.into(), notified)
                    .await
                    .is_err()
                {
                    return None;
                }
            }
        }
    }
}
