//! Terminal output: when to use colours, and the size of the terminal.

use std::fmt;
use std::io::{self, IsTerminal};

/// When output has colours.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Whether texts are coloured. Colour never carries meaning of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Style {
    colours: bool,
}

impl Style {
    /// By the flag; without one, colours on a terminal unless `NO_COLOR` is set (<https://no-color.org>).
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

    /// A text in a tone.
    pub(crate) fn tone(self, tone: Tone, text: &str) -> Styled<'_> {
        match tone {
            Tone::Plain => Styled { code: None, text },
            Tone::Good => self.good(text),
            Tone::Warn => self.warn(text),
            Tone::Bad => self.bad(text),
            Tone::Bold => self.bold(text),
            Tone::Dim => self.dim(text),
        }
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

/// The meaning of a text, as data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// Something well.
    Good,
    /// Something to look at.
    Warn,
    /// Something wrong.
    Bad,
    /// A title.
    Bold,
    /// Something of less weight.
    Dim,
}

/// Columns and lines of standard output; `None` if it is not a terminal.
///
/// As in ncurses, `COLUMNS` and `LINES` override the terminal's size.
pub(crate) fn size() -> Option<(usize, usize)> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let variable = |name| {
        let value = std::env::var(name).ok()?;
        value.parse().ok().filter(|size| *size > 0)
    };
    let (columns, lines) = match terminal_size::terminal_size_of(io::stdout()) {
        Some((columns, lines)) => (columns.0, lines.0),
        // The default of terminals since the VT100.
        None => (80, 24),
    };
    Some((
        variable("COLUMNS").unwrap_or_else(|| columns.into()),
        variable("LINES").unwrap_or_else(|| lines.into()),
    ))
}

/// A text with its colour. A format width pads the text, not the escapes.
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
