//! The kinds of setting values, and how each source writes them.

use std::fmt::{self, Debug};

use clap::{Arg, ArgAction, ArgMatches, value_parser};
use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The form of a value in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    Text,
    Texts,
    Integer,
    Boolean,
}

/// A kind of setting value.
pub(crate) trait Kind {
    /// The type in a file.
    type File: DeserializeOwned + Into<Self::Value>;
    /// The resulting type.
    type Value: Debug;
    const FORM: Form;

    /// Parses an environment variable; the error says what is expected.
    fn read(text: &str) -> Result<Self::File, String>;

    /// Completes the definition of a flag.
    fn argument(argument: Arg) -> Arg;

    /// The value of a flag; `None` if the command has no such flag.
    fn flag(matches: &ArgMatches, name: &str) -> Option<Self::File>;
}

/// A string; an empty one means none if the setting is optional.
pub(crate) enum Text {}
/// An integer. Signed, so that a negative one gets the error that names the range.
pub(crate) enum Number {}
/// On or off.
pub(crate) enum Switch {}
/// A list, written as one in a file, elsewhere separated by commas.
pub(crate) enum Urls {}
/// A list, or a string in a file; elsewhere separated by commas.
pub(crate) enum Commas {}
/// A list with a repeated flag, and a variable that holds one element, as in flannel: a pattern may contain commas.
pub(crate) enum Each {}
/// A list with a repeated flag, or separated by commas.
pub(crate) enum Networks {}

impl Kind for Text {
    type File = String;
    type Value = String;
    const FORM: Form = Form::Text;

    fn read(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }

    fn argument(argument: Arg) -> Arg {
        argument
    }

    fn flag(matches: &ArgMatches, name: &str) -> Option<String> {
        one(matches, name)
    }
}

impl Kind for Number {
    type File = i64;
    type Value = i64;
    const FORM: Form = Form::Integer;

    fn read(text: &str) -> Result<i64, String> {
        text.trim().parse().map_err(|_| "a whole number".to_owned())
    }

    fn argument(argument: Arg) -> Arg {
        argument
            .value_parser(value_parser!(i64))
            .allow_negative_numbers(true)
    }

    fn flag(matches: &ArgMatches, name: &str) -> Option<i64> {
        one(matches, name)
    }
}

impl Kind for Switch {
    type File = bool;
    type Value = bool;
    const FORM: Form = Form::Boolean;

    fn read(text: &str) -> Result<bool, String> {
        parse_bool(text)
    }

    fn argument(argument: Arg) -> Arg {
        argument
            .value_parser(parse_bool)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
    }

    fn flag(matches: &ArgMatches, name: &str) -> Option<bool> {
        one(matches, name)
    }
}

impl Kind for Urls {
    type File = Vec<String>;
    type Value = Vec<String>;
    const FORM: Form = Form::Texts;

    fn read(text: &str) -> Result<Vec<String>, String> {
        Ok(split_list(text))
    }

    fn argument(argument: Arg) -> Arg {
        argument
    }

    fn flag(matches: &ArgMatches, name: &str) -> Option<Vec<String>> {
        one(matches, name).map(|list: String| split_list(&list))
    }
}

impl Kind for Commas {
    type File = Texts;
    type Value = Vec<String>;
    const FORM: Form = Form::Texts;

    fn read(text: &str) -> Result<Texts, String> {
        Ok(Texts(split_list(text)))
    }

    fn argument(argument: Arg) -> Arg {
        argument
    }

    fn flag(matches: &ArgMatches, name: &str) -> Option<Texts> {
        Urls::flag(matches, name).map(Texts)
    }
}

impl Kind for Each {
    type File = Texts;
    type Value = Vec<String>;
    const FORM: Form = Form::Texts;

    fn read(text: &str) -> Result<Texts, String> {
        Ok(Texts(vec![text.to_owned()]))
    }

    fn argument(argument: Arg) -> Arg {
        argument.action(ArgAction::Append)
    }

    fn flag(matches: &ArgMatches, name: &str) -> Option<Texts> {
        let values = matches.try_get_many::<String>(name).ok().flatten()?;
        Some(Texts(values.cloned().collect()))
    }
}

impl Kind for Networks {
    type File = Texts;
    type Value = Vec<String>;
    const FORM: Form = Form::Texts;

    fn read(text: &str) -> Result<Texts, String> {
        Commas::read(text)
    }

    fn argument(argument: Arg) -> Arg {
        Each::argument(argument).value_delimiter(',')
    }

    fn flag(matches: &ArgMatches, name: &str) -> Option<Texts> {
        Each::flag(matches, name)
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
pub(crate) fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

/// A list of strings; a single string is a list of one.
#[derive(Clone, Debug)]
pub(crate) struct Texts(pub(crate) Vec<String>);

impl From<Texts> for Vec<String> {
    fn from(texts: Texts) -> Self {
        texts.0
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Texts, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Texts)
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}
