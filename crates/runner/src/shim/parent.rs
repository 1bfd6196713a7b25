//! The shim itself: parents one run from its start to its record.
//!
//! One thread, synchronous, and nothing that grows while it waits. Every failure ends in `exit.json`; where even that cannot be
//! written, in an exit code, which nobody needs: without `exit.json` the run counts as lost.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::socket::{MsgFlags, send};
use runtara_domain::{EndedBy, ExitCause, Usage};
use runtara_failpoints::{Point, pass};

use super::beginning::{Contained, end_all};
use super::capture::Capture;
use super::cgroup::{Cgroup, Counted};
use super::child::Room;
use super::containers::Container;
use super::files::{ExitRecord, Program, read_run_bytes, read_run_file, read_slept};
use super::logs::LogStream;
use super::opening::{NotStarted, Pipe, RunFiles};
use super::process::{Identity, Stat, ends_others};
use super::request::{REQUEST_SIGNAL, Request};
use super::sys::{self, Child, Ended, Waited};
use super::wishes::Wishes;
use super::{beginning, tree};

/// The name by which a shim is known among processes.
pub(super) const SHIM_NAME: &CStr = c"runtara-shim";
/// Exit code of a shim that panicked.
pub(crate) const PANICKED: i32 = 70;
/// Exit code of a shim that had nothing to do: the run is forbidden, or somebody else has it.
pub(crate) const NOT_OURS: i32 = 3;
/// The word for an exit that is recorded. There is no other.
const RECORDED: [u8; 1] = [1];
/// How often what was killed and is still there is killed again.
const KILL_AGAIN: Duration = Duration::from_millis(100);
/// Longest sleep; waking once an hour costs nothing, and keeps the number small.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// A run file beyond this leaves a hole in memory that is worth giving back.
const LARGE_RUN_FILE: usize = 64 * 1024;

/// What a shim has before it knows its run.
pub(crate) struct Ready {
    signals: OwnedFd,
    identity: Identity,
    pub(super) outputs: [Pipe; 2],
    pub(super) room: Room,
}

impl Ready {
    /// Makes this process a shim.
    pub(crate) fn new(boot: &str) -> io::Result<Self> {
        // A forked process leads no group, so this cannot fail; nor can the others on a kernel that has them.
        let _session = nix::unistd::setsid();
        let _reaper = nix::sys::prctl::set_child_subreaper(true);
        let _named = nix::sys::prctl::set_name(SHIM_NAME);
        Ok(Self {
            signals: sys::signal_descriptor(&[
                libc::SIGCHLD,
                libc::SIGTERM,
                libc::SIGINT,
                REQUEST_SIGNAL,
            ])?,
            identity: Identity {
                pid: std::process::id().cast_signed(),
                start_time: own_start_time(),
                boot_id: boot.to_owned(),
            },
            outputs: [Pipe::new()?, Pipe::new()?],
            room: Room::new()?,
        })
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Signals that wait to be read.
    pub(crate) fn signals(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// Parents the run of a directory. Gives the exit code of the shim. Whoever listens on the socket, if there is one, is told when the exit
/// is recorded.
pub(crate) fn run(directory: &Path, ready: io::Result<Ready>, listener: Option<OwnedFd>) -> i32 {
    let Ok(files) = RunFiles::open(directory) else {
        return NOT_OURS;
    };
    let Ok(bytes) = files.read("run.json").and_then(read_run_bytes) else {
        return NOT_OURS;
    };
    let program = match read_run_file(&bytes) {
        Ok(run) if !run.go => return NOT_OURS,
        Ok(run) => run.program.ok_or_else(|| "it names no program".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let large = bytes.len() > LARGE_RUN_FILE;
    drop(bytes);
    let not_started = |error: String| (NotStarted::for_now(error).record(), Remains::default());
    let (record, remains) = match (program, files.set_exit_aside(), ready) {
        (Err(error), _, _) => not_started(format!("run.json cannot be used: {error}")),
        (_, Err(error), _) => not_started(format!("exit.json cannot be set aside: {error}")),
        (_, _, Err(error)) => not_started(format!("its shim could not be made ready: {error}")),
        (Ok(program), Ok(()), Ok(ready)) => match Parent::start(program, ready, &files, large) {
            Ok(parent) => parent.mind(),
            Err(record) => (record, Remains::default()),
        },
    };
    pass(Point::ShimExitUnwritten);
    let written = files.write_exit(&record);
    pass(Point::ShimExitPlaced);
    // With the lock: from here on this process has nothing of the run but its empty cgroup.
    drop(files);
    if let (Ok(()), Some(listener)) = (&written, listener) {
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let _heard = send(listener.as_raw_fd(), &RECORDED, flags);
    }
    // After the word: nobody waits for what is done from here on, nor for the system to take this process apart.
    remains.remove();
    i32::from(written.is_err())
}

/// A run that has begun.
struct Parent<'a> {
    files: &'a RunFiles,
    signals: OwnedFd,
    child: i32,
    outputs: [Capture; 2],
    /// See [`Pipe`].
    _writers: [OwnedFd; 2],
    /// When its program was there: running time begins with it, not with what was done to make it ready.
    began: Instant,
    timeout: Duration,
    /// When the overall deadline of its instance is over, if it has one. Nothing moves it.
    expiry: Option<Instant>,
    /// When the one or the other is over, as far as is known: held sleeps may have moved the running time.
    deadline: Instant,
    ending: Option<Ending>,
    cgroup: Option<Cgroup>,
    contained: Option<Contained>,
}

/// What is removed when the exit is recorded, and nobody waits any more.
#[derive(Default)]
struct Remains {
    container: Option<Box<dyn Container>>,
    cgroup: Option<Cgroup>,
}

impl Remains {
    fn remove(self) {
        if let Some(mut container) = self.container {
            container.remove();
        }
        drop(self.cgroup);
    }
}

fn earlier(one: Instant, other: Option<Instant>) -> Instant {
    other.map_or(one, |other| one.min(other))
}

/// The run is being ended.
struct Ending {
    by: EndedBy,
    kill_at: Instant,
    /// Whether its processes were asked to leave, so that they may have left because of it.
    asked: bool,
}

impl<'a> Parent<'a> {
    fn start(
        program: Program,
        ready: Ready,
        files: &'a RunFiles,
        large: bool,
    ) -> Result<Self, ExitRecord> {
        // It was possible when the server started. If it is not any more, the run is told by its processes alone.
        let cgroup = program.cgroup.clone();
        let mut cgroup = cgroup.and_then(|path| Cgroup::make(path).ok());
        let now = Instant::now();
        let made_by = after(now, program.made_within());
        let expiry = program
            .expires_in_ms
            .map(|ms| after(now, Duration::from_millis(ms)));
        let wishes = Wishes::new(ready.signals(), made_by);
        let begun = match &program.container {
            None => beginning::start_process(&program, cgroup.as_ref(), &ready),
            Some(container) => {
                beginning::start_container(&program, container, cgroup.as_ref(), &ready, &wishes)
            }
        };
        let (child, contained) = begun.map_err(|error| match &program.container {
            None => error.record(),
            Some(_) => beginning::not_made(error, &program, &wishes),
        })?;
        // CLOCK_MONOTONIC: it stands still while the machine is suspended.
        let (began, began_ms) = (Instant::now(), sys::monotonic_ms());
        let timeout = Duration::from_millis(program.timeout_ms);
        let wish = wishes.pass_on();
        // From here on the program runs, and nobody waits for what is done.
        let Ready {
            signals,
            identity,
            outputs: [stdout, stderr],
            room,
        } = ready;
        drop(room);
        let cap = program.log_cap_bytes;
        drop(program);
        if large {
            sys::trim_memory();
        }
        // If this cannot be written the run goes on; only adoption has to wait for its end.
        pass(Point::ShimStarted);
        let _written = files.write_lock(identity, child, began_ms);
        if let Some(cgroup) = &mut cgroup {
            cgroup.open_figures(contained.is_some());
        }
        let mut parent = Self {
            files,
            signals,
            child,
            outputs: [
                Capture::new(LogStream::Stdout, stdout.reader, cap),
                Capture::new(LogStream::Stderr, stderr.reader, cap),
            ],
            _writers: [stdout.writer, stderr.writer],
            began,
            timeout,
            expiry,
            deadline: earlier(after(began, timeout), expiry),
            ending: None,
            cgroup,
            contained,
        };
        if let Some(wish) = wish {
            parent.end(wish);
        }
        Ok(parent)
    }

    /// Minds the run to its end. What it leaves is still to be removed.
    fn mind(mut self) -> (ExitRecord, Remains) {
        while !self.is_main_gone() {
            self.wait_for_something();
            self.take_requests();
            self.look_at_the_time();
        }
        let ended = self.end_rest();
        for output in &mut self.outputs {
            output.store_rest(self.files.directory());
        }
        let mut record = self.record(ended);
        let mut container = self.contained.take().map(|contained| contained.container);
        if let Some(container) = &mut container {
            let met = container.limits_met();
            record.limits_met.extend(met.into_iter().map(str::to_owned));
            record.limits_met.sort_unstable();
            record.limits_met.dedup();
            container.keep(self.files.directory());
        }
        let cgroup = self.cgroup.take();
        // What is open is closed with this process: later, when nobody waits for it.
        std::mem::forget(self);
        (record, Remains { container, cgroup })
    }

    /// Sleeps until a signal, output, or the next moment that matters; stores output.
    fn wait_for_something(&mut self) {
        let directory = self.files.directory();
        let next = self
            .ending
            .as_ref()
            .map_or(self.deadline, |ending| ending.kill_at);
        let relay = self
            .contained
            .as_mut()
            .and_then(|contained| contained.relay.as_mut());
        let next = relay
            .as_ref()
            .and_then(|relay| relay.acts_at())
            .map_or(next, |acts_at| acts_at.min(next));
        let wait = next
            .saturating_duration_since(Instant::now())
            .min(LONGEST_WAIT);
        // Rounded up, so that it is not woken just before the moment.
        let ms = i32::try_from(wait.as_millis() + 1).unwrap_or(i32::MAX);
        let [stdout, stderr] = &mut self.outputs;
        let mut polled = Vec::with_capacity(3);
        polled.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
        for pipe in [stdout.pipe(), stderr.pipe()].into_iter().flatten() {
            polled.push(PollFd::new(pipe, PollFlags::POLLIN));
        }
        if let Some(relay) = &relay {
            let interest = relay.interest();
            polled.extend(
                interest
                    .into_iter()
                    .map(|(fd, flags)| PollFd::new(fd, flags)),
            );
        }
        let timeout = PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX);
        if poll(&mut polled, timeout).is_err() {
            return;
        }
        let ready: Vec<_> = polled
            .iter()
            .map(|polled| polled.any().unwrap_or(true))
            .collect();
        let mut ready = ready.into_iter().skip(1);
        for output in [stdout, stderr] {
            if output.pipe().is_some() && ready.next().unwrap_or(false) {
                output.store_some(directory);
            }
        }
        if let Some(relay) = relay {
            relay.act(Instant::now());
        }
    }

    fn take_requests(&mut self) {
        while let Some(signal) = sys::read_signal(self.signals.as_fd()) {
            if let Some(request) = Request::of(&signal) {
                self.end(request);
            }
        }
    }

    /// Begins to end the run, or shortens the grace it was given.
    fn end(&mut self, request: Request) {
        let kill_at = after(Instant::now(), request.grace);
        let asks = self.ending.is_none() && !request.grace.is_zero();
        let asked = asks || self.ending.as_ref().is_some_and(|ending| ending.asked);
        if self
            .ending
            .as_ref()
            .is_some_and(|ending| ending.kill_at <= kill_at)
        {
            return;
        }
        self.ending = Some(Ending {
            by: request.ended_by,
            kill_at,
            asked,
        });
        if asks {
            self.ask_to_leave();
        }
    }

    fn look_at_the_time(&mut self) {
        let now = Instant::now();
        if self.ending.is_none() && now >= self.deadline {
            let timeout = after(self.began, self.timeout.saturating_add(self.slept()));
            self.deadline = earlier(timeout, self.expiry);
            if now >= self.deadline {
                self.ending = Some(Ending {
                    by: EndedBy::Deadline,
                    kill_at: now,
                    asked: false,
                });
            }
        }
        let Some(ending) = &mut self.ending else {
            return;
        };
        if now >= ending.kill_at {
            ending.kill_at = now + KILL_AGAIN;
            self.signal_all(libc::SIGKILL);
        }
    }

    /// How long the run slept in held calls, as the server last wrote it down.
    fn slept(&self) -> Duration {
        let file = self.files.read("slept").and_then(read_run_bytes);
        file.map_or(Duration::ZERO, |bytes| read_slept(&bytes))
    }

    fn ask_to_leave(&self) {
        if let Some(contained) = &self.contained {
            // The program of a container is its process 1, and minds its own. One that has said nothing about the signal would never end
            // by it, as any other process does: the kernel spares process 1 what it does not handle (kill(2)).
            match ends_others(self.child, contained.stop_signal) {
                true => self.signal_all(libc::SIGKILL),
                false => {
                    let _left = sys::signal_process(self.child, contained.stop_signal);
                }
            }
            return;
        }
        self.signal_all(libc::SIGTERM);
        // A stopped process acts on a signal when it goes on.
        self.signal_all(libc::SIGCONT);
    }

    /// To the group at once, and to what has left it. The main process is not reaped, so the group's number is its own.
    fn signal_all(&self, signal: i32) {
        let _none_left = sys::signal_group(self.child, signal);
        if let (Some(cgroup), libc::SIGKILL) = (&self.cgroup, signal) {
            cgroup.kill();
        }
        tree::signal_descendants(self.child, signal);
    }

    /// Whether the main process has ended. Reaps others that were left to us; the main process stays a zombie.
    fn is_main_gone(&self) -> bool {
        loop {
            match sys::wait(Child::Any, false) {
                Waited::Ended(pid, _) if pid == self.child => return true,
                Waited::Ended(pid, _) => sys::wait(Child::Only(pid), true),
                Waited::Alive => return false,
                Waited::NoChild => return true,
            };
        }
    }

    /// Kills whatever the main process has left behind, and reaps all.
    fn end_rest(&self) -> Option<Ended> {
        let _none_left = sys::signal_group(self.child, libc::SIGKILL);
        let main = match sys::wait(Child::Only(self.child), true) {
            Waited::Ended(_, ended) => Some(ended),
            Waited::Alive | Waited::NoChild => None,
        };
        end_all(self.cgroup.as_ref(), self.signals.as_fd());
        main
    }

    fn record(&self, ended: Option<Ended>) -> ExitRecord {
        let counted = self.cgroup.as_ref().map(Cgroup::counted);
        let counted = counted.unwrap_or_default();
        let mut ended_by = self.ended_by(ended);
        let mut limits_met = Vec::new();
        if counted.oom_kills > 0 {
            match (ended_by, ended) {
                (None, Some(Ended::Signal(libc::SIGKILL))) => {
                    ended_by = Some(EndedBy::OutOfMemory);
                }
                // It was another process of the run.
                _ => limits_met.push("memory".to_owned()),
            }
        }
        if counted.refused_pids > 0 {
            limits_met.push("pids".to_owned());
        }
        if self.outputs.iter().any(|output| output.dropped() > 0) {
            limits_met.push("disk".to_owned());
        }
        if ended == Some(Ended::Signal(libc::SIGXFSZ)) {
            limits_met.push("file size".to_owned());
        }
        ExitRecord {
            cause: match ended {
                Some(Ended::Code(code)) => ExitCause::Code(code),
                Some(Ended::Signal(signal)) => ExitCause::Signal(signal),
                None => ExitCause::Lost,
            },
            ended_by,
            limits_met,
            stdout_is_cut: self.outputs[0].dropped() > 0,
            memory_limit_bytes: counted.memory_limit_bytes,
            usage: self.usage(&counted),
        }
    }

    /// What had a hand in the end. A program that was to be killed and left with 0 was faster: nobody has ended it.
    fn ended_by(&self, ended: Option<Ended>) -> Option<EndedBy> {
        let ending = self.ending.as_ref()?;
        (ending.asked || ended != Some(Ended::Code(0))).then_some(ending.by)
    }

    /// What all processes used that were waited for, by us or by each other (getrusage(2)), and what their cgroup counted. Without
    /// that the memory is that of the largest; of a container it never is, as those that made it are larger than many of its own.
    fn usage(&self, counted: &Counted) -> Usage {
        let mut usage = Usage {
            running_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            cpu_usec: counted.cpu_usec.unwrap_or(0),
            memory_peak_bytes: counted.memory_peak_bytes.unwrap_or(0),
        };
        if let Ok(used) = getrusage(UsageWho::RUSAGE_CHILDREN) {
            let usec = |time: nix::sys::time::TimeVal| {
                let usec = time.tv_sec().saturating_mul(1_000_000) + time.tv_usec();
                u64::try_from(usec).unwrap_or(0)
            };
            let largest = u64::try_from(used.max_rss()).unwrap_or(0) * 1024;
            let cpu = usec(used.user_time()) + usec(used.system_time());
            usage.cpu_usec = usage.cpu_usec.max(cpu);
            if self.contained.is_none() {
                usage.memory_peak_bytes = usage.memory_peak_bytes.max(largest);
            }
        }
        usage
    }
}

/// A moment so far away that it does not exist becomes one that is far enough.
pub(super) fn after(moment: Instant, wait: Duration) -> Instant {
    moment
        .checked_add(wait)
        .unwrap_or_else(|| moment + Duration::from_secs(u32::MAX.into()))
}

fn own_start_time() -> u64 {
    let stat = Stat::of_self().ok().flatten();
    stat.map_or(0, |stat| stat.start_time)
}
