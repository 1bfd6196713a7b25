//! Does to the servers and their surroundings what may happen to them, as the seed says.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use runtara_tests::http::{Request, exchange};
use runtara_tests::processes::{self, Process};
use serde_json::{Value, json};

use crate::field::{Field, Meaning, Notes, code, meaning, name_of};
use crate::ledger::Broken;

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Fault {
    /// kill -9 of a server, which comes back at once or after a while.
    KillServer,
    /// A server kills itself at a named point.
    Failpoint,
    /// Shims kill themselves at named points.
    ShimFailpoint,
    /// SIGTERM to a server, and a new one.
    RestartServer,
    /// SIGSTOP of a server, and SIGCONT after a while.
    FreezeServer,
    /// kill -9 of a shim.
    KillShim,
    /// kill -9 of the process that forks shims.
    KillLauncher,
    /// kill -9 of a program.
    KillProgram,
    /// The disk of a server is full for a while, or the one on which they share their images.
    FillDisk,
    /// kill -9 of the first process of PostgreSQL.
    KillPostgres,
    /// kill -9 of a process of PostgreSQL that serves a connection.
    KillBackend,
    /// PostgreSQL is restarted in good order.
    RestartPostgres,
    /// PostgreSQL is restarted as after a crash.
    CrashPostgres,
    /// All connections to the database are cut.
    ResetConnections,
    /// The database is slow for a while.
    SlowDatabase,
    /// The database lets nobody in for a while.
    RefuseConnections,
    /// Another server is killed, and stays away for some time.
    KillNode,
    /// Another server leaves in good order, and stays away for some time.
    LeaveNode,
    /// A server is drained: it takes nothing new for some time, and hands over what runs on it.
    DrainNode,
}

impl Fault {
    /// How often it comes, relative to others.
    fn weight(self) -> u32 {
        match self {
            Self::KillServer | Self::Failpoint => 6,
            Self::KillProgram | Self::ShimFailpoint => 4,
            Self::RestartServer | Self::KillShim | Self::ResetConnections | Self::DrainNode => 3,
            Self::FreezeServer | Self::FillDisk | Self::SlowDatabase => 2,
            _ => 1,
        }
    }

    fn is_possible(self, field: &Field) -> bool {
        match self {
            Self::KillPostgres
            | Self::KillBackend
            | Self::RestartPostgres
            | Self::CrashPostgres
            | Self::ResetConnections
            | Self::SlowDatabase
            | Self::RefuseConnections => field.database.is_some(),
            Self::KillNode | Self::LeaveNode | Self::DrainNode => field.nodes.len() > 1,
            _ => true,
        }
    }
}

/// Points of a server, and within how many passings one is met. What is passed often is met late.
const POINTS: [(&str, u32); 16] = [
    ("after_claim", 6),
    ("before_launch", 8),
    ("after_launch", 8),
    ("before_exit_record", 8),
    ("after_exit_record", 8),
    ("store_writing", 60),
    ("store_committed", 60),
    ("redo_written", 60),
    ("redo_taken_over", 40),
    ("mid_upload", 6),
    ("upload_whole", 2),
    ("upload_placed", 2),
    ("mid_unpack", 40),
    ("unpack_whole", 2),
    ("shutdown_begun", 1),
    ("shutdown_runs_left", 1),
];
/// Points of shims.
const SHIM_POINTS: [&str; 4] = [
    "shim_started",
    "shim_exit_unwritten",
    "shim_exit_aside",
    "shim_exit_placed",
];

/// How long after a thaw a guard may still be about to kill: it waits this much longer than the server.
const GUARD_LIMIT: Duration = Duration::from_secs(1);

/// How long a claim may be under way that was made before a server was told to take nothing new.
const CLAIM_LIMIT: Duration = Duration::from_secs(3);

/// How long a server may be asked in the end to work again that was drained.
const UNDRAIN_LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Injector<'a> {
    pub(crate) field: Field,
    pub(crate) notes: &'a Notes,
    pub(crate) rng: Rng,
    /// What is done, in place of all that can be.
    pub(crate) only: Vec<Fault>,
    /// The server that is drained: never more than one, while all else that happens goes on.
    pub(crate) drained: Option<Drained>,
}

/// A server that is drained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drained {
    node: usize,
    since: Instant,
    until: Instant,
    /// How many runs it had when it was looked at for the first time.
    runs: Option<u64>,
}

/// What became of an order to drain a server, or to have it work again.
enum Ordered {
    /// It was done; this is known of the server now.
    Done(Value),
    /// The server is not on the list of nodes: it has left in good order, and did not come back yet.
    NotListed,
    /// It could not be done now.
    Later,
}

impl Injector<'_> {
    /// Injects until this moment, and then mends everything.
    pub(crate) fn run(mut self, until: Instant, pause: std::ops::Range<u64>) -> Field {
        let faults: Vec<_> = <Fault as clap::ValueEnum>::value_variants()
            .iter()
            .copied()
            .filter(|fault| self.only.is_empty() || self.only.contains(fault))
            .filter(|fault| fault.is_possible(&self.field))
            .flat_map(|fault| std::iter::repeat_n(fault, fault.weight() as usize))
            .collect();
        while !faults.is_empty() && Instant::now() < until {
            self.wait(pause.clone());
            let fault = faults[self.rng.usize(..faults.len())];
            self.inject(fault);
        }
        while Instant::now() < until {
            self.wait(100..101);
        }
        self.mend();
        self.field
    }

    /// Waits, and starts servers again that have killed themselves meanwhile.
    fn wait(&mut self, millis: std::ops::Range<u64>) {
        let end = Instant::now() + Duration::from_millis(self.rng.u64(millis));
        loop {
            for node in 0..self.field.nodes.len() {
                self.look_after(node, false);
            }
            self.undrain_if_due();
            if Instant::now() >= end {
                return;
            }
            sleep(Duration::from_millis(50));
        }
    }

    /// Starts a server again that has left by itself, or was killed by its guard if that may be.
    fn look_after(&mut self, node: usize, guard_may_kill: bool) {
        let Some(status) = self.field.nodes[node].has_left() else {
            return;
        };
        let log = self.field.nodes[node].log();
        let end = &log[log.floor_char_boundary(log.len().saturating_sub(4_000))..];
        let point = end
            .lines()
            .rev()
            .take(5)
            .find_map(|line| line.strip_prefix("killed at the point "));
        match point {
            Some(point) if status.signal() == Some(9) => {
                self.notes.count(format!("point: {point}"));
                self.notes
                    .say(&format!("node {node} was killed at {point}"));
            }
            _ if guard_may_kill && status.signal() == Some(9) => {
                self.notes.count("a frozen server was killed by its guard");
                self.notes
                    .say(&format!("node {node} was killed by its guard"));
            }
            _ if Instant::now() < self.field.trouble_until && status.code() == Some(1) => {
                self.notes
                    .count("a server could not start while its surroundings were broken");
                self.notes.say(&format!("node {node} could not start"));
                sleep(Duration::from_millis(500));
            }
            _ => {
                let what = format!("node {node} left by itself ({status}): …{end}");
                self.notes.broken(Broken::at_large(what));
            }
        }
        self.start(node, None);
    }

    /// Starts a server, which is to kill itself at some point.
    fn start(&mut self, node: usize, failpoints: Option<&str>) {
        let server = &mut self.field.nodes[node];
        match failpoints {
            Some(settings) => server.set_variable("FAILPOINTS", settings),
            None => server.unset_variable("FAILPOINTS"),
        }
        server.spawn_again();
    }

    fn kill(&mut self, node: usize) {
        // It may just have killed itself.
        if self.field.nodes[node].has_left().is_none() {
            self.field.nodes[node].kill_9();
        }
    }

    fn node(&mut self) -> usize {
        self.rng.usize(..self.field.nodes.len())
    }

    fn seconds(&mut self, from: f64, to: f64) -> Duration {
        Duration::from_secs_f64(from + self.rng.f64() * (to - from))
    }

    fn troubles(&mut self, time: Duration) {
        self.field.trouble_until = Instant::now() + time + Duration::from_secs(10);
    }

    fn inject(&mut self, fault: Fault) {
        self.notes.say(&format!("{fault:?}"));
        let done = match fault {
            Fault::KillServer => {
                let node = self.node();
                self.kill(node);
                if self.rng.bool() {
                    let away = self.seconds(0.0, 3.0);
                    sleep(away);
                }
                self.start(node, None);
                true
            }
            Fault::Failpoint | Fault::ShimFailpoint => self.arm(fault == Fault::ShimFailpoint),
            Fault::RestartServer => self.restart_server(),
            Fault::FreezeServer => self.freeze_server(),
            Fault::KillShim => self.kill_one(|process| is_named(process, "runtara-shim")),
            Fault::KillLauncher => self.kill_one(|process| is_named(process, "runtara-launch")),
            Fault::KillProgram => {
                self.kill_one(|process| process.variable("RUNTARA_INSTANCE_ID").is_some())
            }
            Fault::FillDisk => self.fill_disk(),
            Fault::KillNode | Fault::LeaveNode => self.leave_node(fault == Fault::KillNode),
            Fault::DrainNode => self.drain_node(),
            of_database => self.inject_database(of_database),
        };
        if done {
            self.notes.count(format!("fault: {fault:?}"));
        } else {
            self.notes.say("it was not possible now");
        }
    }

    fn freeze_server(&mut self) -> bool {
        let (node, time) = (self.node(), self.seconds(0.5, 12.0));
        let server = &self.field.nodes[node];
        server.signal(Signal::SIGSTOP);
        sleep(time);
        server.signal(Signal::SIGCONT);
        // One of several that could not renew its lease for so long is killed by its own guard, as is documented.
        if self.field.nodes.len() > 1 {
            let end = Instant::now() + GUARD_LIMIT;
            while Instant::now() < end {
                self.look_after(node, true);
                sleep(Duration::from_millis(20));
            }
        }
        true
    }

    /// Has a server start that kills itself at some point, or shims.
    fn arm(&mut self, shims: bool) -> bool {
        let node = self.node();
        let settings = if shims {
            let point = SHIM_POINTS[self.rng.usize(..SHIM_POINTS.len())];
            format!("{point}={}%return(kill)", self.rng.u32(10..60))
        } else {
            let (point, most) = POINTS[self.rng.usize(..POINTS.len())];
            match self.rng.u32(0..most) {
                0 => format!("{point}=1*return(kill)"),
                passings => format!("{point}={passings}*off->1*return(kill)"),
            }
        };
        self.notes.say(&settings);
        self.kill(node);
        self.start(node, Some(&settings));
        if settings.starts_with("shutdown") {
            let time = self.seconds(0.5, 3.0);
            sleep(time);
            if self.field.nodes[node].has_left().is_none() {
                self.field.nodes[node].signal(Signal::SIGTERM);
                let end = Instant::now() + Duration::from_secs(30);
                while Instant::now() < end && processes::lives(self.field.nodes[node].pid()) {
                    sleep(Duration::from_millis(20));
                }
                // As after every leave it did not ask for itself.
                if self.field.nodes[node].has_left().is_none() {
                    self.field.nodes[node].kill_9();
                }
            }
            self.notes.count("point: at the shutdown");
            self.start(node, None);
        }
        true
    }

    fn restart_server(&mut self) -> bool {
        let node = self.node();
        if self.field.nodes[node].has_left().is_some() {
            self.start(node, None);
            return false;
        }
        let status = self.field.nodes[node].sigterm();
        let is_at_a_point = status.signal() == Some(9);
        if !status.success() && !is_at_a_point && Instant::now() > self.field.trouble_until {
            let what = format!("node {node} was asked to leave, and did so with {status}");
            self.notes.broken(Broken::at_large(what));
        }
        self.start(node, None);
        true
    }

    fn leave_node(&mut self, killed: bool) -> bool {
        let node = 1 + self.rng.usize(..self.field.nodes.len() - 1);
        if !can_be_spared(node, self.drained_node(), self.field.nodes.len()) {
            return false;
        }
        if killed {
            self.kill(node);
        } else if self.field.nodes[node].has_left().is_none() {
            self.field.nodes[node].sigterm();
        }
        let away = self.seconds(1.0, 25.0);
        sleep(away);
        self.start(node, None);
        true
    }

    fn drained_node(&self) -> Option<usize> {
        self.drained.map(|drained| drained.node)
    }

    /// Has a server drained; it works again when its time is over, whatever happens meanwhile.
    fn drain_node(&mut self) -> bool {
        let node = self.node();
        let (hand_over, time) = (self.rng.u64(0..5), self.seconds(4.0, 15.0));
        if self.drained.is_some() {
            return false;
        }
        let order = json!({ "hand_over_after_seconds": hand_over });
        let ordered = self.order(node, &order);
        let since = Instant::now();
        let mut drained = Drained {
            node,
            since,
            until: since,
            runs: None,
        };
        let Ordered::Done(known) = ordered else {
            // As when an answer is lost, it may be drained all the same.
            self.drained = Some(drained);
            return false;
        };
        let runs = known["live_runs"].as_u64().unwrap_or_default();
        self.notes.say(&format!(
            "node {node} is drained for {time:?}, and hands {runs} runs over within {hand_over} s"
        ));
        if runs > 0 {
            self.notes.count("a server with runs on it was drained");
        }
        drained.until = since + time;
        self.drained = Some(drained);
        true
    }

    /// Looks whether the server that is drained has taken anything new.
    fn look_at_drained(&mut self) {
        let Some(drained) = self.drained else {
            return;
        };
        let asked = self.node();
        let asked = self.field.nodes[asked].environment();
        let answer = exchange(&asked, &Request::get("/api/v1/nodes"));
        let (Meaning::Done, Ok(answer)) = (meaning(&answer), answer) else {
            return;
        };
        let body = serde_json::from_slice(&answer.body).unwrap_or_default();
        let Some(runs) = runs_of_drained(&body, &name_of(drained.node)) else {
            return;
        };
        match drained.runs {
            None => {
                self.drained = Some(Drained {
                    runs: Some(runs),
                    ..drained
                });
            }
            Some(before) if runs > before => {
                let node = drained.node;
                let what =
                    format!("node {node} is drained and had {before} runs, and has {runs} now");
                self.notes.broken(Broken::at_large(what));
            }
            Some(_) => self.notes.count("a drained server took nothing new"),
        }
    }

    /// Has the server that is drained work again when its time is over; if that cannot be done now, the next time.
    fn undrain_if_due(&mut self) {
        let Some(drained) = self.drained else {
            return;
        };
        if drained.until > Instant::now() {
            if drained.runs.is_none() && drained.since.elapsed() > CLAIM_LIMIT {
                self.look_at_drained();
            }
            return;
        }
        if drained.runs.is_some() {
            self.look_at_drained();
        }
        let node = drained.node;
        match self.order(node, &json!({ "drain": false })) {
            Ordered::Done(_) => self.notes.say(&format!("node {node} works again")),
            // It had left in good order before it was told, and works when it comes back.
            Ordered::NotListed => self.notes.say(&format!(
                "node {node}, which was drained, has left meanwhile"
            )),
            Ordered::Later => return,
        }
        self.drained = None;
    }

    /// Orders that of a server, by any of them, as `runtara node drain` and `undrain` do.
    fn order(&mut self, node: usize, order: &Value) -> Ordered {
        let path = format!("/api/v1/nodes/{}/drain", name_of(node));
        let asked = self.node();
        let asked = self.field.nodes[asked].environment();
        let answer = exchange(&asked, &Request::post(&path, order));
        if let Ok(answer) = &answer
            && answer.status == 404
            && code(answer).as_deref() == Some("NODE_NOT_FOUND")
        {
            return Ordered::NotListed;
        }
        match (meaning(&answer), answer) {
            (Meaning::Done, Ok(answer)) => {
                Ordered::Done(serde_json::from_slice(&answer.body).unwrap_or_default())
            }
            (Meaning::Refused | Meaning::Wrong(_), Ok(answer)) => {
                let what = format!("{order} of node {node} was answered with {answer}");
                self.notes.broken(Broken::at_large(what));
                Ordered::Later
            }
            _ => Ordered::Later,
        }
    }

    /// Kills one of the processes that are so.
    fn kill_one(&mut self, is_wanted: impl Fn(&Process) -> bool) -> bool {
        let mut found: Vec<_> = self
            .field
            .nodes
            .iter()
            .flat_map(|server| {
                let server_pid = server.pid();
                let mut all = server.processes();
                all.extend(
                    processes::children_of(server_pid)
                        .into_iter()
                        .filter_map(|(pid, _)| processes::read(pid)),
                );
                all.retain(|process| process.pid != server_pid);
                all
            })
            .filter(is_wanted)
            .collect();
        found.sort_by_key(|process| process.pid);
        if found.is_empty() {
            return false;
        }
        let process = &found[self.rng.usize(..found.len())];
        self.notes.say(&format!(
            "process {} of {:?}",
            process.pid,
            process.variable("RUNTARA_INSTANCE_ID")
        ));
        processes::send(process.pid, Signal::SIGKILL);
        true
    }

    fn fill_disk(&mut self) -> bool {
        let disks = self.field.disks();
        let (number, time) = (self.rng.usize(..disks.len()), self.seconds(0.5, 5.0));
        self.troubles(time);
        if number == self.field.nodes.len() {
            self.notes.count("the disk with the shared images was full");
        }
        let path = disks[number].join("filler");
        if let Ok(mut file) = File::create(&path) {
            for size in [1 << 20, 1 << 12, 1] {
                let piece = vec![0; size];
                while file.write_all(&piece).is_ok() {}
            }
        }
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.wait(100..200);
        }
        let _gone = fs::remove_file(&path);
        true
    }

    fn inject_database(&mut self, fault: Fault) -> bool {
        let time = self.seconds(0.5, 6.0);
        let delay = Duration::from_millis(self.rng.u64(20..400));
        self.troubles(time + Duration::from_secs(20));
        let Some(database) = &self.field.database else {
            return false;
        };
        let (postgres, proxy) = (&database.postgres, &database.proxy);
        match fault {
            Fault::KillPostgres => {
                processes::send(postgres.pid(), Signal::SIGKILL);
                // Its processes see that they are alone, and leave.
                sleep(time / 2);
                postgres.start_again();
            }
            Fault::KillBackend => {
                let children = processes::children_of(postgres.pid());
                let backends = children.iter().filter_map(|(pid, _)| processes::read(*pid));
                let mut backends =
                    backends.filter(|it| it.command_line.join(" ").contains("127.0.0.1("));
                match backends.next() {
                    Some(backend) => processes::send(backend.pid, Signal::SIGKILL),
                    None => return false,
                }
            }
            Fault::RestartPostgres => postgres.restart(),
            Fault::CrashPostgres => {
                postgres.crash();
                sleep(time / 2);
                postgres.start_again();
            }
            Fault::ResetConnections => proxy.reset(),
            Fault::SlowDatabase => {
                proxy.delay(delay);
                sleep(time);
                proxy.delay(Duration::ZERO);
            }
            Fault::RefuseConnections => {
                proxy.refuse(true);
                proxy.reset();
                sleep(time);
                proxy.refuse(false);
            }
            _ => return false,
        }
        true
    }

    /// Has everything be as it should, with servers that were started in good order.
    fn mend(&mut self) {
        self.notes.say("mending");
        for node in 0..self.field.nodes.len() {
            self.kill(node);
            self.start(node, None);
            if let Err(what) = self.field.wait_until_ready(node) {
                let what = format!("node {node} does not come back: {what}");
                self.notes.broken(Broken::at_large(what));
            }
        }
        let end = Instant::now() + UNDRAIN_LIMIT;
        if let Some(drained) = &mut self.drained {
            drained.until = Instant::now();
        }
        while self.drained.is_some() && Instant::now() < end {
            self.undrain_if_due();
            sleep(Duration::from_millis(50));
        }
        if let Some(node) = self.drained_node() {
            let what = format!("node {node}, which was drained, cannot be told to work again");
            self.notes.broken(Broken::at_large(what));
        }
    }
}

/// How many runs a server has that is being drained; `None` if it is not, as far as the list of nodes says.
fn runs_of_drained(list: &Value, name: &str) -> Option<u64> {
    let mut nodes = list["nodes"].as_array()?.iter();
    let found = nodes.find(|node| node["name"] == name && node["state"] == "draining")?;
    found["live_runs"].as_u64()
}

/// Whether a server may be away for long: another one must be there that takes work.
fn can_be_spared(node: usize, drained: Option<usize>, nodes: usize) -> bool {
    (0..nodes).any(|other| other != node && Some(other) != drained)
}

fn is_named(process: &Process, name: &str) -> bool {
    let found = fs::read_to_string(format!("/proc/{}/comm", process.pid));
    found.is_ok_and(|found| found.trim_end() == name)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_fault_comes_sometimes() {
        assert!(Fault::value_variants().iter().all(|it| it.weight() > 0));
    }

    #[test]
    fn runs_are_counted_of_who_is_drained_alone() {
        let node = |name, state| json!({"name": name, "state": state, "live_runs": 3});
        let list = json!({"nodes": [node("node-0", "alive"), node("node-1", "draining")]});
        assert_eq!(runs_of_drained(&list, "node-1"), Some(3));
        assert_eq!(runs_of_drained(&list, "node-0"), None);
        assert_eq!(runs_of_drained(&list, "node-2"), None);
        assert_eq!(runs_of_drained(&json!({}), "node-1"), None);
    }

    #[test]
    fn a_server_is_away_only_where_another_one_works() {
        assert!(can_be_spared(1, None, 2));
        assert!(can_be_spared(1, Some(1), 2));
        assert!(!can_be_spared(1, Some(0), 2));
        assert!(can_be_spared(1, Some(0), 3));
        assert!(!can_be_spared(0, None, 1));
    }
}
