//! The syntax of Go's `flag` package, and of the numbers and truth values that it takes.

use std::ffi::OsString;

use super::definition::{self, Definition, Kind};
use super::flags::{Flags, Value};
use super::{Error, removed};
use crate::settings::{Source, parse_bool};

/// Reads arguments into `flags` up to the first that is no flag, or to `--`; what follows is left alone, as in flanneld.
/// Returns whether to go on: false when help is asked for.
///
/// # Errors
/// The first argument that is wrong.
pub(super) fn parse(arguments: Vec<OsString>, flags: &mut Flags) -> Result<bool, Error> {
    let mut arguments = arguments.into_iter();
    loop {
        match next(&mut arguments)? {
            Next::Flag(definition, value) => {
                flags.set(definition, &value, Source::Flag(definition.name))?;
            }
            Next::Help => return Ok(false),
            Next::End { unread } => {
                flags.unread = unread;
                return Ok(true);
            }
        }
    }
}

/// What comes next on a command line.
pub(super) enum Next {
    /// A flag with its value, which is not looked at yet.
    Flag(&'static Definition, String),
    /// Help is asked for.
    Help,
    /// No flag any more; the rest begins with this argument.
    End { unread: Option<String> },
}

/// Takes the next flag off a command line.
///
/// # Errors
/// There is no such flag, or it lacks its value.
pub(super) fn next(arguments: &mut impl Iterator<Item = OsString>) -> Result<Next, Error> {
    let Some(argument) = arguments.next() else {
        return Ok(Next::End { unread: None });
    };
    let argument = argument.into_string().map_err(Error::NotUtf8)?;
    let Some(flag) = argument.strip_prefix('-').filter(|flag| !flag.is_empty()) else {
        return Ok(Next::End {
            unread: Some(argument),
        });
    };
    let flag = flag.strip_prefix('-').unwrap_or(flag);
    if flag.is_empty() {
        let unread = arguments.next();
        return Ok(Next::End {
            unread: unread.map(|argument| argument.to_string_lossy().into_owned()),
        });
    }
    if flag.starts_with(['-', '=']) {
        return Err(Error::Syntax(argument));
    }
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (flag, None),
    };
    if matches!(name, "h" | "help") {
        return Ok(Next::Help);
    }
    let definition = definition::find(name).ok_or_else(|| removed::explain(name))?;
    let value = match value {
        Some(value) => value,
        // A switch never takes the next argument.
        None if definition.kind == Kind::Switch => "true".to_owned(),
        None => match arguments.next() {
            Some(value) => value.into_string().map_err(Error::NotUtf8)?,
            None => return Err(Error::Missing(definition.name)),
        },
    };
    Ok(Next::Flag(definition, value))
}

/// Reads a value; the error is what is expected.
pub(super) fn value(kind: Kind, text: &str) -> Result<Value, &'static str> {
    const NUMBER: &str = "a whole number, such as 8472 or 0x2118";
    match kind {
        Kind::Switch => parse_bool(text).map(Value::Switch),
        Kind::Number => number(text).map(Value::Number).ok_or(NUMBER),
        // klog reads it by itself, without Go's prefixes and underscores.
        Kind::Verbosity => text
            .parse::<i32>()
            .map(|level| Value::Number(level.into()))
            .map_err(|_| "a whole number of 32 bits"),
        Kind::Modules if !are_modules(text) => {
            Err("a list such as vxlan=4,etcd*=2: patterns with their verbosity")
        }
        Kind::Location if !is_location(text) => Err("a place such as main.go:123"),
        Kind::Text | Kind::Texts | Kind::Modules | Kind::Location => {
            Ok(Value::Text(text.to_owned()))
        }
    }
}

/// Go's `strconv.ParseInt(text, 0, 64)`: a sign; then decimal, or 0x, 0o, 0b or 0 and that base; underscores between
/// digits, also after the prefix.
fn number(text: &str) -> Option<i64> {
    let (negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = unsigned.to_ascii_lowercase();
    let (base, digits) = if let Some(digits) = lower.strip_prefix("0x") {
        (16, digits)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (2, digits)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        (8, digits)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    // A prefix, the 0 of the octal ones as well, counts as a digit before an underscore.
    let digits = match digits.strip_prefix('_') {
        Some(digits) if base != 10 => digits,
        _ => digits,
    };
    let separated = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    if !separated || digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// klog's `-vmodule`: `pattern=N,...`; empty members are skipped.
fn are_modules(text: &str) -> bool {
    text.split(',')
        .filter(|member| !member.is_empty())
        .all(|member| {
            member
                .split_once('=')
                .is_some_and(|(pattern, level)| !pattern.is_empty() && level.parse::<i32>().is_ok())
        })
}

/// klog's `-log_backtrace_at`: `file.go:N`, or nothing.
fn is_location(text: &str) -> bool {
    text.is_empty()
        || text.split_once(':').is_some_and(|(file, line)| {
            file.contains('.') && line.parse::<u32>().is_ok_and(|line| line > 0)
        })
}
