//! What a proof is made on: servers, their database, and what all of its threads know.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use runtara_tests::http::{self, Address, Answer, Request};
use runtara_tests::{PrivatePostgres, Proxy, Server, Setup, SharedDisk, Store};
use serde_json::Value;

use crate::ledger::{self, Broken};
use crate::leftovers::{self, entries, files_below, name_of_file};

/// The program of the servers.
const SERVER: &str = "runtara-environment-with-failpoints";
/// The disk of each server: enough for the images, and small enough to be filled in a moment.
const DISK_MIB: u32 = 768;
/// How much each server keeps of the images that all of them share: less than there are in a long proof.
const CACHE_BYTES: u32 = 64 << 20;
/// More than the age at which anything in the store that servers share is taken for that of somebody who died: a day, for pins.
const OLD: Duration = Duration::from_secs(2 * 24 * 3_600);
/// How long it may take to remove what is not needed any more.
const MAINTAIN_LIMIT: Duration = Duration::from_secs(120);
/// How long a server may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(90);

/// What all threads know and note.
pub(crate) struct Notes {
    broken: Mutex<Vec<Broken>>,
    counts: Mutex<BTreeMap<String, u64>>,
    log: Mutex<File>,
}

impl Notes {
    pub(crate) fn to(log: File) -> Self {
        Self {
            broken: Mutex::default(),
            counts: Mutex::default(),
            log: Mutex::new(log),
        }
    }

    /// Notes that a promise was broken.
    pub(crate) fn broken(&self, broken: Broken) {
        self.say(&format!("BROKEN: {broken:?}"));
        lock(&self.broken).push(broken);
    }

    /// All that was broken.
    pub(crate) fn all_broken(&self) -> Vec<Broken> {
        lock(&self.broken).clone()
    }

    /// Counts one more of something.
    pub(crate) fn count(&self, what: impl Into<String>) {
        *lock(&self.counts).entry(what.into()).or_default() += 1;
    }

    /// What was counted.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        lock(&self.counts).clone()
    }

    /// Writes a line to the log of the proof, with the time as the ledger has it.
    pub(crate) fn say(&self, what: &str) {
        let line = format!("{} {what}\n", now());
        // A log that cannot be written must not end the proof.
        let _unwritten = lock(&self.log).write_all(line.as_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds of CLOCK_BOOTTIME.
pub(crate) fn now() -> u64 {
    nanoseconds_of(ClockId::CLOCK_BOOTTIME)
}

fn nanoseconds_of(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).expect("Linux has this clock");
    u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec()).expect("it is after 1970")
}

/// The database server, and what stands before it.
pub(crate) struct Database {
    pub(crate) postgres: PrivatePostgres,
    pub(crate) proxy: Proxy,
}

/// The servers and their database.
pub(crate) struct Field {
    pub(crate) nodes: Vec<Server>,
    pub(crate) database: Option<Database>,
    /// Where several servers share their images.
    pub(crate) images: Option<SharedDisk>,
    /// Until when a server may refuse to start, because of what was done to its surroundings.
    pub(crate) trouble_until: Instant,
}

impl Field {
    /// Starts it, with so many servers, and waits until all are ready.
    pub(crate) fn start(store: Store, nodes: usize) -> Self {
        let is_shared = store == Store::Postgres && nodes > 1;
        let images = is_shared.then(|| SharedDisk::of(DISK_MIB));
        let started = |setup, number| started(setup, number, images.as_ref());
        let (database, nodes) = match store {
            Store::Sqlite => {
                let setup = Setup::new(Store::Sqlite);
                (None, vec![started(setup, 0)])
            }
            Store::Postgres => {
                let postgres = PrivatePostgres::start();
                let proxy = Proxy::to(postgres.port()).expect("a port is free");
                let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
                let nodes = (0..nodes).map(|number| started(Setup::on(&url), number));
                let nodes = nodes.collect();
                (Some(Database { postgres, proxy }), nodes)
            }
        };
        Self {
            nodes,
            database,
            images,
            trouble_until: Instant::now(),
        }
    }

    /// Where the servers answer.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        self.nodes.iter().map(Server::environment).collect()
    }

    /// What the servers are called in the store.
    pub(crate) fn node_ids(&self) -> Vec<String> {
        self.nodes.iter().filter_map(Server::node_id).collect()
    }

    /// Waits until a server is ready.
    ///
    /// # Errors
    /// If it is not within the time, or leaves.
    pub(crate) fn wait_until_ready(&mut self, node: usize) -> Result<(), String> {
        let end = Instant::now() + READY_LIMIT;
        let server = &mut self.nodes[node];
        let address = server.environment();
        loop {
            if let Some(status) = server.has_left() {
                return Err(format!("it left ({status})"));
            }
            let ready = http::exchange(&address, &Request::get("/ready"));
            if ready.is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("it was not ready within {READY_LIMIT:?}"));
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// The disks that there are: of each server, and the one with the images that they share.
    pub(crate) fn disks(&self) -> Vec<PathBuf> {
        let of_nodes = self.nodes.iter().map(Server::data_dir);
        let shared = self.images.iter().map(SharedDisk::directory);
        of_nodes.chain(shared).collect()
    }

    /// Has the servers remove what they promise to remove from time to time, rather than as soon as nobody needs it: files of runs that others
    /// took over while their server was away, and in the store that servers share what registrations and removals have left that were cut
    /// off. As that goes when it is an hour or a day old, all of it is made to look so. Gives what stood in the way.
    pub(crate) fn tidy(&self) -> Vec<String> {
        let shared = self.images.iter().map(SharedDisk::directory);
        let aged = shared.map(|directory| leftovers::age(&directory, OLD));
        let tidied = self.nodes.iter().map(maintain);
        aged.chain(tidied).filter_map(Result::err).collect()
    }

    /// The lines that guests have written for the ledger, of all their runs.
    pub(crate) fn ledger_of_guests(&self) -> Vec<String> {
        let ahead = nanoseconds_of(ClockId::CLOCK_REALTIME).saturating_sub(now());
        let runs = self.nodes.iter().map(|it| it.data_dir().join("runs"));
        let files = runs.flat_map(|directory| files_below(&directory));
        let logs = files
            .filter(|file| name_of_file(file).starts_with("stderr."))
            .filter_map(|file| fs::read(file).ok());
        logs.flat_map(|log| ledger::of_guest(&String::from_utf8_lossy(&log), ahead))
            .collect()
    }

    /// What of the files of runs is not to be there when they have ended.
    pub(crate) fn left_by_runs(&self) -> Vec<String> {
        let of = |server: &Server| leftovers::of_runs(&server.data_dir());
        self.nodes.iter().flat_map(of).collect()
    }

    /// What is wrong with the store of images that servers share, when nothing runs: what is left in it, and what is missing of the content
    /// with these digests.
    pub(crate) fn wrong_in_shared<'a>(
        &self,
        digests: impl Iterator<Item = &'a str>,
    ) -> Vec<String> {
        let Some(images) = &self.images else {
            return Vec::new();
        };
        let directory = images.directory();
        let mut wrong = leftovers::in_shared(&directory);
        for digest in leftovers::not_in_shared(&directory, digests) {
            wrong.push(format!("in the shared store nothing of: {digest}"));
        }
        wrong
    }

    /// What of the server's files is not to be there when nothing runs.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for server in &self.nodes {
            let remains = server.remains();
            if !remains.is_nothing() {
                left.push(format!("of containers: {remains:?}"));
            }
            for process in server.processes() {
                left.push(format!(
                    "process {}: {}",
                    process.pid,
                    process.command_line.join(" ")
                ));
            }
            for cgroup in server.node_id().iter().flat_map(|node| cgroups_of(node)) {
                left.push(format!("cgroup {}", cgroup.display()));
            }
            // Layers in the making are removed by the next start, as uploads are. But nothing was killed since the servers were started to mend
            // everything, and who is not killed leaves none.
            left.extend(leftovers::of_images(&server.data_dir()));
        }
        left.extend(self.left_by_runs());
        left
    }
}

fn started(mut setup: Setup, number: usize, images: Option<&SharedDisk>) -> Server {
    if let Some(images) = images {
        let url = format!("file://{}", images.directory().display());
        setup = setup
            .variable("RUNTARA_IMAGE_STORE_URL", &url)
            .variable("RUNTARA_IMAGE_CACHE_BYTES", &CACHE_BYTES.to_string());
    }
    setup
        .program(SERVER)
        .with_small_disk(DISK_MIB)
        .variable("RUNTARA_NODE_NAME", &name_of(number))
        .variable("RUNTARA_SLEEP_HOLD_MS", "1000")
        .variable("RUNTARA_MAX_RUNS", "60")
        .variable("RUST_LOG", "info,runtara_scheduler=debug")
        .start()
}

/// What a server is called.
pub(crate) fn name_of(number: usize) -> String {
    format!("node-{number}")
}

/// Has a server remove at once what is not needed any more.
fn maintain(server: &Server) -> Result<(), String> {
    let mut command = server.command("maintain");
    command.args(["--only", "run-files", "--only", "contents"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let end = Instant::now() + MAINTAIN_LIMIT;
    // What it writes is less than a pipe takes.
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > end {
            let _ended_already = child.kill();
        }
        sleep(Duration::from_millis(20));
    }
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let texts = [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
    Err(format!(
        "maintain ended with {}: {}",
        output.status,
        texts.concat()
    ))
}

/// Cgroups of single runs of a node, wherever they are.
fn cgroups_of(node: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let prefix = format!("runtara-{node}-");
    let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((directory, depth)) = open.pop() {
        for entry in entries(&directory).into_iter().filter(|it| it.is_dir()) {
            let name = entry.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(&prefix) {
                found.push(entry);
            } else if depth < 6 {
                open.push((entry, depth + 1));
            }
        }
    }
    found
}

/// What an answer means to who has asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It was done.
    Done,
    /// Something stood in the way, as is documented; ask again.
    Later,
    /// It cannot be done to an instance that stands as this one does.
    Refused,
    /// Nothing that is documented.
    Wrong(String),
}

/// Reads an answer. Of refusals only those are right that the field gives reason for: an instance that stands otherwise by now, and
/// something that is away. The servers have no limits that an ask could meet.
pub(crate) fn meaning(answer: &std::io::Result<Answer>) -> Meaning {
    let Ok(answer) = answer else {
        return Meaning::Later;
    };
    match (answer.status, code(answer).as_deref()) {
        (200..300, _) => Meaning::Done,
        (409, Some("WRONG_STATE")) => Meaning::Refused,
        (503, Some("UNAVAILABLE")) => Meaning::Later,
        _ => Meaning::Wrong(answer.to_string()),
    }
}

/// The code in the body of an error that has the form of every error.
pub(crate) fn code(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    let is_error = body["success"] == false && body["error"].is_string();
    is_error.then(|| body["code"].as_str().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn of(status: u16, body: &str) -> Meaning {
        meaning(&Ok(Answer {
            status,
            headers: Vec::new(),
            body: body.into(),
        }))
    }

    fn error(code: &str) -> String {
        format!(r#"{{"success": false, "error": "why", "code": "{code}"}}"#)
    }

    #[test]
    fn what_is_documented_is_understood() {
        assert_eq!(of(200, "{}"), Meaning::Done);
        assert_eq!(of(201, ""), Meaning::Done);
        assert_eq!(of(409, &error("WRONG_STATE")), Meaning::Refused);
        assert_eq!(of(503, &error("UNAVAILABLE")), Meaning::Later);
        let cut = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(meaning(&Err(cut)), Meaning::Later);
    }

    #[test]
    fn all_else_is_wrong() {
        for (status, body) in [
            (409, error("INSTANCE_EXISTS")),
            (409, error("UNAVAILABLE")),
            (429, error("TOO_MANY_PENDING")),
            (503, error("NODE_UNREACHABLE")),
            (507, error("UNAVAILABLE")),
            (500, error("INTERNAL_ERROR")),
            (404, error("INSTANCE_NOT_FOUND")),
            (503, String::new()),
            (503, "<html>".to_owned()),
            (503, r#"{"code": "UNAVAILABLE"}"#.to_owned()),
        ] {
            let found = of(status, &body);
            assert!(matches!(found, Meaning::Wrong(_)), "{status} {body}");
        }
    }
}
