//! Where the values of a TOML text stand: from a field path to line and column, and back.
//!
//! Parsers report either a place (a wrong type) or nothing at all (a rule that we check afterwards); users need both
//! the line and the name of the field, so this index maps each to the other.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A place in a text, both numbers from 1; columns count characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// `path` extended by an object key: `storage` and `files` make `storage.files`. A key that would be ambiguous is
/// quoted.
pub(super) fn join_key(path: &str, key: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let dot = if path.is_empty() { "" } else { "." };
    if !key.is_empty() && key.bytes().all(plain) {
        format!("{path}{dot}{key}")
    } else {
        format!("{path}{dot}{key:?}")
    }
}

/// `path` extended by an array index, from 0: `storage.files[2]`.
pub(super) fn join_index(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

struct Entry {
    path: String,
    key: Range<usize>,
    value: Range<usize>,
}

/// The places of all values of one text.
pub(super) struct Index<'t> {
    text: &'t str,
    entries: Vec<Entry>,
}

impl<'t> Index<'t> {
    /// The index of a TOML text; of nothing but the root when the text is not TOML.
    pub(super) fn of_toml(text: &'t str) -> Self {
        let mut index = Self::of_root(text);
        if let Ok(root) = DeTable::parse(text) {
            index.add_toml_table("", root.get_ref());
        }
        index
    }

    fn of_root(text: &'t str) -> Self {
        let root = Entry {
            path: String::new(),
            key: 0..0,
            value: 0..text.len(),
        };
        Self {
            text,
            entries: vec![root],
        }
    }

    fn add_toml_table(&mut self, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            self.add_toml_value(join_key(path, key.get_ref()), key.span(), value);
        }
    }

    fn add_toml_value(&mut self, path: String, key: Range<usize>, value: &Spanned<DeValue<'_>>) {
        match value.get_ref() {
            DeValue::Table(table) => self.add_toml_table(&path, table),
            DeValue::Array(array) => {
                for (i, item) in array.iter().enumerate() {
                    self.add_toml_value(join_index(&path, i), 0..0, item);
                }
            }
            _ => {}
        }
        self.entries.push(Entry {
            path,
            key,
            value: value.span(),
        });
    }

    /// Where the value at `path` starts; for an absent one, the nearest value around it.
    pub(super) fn position_of(&self, path: &str) -> Position {
        let mut path = path;
        loop {
            if let Some(entry) = self.entries.iter().find(|entry| entry.path == path) {
                return self.position_at(entry.value.start);
            }
            path = &path[..path.rfind(['.', '[']).unwrap_or(0)];
        }
    }

    /// The line and column of the byte `offset`.
    pub(super) fn position_at(&self, offset: usize) -> Position {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Position {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// The path of the innermost value whose text, or whose key, covers the byte `offset`.
    pub(super) fn path_at(&self, offset: usize) -> &str {
        let covers = |range: &&Range<usize>| range.contains(&offset);
        self.entries
            .iter()
            .filter_map(|entry| {
                let range = [&entry.key, &entry.value].into_iter().find(covers)?;
                Some((range.len(), entry.path.as_str()))
            })
            .min_by_key(|(length, _)| *length)
            .map_or("", |(_, path)| path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_paths_and_places_map_to_each_other() {
        let text = "[a]\nb = 1\n\n[[n]]\nc = \"x\"\n[[n]]\nc = [\n 1,\n 2]\nd.e = true\n";
        let index = Index::of_toml(text);
        for (path, line, column) in [
            ("a", 1, 1),
            ("a.b", 2, 5),
            ("n[1].c", 7, 5),
            ("n[1].c[1]", 9, 2),
            ("n[1].d.e", 10, 7),
            ("n[1].missing", 6, 1),
        ] {
            assert_eq!(
                index.position_of(path),
                Position { line, column },
                "{path:?}"
            );
        }
        assert_eq!(index.path_at(text.find("c = [").unwrap()), "n[1].c");
    }

    #[test]
    fn text_that_does_not_parse_has_a_root() {
        for text in ["", "{", "{\"a", "{\"a\\", "[[[", "[}", "{]", "nul", "é"] {
            {
                let index = Index::of_toml(text);
                assert_eq!(index.position_of("x.y[3]"), Position { line: 1, column: 1 });
                assert_eq!(index.path_at(text.len()), "");
            }
        }
    }
}
