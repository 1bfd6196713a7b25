//! What tests do with one instance again and again.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::database::Kind;
use crate::http::{Answer, Connection, Request};
use crate::processes::Process;
use crate::server::Server;
use crate::verbs::{EFFECTS, from_base64};
use crate::wait::{DEADLINE, eventually, eventually_within};

/// The verbs of one instance.
pub struct Run<'a> {
    /// Its server.
    pub server: &'a Server,
    /// Its id.
    pub id: String,
}

impl Run<'_> {
    fn path(&self, rest: &str) -> String {
        format!("/api/v1/instances/{}{rest}", self.id)
    }

    /// Asks for something of the instance.
    #[must_use]
    #[track_caller]
    pub fn get(&self, rest: &str) -> Answer {
        self.server.ask(&Request::get(&self.path(rest)))
    }

    /// Sends something to the instance.
    #[must_use]
    #[track_caller]
    pub fn post(&self, rest: &str, body: &Value) -> Answer {
        self.server.ask(&Request::post(&self.path(rest), body))
    }

    /// Where it stands.
    #[must_use]
    #[track_caller]
    pub fn status(&self) -> Value {
        self.get("").expect(200)
    }

    /// Waits until it has this status, and gives all that is told with it.
    ///
    /// # Panics
    /// If it does not come, or another end does; with what is known of the instance.
    #[track_caller]
    pub fn wait_for(&self, status: &str) -> Value {
        self.wait_within(DEADLINE, status)
    }

    /// Waits that long until it has this status.
    ///
    /// # Panics
    /// If it does not come, or another end does; with what is known of the instance.
    #[track_caller]
    pub fn wait_within(&self, limit: Duration, status: &str) -> Value {
        self.wait_until_within(limit, &format!("status '{status}'"), |found| {
            found["status"] == status
        })
    }

    /// Waits until it is suspended for this reason.
    #[track_caller]
    pub fn wait_for_reason(&self, reason: &str) -> Value {
        self.wait_until(&format!("reason '{reason}'"), |found| {
            found["status_reason"] == reason
        })
    }

    /// Waits until what is told of it is as wanted.
    #[track_caller]
    pub fn wait_until(&self, what: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait_until_within(DEADLINE, what, is_wanted)
    }

    /// Waits that long until what is told of it is as wanted.
    ///
    /// # Panics
    /// If it does not come, or an end does; with what is known of the instance.
    #[track_caller]
    pub fn wait_until_within(
        &self,
        limit: Duration,
        what: &str,
        is_wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let is_end = |found: &Value| {
            ["completed", "failed", "cancelled"]
                .iter()
                .any(|end| found["status"] == *end)
        };
        let look = || {
            let found = self.status();
            if is_wanted(&found) || is_end(&found) {
                Ok(found)
            } else {
                Err(found)
            }
        };
        let end = std::time::Instant::now() + limit;
        loop {
            match look() {
                Ok(found) if is_wanted(&found) => return found,
                Ok(found) => panic!(
                    "instance '{}' came to another end than {what}: {found:#}\n{}",
                    self.id,
                    self.story()
                ),
                Err(found) if std::time::Instant::now() >= end => panic!(
                    "instance '{}': {what} did not come within {limit:?}: {found:#}\n{}",
                    self.id,
                    self.story()
                ),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Waits for its completion and gives what it wrote to standard output.
    #[track_caller]
    pub fn stdout(&self) -> String {
        self.wait_for("completed");
        self.logs("stream=stdout").text()
    }

    /// Waits for its completion and gives its output.
    #[track_caller]
    pub fn output(&self) -> Value {
        let found = self.wait_for("completed");
        let text = from_base64(&found["output"]);
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("the output is not JSON: {text}"))
    }

    /// Waits until it has written a line to standard output that begins so, and gives the line.
    #[track_caller]
    pub fn wait_for_line(&self, start: &str) -> String {
        eventually(&format!("a line '{start}…' of '{}'", self.id), || {
            let text = self.logs("stream=stdout").text();
            // A line that is still being written has no end.
            let mut lines = text.split_inclusive('\n');
            let line = lines.find(|line| line.starts_with(start) && line.ends_with('\n'));
            line.map(|line| line.trim_end().to_owned()).ok_or(text)
        })
    }

    /// Its events in their order, all of them.
    #[must_use]
    #[track_caller]
    pub fn events(&self) -> Vec<Value> {
        let body = self.get("/events?sort_order=asc&limit=1000").expect(200);
        body["events"].as_array().expect("it is a list").clone()
    }

    /// Type and subtype of its events in their order.
    #[must_use]
    #[track_caller]
    pub fn event_names(&self) -> Vec<String> {
        let name = |event: &Value| {
            let kind = event["event_type"].as_str().unwrap_or("?");
            match event["subtype"].as_str() {
                Some(subtype) => format!("{kind}/{subtype}"),
                None => kind.to_owned(),
            }
        };
        self.events().iter().map(name).collect()
    }

    /// The effects that were noted: of this instance if it is a guest, else of all that note them on this server.
    #[must_use]
    #[track_caller]
    pub fn effects(&self) -> Vec<String> {
        if self.server.kind() != Kind::Wasm {
            return self.server.shared().lines(EFFECTS);
        }
        let text = |event: &Value| {
            let payload = from_base64(&event["payload"]);
            serde_json::from_str(&payload).unwrap_or_else(|_| panic!("no effect: {payload}"))
        };
        let events = self.events();
        let effects = events.iter().filter(|event| event["subtype"] == EFFECTS);
        effects.map(text).collect()
    }

    /// Its checkpoints in the order in which they were saved.
    #[must_use]
    #[track_caller]
    pub fn checkpoints(&self) -> Vec<String> {
        let body = self.get("/checkpoints?limit=1000").expect(200);
        let rows = body["checkpoints"].as_array().expect("it is a list");
        let mut ids: Vec<String> = rows
            .iter()
            .map(|row| {
                row["checkpoint_id"]
                    .as_str()
                    .expect("an id is a text")
                    .to_owned()
            })
            .collect();
        ids.reverse();
        ids
    }

    /// What its newest run, or the one given, wrote to a stream.
    #[must_use]
    #[track_caller]
    pub fn logs(&self, query: &str) -> Answer {
        self.get(&format!("/logs?{query}"))
    }

    /// Sends it a signal.
    #[must_use]
    #[track_caller]
    pub fn signal(&self, signal: &str) -> Answer {
        self.post(
            "/signals",
            &json!({ "signal_type": signal, "payload": null }),
        )
    }

    /// Sends it a custom signal.
    #[track_caller]
    pub fn custom_signal(&self, signal_id: &str, payload: &str) {
        let body = json!({ "checkpoint_id": signal_id, "payload": payload });
        let answer = self.post("/signals/custom", &body);
        assert_eq!(answer.expect(200)["success"], true, "{answer}");
    }

    /// Resumes it.
    #[track_caller]
    pub fn resume(&self) {
        let answer = self
            .server
            .ask(&Request::new("POST", &self.path("/resume")));
        assert_eq!(answer.expect(200)["success"], true, "{answer}");
    }

    /// Stops it.
    #[must_use]
    #[track_caller]
    pub fn stop(&self, grace_seconds: u64) -> Value {
        let body = json!({ "reason": "the test says so", "grace_period_seconds": grace_seconds });
        self.post("/stop", &body).expect(200)
    }

    /// The processes that run its program.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        self.server.processes_of(&self.id)
    }

    /// Waits until its program runs.
    #[track_caller]
    pub fn wait_until_it_runs(&self) {
        match self.server.kind() {
            Kind::Wasm => drop(self.wait_for("running")),
            Kind::Native | Kind::Containers => drop(self.wait_for_process()),
        }
    }

    /// Waits until its program runs, and gives its process. Guests have none.
    #[must_use]
    #[track_caller]
    pub fn wait_for_process(&self) -> Process {
        eventually(&format!("a process of '{}'", self.id), || {
            self.processes().into_iter().next().ok_or("none")
        })
    }

    /// The token of its live run, in the path by which it speaks: `/r/<token>`. With it a test can speak for it.
    ///
    /// # Panics
    /// If no process of it comes.
    #[must_use]
    #[track_caller]
    pub fn token_path(&self) -> String {
        let process = self.wait_for_process();
        let url = process
            .variable("RUNTARA_HTTP_URL")
            .expect("every program is given it");
        let path = url.split_once("/r/").expect("the URL holds the token").1;
        format!("/r/{path}")
    }

    /// Speaks for it, with the token in this path.
    #[must_use]
    #[track_caller]
    pub fn say_with(&self, token_path: &str, call: &str, body: &Value) -> Answer {
        let path = format!("{token_path}/api/v1/instances/{}/{call}", self.id);
        self.server.ask_core(&Request::post(&path, body))
    }

    /// Asks for it, with the token in this path.
    #[must_use]
    #[track_caller]
    pub fn look_with(&self, token_path: &str, call: &str) -> Answer {
        let path = format!("{token_path}/api/v1/instances/{}/{call}", self.id);
        self.server.ask_core(&Request::get(&path))
    }

    /// Whether nothing runs of it: there is no process of it, or, as guests have none, its run is over as the server tells, which ends
    /// what is followed of its output.
    #[must_use]
    #[track_caller]
    pub fn is_gone(&self) -> bool {
        match self.server.kind() {
            Kind::Native | Kind::Containers => self.processes().is_empty(),
            Kind::Wasm => self.is_over(Duration::from_millis(500)),
        }
    }

    /// Whether its newest run is over within that time. The output of one that has written nothing is not there until then.
    fn is_over(&self, patience: Duration) -> bool {
        let path = self.path("/logs?stream=stdout&follow=true");
        let connection = Connection::open(&self.server.environment());
        let mut connection = connection.expect("the port is served");
        let patience = connection.set_patience(patience);
        patience.expect("a time can be set");
        let answer = connection.exchange(&Request::get(&path));
        answer.is_ok_and(|answer| answer.status == 200)
    }

    /// Waits until no process of it is left; of a guest, until its run is over.
    #[track_caller]
    pub fn wait_until_no_process(&self) {
        if self.server.kind() == Kind::Wasm {
            let what = format!("the end of the run of '{}'", self.id);
            return eventually(&what, || match self.is_over(DEADLINE) {
                true => Ok(()),
                false => Err(self.status()),
            });
        }
        eventually_within(
            DEADLINE,
            &format!("the end of the processes of '{}'", self.id),
            || {
                let found = self.processes();
                if found.is_empty() { Ok(()) } else { Err(found) }
            },
        );
    }

    /// All that the server tells of it, for a failure's text.
    #[must_use]
    pub fn story(&self) -> String {
        let ask = |rest: &str| {
            let request = Request::get(&self.path(rest));
            crate::http::exchange(&self.server.environment(), &request)
                .map_or_else(|error| error.to_string(), |answer| answer.text())
        };
        let events: Value =
            serde_json::from_str(&ask("/events?sort_order=asc")).unwrap_or_default();
        let mut story = String::from("its events:\n");
        for event in events["events"].as_array().into_iter().flatten() {
            let payload = event["payload"].as_str().map(|text| STANDARD.decode(text));
            let payload = payload.and_then(Result::ok).unwrap_or_default();
            story.push_str(&format!(
                "  run {} {} {} {}\n",
                event["run_number"],
                event["event_type"],
                event["subtype"],
                String::from_utf8_lossy(&payload)
            ));
        }
        story.push_str(&format!("its stdout:\n{}\n", ask("/logs?stream=stdout")));
        story.push_str(&format!("its stderr:\n{}\n", ask("/logs?stream=stderr")));
        story
    }
}
