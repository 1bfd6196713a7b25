//! Where results go: standard output, as text or as JSON. Notes and the live line go to standard error.

use std::io::{self, IsTerminal as _, Write};

use runtara_management_sdk::{Status, StatusReason};
use serde::Serialize;

use crate::cli::When;
use crate::table::{Cell, Table, Tint, facts};

/// The two outputs and how they look.
pub(crate) struct Screen {
    pub(crate) json: bool,
    colours: bool,
    /// Whether a line on standard error can be written over.
    live: bool,
    out: io::Stdout,
}

impl Screen {
    pub(crate) fn new(json: bool, when: When) -> Self {
        let set = |name| std::env::var_os(name).unwrap_or_default();
        let (no_color, is_dumb) = (set("NO_COLOR"), set("TERM") == "dumb");
        let is_bare = is_dumb || !no_color.is_empty();
        Self {
            json,
            colours: wants_colours(when, io::stdout().is_terminal(), is_bare),
            live: io::stderr().is_terminal() && !is_dumb,
            out: io::stdout(),
        }
    }

    /// Writes text as it is.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        self.bytes(text.as_bytes())
    }

    /// Writes bytes as they are, at once.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        // Writing blocks the only thread. That is wanted: nothing is to be done before the reader takes it.
        self.out.write_all(bytes)?;
        self.out.flush()
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, line: &str) -> io::Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// Writes a value as one line of JSON, for streams of them.
    pub(crate) fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        self.line(&text)
    }

    /// Writes a value as JSON that people can read, too.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
        self.line(&text)
    }

    pub(crate) fn table(&mut self, table: &Table, with_head: bool) -> io::Result<()> {
        let text = table.render(with_head, self.colours);
        self.text(&text)
    }

    pub(crate) fn facts(&mut self, rows: &[(&str, Option<Cell>)]) -> io::Result<()> {
        let text = facts(rows, self.colours);
        self.text(&text)
    }

    /// Tells something beside the result.
    pub(crate) fn note(&mut self, note: &str) {
        // A note that cannot be written is no reason to give up the result.
        let _ = writeln!(io::stderr(), "{}", crate::text::printable_lines(note));
    }

    /// Whether [`Screen::over`] can be used.
    pub(crate) fn is_live(&self) -> bool {
        self.live && !self.json
    }

    /// Removes the live line, if there can be one.
    pub(crate) fn clear(&mut self) {
        if self.is_live() {
            self.over("");
        }
    }

    /// Writes over the live line; an empty text removes it.
    pub(crate) fn over(&mut self, line: &str) {
        let _ = write!(
            io::stderr(),
            "\r\u{1b}[2K{}",
            crate::text::cut(line, width().saturating_sub(1))
        );
        let _ = io::stderr().flush();
    }
}

/// Whether to use colours. `is_bare`: the terminal knows none, or the user wants none: any value of `NO_COLOR` but the empty one
/// (<https://no-color.org>).
fn wants_colours(when: When, is_terminal: bool, is_bare: bool) -> bool {
    match when {
        When::Always => true,
        When::Never => false,
        When::Auto => is_terminal && !is_bare,
    }
}

/// Columns of the terminal that standard error is.
fn width() -> usize {
    terminal_size::terminal_size_of(io::stderr()).map_or(80, |(columns, _)| usize::from(columns.0))
}

/// A status with its reason, in its colour.
pub(crate) fn status_cell(status: &Status, reason: Option<&StatusReason>) -> Cell {
    Cell::new(status_text(status, reason), tint_of(status))
}

/// A status with its reason.
pub(crate) fn status_text(status: &Status, reason: Option<&StatusReason>) -> String {
    match reason {
        Some(reason) if *status == Status::Suspended => {
            format!("{status} ({})", reason.as_str().replace('_', " "))
        }
        _ => status.to_string(),
    }
}

fn tint_of(status: &Status) -> Tint {
    match status {
        Status::Running => Tint::Cyan,
        Status::Completed => Tint::Green,
        Status::Failed => Tint::Red,
        Status::Suspended => Tint::Yellow,
        Status::Cancelled => Tint::Dim,
        _ => Tint::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_whose_user_wants_them() {
        assert!(wants_colours(When::Auto, true, false));
        assert!(!wants_colours(When::Auto, true, true));
        assert!(!wants_colours(When::Auto, false, false));
        assert!(wants_colours(When::Always, false, true));
        assert!(!wants_colours(When::Never, true, false));
    }

    #[test]
    fn a_suspended_instance_says_why() {
        assert_eq!(
            status_text(&Status::Suspended, Some(&StatusReason::WaitingSignal)),
            "suspended (waiting signal)"
        );
        assert_eq!(
            status_text(&Status::Running, Some(&StatusReason::Crashed)),
            "running"
        );
        assert_eq!(
            status_cell(&Status::Failed, None),
            Cell::new("failed", Tint::Red)
        );
    }
}
