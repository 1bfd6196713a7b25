//! What the end of a process means.

use bytes::Bytes;

use crate::{Reason, limits};

/// What one run, or all runs of an instance together, used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// CPU time of the run's processes, in microseconds.
    pub cpu_usec: u64,
    /// The largest memory that they had at once, in bytes; cached files count where a cgroup tells it. Of several runs, the largest.
    pub memory_peak_bytes: u64,
    /// Milliseconds during which its program ran, held sleeps included: from the moment at which it was executed, or its container said to
    /// be started, to its end. What was done to make it ready is not counted.
    pub running_ms: u64,
}

impl Usage {
    /// What this and another run used together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            cpu_usec: self.cpu_usec.saturating_add(other.cpu_usec),
            memory_peak_bytes: self.memory_peak_bytes.max(other.memory_peak_bytes),
            running_ms: self.running_ms.saturating_add(other.running_ms),
        }
    }
}

/// How a process came to its end, from proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitCause {
    /// It left with this code.
    Code(i32),
    /// A signal of this number killed it.
    Signal(i32),
    /// It is a guest in our own process, and did what WebAssembly forbids: with what that was, and where.
    Trap(String),
    /// It is a guest in our own process, and was dropped.
    Dropped,
    /// Nothing is known of it: its machine, its shim or its node went away.
    Lost,
    /// It left with 0, and what it had given as its output could not be kept: the disk was full. That is no completion, for nobody
    /// would ever learn of the output.
    OutputLost,
    /// It could not be launched.
    NotLaunched {
        /// Whether a later launch would fail the same way, because the image itself is unfit.
        permanent: bool,
        /// What stood in the way.
        error: String,
    },
}

/// What else had a hand in the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// We ended it because its running time was over, or its instance's overall deadline.
    Deadline,
    /// We ended it because somebody asked for a stop.
    Stop,
    /// We ended it because it had said its last word or was suspended.
    Leaving,
    /// We ended it because the server goes away and cannot leave it running, or no longer serves the address it knows.
    Host,
    /// The kernel ended it for want of memory.
    OutOfMemory,
}

/// The end of a run as a runner reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunExit {
    /// How the process came to its end.
    pub cause: ExitCause,
    /// What had a hand in it.
    pub ended_by: Option<EndedBy>,
    /// Limits that were met beside it, such as `pids` or `disk`, named for the error text.
    pub limits_met: Vec<String>,
    /// The memory that its processes could have together, in bytes, if that was limited for them alone.
    pub memory_limit_bytes: Option<u64>,
    /// What a program without the instance protocol gave as its output, as JSON text.
    pub output: Option<Bytes>,
    /// The end of its standard error.
    pub stderr: String,
    /// What it used.
    pub usage: Usage,
}

impl RunExit {
    /// The exit of a run of which nothing is known.
    #[must_use]
    pub fn lost() -> Self {
        Self::without_process(ExitCause::Lost)
    }

    /// The exit of a run that never had a process.
    #[must_use]
    pub fn not_launched(permanent: bool, error: impl Into<String>) -> Self {
        Self::without_process(ExitCause::NotLaunched {
            permanent,
            error: error.into(),
        })
    }

    fn without_process(cause: ExitCause) -> Self {
        Self {
            cause,
            ended_by: None,
            limits_met: Vec::new(),
            memory_limit_bytes: None,
            output: None,
            stderr: String::new(),
            usage: Usage::default(),
        }
    }

    /// Says in one line how the process ended, then what it wrote last to its standard error.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = match &self.cause {
            ExitCause::Code(code) => format!("process ended with exit code {code}"),
            ExitCause::Signal(signal) => format!("process was killed by signal {signal}"),
            ExitCause::Trap(text) => format!("program was ended by a trap: {text}"),
            ExitCause::Dropped => "program was ended".to_owned(),
            ExitCause::Lost => "process was lost with its node or its shim".to_owned(),
            ExitCause::OutputLost => {
                "process ended with exit code 0, and its output could not be kept".to_owned()
            }
            ExitCause::NotLaunched { error, .. } => {
                format!("process could not be launched: {error}")
            }
        };
        match self.ended_by {
            Some(EndedBy::Deadline) => text.push_str(", because its time was over"),
            Some(EndedBy::OutOfMemory) => {
                text.push_str(", because it was out of memory");
                text.push_str(&self.describe_memory());
            }
            Some(EndedBy::Stop) => text.push_str(", because it was stopped"),
            Some(EndedBy::Host) => text.push_str(", because the server ended it"),
            Some(EndedBy::Leaving) | None => {}
        }
        if !self.limits_met.is_empty() {
            text.push_str("; limits met: ");
            text.push_str(&self.limits_met.join(", "));
        }
        let stderr = self.stderr.trim();
        if !stderr.is_empty() {
            text.push('\n');
            text.push_str(&crate::tail(stderr, limits::STDERR_BYTES));
        }
        text
    }

    /// What is known of the memory that it had.
    fn describe_memory(&self) -> String {
        let Some(limit) = self.memory_limit_bytes else {
            return String::new();
        };
        let limit = mebibytes(limit);
        match self.usage.memory_peak_bytes {
            // Not every kernel tells it.
            0 => format!(": memory limit of {limit} exceeded"),
            peak => format!(
                ": memory limit of {limit} exceeded; peak {}",
                mebibytes(peak)
            ),
        }
    }
}

/// Bytes in MiB, as they are counted in limits, with one decimal place unless that is 0. Rounded down: less than a limit stays so.
fn mebibytes(bytes: u64) -> String {
    let tenths = u128::from(bytes) * 10 / (1024 * 1024);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} MiB"),
        (whole, tenth) => format!("{whole}.{tenth} MiB"),
    }
}

/// What is known of a run at the moment its process is gone and it has not said its last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExitFacts {
    /// It has spoken the instance protocol.
    pub spoke: bool,
    /// A cancel waits, seen or not.
    pub cancel_pending: bool,
    /// A pause waits, seen or not.
    pub pause_pending: bool,
    /// One of its calls could not be answered through our fault, and none has been answered since.
    pub our_fault: bool,
    /// The start said how many launches are allowed.
    pub max_attempts_given: bool,
}

/// What the end of a process means for its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is completed.
    Complete,
    /// It failed, for this reason, and is not launched again.
    Fail(Reason),
    /// It is cancelled.
    Cancel,
    /// It is suspended until somebody resumes it.
    Pause,
    /// It is launched again after a pause, and the crash is counted.
    Crash,
    /// It is launched again at once, and nothing is counted.
    Interrupt,
}

/// Judges the exit of a run that left without its last word.
///
/// | | the run never spoke | the run spoke and left without its word |
/// |---|---|---|
/// | ended by the host, as the server goes away | interrupted, whatever its code | the same |
/// | code 0 | completed | crash: it may hide a lost `completed` |
/// | code 0, and its output could not be kept | interrupted, with a pause | the same |
/// | other code | failed at once; a crash if the start gave `max_attempts` | crash |
/// | signal, trap, out of memory | crash | crash |
/// | running time over | failed, `timeout` | failed, `timeout` |
/// | through our fault, lost | interrupted | interrupted |
///
/// A cancel that waits turns everything but the completion into `cancelled`; a pause that waits turns a relaunch into a
/// suspension. Published programs leave with code 1 after either was shown to them.
#[must_use]
pub fn judge(exit: &RunExit, facts: &ExitFacts) -> Verdict {
    // A program that is told to leave may well leave with 0, and has not done its work for that. A stop is another matter: what a
    // program completes within its grace is complete.
    let was_driven_out = matches!(
        exit.ended_by,
        Some(EndedBy::Deadline | EndedBy::Host | EndedBy::Leaving)
    );
    if exit.cause == ExitCause::Code(0) && !facts.spoke && !was_driven_out {
        return Verdict::Complete;
    }
    if facts.cancel_pending {
        return Verdict::Cancel;
    }
    if exit.ended_by == Some(EndedBy::Deadline) {
        return Verdict::Fail(Reason::Timeout);
    }
    let relaunch = judge_relaunch(exit, facts);
    let may_pause = matches!(relaunch, Verdict::Crash | Verdict::Interrupt);
    if facts.pause_pending && may_pause {
        return Verdict::Pause;
    }
    relaunch
}

fn judge_relaunch(exit: &RunExit, facts: &ExitFacts) -> Verdict {
    let by_host = matches!(
        exit.ended_by,
        Some(EndedBy::Host | EndedBy::Leaving | EndedBy::Stop)
    );
    match &exit.cause {
        ExitCause::NotLaunched {
            permanent: true, ..
        } => Verdict::Fail(Reason::Crashed),
        ExitCause::NotLaunched {
            permanent: false, ..
        }
        | ExitCause::Lost => Verdict::Interrupt,
        ExitCause::OutputLost if !facts.spoke => Verdict::Interrupt,
        _ if facts.our_fault || by_host => Verdict::Interrupt,
        _ if exit.ended_by == Some(EndedBy::OutOfMemory) || facts.spoke => Verdict::Crash,
        ExitCause::Code(_) if facts.max_attempts_given => Verdict::Crash,
        ExitCause::Code(_) => Verdict::Fail(Reason::ApplicationError),
        ExitCause::Signal(_) | ExitCause::Trap(_) | ExitCause::Dropped | ExitCause::OutputLost => {
            Verdict::Crash
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(cause: ExitCause) -> RunExit {
        RunExit::without_process(cause)
    }

    #[test]
    fn the_table_holds_line_by_line() {
        let silent = ExitFacts::default();
        let spoke = ExitFacts {
            spoke: true,
            ..silent
        };
        let fault = |facts| ExitFacts {
            our_fault: true,
            ..facts
        };
        let code = |n| exit(ExitCause::Code(n));
        let killed = exit(ExitCause::Signal(9));
        let late = RunExit {
            ended_by: Some(EndedBy::Deadline),
            ..killed.clone()
        };
        let cases = [
            (code(0), silent, Verdict::Complete),
            (code(0), spoke, Verdict::Crash),
            (exit(ExitCause::OutputLost), silent, Verdict::Interrupt),
            (exit(ExitCause::OutputLost), spoke, Verdict::Crash),
            (code(3), silent, Verdict::Fail(Reason::ApplicationError)),
            (code(3), spoke, Verdict::Crash),
            (killed.clone(), silent, Verdict::Crash),
            (killed.clone(), spoke, Verdict::Crash),
            (late.clone(), silent, Verdict::Fail(Reason::Timeout)),
            (late, spoke, Verdict::Fail(Reason::Timeout)),
            (code(0), fault(silent), Verdict::Complete),
            (code(3), fault(silent), Verdict::Interrupt),
            (code(0), fault(spoke), Verdict::Interrupt),
            (killed, fault(spoke), Verdict::Interrupt),
            (RunExit::lost(), spoke, Verdict::Interrupt),
        ];
        for (exit, facts, expected) in cases {
            assert_eq!(judge(&exit, &facts), expected, "{exit:?} {facts:?}");
        }
    }

    #[test]
    fn an_end_that_the_host_caused_counts_for_nothing() {
        let spoke = ExitFacts {
            spoke: true,
            ..ExitFacts::default()
        };
        for cause in [
            ExitCause::Code(0),
            ExitCause::Code(1),
            ExitCause::Signal(15),
        ] {
            for by in [EndedBy::Host, EndedBy::Leaving] {
                let ended = RunExit {
                    ended_by: Some(by),
                    ..exit(cause.clone())
                };
                for facts in [ExitFacts::default(), spoke] {
                    assert_eq!(judge(&ended, &facts), Verdict::Interrupt, "{ended:?}");
                }
            }
        }
        let stopped = RunExit {
            ended_by: Some(EndedBy::Stop),
            ..exit(ExitCause::Code(0))
        };
        let verdict = judge(&stopped, &ExitFacts::default());
        assert_eq!(verdict, Verdict::Complete, "within its grace");
    }

    #[test]
    fn allowed_attempts_make_a_crash_of_an_error_code() {
        let facts = ExitFacts {
            max_attempts_given: true,
            ..ExitFacts::default()
        };
        assert_eq!(judge(&exit(ExitCause::Code(1)), &facts), Verdict::Crash);
    }

    #[test]
    fn a_waiting_cancel_wins_over_all_but_a_completion() {
        let facts = ExitFacts {
            cancel_pending: true,
            pause_pending: true,
            our_fault: true,
            ..ExitFacts::default()
        };
        assert_eq!(judge(&exit(ExitCause::Code(0)), &facts), Verdict::Complete);
        for cause in [ExitCause::Code(1), ExitCause::Signal(15), ExitCause::Lost] {
            assert_eq!(judge(&exit(cause), &facts), Verdict::Cancel);
        }
    }

    #[test]
    fn a_waiting_pause_turns_a_relaunch_into_a_suspension() {
        let facts = ExitFacts {
            spoke: true,
            pause_pending: true,
            ..ExitFacts::default()
        };
        assert_eq!(judge(&exit(ExitCause::Code(1)), &facts), Verdict::Pause);
        let silent = ExitFacts {
            spoke: false,
            ..facts
        };
        let verdict = judge(&exit(ExitCause::Code(1)), &silent);
        assert_eq!(verdict, Verdict::Fail(Reason::ApplicationError));
    }

    #[test]
    fn the_description_of_a_memory_kill_has_the_limit_and_the_peak() {
        let mut exit = RunExit {
            ended_by: Some(EndedBy::OutOfMemory),
            memory_limit_bytes: Some(64 << 20),
            ..exit(ExitCause::Signal(9))
        };
        exit.usage.memory_peak_bytes = (64 << 20) - 4096;
        assert_eq!(
            exit.describe(),
            "process was killed by signal 9, because it was out of memory: memory limit of 64 MiB exceeded; peak 63.9 MiB"
        );
        exit.usage.memory_peak_bytes = 0;
        assert_eq!(
            exit.describe(),
            "process was killed by signal 9, because it was out of memory: memory limit of 64 MiB exceeded"
        );
        exit.memory_limit_bytes = None;
        assert_eq!(
            exit.describe(),
            "process was killed by signal 9, because it was out of memory"
        );
    }

    #[test]
    fn the_description_ends_with_the_last_lines_of_stderr() {
        let exit = RunExit {
            stderr: "warning: a\npanicked: disk on fire\n".to_owned(),
            limits_met: vec!["pids".to_owned()],
            ..exit(ExitCause::Code(101))
        };
        assert_eq!(
            exit.describe(),
            "process ended with exit code 101; limits met: pids\nwarning: a\npanicked: disk on fire"
        );
    }
}
