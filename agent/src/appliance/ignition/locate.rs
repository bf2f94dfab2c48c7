//! Positions of values in a TOML or JSON text: from field path to line and column, and back.
//!
//! Parsers report either a position (a wrong type) or nothing (a rule that we check later). Users need both the line
//! and the field's name, so this index maps one to the other.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A position in a text, both numbers from 1; columns count characters.
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

/// The positions of all values in a text.
pub(super) struct Index<'t> {
    text: &'t str,
    entries: Vec<Entry>,
}

impl<'t> Index<'t> {
    /// The index of a TOML text; only the root if the text is not TOML.
    pub(super) fn of_toml(text: &'t str) -> Self {
        let mut index = Self::of_root(text);
        if let Ok(root) = DeTable::parse(text) {
            index.add_toml_table("", root.get_ref());
        }
        index
    }

    /// The index of a JSON text; if the text is not JSON, of the part before the error.
    pub(super) fn of_json(text: &'t str) -> Self {
        let mut index = Self::of_root(text);
        let mut scanner = JsonScanner {
            text,
            at: 0,
            entries: &mut index.entries,
        };
        // The scanner stops at the first error; the JSON parser has already reported it.
        let _stopped_early = scanner.value(String::new(), 0..0);
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

    /// The byte offset of the value that `serde_json` complains about at this line and byte column: it names the last
    /// byte that it consumed (0 for the end of the line before), which is the separator when the value starts an
    /// object or array of the wrong type.
    pub(super) fn fault_at(&self, line: usize, byte_column: usize) -> usize {
        let lines = self.text.split_inclusive('\n');
        let line_start: usize = lines.take(line.saturating_sub(1)).map(str::len).sum();
        let offset = (line_start + byte_column.saturating_sub(1)).min(self.text.len());
        let is_separator = |b: &u8| b.is_ascii_whitespace() || b":,[".contains(b);
        let bytes = self.text.as_bytes()[offset..].iter();
        let mut offset = offset + bytes.take_while(|b| is_separator(b)).count();
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

/// A scanner for JSON that the real parser has already accepted: it only finds where values start and end, and stops
/// (`None`) at anything unexpected.
struct JsonScanner<'t, 'e> {
    text: &'t str,
    at: usize,
    entries: &'e mut Vec<Entry>,
}

impl JsonScanner<'_, '_> {
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at)?.is_ascii_whitespace() {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    fn value(&mut self, path: String, key: Range<usize>) -> Option<()> {
        let first = self.peek()?;
        let start = self.at;
        match first {
            b'{' => self.object(&path)?,
            b'[' => self.array(&path)?,
            b'"' => drop(self.string()?),
            _ => {
                let rest = &self.text[start..];
                let end = |c: char| c.is_ascii_whitespace() || ",]}".contains(c);
                // An empty scalar is an error, and the loops below would never advance.
                let length = rest.find(end).unwrap_or(rest.len());
                self.at += (length > 0).then_some(length)?;
            }
        }
        self.entries.push(Entry {
            path,
            key,
            value: start..self.at,
        });
        Some(())
    }

    fn object(&mut self, path: &str) -> Option<()> {
        self.take(b'{')?;
        while self.peek()? != b'}' {
            let start = self.at;
            let key = self.string()?;
            let key_range = start..self.at;
            self.take(b':')?;
            self.value(join_key(path, &key), key_range)?;
            if self.peek()? == b',' {
                self.at += 1;
            }
        }
        self.take(b'}')
    }

    fn array(&mut self, path: &str) -> Option<()> {
        self.take(b'[')?;
        let mut index = 0;
        while self.peek()? != b']' {
            self.value(join_index(path, index), 0..0)?;
            index += 1;
            if self.peek()? == b',' {
                self.at += 1;
            }
        }
        self.take(b']')
    }

    fn string(&mut self) -> Option<String> {
        self.take(b'"')?;
        let start = self.at - 1;
        let bytes = self.text.as_bytes();
        while *bytes.get(self.at)? != b'"' {
            self.at += if bytes[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        serde_json::from_str(self.text.get(start..self.at)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_paths_and_places_map_to_each_other() {
        let text =
            "{\n  \"a\": [1, {\"b\": \"é\", \"c.d\": null}],\n  \"e\": \"x\\\"y\", \"f\": 3 }\n";
        let index = Index::of_json(text);
        for (path, line, column) in [
            ("", 1, 1),
            ("a", 2, 8),
            ("a[0]", 2, 9),
            ("a[1].b", 2, 18),
            ("a[1].\"c.d\"", 2, 30),
            ("e", 3, 8),
            ("f", 3, 21),
            ("a[1].missing", 2, 12),
            ("nowhere", 1, 1),
        ] {
            assert_eq!(
                index.position_of(path),
                Position { line, column },
                "{path:?}"
            );
        }
        for (needle, path) in [
            ("\"b\"", "a[1].b"),
            ("é", "a[1].b"),
            ("3", "f"),
            ("[1", "a"),
        ] {
            assert_eq!(index.path_at(text.find(needle).unwrap()), path);
        }
        assert_eq!(index.fault_at(2, 3), text.find("\"a\"").unwrap());
        assert_eq!(index.fault_at(2, 6), text.find('1').unwrap());
        assert_eq!(index.fault_at(99, 99), text.len());
    }

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
            for index in [Index::of_json(text), Index::of_toml(text)] {
                assert_eq!(index.position_of("x.y[3]"), Position { line: 1, column: 1 });
                assert_eq!(index.path_at(text.len()), "");
            }
        }
    }
}
