//! Columns that line up.

use crate::text::printable;

/// The look of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tint {
    /// As it is.
    Plain,
    /// For heads.
    Bold,
    /// Of lesser weight.
    Dim,
    /// It went well.
    Green,
    /// It waits.
    Yellow,
    /// It went wrong.
    Red,
    /// It is at work.
    Cyan,
}

impl Tint {
    /// Wraps `text` in the escape sequences of ECMA-48 (SGR).
    pub(crate) fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
            Self::Cyan => "36",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Text with a look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    text: String,
    tint: Tint,
}

impl Cell {
    /// Foreign text is made printable here, once for all tables.
    pub(crate) fn new(text: impl AsRef<str>, tint: Tint) -> Self {
        Self {
            text: printable(text.as_ref()),
            tint,
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tint::Plain)
    }
}

/// Rows under a head.
#[derive(Debug)]
pub(crate) struct Table {
    head: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self {
            head: head
                .iter()
                .map(|name| Cell::new(name, Tint::Bold))
                .collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The whole as text. `with_head` is false for a further page of the same table.
    pub(crate) fn render(&self, with_head: bool, colours: bool) -> String {
        let lines: Vec<_> = std::iter::once(&self.head)
            .filter(|_| with_head)
            .chain(&self.rows)
            .collect();
        let width = |column: usize| {
            let texts = std::iter::once(&self.head)
                .chain(&self.rows)
                .filter_map(|line| line.get(column));
            texts
                .map(|cell| cell.text.chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<_> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        for line in lines {
            // Nothing stands behind the last cell with content, so that no line ends in spaces.
            let last = line
                .iter()
                .rposition(|cell| !cell.text.is_empty())
                .unwrap_or_default();
            for (column, cell) in line.iter().enumerate().take(last + 1) {
                let tint = if colours { cell.tint } else { Tint::Plain };
                text.push_str(&tint.paint(&cell.text));
                if column < last {
                    let gap = widths[column] - cell.text.chars().count() + 2;
                    text.extend(std::iter::repeat_n(' ', gap));
                }
            }
            text.push('\n');
        }
        text
    }
}

/// Names with their values below each other; what has no value is left out.
pub(crate) fn facts(rows: &[(&str, Option<Cell>)], colours: bool) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for (name, cell) in rows {
        let Some(cell) = cell else { continue };
        let tint = |tint| if colours { tint } else { Tint::Plain };
        let name = tint(Tint::Bold).paint(&format!("{name:<width$}"));
        text.push_str(&format!("{name}  {}\n", tint(cell.tint).paint(&cell.text)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["NAME", "STATUS", "NOTE"]);
        table.row([
            "a".into(),
            Cell::new("failed", Tint::Red),
            "x\u{1b}y".into(),
        ]);
        table.row(["lönger".into(), "ok".into(), "".into()]);
        table
    }

    #[test]
    fn columns_line_up_and_nothing_trails() {
        assert_eq!(
            table().render(true, false),
            "NAME    STATUS  NOTE\na       failed  x y\nlönger  ok\n"
        );
        assert_eq!(
            table().render(false, false),
            "a       failed  x y\nlönger  ok\n"
        );
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let text = table().render(false, true);
        assert_eq!(text, "a       \u{1b}[31mfailed\u{1b}[0m  x y\nlönger  ok\n");
    }

    #[test]
    fn facts_without_a_value_are_left_out() {
        let rows = [
            ("id", Some("o-1".into())),
            ("status", None),
            ("error", Some("no".into())),
        ];
        assert_eq!(facts(&rows, false), "id      o-1\nerror   no\n");
    }
}
