//! A server that speaks just enough of the instance protocol to try the programs without the real one, and that fails as it is
//! told. Blocking, a thread for each connection, everything in memory.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// What stands in front of every path, as the address of a run has it.
const PREFIX: &str = "/r/s3cr3t";
/// A longer wait is parked: it is not answered.
const HOLD: Duration = Duration::from_millis(200);
/// How long a test waits for what it awaits.
const PATIENCE: Duration = Duration::from_secs(20);
/// Largest body that is read.
const BODY_BYTES: u64 = 64 * 1024 * 1024;

/// What the server knows.
#[derive(Default)]
pub struct State {
    /// The input of the instance.
    pub input: Value,
    /// The checkpoints, in JSON where they are JSON, else as text.
    pub checkpoints: BTreeMap<String, Vec<u8>>,
    /// When sleeps end.
    sleeps: BTreeMap<String, Instant>,
    /// The cancel or pause that waits.
    pub pending: Option<&'static str>,
    /// Custom signals that wait, as text.
    pub custom: BTreeMap<String, String>,
    /// The calls: what follows the id in the path, and the body.
    pub calls: Vec<(String, Value)>,
    /// The call whose number this is (1 is the first) is done, and its connection cut in place of the answer.
    pub cut_at: Option<usize>,
    /// How many connections there were.
    pub connections: usize,
}

impl State {
    /// The calls of a kind.
    #[must_use]
    pub fn called(&self, what: &str) -> Vec<&Value> {
        let calls = self.calls.iter().filter(|(on, _)| on == what);
        calls.map(|(_, body)| body).collect()
    }

    /// The output that was said, if it was.
    #[must_use]
    pub fn output(&self) -> Option<Value> {
        let output = self.called("completed").first()?["output"].as_str()?;
        serde_json::from_slice(&STANDARD.decode(output).ok()?).ok()
    }
}

/// The server; it takes no more connections when the value is dropped.
pub struct FakeCore {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    over: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with the lock")
    }
}

impl FakeCore {
    /// Starts the server with the input of its one instance.
    ///
    /// # Errors
    /// If there is no free port.
    pub fn start(input: Value) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                input,
                ..State::default()
            }),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
        });
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Ok(Self {
            address,
            shared,
            accepting: Some(accepting),
        })
    }

    /// A command for a run of a program, with the variables that a launched program is given.
    #[must_use]
    pub fn command(&self, program: &str, run: u32) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("RUNTARA_INSTANCE_ID", "i-1")
            .env("RUNTARA_TENANT_ID", "acme")
            .env("RUNTARA_RUN_NUMBER", run.to_string())
            .env(
                "RUNTARA_HTTP_URL",
                format!("http://{}{PREFIX}", self.address),
            );
        command
    }

    /// What the server knows.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    /// Changes what the server knows, and has waiting calls look.
    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_all();
    }

    /// Ends all sleeps, as if their time had passed.
    pub fn pass_time(&self) {
        self.change(|state| {
            let now = Instant::now();
            state.sleeps.values_mut().for_each(|until| *until = now);
        });
    }

    /// Waits until the server knows what is awaited.
    ///
    /// # Panics
    /// If that does not come.
    pub fn until(&self, what: &str, there: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.lock();
        while !there(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited for {what}; the calls were {:#?}",
                state.calls
            );
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.expect("no thread panics with the lock").0;
        }
    }
}

impl Drop for FakeCore {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // A last connection lets the thread see it.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        self.shared.changed.notify_all();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().flatten() {
        if shared.over.load(Ordering::SeqCst) {
            return;
        }
        shared.lock().connections += 1;
        let shared = Arc::clone(shared);
        // Ends with its connection, which ends with the program under test.
        thread::spawn(move || {
            let _ = serve(stream, &shared);
        });
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some((path, body)) = read_request(&mut reader)? {
        let what = path.strip_prefix(PREFIX).unwrap_or("not behind the prefix");
        let what = what.strip_prefix("/api/v1/instances/i-1/").unwrap_or(what);
        let (cut, reply) = {
            // Noted and done in one, so that a test that sees the call sees all that came of it.
            let mut state = shared.lock();
            state.calls.push((what.to_owned(), body.clone()));
            let cut = state.cut_at == Some(state.calls.len());
            (cut, reply(what, &body, &mut state))
        };
        shared.changed.notify_all();
        let answer = match reply {
            _ if cut => return Ok(()),
            Reply::Now(answer) => answer,
            Reply::At(until) => {
                thread::sleep(until.saturating_duration_since(Instant::now()));
                json!({"success": true})
            }
            Reply::Parked => {
                // The connection stays open until the process is gone.
                let mut rest = Vec::new();
                reader.take(BODY_BYTES).read_to_end(&mut rest)?;
                return Ok(());
            }
        };
        let answer = answer.to_string();
        write!(
            writer,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
            answer.len()
        )?;
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<(String, Value)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(text) = line.strip_prefix("content-length:") {
            length = text.trim().parse().unwrap_or(0).min(BODY_BYTES);
        }
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    Ok(Some((
        path,
        serde_json::from_slice(&body).unwrap_or_default(),
    )))
}

/// How a call is answered.
enum Reply {
    Now(Value),
    /// When a sleep is over.
    At(Instant),
    Parked,
}

fn reply(what: &str, body: &Value, state: &mut State) -> Reply {
    let id = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    Reply::Now(match what {
        "input" => json!({"found": true, "input": STANDARD.encode(state.input.to_string())}),
        "checkpoint" => checkpoint(state, id("checkpoint_id"), decoded(&body["state"])),
        "signals" => json!({"signal": signal(state)}),
        "signals/ack" => {
            state.pending = None;
            json!({"success": true})
        }
        "sleep" => {
            let id = id("checkpoint_id");
            let now = Instant::now();
            let duration = Duration::from_millis(body["duration_ms"].as_u64().unwrap_or(0));
            let until = *state.sleeps.entry(id.clone()).or_insert(now + duration);
            state.checkpoints.insert(id, decoded(&body["state"]));
            let parked = until > now + HOLD && body["park"] != false;
            return if parked {
                Reply::Parked
            } else {
                Reply::At(until)
            };
        }
        "signals/wait" => {
            let id = id("signal_id");
            match state.custom.remove(&id) {
                Some(text) => json!({"signal": custom(&id, &text), "timed_out": false}),
                None => return Reply::Parked,
            }
        }
        other => match other.strip_prefix("signals/") {
            Some(id) => {
                let taken = state.custom.remove(id).map(|text| custom(id, &text));
                json!({"custom_signal": taken})
            }
            None => json!({"success": true}),
        },
    })
}

fn checkpoint(state: &mut State, id: String, sent: Vec<u8>) -> Value {
    let signal = signal(state);
    if let Some(stored) = state.checkpoints.get(&id) {
        return json!({"found": true, "state": STANDARD.encode(stored), "signal": signal});
    }
    if !sent.is_empty() {
        state.checkpoints.insert(id, sent);
    }
    json!({"found": false, "signal": signal})
}

fn signal(state: &State) -> Value {
    json!(state.pending.map(|kind| json!({"signal_type": kind})))
}

fn custom(id: &str, text: &str) -> Value {
    json!({"checkpoint_id": id, "payload": STANDARD.encode(text)})
}

fn decoded(value: &Value) -> Vec<u8> {
    STANDARD
        .decode(value.as_str().unwrap_or_default())
        .unwrap_or_default()
}
