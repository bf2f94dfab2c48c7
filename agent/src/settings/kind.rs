//! The kinds of setting values, and how each source writes them.

use std::fmt::{self, Debug};

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use toml::Spanned;
use toml::de::{DeValue, ValueDeserializer};

/// A kind of setting value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A string; an empty one means none if the setting is optional.
    Text,
    /// An integer. Signed, so that a negative one gets the error that names the range.
    Number,
    /// On or off.
    Switch,
    /// A list, written as one in a file, elsewhere separated by commas.
    Urls,
    /// A list, or a string in a file; elsewhere separated by commas.
    Commas,
    /// A list with a repeated flag, and a variable that holds one element, as in flannel: a pattern may contain commas.
    Each,
    /// A list with a repeated flag, or separated by commas.
    Networks,
}

/// The value of a setting, not checked yet.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
    Switch(bool),
    Texts(Vec<String>),
}

impl Kind {
    /// What a file has, in words.
    pub(crate) fn form(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Number => "whole number",
            Self::Switch => "true or false",
            Self::Urls | Self::Commas | Self::Each | Self::Networks => "list of texts",
        }
    }

    /// Parses an environment variable; the error says what is expected.
    pub(super) fn read(self, text: &str) -> Result<Value, &'static str> {
        Ok(match self {
            Self::Text => Value::Text(text.to_owned()),
            Self::Number => Value::Number(text.trim().parse().map_err(|_| "a whole number")?),
            Self::Switch => Value::Switch(parse_bool(text)?),
            Self::Each => Value::Texts(vec![text.to_owned()]),
            Self::Urls | Self::Commas | Self::Networks => Value::Texts(split_list(text)),
        })
    }

    /// Takes a value out of a file.
    pub(super) fn take(self, value: Spanned<DeValue<'_>>) -> Result<Value, toml::de::Error> {
        let value = ValueDeserializer::from(value);
        match self {
            Self::Text => String::deserialize(value).map(Value::Text),
            Self::Number => i64::deserialize(value).map(Value::Number),
            Self::Switch => bool::deserialize(value).map(Value::Switch),
            Self::Urls => Vec::deserialize(value).map(Value::Texts),
            Self::Commas | Self::Each | Self::Networks => {
                value.deserialize_any(OneOrMany).map(Value::Texts)
            }
        }
    }

    /// Completes the definition of a flag.
    pub(super) fn argument(self, argument: Arg) -> Arg {
        match self {
            Self::Text | Self::Urls | Self::Commas => argument,
            Self::Number => argument
                .value_parser(value_parser!(i64))
                .allow_negative_numbers(true),
            Self::Switch => argument
                .value_parser(parse_bool)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
            Self::Each => argument.action(ArgAction::Append),
            Self::Networks => argument.action(ArgAction::Append).value_delimiter(','),
        }
    }

    /// The value of a flag; `None` if the command has no such flag.
    pub(super) fn flag(self, matches: &ArgMatches, name: &str) -> Option<Value> {
        Some(match self {
            Self::Text => Value::Text(one(matches, name)?),
            Self::Number => Value::Number(one(matches, name)?),
            Self::Switch => Value::Switch(one(matches, name)?),
            Self::Urls | Self::Commas => Value::Texts(split_list(&one::<String>(matches, name)?)),
            Self::Each | Self::Networks => {
                let values = matches.try_get_many::<String>(name).ok().flatten()?;
                Value::Texts(values.cloned().collect())
            }
        })
    }
}

/// As a settings file has it: Rust's `Debug` form of a string, number, boolean or list of strings is valid TOML.
impl Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => text.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Switch(on) => on.fmt(f),
            Self::Texts(texts) => texts.fmt(f),
        }
    }
}

fn one<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Option<T> {
    matches.try_get_one::<T>(name).ok().flatten().cloned()
}

/// Splits a comma-separated list; empty members are dropped.
pub(crate) fn split_list(list: &str) -> Vec<String> {
    let members = list.split(',').map(str::trim);
    members
        .filter(|member| !member.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Parses a boolean in any of the spellings of Go's `strconv.ParseBool`, like flannel's flags.
///
/// # Errors
/// What is expected.
pub(crate) fn parse_bool(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("true or false"),
    }
}

/// A list of strings; a single string is a list of one.
struct OneOrMany;

impl<'de> Visitor<'de> for OneOrMany {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of texts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<String>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}
