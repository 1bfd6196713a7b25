//! The sample's instance as seen from outside: over HTTP, and in the run's files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::narrator::Narrator;
use crate::error::Error;
use crate::http::Client;
use crate::interrupt;

/// The tenant of everything that `up` does: the one that the command line acts for by default.
const TENANT: &str = "default";
/// The name of the sample, as a package, as a program and as an image.
pub(super) const SAMPLE: &str = "order-workflow";
/// How long each chapter of the story may take.
const CHAPTER_LIMIT: Duration = Duration::from_secs(60);

/// Where an instance stands.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Standing {
    pub(super) status: String,
    pub(super) status_reason: Option<String>,
    pub(super) run_number: Option<u64>,
    pub(super) due_at_ms: Option<i64>,
    pub(super) error: Option<String>,
    output: Option<String>,
}

/// One saved step.
#[derive(Debug, Deserialize)]
pub(super) struct Checkpoint {
    pub(super) checkpoint_id: String,
    /// The run that saved it.
    pub(super) run_number: u64,
}

/// One event of an instance's life.
#[derive(Debug, Deserialize)]
pub(super) struct Event {
    pub(super) event_type: String,
    pub(super) subtype: Option<String>,
    payload: Option<String>,
}

/// Watches one instance and says what is new.
pub(super) struct Order {
    narrator: Narrator,
    client: Client,
    id: String,
    /// The directory of its runs.
    runs: PathBuf,
    saved: Vec<Checkpoint>,
    events: Vec<Event>,
    told: (String, Option<u64>),
}

impl Order {
    /// Registers the sample and starts an instance of it.
    pub(super) fn start(
        narrator: Narrator,
        client: Client,
        directory: &Path,
        id: &str,
        input: &Value,
    ) -> Result<Self, Error> {
        let program = super::server::program(SAMPLE);
        let fields = [
            ("tenant_id", TENANT),
            ("name", SAMPLE),
            ("runner_type", "native"),
        ];
        let image = client.upload("/api/v1/images/upload", &fields, "binary", &program)?;
        let image = image.accepted("register the sample")?;
        narrator.say(format!(
            "registered the program {} as image {SAMPLE}",
            program.display()
        ));
        let image_id = image
            .get("image_id")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let before = run_directories(directory);
        let start = json!({
            "image_id": image_id, "tenant_id": TENANT, "instance_id": id, "input": input,
        });
        client
            .post("/api/v1/instances", &start)?
            .accepted("start an instance")?;
        narrator.say(format!("started instance {id}"));
        let runs = interrupt::until("the first run of the instance", CHAPTER_LIMIT, || {
            Ok(run_directories(directory)
                .difference(&before)
                .next()
                .cloned())
        })?;
        Ok(Self {
            narrator,
            client,
            id: id.to_owned(),
            runs,
            saved: Vec::new(),
            events: Vec::new(),
            told: (String::new(), None),
        })
    }

    /// Speaks to another server from now on: the old one was killed.
    pub(super) fn talk_to(&mut self, client: Client) {
        self.client = client;
    }

    /// Gives the steps saved so far, in their order.
    pub(super) fn saved(&self) -> &[Checkpoint] {
        &self.saved
    }

    /// Watches, saying what is new, until the instance stands as awaited.
    ///
    /// # Errors
    /// When that does not happen in time, or can no longer happen because the instance has ended.
    pub(super) fn watch_until(
        &mut self,
        what: &str,
        mut there: impl FnMut(&Self, &Standing) -> bool,
    ) -> Result<Standing, Error> {
        interrupt::until(what, CHAPTER_LIMIT, || {
            let standing = self.look()?;
            if there(self, &standing) {
                return Ok(Some(standing));
            }
            match standing.status.as_str() {
                "completed" | "failed" | "cancelled" => Err(Error::Unmet(format!(
                    "waited for {what}, but the instance is {}{}",
                    standing.status,
                    standing
                        .error
                        .map(|error| format!(": {error}"))
                        .unwrap_or_default()
                ))),
                _ => Ok(None),
            }
        })
    }

    /// Sends a custom signal.
    pub(super) fn send_signal(&self, name: &str, payload: &Value) -> Result<(), Error> {
        let body = json!({"checkpoint_id": name, "payload": payload.to_string()});
        let path = format!("/api/v1/instances/{}/signals/custom", self.id);
        self.client
            .post(&path, &body)?
            .accepted("take the signal")
            .map(drop)
    }

    /// Gives the events of the instance's life so far, oldest first.
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    /// Gives the process of a run, while there is one.
    pub(super) fn process(&self, run_number: u64) -> Option<u32> {
        #[derive(Deserialize)]
        struct Lock {
            child_pid: Option<u32>,
        }
        let path = self.runs.join(run_number.to_string()).join("lock");
        let lock: Lock = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        lock.child_pid.filter(|pid| is_alive(*pid))
    }

    fn look(&mut self) -> Result<Standing, Error> {
        let path = format!("/api/v1/instances/{}", self.id);
        let answer = self.client.get(&path)?.accepted("show the instance")?;
        let standing: Standing = read(answer)?;
        // A run begins before it does anything, and ends after.
        if standing.status == "running" {
            self.tell_standing(&standing);
        }
        self.tell_events()?;
        self.tell_saved()?;
        self.tell_standing(&standing);
        Ok(standing)
    }

    fn tell_standing(&mut self, standing: &Standing) {
        let now = (standing.words(), standing.run_number);
        if now != self.told {
            let run = now
                .1
                .map(|number| format!("run {number}: "))
                .unwrap_or_default();
            self.narrator.say(format!("{run}{}", now.0));
            self.told = now;
        }
    }

    fn tell_events(&mut self) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Events {
            events: Vec<Event>,
        }
        let seen = self.events.len();
        let path = format!(
            "/api/v1/instances/{}/events?sort_order=asc&limit=100&offset={seen}",
            self.id
        );
        let answer = self.client.get(&path)?.accepted("list events")?;
        for event in read::<Events>(answer)?.events {
            if let Some(message) = event.progress() {
                self.narrator.say(format!("    {message} …"));
            }
            self.events.push(event);
        }
        Ok(())
    }

    fn tell_saved(&mut self) -> Result<(), Error> {
        #[derive(Deserialize)]
        struct Checkpoints {
            checkpoints: Vec<Checkpoint>,
        }
        let path = format!("/api/v1/instances/{}/checkpoints?limit=100", self.id);
        let answer = self.client.get(&path)?.accepted("list checkpoints")?;
        let mut list = read::<Checkpoints>(answer)?.checkpoints;
        // Newest first on the wire.
        list.reverse();
        for checkpoint in list.iter().skip(self.saved.len()) {
            self.narrator
                .say(format!("    saved {}", checkpoint.checkpoint_id));
        }
        self.saved = list;
        Ok(())
    }
}

impl Standing {
    /// Tells whether it is suspended for that reason.
    pub(super) fn waits(&self, reason: &str) -> bool {
        self.status == "suspended" && self.status_reason.as_deref() == Some(reason)
    }

    /// Gives the result.
    pub(super) fn result(&self) -> Option<Value> {
        decoded(self.output.as_ref()?)
    }

    fn words(&self) -> String {
        match &self.status_reason {
            Some(reason) if self.status == "suspended" => format!("suspended ({reason})"),
            _ => self.status.clone(),
        }
    }
}

impl Event {
    /// Gives the text by which the program told its progress, if that is what it is.
    fn progress(&self) -> Option<String> {
        if self.subtype.as_deref() != Some("progress") {
            return None;
        }
        let payload: Value = decoded(self.payload.as_ref()?)?;
        payload
            .get("message")
            .and_then(Value::as_str)
            .map(str::to_owned)
    }
}

/// Tells whether there is such a process and it is no mere zombie.
pub(super) fn is_alive(pid: u32) -> bool {
    // proc(5): the state follows the name, whose closing bracket is the last of the line.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Reads JSON that travels as base64.
fn decoded(text: &str) -> Option<Value> {
    serde_json::from_slice(&STANDARD.decode(text).ok()?).ok()
}

fn run_directories(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(directory.join("runs"))
        .into_iter()
        .flatten()
        .flatten();
    entries.map(|entry| entry.path()).collect()
}

fn read<T: for<'a> Deserialize<'a>>(answer: Value) -> Result<T, Error> {
    let shown = answer.to_string();
    serde_json::from_value(answer)
        .map_err(|error| Error::Unmet(format!("the server answered {shown}: {error}")))
}
