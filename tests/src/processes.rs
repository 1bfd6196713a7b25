//! Which processes there are because of a server: told by what they have of its directory.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::containers;

/// Programs that serve what lies in a directory of a test.
const SERVERS: [&str; 3] = [
    "runtara-environment",
    "runtara-environment-with-failpoints",
    "postgres",
];

/// A process as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its state letter: `Z` is a dead one that nobody has waited for.
    pub state: char,
    /// The words of its command line.
    pub command_line: Vec<String>,
    environment: Vec<u8>,
}

impl Process {
    /// The value of a variable that it was started with.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<String> {
        let prefix = format!("{name}=");
        self.environment
            .split(|byte| *byte == 0)
            .find_map(|pair| pair.strip_prefix(prefix.as_bytes()))
            .map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// All that it was started with: command line and environment.
    #[must_use]
    pub fn words(&self) -> String {
        format!(
            "{} {}",
            self.command_line.join(" "),
            String::from_utf8_lossy(&self.environment)
        )
    }
}

/// All living processes that are there because of this directory.
#[must_use]
pub fn of_directory(directory: &Path) -> Vec<Process> {
    let node = containers::node(directory);
    let node = node.as_deref();
    all()
        .filter(|pid| {
            belongs(*pid, directory) || node.is_some_and(|node| is_of_container(*pid, node))
        })
        .filter_map(read)
        .collect()
}

/// A living process.
#[must_use]
pub fn read(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): the name stands in parentheses and may hold anything; the state comes after the last one.
    let state = stat.rsplit_once(") ")?.1.chars().next()?;
    if matches!(state, 'Z' | 'X') {
        return None;
    }
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = command_line
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .filter(|word| !word.is_empty());
    Some(Process {
        pid,
        state,
        command_line: words.collect(),
        environment: fs::read(format!("/proc/{pid}/environ")).unwrap_or_default(),
    })
}

/// The children of a process, each with its state letter: also dead ones that it has not waited for.
#[must_use]
pub fn children_of(parent: i32) -> Vec<(i32, char)> {
    all()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = stat.rsplit_once(") ")?.1.split(' ');
            let state = fields.next()?.chars().next()?;
            (fields.next()?.parse() == Ok(parent)).then_some((pid, state))
        })
        .collect()
}

/// The first process of each container of a node: that which its program is, or which becomes it.
pub fn first_of_containers(node: &str) -> impl Iterator<Item = i32> {
    let is_first = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        // proc(5): its id in each of the nested namespaces, the innermost last.
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let ids: Vec<_> = ids.unwrap_or_default().split_whitespace().collect();
        ids.len() > 1 && ids.last() == Some(&"1")
    };
    all()
        .filter(is_first)
        .filter(move |pid| is_of_container(*pid, node))
}

/// Whether a process lives; a dead one that nobody has waited for does not.
#[must_use]
pub fn lives(pid: i32) -> bool {
    read(pid).is_some()
}

/// Sends a signal to a process that the caller knows to be its own. One that has gone meanwhile is left alone.
pub fn send(pid: i32, signal: Signal) {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => panic!("cannot send {signal} to process {pid}: {error}"),
    }
}

/// Kills every process that is there because of this directory, and looks again until there is none.
pub fn kill_all(directory: &Path) {
    let me = i32::try_from(std::process::id()).expect("process ids fit");
    for _ in 0..200 {
        let found = of_directory(directory);
        let others: Vec<_> = found.iter().filter(|process| process.pid != me).collect();
        if others.is_empty() {
            return;
        }
        for process in others {
            send(process.pid, Signal::SIGKILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a process is in a container of this server, or makes or removes one. What it has of the host is its cgroup alone.
fn is_of_container(pid: i32, node: &str) -> bool {
    let file = |name: &str, needle: &str| {
        let content = fs::read(format!("/proc/{pid}/{name}"));
        content.is_ok_and(|content| contains(&content, needle.as_bytes()))
    };
    file("cgroup", &format!("/runtara-{node}/")) || file("cmdline", &format!("/runtara/{node}/"))
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Whether a process is there because of a server or a database of this directory, and not because somebody looks at its files:
/// it was started with the directory in its environment, works below its data, or is one of our servers with something of it.
fn belongs(pid: i32, directory: &Path) -> bool {
    let needle = directory.as_os_str().as_bytes();
    let holds = |bytes: &[u8]| contains(bytes, needle);
    let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).is_ok_and(|it| holds(&it));
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let below = |path: &Path| {
        ["data", "postgres"]
            .iter()
            .any(|part| path.starts_with(directory.join(part)))
    };
    if file("environ") || below(&link("cwd")) || below(&link("exe")) {
        return true;
    }
    let program = link("exe");
    // The kernel says so of a program that was built anew meanwhile (proc(5)).
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    if !SERVERS.contains(&name.trim_end_matches(" (deleted)")) {
        return false;
    }
    let open = || {
        let entries = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut entries = entries.into_iter().flatten().flatten();
        entries
            .any(|entry| fs::read_link(entry.path()).is_ok_and(|path| path.starts_with(directory)))
    };
    file("cmdline") || open()
}
