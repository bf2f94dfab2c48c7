//! The settings of one source, in the form of a settings file in which every key is optional.

use std::path::Path;

use super::{Error, Fragment, Source};

impl Fragment {
    /// Parses the text of one settings file; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Syntax`] for invalid TOML, unknown keys and wrong types.
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

/// The line number of the byte `at`, counted from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The key in the line of the byte `at`. Not the whole line: a password in the file must not end up in the journal.
pub(super) fn key_at(text: &str, at: usize) -> Option<&str> {
    let line = text.lines().nth(line_at(text, at) - 1)?;
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}
