//! A figure, its limit, what it must reach, and how all of them are shown.

use std::fmt::Write as _;

use serde::Serialize;

use super::load::median;

/// What a figure must reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// Shown for what it tells about another.
    None,
}

/// One line of the table: a figure over all its rounds, and its limit in the same rounds.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub(super) figure: String,
    pub(super) unit: &'static str,
    pub(super) measured: f64,
    pub(super) rounds: Vec<f64>,
    pub(super) limit_is: Option<String>,
    pub(super) limit: Option<f64>,
    pub(super) limit_rounds: Vec<f64>,
    pub(super) ratio: Option<f64>,
    pub(super) must: Bound,
    pub(super) reached: Option<bool>,
    pub(super) note: String,
}

impl Figure {
    /// Takes the median of the rounds.
    pub(super) fn new(figure: impl Into<String>, unit: &'static str, rounds: &[f64]) -> Self {
        Self {
            figure: figure.into(),
            unit,
            measured: median(rounds),
            rounds: rounds.to_vec(),
            limit_is: None,
            limit: None,
            limit_rounds: Vec::new(),
            ratio: None,
            must: Bound::None,
            reached: None,
            note: String::new(),
        }
    }

    /// Sets the limit beside it. The ratio is the median of the ratios round by round, so that what slows the machine for a while
    /// slows both sides.
    pub(super) fn beside(mut self, limit_is: impl Into<String>, rounds: &[f64]) -> Self {
        self.limit_is = Some(limit_is.into());
        self.limit = Some(median(rounds));
        self.limit_rounds = rounds.to_vec();
        let ratios: Vec<f64> = self.rounds.iter().zip(rounds).map(|(a, b)| a / b).collect();
        self.ratio = Some(median(&ratios));
        self
    }

    /// Judges it.
    pub(super) fn must(mut self, bound: Bound) -> Self {
        self.must = bound;
        let ratio = self.ratio.unwrap_or(f64::NAN);
        self.reached = match bound {
            Bound::AtLeast(least) => Some(self.measured >= least),
            Bound::AtMost(most) => Some(self.measured <= most),
            Bound::RatioAtLeast(least) => Some(ratio >= least),
            Bound::RatioAtMost(most) => Some(ratio <= most),
            Bound::None => None,
        };
        self
    }

    /// Says what a reader must know.
    pub(super) fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    fn cells(&self) -> [String; 6] {
        let limit = match (self.limit, &self.limit_is) {
            (Some(limit), Some(what)) => format!("{} ({what})", short(limit)),
            _ => "-".to_owned(),
        };
        let bound = match self.must {
            Bound::AtLeast(it) => format!(">= {} {}", short(it), self.unit),
            Bound::AtMost(it) => format!("<= {} {}", short(it), self.unit),
            Bound::RatioAtLeast(it) => format!(">= {it} x"),
            Bound::RatioAtMost(it) => format!("<= {it} x"),
            Bound::None => "-".to_owned(),
        };
        let reached = match self.reached {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        [
            self.figure.clone(),
            format!("{} {}", short(self.measured), self.unit),
            limit,
            self.ratio.map_or("-".to_owned(), |it| format!("{it:.2}")),
            bound,
            reached.to_owned(),
        ]
    }
}

/// Gives all figures as a table for people, notes below it.
pub(super) fn table(figures: &[Figure]) -> String {
    let head = [
        "figure",
        "measured",
        "limit",
        "ratio",
        "must reach",
        "reached",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(figures.iter().map(Figure::cells));
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let width = |row: &[String; 6]| row[column].chars().count();
        rows.iter().map(width).max().unwrap_or(0)
    });
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            write!(line, "{cell:<width$}  ").expect("a String takes every write");
        }
        table.push_str(line.trim_end());
        table.push('\n');
    }
    for figure in figures.iter().filter(|it| !it.note.is_empty()) {
        writeln!(table, "  {}: {}", figure.figure, figure.note)
            .expect("a String takes every write");
    }
    table
}

/// Three digits that mean something, and no more.
fn short(value: f64) -> String {
    match value.abs() {
        it if it >= 100.0 => format!("{value:.0}"),
        it if it >= 10.0 => format!("{value:.1}"),
        it if it >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_by_the_ratio_of_each_round() {
        // Given a machine that was twice as slow in the second round, for both.
        let figure = Figure::new("checkpoints/s", "/s", &[1100.0, 550.0, 1100.0]);
        let figure = figure.beside("pgbench", &[1000.0, 500.0, 1000.0]);
        let figure = figure.must(Bound::RatioAtLeast(1.0));
        assert!((figure.ratio.expect("it has a limit") - 1.1).abs() < 1e-9);
        assert_eq!(figure.reached, Some(true));
        let slow = Figure::new("x", "ms", &[3.0]).must(Bound::AtMost(2.0));
        assert_eq!(slow.reached, Some(false));
        let unknown = Figure::new("x", "ms", &[f64::NAN]).must(Bound::AtMost(2.0));
        assert_eq!(
            unknown.reached,
            Some(false),
            "what was not measured is not reached"
        );
    }

    #[test]
    fn the_table_says_what_was_missed() {
        let good = Figure::new("list", "ms", &[3.0]).must(Bound::AtMost(15.0));
        let bad = Figure::new("start", "ms", &[9.0]).beside("fork", &[3.0]);
        let bad = bad.must(Bound::RatioAtMost(2.0)).note("all alone");
        let table = table(&[good, bad]);
        let lines: Vec<_> = table.lines().collect();
        assert!(
            lines[1].starts_with("list") && lines[1].ends_with("yes"),
            "{table}"
        );
        assert!(
            lines[2].contains("3.00 (fork)") && lines[2].ends_with("NO"),
            "{table}"
        );
        assert_eq!(lines[3], "  start: all alone");
    }
}
