//! The outside ledger, and what it proves without asking the server.

use std::collections::BTreeMap;

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Broken {
    /// Of which instance, if it is of one.
    pub(crate) instance: Option<String>,
    /// What was found, and what was promised.
    pub(crate) what: String,
}

impl Broken {
    pub(crate) fn of(instance: &str, what: impl Into<String>) -> Self {
        Self {
            instance: Some(instance.to_owned()),
            what: what.into(),
        }
    }

    pub(crate) fn at_large(what: impl Into<String>) -> Self {
        Self {
            instance: None,
            what: what.into(),
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Nanoseconds of CLOCK_BOOTTIME.
    pub(crate) at: u64,
    pub(crate) instance: String,
    pub(crate) run: u32,
    pub(crate) pid: i32,
    pub(crate) what: What,
}

/// What a program says that it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Begin,
    Alive,
    /// The effect of a step, before it is saved.
    Step(String),
    /// The server answered that a step is saved with this value.
    Saved(String, String),
    /// The server answered that a step was saved before with this value.
    Found(String, String),
    End,
}

impl Line {
    /// Reads a line.
    ///
    /// # Errors
    /// What is wrong with it: a ledger that cannot be read proves nothing.
    fn read(line: &str) -> Result<Self, String> {
        let wrong = || format!("the ledger has a line {line:?}");
        let mut words = line.splitn(6, ' ');
        let mut word = || words.next().ok_or_else(wrong);
        let at = word()?.parse().map_err(|_| wrong())?;
        let instance = word()?.to_owned();
        let run = word()?.parse().map_err(|_| wrong())?;
        let pid = word()?.parse().map_err(|_| wrong())?;
        let kind = word()?;
        let rest = words.next().unwrap_or_default();
        let valued = || {
            let (id, value) = rest.split_once(' ').ok_or_else(wrong)?;
            Ok::<_, String>((id.to_owned(), value.to_owned()))
        };
        let what = match kind {
            "begin" => What::Begin,
            "alive" => What::Alive,
            "step" => What::Step(rest.to_owned()),
            "saved" => valued().map(|(id, value)| What::Saved(id, value))?,
            "found" => valued().map(|(id, value)| What::Found(id, value))?,
            "end" => What::End,
            _ => return Err(wrong()),
        };
        Ok(Self {
            at,
            instance,
            run,
            pid,
            what,
        })
    }
}

/// The lines that a guest, which has the ledger not in its reach, wrote to its standard error for it. Its clock shows the time since 1970, and is
/// `ahead` of that of the ledger by so many nanoseconds. What a full disk has left of a line is none.
pub(crate) fn of_guest(log: &str, ahead: u64) -> Vec<String> {
    let of_line = |line: &str| {
        let line = line.strip_prefix("ledger ")?.strip_suffix(" .")?;
        let (at, rest) = line.split_once(' ')?;
        let at = at.parse::<u64>().ok()?.checked_sub(ahead)?;
        let is_whole = !rest.contains("ledger ");
        is_whole.then(|| format!("{at} {rest}\n"))
    };
    log.lines().filter_map(of_line).collect()
}

/// All lines of a ledger, of each instance in the order of time.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<String, Vec<Line>>);

impl Ledger {
    /// Reads it.
    ///
    /// # Errors
    /// The line that is none.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let mut ledger = Self::default();
        for line in text.lines() {
            let line = Line::read(line)?;
            ledger
                .0
                .entry(line.instance.clone())
                .or_default()
                .push(line);
        }
        for lines in ledger.0.values_mut() {
            lines.sort_by_key(|line| line.at);
        }
        Ok(ledger)
    }

    /// What it has of an instance.
    pub(crate) fn of(&self, instance: &str) -> &[Line] {
        self.0.get(instance).map_or(&[], Vec::as_slice)
    }

    /// How many lines it has that are more than signs of life.
    pub(crate) fn len(&self) -> usize {
        let lines = self.0.values().flatten();
        lines.filter(|line| line.what != What::Alive).count()
    }

    /// The runs of all instances.
    pub(crate) fn runs(&self) -> usize {
        let runs = |lines: &Vec<Line>| lives(lines).len();
        self.0.values().map(runs).sum()
    }

    /// What it proves of all instances to be broken.
    pub(crate) fn broken(&self) -> Vec<Broken> {
        let of_one = |(instance, lines): (&String, &Vec<Line>)| {
            let mut broken = two_at_once(instance, lines);
            broken.extend(saved_steps_again(instance, lines));
            broken.extend(several_values(instance, lines));
            broken
        };
        self.0.iter().flat_map(of_one).collect()
    }
}

/// The life of one process of an instance, as far as its lines show it.
struct Life {
    run: u32,
    pid: i32,
    first: u64,
    last: u64,
}

fn lives(lines: &[Line]) -> Vec<Life> {
    let mut lives: Vec<Life> = Vec::new();
    for line in lines {
        let known = lives
            .iter_mut()
            .find(|life| life.run == line.run && life.pid == line.pid);
        match known {
            Some(life) => life.last = life.last.max(line.at),
            None => lives.push(Life {
                run: line.run,
                pid: line.pid,
                first: line.at,
                last: line.at,
            }),
        }
    }
    lives
}

/// At no time two live runs of an instance; and no run is launched twice.
fn two_at_once(instance: &str, lines: &[Line]) -> Vec<Broken> {
    let lives = lives(lines);
    let mut broken = Vec::new();
    for (place, later) in lives.iter().enumerate() {
        for earlier in &lives[..place] {
            // Process ids in containers are always the same; those of two machines may be.
            if earlier.run >= later.run {
                broken.push(Broken::of(
                    instance,
                    format!(
                        "run {} (process {}) began after run {} (process {})",
                        later.run, later.pid, earlier.run, earlier.pid
                    ),
                ));
            } else if earlier.last > later.first {
                broken.push(Broken::of(
                    instance,
                    format!(
                        "run {} (process {}) was alive {} ms after run {} (process {}) had begun",
                        earlier.run,
                        earlier.pid,
                        (earlier.last - later.first) / 1_000_000,
                        later.run,
                        later.pid
                    ),
                ));
            }
        }
    }
    broken
}

/// No step that was saved is run again.
fn saved_steps_again(instance: &str, lines: &[Line]) -> Vec<Broken> {
    let mut saved: BTreeMap<&str, &Line> = BTreeMap::new();
    let mut broken = Vec::new();
    for line in lines {
        match &line.what {
            What::Saved(id, _) | What::Found(id, _) => {
                saved.entry(id).or_insert(line);
            }
            What::Step(id) => {
                if let Some(before) = saved.get(id.as_str()) {
                    broken.push(Broken::of(
                        instance,
                        format!(
                            "step {id} was run again by run {} after run {} knew that it was saved",
                            line.run, before.run
                        ),
                    ));
                }
            }
            What::Begin | What::Alive | What::End => {}
        }
    }
    broken
}

/// Each checkpoint has one value for ever.
fn several_values(instance: &str, lines: &[Line]) -> Vec<Broken> {
    let mut values: BTreeMap<&str, (&str, u32)> = BTreeMap::new();
    let mut broken = Vec::new();
    for line in lines {
        let (What::Saved(id, value) | What::Found(id, value)) = &line.what else {
            continue;
        };
        let (known, run) = *values.entry(id).or_insert((value, line.run));
        if known != value {
            broken.push(Broken::of(
                instance,
                format!(
                    "step {id} was {known} for run {run} and {value} for run {}",
                    line.run
                ),
            ));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: &str = "\
        10 a 1 77 begin\n\
        11 a 1 77 alive\n\
        12 a 1 77 step one\n\
        13 a 1 77 saved one 1\n\
        20 a 1 77 step two\n\
        30 a 2 78 begin\n\
        31 a 2 78 found one 1\n\
        32 a 2 78 step two\n\
        33 a 2 78 saved two 2\n\
        34 a 2 78 end\n\
        15 b 1 79 begin\n";

    fn broken(text: &str) -> Vec<String> {
        let ledger = Ledger::read(text).unwrap_or_else(|error| panic!("{error}"));
        ledger.broken().into_iter().map(|it| it.what).collect()
    }

    #[test]
    fn an_unbroken_history_is_none() {
        assert_eq!(broken(FINE), [""; 0]);
        let ledger = Ledger::read(FINE).unwrap_or_default();
        assert_eq!((ledger.len(), ledger.runs()), (10, 3));
    }

    #[test]
    fn two_live_runs_at_once_are_found() {
        let found = broken(&format!("{FINE}31 a 1 77 alive\n"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("run 1 (process 77) was alive"),
            "{found:?}"
        );
    }

    #[test]
    fn a_run_that_was_launched_twice_is_found() {
        let found = broken(&format!("{FINE}35 a 2 99 begin\n"));
        assert!(
            found.iter().any(|it| it.contains("run 2 (process 99)")),
            "{found:?}"
        );
    }

    #[test]
    fn an_earlier_run_that_begins_later_is_found() {
        let found = broken(&format!("{FINE}40 a 1 99 begin\n"));
        assert!(
            found
                .iter()
                .any(|it| it.contains("run 1 (process 99) began after run 2")),
            "{found:?}"
        );
    }

    #[test]
    fn a_saved_step_that_runs_again_is_found() {
        let found = broken(&format!("{FINE}36 a 3 80 step one\n"));
        assert_eq!(
            found,
            ["step one was run again by run 3 after run 1 knew that it was saved"]
        );
    }

    #[test]
    fn a_checkpoint_of_two_values_is_found() {
        let found = broken(&format!("{FINE}36 a 3 80 found two 9\n"));
        assert_eq!(found, ["step two was 2 for run 2 and 9 for run 3"]);
    }

    #[test]
    fn whole_lines_of_guests_count_by_the_clock_of_the_ledger() {
        let log = "hello\nledger 112 a 1 9 step one .\nledger 113 a 1 9 saved onledger 114 a 1 9 alive .\nledger 115 a 1 9 fou";
        assert_eq!(of_guest(log, 100), ["12 a 1 9 step one\n"]);
        assert!(Ledger::read(&of_guest(log, 100).concat()).is_ok());
    }

    #[test]
    fn half_a_line_is_no_proof() {
        for line in ["12 a 1", "x a 1 2 begin", "1 a 1 2 saved one", "1 a 1 2 ?"] {
            assert!(Ledger::read(line).is_err(), "{line}");
        }
    }
}
