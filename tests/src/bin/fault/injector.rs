//! Does to the servers and their surroundings what may happen to them, as the seed says.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use runtara_tests::processes::{self, Process};

use crate::field::{Field, Notes};
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
}

impl Fault {
    /// How often it comes, relative to others.
    fn weight(self) -> u32 {
        match self {
            Self::KillServer | Self::Failpoint => 6,
            Self::KillProgram | Self::ShimFailpoint => 4,
            Self::RestartServer | Self::KillShim | Self::ResetConnections => 3,
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
            Self::KillNode | Self::LeaveNode => field.nodes.len() > 1,
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

pub(crate) struct Injector<'a> {
    pub(crate) field: Field,
    pub(crate) notes: &'a Notes,
    pub(crate) rng: Rng,
    /// What is done, in place of all that can be.
    pub(crate) only: Vec<Fault>,
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
    }
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
}
