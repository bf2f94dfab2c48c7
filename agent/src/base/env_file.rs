//! Files of shell assignments such as `subnet.env`, parsed as a shell that sources them would, but without running
//! anything.
//!
//! Supported: assignments, also several per line, with or without `export`; both kinds of quotes, backslashes, `$NAME`
//! and `${NAME}`; comments; quotes and backslashes that continue on the next line. A value that would run a program is
//! an error, because without the program the value is wrong.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

use thiserror::Error;

/// Shell variables by name, in the order in which `set` prints them.
pub type Variables = BTreeMap<String, String>;

/// The file is not valid, or needs a shell.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Error {
    /// A quote is never closed.
    #[error("line {line}: unterminated quote {quote}")]
    OpenQuote {
        /// Where the quote begins, counted from 1.
        line: usize,
        /// Which quote.
        quote: char,
    },
    /// An expansion that needs a shell.
    #[error("line {line}: {what} needs a shell and is not supported")]
    NeedsShell {
        /// Where, counted from 1.
        line: usize,
        /// What it is.
        what: String,
    },
}

/// Adds the assignments of a file to `variables`; returns the numbers, from 1, of lines that are not assignments. A
/// shell would run those as commands, and continue if the command does not exist.
///
/// # Errors
/// [`Error`]; `variables` then has the assignments before the error.
pub fn source(text: &str, variables: &mut Variables) -> Result<Vec<usize>, Error> {
    let mut scanner = Scanner {
        rest: text.chars().peekable(),
        line: 1,
    };
    let mut ignored = Vec::new();
    while let Some(line) = scanner.next_command() {
        // A shell expands each assignment after those before it, but drops all of them if a command follows on the
        // line.
        let mut assigned = variables.clone();
        let mut words = Vec::new();
        while let Some(word) = scanner.next_word(&assigned)? {
            let assigns = is_export(&words) || words.iter().all(|word: &Word| word.name.is_some());
            if let (true, Some(name)) = (assigns, &word.name) {
                assigned.insert(name.clone(), word.text.clone());
            }
            words.push(word);
        }
        let all = |words: &[Word]| words.iter().all(|word| word.name.is_some());
        let exported = |word: &Word| word.name.is_some() || is_name(&word.text);
        if all(&words) || (is_export(&words) && words.iter().skip(1).all(exported)) {
            *variables = assigned;
        } else {
            ignored.push(line);
        }
    }
    Ok(ignored)
}

/// Whether a text is a valid variable name.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(begins_name) && text.chars().all(in_name)
}

fn begins_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn in_name(c: char) -> bool {
    begins_name(c) || c.is_ascii_digit()
}

/// A word of a command.
struct Word {
    /// The variable's name, if the word is an assignment.
    name: Option<String>,
    /// The value, or the whole word.
    text: String,
}

fn is_export(words: &[Word]) -> bool {
    words
        .first()
        .is_some_and(|word| word.name.is_none() && word.text == "export")
}

/// Reads a file by character and counts lines.
struct Scanner<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
}

impl Scanner<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.next()?;
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn next_if(&mut self, wanted: char) -> bool {
        let found = self.rest.peek() == Some(&wanted);
        if found {
            self.next();
        }
        found
    }

    fn skip_while(&mut self, skipped: impl Fn(char) -> bool) {
        while self.rest.peek().is_some_and(|c| skipped(*c)) {
            self.next();
        }
    }

    /// Skips to the next command and returns its line.
    fn next_command(&mut self) -> Option<usize> {
        loop {
            match self.rest.peek()? {
                '#' => self.skip_while(|c| c != '\n'),
                '\n' | ';' | ' ' | '\t' | '\r' => {
                    self.next();
                }
                _ => return Some(self.line),
            }
        }
    }

    /// The next word of the same command, if there is one.
    fn next_word(&mut self, variables: &Variables) -> Result<Option<Word>, Error> {
        // To a shell, a carriage return is not white space; but no value ends in one on purpose.
        self.skip_while(|c| matches!(c, ' ' | '\t' | '\r'));
        match self.rest.peek() {
            None | Some('\n' | ';') => return Ok(None),
            Some('#') => {
                self.skip_while(|c| c != '\n');
                return Ok(None);
            }
            Some(_) => (),
        }
        let mut word = Word {
            name: None,
            text: String::new(),
        };
        let mut quoted = false;
        while let Some(&c) = self.rest.peek() {
            if matches!(c, ' ' | '\t' | '\r' | '\n' | ';') {
                break;
            }
            self.next();
            match c {
                '=' if word.name.is_none() && !quoted && is_name(&word.text) => {
                    word.name = Some(std::mem::take(&mut word.text));
                }
                '\'' => {
                    quoted = true;
                    self.single_quoted(&mut word.text)?;
                }
                '"' => {
                    quoted = true;
                    self.double_quoted(&mut word.text, variables)?;
                }
                '\\' => {
                    quoted = true;
                    // A backslash at the end of a line joins it with the next.
                    word.text.extend(self.next().filter(|c| *c != '\n'));
                }
                '$' => {
                    quoted = true;
                    self.expand(&mut word.text, variables)?;
                }
                '`' | '|' | '&' | '<' | '>' | '(' | ')' => return Err(self.needs_shell(c)),
                c => word.text.push(c),
            }
        }
        Ok(Some(word))
    }

    fn single_quoted(&mut self, text: &mut String) -> Result<(), Error> {
        let line = self.line;
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(c) => text.push(c),
                None => return Err(Error::OpenQuote { line, quote: '\'' }),
            }
        }
    }

    fn double_quoted(&mut self, text: &mut String, variables: &Variables) -> Result<(), Error> {
        let line = self.line;
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some('\\') => match self.next() {
                    Some('\n') | None => (),
                    Some(c @ ('"' | '\\' | '$' | '`')) => text.push(c),
                    Some(c) => text.extend(['\\', c]),
                },
                Some('$') => self.expand(text, variables)?,
                Some('`') => return Err(self.needs_shell('`')),
                Some(c) => text.push(c),
                None => return Err(Error::OpenQuote { line, quote: '"' }),
            }
        }
    }

    /// What follows a `$`.
    fn expand(&mut self, text: &mut String, variables: &Variables) -> Result<(), Error> {
        let braced = self.next_if('{');
        let mut name = String::new();
        while let Some(&c) = self.rest.peek() {
            if !in_name(c) || (name.is_empty() && !begins_name(c)) {
                break;
            }
            self.next();
            name.push(c);
        }
        if braced && (name.is_empty() || !self.next_if('}')) {
            return Err(self.needs_shell(format!("${{{name}…")));
        }
        if !name.is_empty() {
            text.extend(variables.get(&name).map(String::as_str));
            return Ok(());
        }
        match self.rest.peek() {
            Some(c)
                if matches!(c, '(' | '?' | '$' | '!' | '#' | '@' | '*' | '-')
                    || c.is_ascii_digit() =>
            {
                let c = *c;
                Err(self.needs_shell(format!("${c}")))
            }
            // A dollar sign without a name is literal.
            _ => {
                text.push('$');
                Ok(())
            }
        }
    }

    fn needs_shell(&self, what: impl Into<String>) -> Error {
        Error::NeedsShell {
            line: self.line,
            what: what.into(),
        }
    }
}

#[cfg(test)]
mod tests;
