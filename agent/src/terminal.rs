//! How output looks on a terminal: colours where they can be seen, and its width.

use std::fmt;
use std::io::{self, IsTerminal};

use crate::cli::Colour;

/// Whether texts get colours. Never the only carrier of a meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// By the flag; if it leaves it open, colours on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub(crate) fn choose(flag: Colour) -> Self {
        let colours = match flag {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                io::stdout().is_terminal() && !refused
            }
        };
        Self { colours }
    }

    /// Something well.
    pub(crate) fn good(self, text: &str) -> Styled<'_> {
        self.sgr("32", text)
    }

    /// Something to look at.
    pub(crate) fn warn(self, text: &str) -> Styled<'_> {
        self.sgr("33", text)
    }

    /// Something wrong.
    pub(crate) fn bad(self, text: &str) -> Styled<'_> {
        self.sgr("31", text)
    }

    /// A title.
    pub(crate) fn bold(self, text: &str) -> Styled<'_> {
        self.sgr("1", text)
    }

    /// Something of less weight.
    pub(crate) fn dim(self, text: &str) -> Styled<'_> {
        self.sgr("2", text)
    }

    fn sgr<'a>(self, code: &'static str, text: &'a str) -> Styled<'a> {
        Styled {
            code: self.colours.then_some(code),
            text,
        }
    }
}

/// A text with its colour. A width in a format pads the text, not the escapes around it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Styled<'a> {
    code: Option<&'static str>,
    text: &'a str,
}

impl fmt::Display for Styled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            None => f.pad(self.text),
            Some(code) => {
                write!(f, "\x1b[{code}m")?;
                f.pad(self.text)?;
                f.write_str("\x1b[0m")
            }
        }
    }
}
