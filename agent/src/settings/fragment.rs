//! What one source says: the form of a settings file, in which every key may be missing.

use std::path::Path;

use super::{Error, Fragment, Source};

impl Fragment {
    /// Reads one settings file's text; `path` is what messages call it.
    ///
    /// # Errors
    /// [`Error::Syntax`], for what is not TOML, and for unknown keys and wrong types.
    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let message = match key_at(text, at) {
                Some(key) => format!("{key}: {}", error.message()),
                None => error.message().to_owned(),
            };
            Error::Syntax {
                place: Source::File {
                    path: path.to_owned(),
                    line: line_at(text, at),
                },
                message,
            }
        })
    }
}

/// The number of the line that the byte `at` is in, counted from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The key of the line that the byte `at` is in. Not the whole line: who writes a password into the file should not
/// read it in the journal.
fn key_at(text: &str, at: usize) -> Option<&str> {
    let line = text.lines().nth(line_at(text, at) - 1)?;
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}
