//! Regular expressions for addresses and names of interfaces.

use std::fmt;

use regex_lite::Regex;

/// A regular expression that matches anywhere in a text, unless anchored with `^` and `$`.
///
/// The syntax is that of Go's `regexp`, and so of flannel, without Unicode classes (`\pL`) and `\Q...\E`. As in Go,
/// `\d`, `\w` and `\s` are ASCII, and matching takes linear time.
#[derive(Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Parses a regular expression.
    ///
    /// # Errors
    /// The syntax error.
    pub fn new(text: &str) -> Result<Self, regex_lite::Error> {
        Regex::new(text).map(Self)
    }

    /// Whether it matches in `text`.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0.as_str(), f)
    }
}
