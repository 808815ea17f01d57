//! Where each key of a file stands, so that a mistake can name its line.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of one parsed file.
#[derive(Debug)]
pub(super) struct Spans<'a> {
    text: &'a str,
    table: Option<Spanned<DeTable<'a>>>,
}

/// One step from a table or an array to what is in it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> Spans<'a> {
    /// Of `text`. A text that does not parse has no spans: its error carries the line already.
    pub(super) fn of(text: &'a str) -> Self {
        Self {
            text,
            table: DeTable::parse(text).ok(),
        }
    }

    /// Line of the deepest part of `path` that is in the file; `None` if not even the first is.
    pub(super) fn line(&self, path: &[Step<'_>]) -> Option<usize> {
        let (Step::Key(first), rest) = path.split_first()? else {
            return None;
        };
        let (key, mut value) = self.table.as_ref()?.get_ref().get_key_value(*first)?;
        let mut at = key.span().start;
        for step in rest {
            let found = match (step, value.get_ref()) {
                (Step::Key(name), DeValue::Table(table)) => table
                    .get_key_value(*name)
                    .map(|(key, value)| (key.span().start, value)),
                (Step::Index(index), DeValue::Array(array)) => {
                    array.get(*index).map(|value| (value.span().start, value))
                }
                _ => None,
            };
            let Some((start, inner)) = found else { break };
            at = start;
            value = inner;
        }
        Some(line_of(self.text, at))
    }
}

/// `peers[0].id`, for people.
pub(super) fn dotted(path: &[Step<'_>]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Key(key) if out.is_empty() => out.push_str(key),
            Step::Key(key) => {
                out.push('.');
                out.push_str(key);
            }
            Step::Index(index) => out.push_str(&format!("[{index}]")),
        }
    }
    out
}

/// The line, from 1, that holds the byte at `at`.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    text.as_bytes()[..at]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count()
        + 1
}
