//! Plain tables: columns as wide as their widest cell, two blanks between them, nothing else.

use std::fmt;

/// Where a column's cells stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    /// Names and words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a header. Prints nothing if there are no rows.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row of as many cells as there are columns. An empty cell is shown as `-`.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let width = |(at, (name, _)): (usize, &(&str, Align))| {
            let cells = self.rows.iter().map(|row| shown(&row[at]).chars().count());
            cells.chain([name.chars().count()]).max().unwrap_or(0)
        };
        self.columns.iter().enumerate().map(width).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return Ok(());
        }
        let widths = self.widths();
        let header = self.columns.iter().map(|(name, _)| (*name).to_owned());
        let lines = std::iter::once(header.collect()).chain(self.rows.iter().cloned());
        for line in lines {
            let mut text = String::new();
            for ((cell, (_, align)), width) in line.iter().zip(&self.columns).zip(&widths) {
                let cell = shown(cell);
                match align {
                    Align::Left => text.push_str(&format!("{cell:<width$}  ")),
                    Align::Right => text.push_str(&format!("{cell:>width$}  ")),
                }
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

fn shown(cell: &str) -> &str {
    if cell.is_empty() { "-" } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("NAME", Align::Left), ("N", Align::Right)]);
        table.row(vec!["a".to_owned(), "1000".to_owned()]);
        table.row(vec!["longer".to_owned(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME       N\na       1000\nlonger     -\n"
        );
    }

    #[test]
    fn no_rows_print_nothing() {
        assert_eq!(Table::new(&[("NAME", Align::Left)]).to_string(), "");
    }
}
