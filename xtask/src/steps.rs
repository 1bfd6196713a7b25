//! Steps with a name and a time, and the table at the end.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::error::Error;

/// The steps of one verb: announces each, stops at the first failure, and shows all at the end,
/// those that were not reached too.
pub(crate) struct Steps {
    began: Instant,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    outcome: Outcome,
}

#[derive(Clone, Copy)]
enum Outcome {
    Passed(Duration),
    Failed(Duration),
    NotReached,
}

impl Steps {
    /// Plans steps in the order in which they will be run.
    pub(crate) fn plan(names: impl IntoIterator<Item = &'static str>) -> Self {
        let row = |name| Row {
            name,
            outcome: Outcome::NotReached,
        };
        Self {
            began: Instant::now(),
            rows: names.into_iter().map(row).collect(),
        }
    }

    /// Runs one of the planned steps; one that was not planned is left out and gives nothing.
    pub(crate) fn step<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let Some(place) = self.rows.iter().position(|row| row.name == name) else {
            return Ok(None);
        };
        let at = seconds(self.began.elapsed());
        eprintln!(
            "\n==> {name} ({} of {}, at {at})",
            place + 1,
            self.rows.len()
        );
        let began = Instant::now();
        let answer = work();
        let took = began.elapsed();
        let row = &mut self.rows[place];
        match answer {
            Ok(answer) => {
                row.outcome = Outcome::Passed(took);
                eprintln!("    {name}: ok in {}", seconds(took));
                Ok(Some(answer))
            }
            Err(error) => {
                row.outcome = Outcome::Failed(took);
                eprintln!("    {name}: FAILED after {}", seconds(took));
                Err(match error {
                    Error::Interrupted => Error::Interrupted,
                    other => Error::Step {
                        step: name.to_owned(),
                        source: Box::new(other),
                    },
                })
            }
        }
    }

    /// Gives the table of all steps.
    pub(crate) fn table(&self) -> String {
        let width = self
            .rows
            .iter()
            .map(|row| row.name.len())
            .max()
            .unwrap_or(0)
            .max(5);
        let mut table = String::new();
        for Row { name, outcome } in &self.rows {
            let (word, time) = match outcome {
                Outcome::Passed(took) => ("ok", seconds(*took)),
                Outcome::Failed(took) => ("FAILED", seconds(*took)),
                Outcome::NotReached => ("not reached", String::new()),
            };
            let line = format!("    {name:<width$}  {time:>9}  {word}");
            writeln!(table, "{}", line.trim_end()).expect("a String takes every write");
        }
        let total = seconds(self.began.elapsed());
        write!(table, "    {:<width$}  {total:>9}", "total").expect("a String takes every write");
        table
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_tells_what_passed_what_failed_and_what_was_not_reached() {
        let mut steps = Steps::plan(["build", "tests", "more"]);
        assert_eq!(steps.step("build", || Ok(7)).expect("it passes"), Some(7));
        let failure = steps.step("tests", || {
            Err::<(), _>(Error::Unmet("1 is not 2".to_owned()))
        });
        assert_eq!(
            crate::error::with_causes(&failure.expect_err("it fails")),
            "step `tests` failed: 1 is not 2"
        );
        let table = steps.table();
        let lines: Vec<_> = table.lines().map(str::trim).collect();
        assert!(
            lines[0].starts_with("build") && lines[0].ends_with("ok"),
            "{table}"
        );
        assert!(
            lines[1].starts_with("tests") && lines[1].ends_with("FAILED"),
            "{table}"
        );
        assert!(
            lines[2].starts_with("more") && lines[2].ends_with("not reached"),
            "{table}"
        );
    }

    #[test]
    fn a_step_that_was_not_planned_does_not_run() {
        let mut steps = Steps::plan(["build"]);
        let answer = steps.step("tests", || -> Result<(), Error> { panic!("it ran") });
        assert_eq!(answer.expect("it is left out"), None);
    }
}
