//! The guard of a node: a small process that ends the node's runs if the server cannot keep its lease, whatever the server does.
//!
//! Where several nodes share a database, the runs of one that has not renewed its lease are taken over by the others. So they must have
//! ended by then. The server does that itself, if it can; the guard is there for a server that hangs, was stopped, or has died. It waits
//! with one thread and little memory, knows nothing of the database, and goes by CLOCK_BOOTTIME, which goes on while the machine is
//! suspended.
//!
//! The server tells it, after each renewal, until when the runs may live, and may tell it that it ends them itself. When the moment
//! comes without either, the guard kills the server, so that nothing more is launched and the guests within it end. Then it has every run
//! of the data directory ended that still lives. A server that has died is survived by its guard: if no other server has taken the node over by then, its
//! runs are ended in the same way. By the file `guard` in the data directory a guard knows whether another has come after it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use runtara_domain::EndedBy;

use super::files::read_bounded;
use super::launcher::settle;
use super::look::{Seen, see};
use super::process::{Stat, ends_within};
use super::request::{REQUEST_SIGNAL, Request};
use super::sys;
use crate::RunDirectory;

/// By this name of its own, and by the socket that is its standard input, a process knows that it is meant to be a guard.
pub(crate) const NAME: &str = "runtara-guard";
/// Names the data directory that it guards.
pub(crate) const DIRECTORY_VARIABLE: &str = "RUNTARA_GUARD_DIRECTORY";
/// Names the process of the server.
pub(crate) const SERVER_VARIABLE: &str = "RUNTARA_GUARD_SERVER";
/// The file that names the guard of a data directory.
const FILE: &str = "guard";
/// The file by which a guard leaves word of what it did: its standard output and error lead nowhere.
const ACTED: &str = "guard-acted";
/// Every word has this length: what it is, and a moment in milliseconds on CLOCK_BOOTTIME.
pub(crate) const WORD_BYTES: usize = 9;
/// How much longer than the server it waits: the server's own attempt is the gentler one.
const LATER: Duration = Duration::from_millis(1_000);
/// How long a shim has to end its run before it is killed itself.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long all runs may take to end. What lives on then cannot be killed.
const ALL: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What a server tells its guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// Runs may live until this moment.
    Until(u64),
    /// The runs that could live until this moment are being ended; those within the server have, and nothing will be launched.
    Ending(u64),
    /// All of them have ended.
    Ended(u64),
    /// There is nothing to guard any more.
    Leave,
}

impl Word {
    pub(crate) fn pack(self) -> [u8; WORD_BYTES] {
        let (kind, moment) = match self {
            Self::Until(moment) => (1, moment),
            Self::Ending(moment) => (2, moment),
            Self::Ended(moment) => (3, moment),
            Self::Leave => (4, 0),
        };
        let mut word = [kind; WORD_BYTES];
        word[1..].copy_from_slice(&moment.to_ne_bytes());
        word
    }

    fn unpack(word: &[u8]) -> Option<Self> {
        let (kind, moment) = word.split_first()?;
        let moment = u64::from_ne_bytes(moment.try_into().ok()?);
        match kind {
            1 => Some(Self::Until(moment)),
            2 => Some(Self::Ending(moment)),
            3 => Some(Self::Ended(moment)),
            4 => Some(Self::Leave),
            _ => None,
        }
    }
}

/// What a guard did in place of a server that could not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardAct {
    /// It killed the server, which was there and did not end its runs, and then ended them.
    KilledServer,
    /// It ended the runs of a server that had died before.
    EndedRuns,
}

impl GuardAct {
    fn text(self) -> &'static str {
        match self {
            Self::KilledServer => "killed the server and ended its runs\n",
            Self::EndedRuns => "ended the runs of a server that had died\n",
        }
    }

    /// Takes the word that was left in a data directory, with the time of its file.
    pub(crate) fn take(directory: &Path) -> io::Result<Option<(Self, SystemTime)>> {
        let file = directory.join(ACTED);
        let Some(text) = read_bounded(&file, 1_024)? else {
            return Ok(None);
        };
        let at = std::fs::metadata(&file)?.modified()?;
        std::fs::remove_file(&file)?;
        let acts = [Self::KilledServer, Self::EndedRuns];
        let act = acts.into_iter().find(|it| it.text().as_bytes() == text);
        Ok(act.map(|act| (act, at)))
    }
}

/// Gives the data directory if this process was executed to be a guard.
pub(crate) fn directory_of_guard() -> Option<PathBuf> {
    let name = std::env::args_os().next()?;
    let directory = std::env::var_os(DIRECTORY_VARIABLE)?;
    (name == OsStr::new(NAME)).then(|| directory.into())
}

/// Guards until there is nothing to guard. Does not return to the program's own `main`.
pub(crate) fn serve(directory: &Path) -> ! {
    let left = Guard::begin(directory).and_then(Guard::guard);
    sys::exit_now(i32::from(left.is_err()))
}

struct Guard<'a> {
    directory: &'a Path,
    /// Who it is, as it stands in the file.
    name: String,
    socket: OwnedFd,
    /// The server; `None` once it is gone.
    server: Option<OwnedFd>,
    timer: TimerFd,
    until: Option<u64>,
    /// The last moment of which the server has said that it ends what could live until then.
    ending: Option<u64>,
    /// The last moment of which it has said that all has ended.
    ended: Option<u64>,
}

impl<'a> Guard<'a> {
    fn begin(directory: &'a Path) -> io::Result<Self> {
        const STANDARD_INPUT: RawFd = 0;
        let parent = nix::unistd::getppid().as_raw();
        let server = sys::pidfd_open(parent)?;
        // If the server has died already, somebody else is the parent.
        if std::env::var(SERVER_VARIABLE) != Ok(parent.to_string()) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (socket, server, boot) = settle(STANDARD_INPUT, c"runtara-guard", Some(server))?;
        let start_time = Stat::of_self()?.map_or(0, |stat| stat.start_time);
        Ok(Self {
            directory,
            name: format!("{} {start_time} {boot}\n", std::process::id()),
            socket,
            server,
            timer: TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC)?,
            until: None,
            ending: None,
            ended: None,
        })
    }

    fn guard(mut self) -> io::Result<()> {
        loop {
            let server_listens = self.server.is_some();
            let mut polled = [
                PollFd::new(self.timer.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            ];
            let polled = match server_listens {
                true => &mut polled[..],
                false => &mut polled[..1],
            };
            match poll(polled, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                answer => answer?,
            };
            let is_time = polled[0].any().unwrap_or(true);
            let is_told = polled.get(1).is_some_and(|it| it.any().unwrap_or(true));
            // First what was told: it may have come just in time.
            if is_told && self.hear()? {
                return Ok(());
            }
            if is_time && self.act_in_time()? {
                return Ok(());
            }
        }
    }

    /// Hears one word; true if there is nothing to guard any more.
    fn hear(&mut self) -> io::Result<bool> {
        let mut word = [0; WORD_BYTES];
        let length = recv(self.socket.as_raw_fd(), &mut word, MsgFlags::empty())?;
        if length == 0 {
            self.server = None;
            return Ok(self.until.is_none());
        }
        match Word::unpack(&word[..length]) {
            Some(Word::Until(moment)) => {
                if self.until.is_none() {
                    self.write_name()?;
                }
                self.until = Some(moment);
                let at = TimeSpec::from_duration(Duration::from_millis(moment) + LATER);
                let once = Expiration::OneShot(at);
                self.timer.set(once, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
            Some(Word::Ending(moment)) => self.ending = Some(moment),
            Some(Word::Ended(moment)) => self.ended = Some(moment),
            Some(Word::Leave) => return Ok(true),
            None => return Ok(false),
        }
        // The server counts on it from here on.
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let _heard = send(self.socket.as_raw_fd(), &word, flags);
        Ok(false)
    }

    fn write_name(&self) -> io::Result<()> {
        let unfinished = self.directory.join(format!("{FILE}.new"));
        std::fs::write(&unfinished, &self.name)?;
        std::fs::rename(unfinished, self.directory.join(FILE))
    }

    /// Whether no other guard has come after this one.
    fn is_current(&self) -> bool {
        let found = read_bounded(&self.directory.join(FILE), 1_024);
        matches!(found, Ok(Some(text)) if text == self.name.as_bytes())
    }

    /// The moment has come; true if there is nothing to guard any more.
    fn act_in_time(&mut self) -> io::Result<bool> {
        self.timer.unset()?;
        if self.until.is_some() && self.ended == self.until {
            return Ok(false);
        }
        if !self.is_current() {
            return Ok(true);
        }
        let is_at_work = self.until.is_some() && self.ending == self.until;
        let runs = self.directory.join("runs");
        if is_at_work {
            end_runs(&runs)?;
            return Ok(self.server.is_none());
        }
        let act = match self.server.take() {
            Some(server) => {
                let _gone = sys::pidfd_signal(server.as_fd(), libc::SIGKILL, None);
                let _ended = ends_within(&server, ALL);
                GuardAct::KilledServer
            }
            None => GuardAct::EndedRuns,
        };
        std::thread::scope(|scope| {
            // Beside it: a disk that hangs keeps no run alive, and the next server may be there soon.
            let tell = || std::fs::write(self.directory.join(ACTED), act.text());
            let _untold = std::thread::Builder::new().spawn_scoped(scope, tell);
            end_runs(&runs)
        })?;
        Ok(true)
    }
}

/// Ends every run below a directory, and sees to it that none begins that was just being launched.
fn end_runs(runs: &Path) -> io::Result<()> {
    let began = Instant::now();
    let mut failed = Ok(());
    while began.elapsed() < ALL {
        let mut alive = Vec::new();
        failed = Ok(());
        for run in whole_runs(runs)? {
            match see(&run) {
                Ok(Seen::Alive(shim)) => alive.push(shim),
                Ok(Seen::Exited(_) | Seen::Gone) => {}
                // Asked again: it may just be beginning.
                Err(error) => failed = Err(error),
            }
        }
        if alive.is_empty() && failed.is_ok() {
            return Ok(());
        }
        let request = Request {
            grace: Duration::ZERO,
            ended_by: EndedBy::Host,
        };
        for shim in &alive {
            let _gone = match began.elapsed() < PATIENCE {
                true => sys::pidfd_signal(shim.as_fd(), REQUEST_SIGNAL, Some(request.pack())),
                // What it leaves is ended by the next look.
                false => sys::pidfd_signal(shim.as_fd(), libc::SIGKILL, None),
            };
        }
        match alive.first() {
            Some(shim) => drop(ends_within(shim, PATIENCE / 4)),
            None => std::thread::sleep(LOOK_AGAIN),
        }
    }
    failed
}

/// The runs whose `run.json` is there: of others nothing can live.
fn whole_runs(runs: &Path) -> io::Result<Vec<RunDirectory>> {
    let mut found = Vec::new();
    let instances = match std::fs::read_dir(runs) {
        Ok(instances) => instances,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for instance in instances {
        let Ok(numbers) = std::fs::read_dir(instance?.path()) else {
            continue;
        };
        for entry in numbers {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse::<u32>().ok());
            let run = RunDirectory::at(entry.path());
            if number.is_some() && run.run_file().try_exists()? {
                found.push(run);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_beside_other_files() {
        let root = tempfile::tempdir().unwrap();
        let runs = root.path().join("runs");
        assert!(whole_runs(&runs).unwrap().is_empty());
        for run in ["aa/1", "aa/12", "bb/3", "spares/7-x"] {
            std::fs::create_dir_all(runs.join(run)).unwrap();
        }
        for file in ["aa/id", "aa/1/run.json", "bb/3/run.json", "a-file"] {
            std::fs::write(runs.join(file), "").unwrap();
        }
        let mut found: Vec<_> = whole_runs(&runs).unwrap();
        found.sort_by_key(|run| run.path().to_owned());
        let wanted = ["aa/1", "bb/3"].map(|run| RunDirectory::at(runs.join(run)));
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_a_guard_did_is_told_once() {
        let directory = tempfile::tempdir().unwrap();
        let take = || GuardAct::take(directory.path()).unwrap();
        assert_eq!(take(), None);
        for act in [GuardAct::KilledServer, GuardAct::EndedRuns] {
            std::fs::write(directory.path().join(ACTED), act.text()).unwrap();
            let (found, at) = take().unwrap();
            assert_eq!(found, act);
            assert!(at.elapsed().unwrap_or_default() < Duration::from_secs(60));
            assert_eq!(take(), None);
        }
        std::fs::write(directory.path().join(ACTED), "half a wo").unwrap();
        assert_eq!(take(), None, "it died while it wrote");
    }

    #[test]
    fn words_survive_the_way() {
        for word in [
            Word::Until(u64::MAX),
            Word::Ending(7),
            Word::Ended(7),
            Word::Leave,
        ] {
            assert_eq!(Word::unpack(&word.pack()), Some(word));
        }
        assert_eq!(Word::unpack(&[9; WORD_BYTES]), None);
        assert_eq!(Word::unpack(&[1, 2]), None);
    }
}
