//! The JSON dialect of Go's `encoding/json`, where flannel's users can tell it from plain JSON.
//!
//! flannel decodes its network config and its leases into Go structs. A key matches a field in any letter case
//! (`Directrouting`, `vni` and `enableIPv6` are all in use), unknown keys are skipped, and the last of several keys for
//! one field wins. `serde`'s derived parsers do none of this, so the agent's parsers use [`Object`].

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{DeserializeOwned, Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

/// The text is not the JSON that was expected.
#[derive(Debug, Error)]
pub enum GoJsonError {
    /// The text is not JSON.
    #[error("not valid JSON")]
    Syntax(#[from] serde_json::Error),
    /// The text is JSON, but not an object.
    #[error("{value} is not a JSON object")]
    NotAnObject {
        /// The value, shortened.
        value: String,
    },
    /// The value of a key has the wrong type or is out of range.
    #[error("{name}: {value} is not {expected}")]
    Field {
        /// The key, in flannel's spelling.
        name: &'static str,
        /// The value as written, shortened.
        value: String,
        /// The allowed values.
        expected: Cow<'static, str>,
    },
    /// A required key is missing.
    #[error("{name} is missing: expected {expected}")]
    Missing {
        /// The key, in flannel's spelling.
        name: &'static str,
        /// The allowed values.
        expected: &'static str,
    },
}

/// One JSON object whose values are not decoded yet.
#[derive(Debug, Default)]
pub struct Object<'a> {
    fields: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// Splits an object into its fields. `null` is an empty object, as it is when Go decodes into a struct.
    pub fn parse(text: &'a str) -> Result<Self, GoJsonError> {
        // Syntax first: a syntax error has line and column, and after it the first character tells the type.
        let value: &RawValue = serde_json::from_str(text)?;
        match value.get().as_bytes().first() {
            Some(b'{') => {}
            Some(b'n') => return Ok(Self::default()),
            _ => {
                return Err(GoJsonError::NotAnObject {
                    value: shorten(value.get()),
                });
            }
        }
        let mut reader = serde_json::Deserializer::from_str(value.get());
        let fields = reader.deserialize_map(Fields)?;
        Ok(Self { fields })
    }

    /// The field's value as `T`; `None` if it is absent or `null`.
    ///
    /// As in Go, `null` leaves the value of an earlier duplicate alone, and a duplicate of the wrong type is an
    /// error even if a later one would win. `expected` names the allowed values, for the error.
    pub fn get<T: DeserializeOwned>(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, GoJsonError> {
        let mut found = None;
        for value in self.values(name).filter(|v| v.get() != "null") {
            let value =
                serde_json::from_str(value.get()).map_err(|_| field(name, value, expected))?;
            found = Some(value);
        }
        Ok(found)
    }

    /// The field's value as `T`, for fields whose decoder in Go does not accept `null`: any `null` is an error, but the
    /// key may be missing.
    pub fn get_not_null<T: DeserializeOwned>(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, GoJsonError> {
        match self.values(name).find(|v| v.get() == "null") {
            Some(null) => Err(field(name, null, expected)),
            None => self.get(name, expected),
        }
    }

    /// The field's value as `T`; absence and `null` are errors.
    pub fn required<T: DeserializeOwned>(
        &self,
        name: &'static str,
        expected: &'static str,
    ) -> Result<T, GoJsonError> {
        self.get_not_null(name, expected)?
            .ok_or(GoJsonError::Missing { name, expected })
    }

    /// The field's value as an integer within an inclusive range; `None` if it is absent or `null`.
    pub fn integer(
        &self,
        name: &'static str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, GoJsonError> {
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        let number = self.get::<u32>(name, "").map_err(|error| match error {
            GoJsonError::Field { name, value, .. } => GoJsonError::Field {
                name,
                value,
                expected: expected().into(),
            },
            error => error,
        })?;
        match number {
            Some(number) if !range.contains(&number) => Err(GoJsonError::Field {
                name,
                value: number.to_string(),
                expected: expected().into(),
            }),
            number => Ok(number),
        }
    }

    /// The field's undecoded value, `null` included; the last one wins.
    pub fn raw(&self, name: &str) -> Option<&'a RawValue> {
        self.values(name).last()
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &'a RawValue> {
        self.fields
            .iter()
            .filter(move |(key, _)| same_name(key, name))
            .map(|(_, value)| *value)
    }
}

fn field(name: &'static str, value: &RawValue, expected: &'static str) -> GoJsonError {
    GoJsonError::Field {
        name,
        value: shorten(value.get()),
        expected: expected.into(),
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(Name(name)) = map.next_key()? {
            fields.push((name, map.next_value()?));
        }
        Ok(fields)
    }
}

/// A key, borrowed unless it contains escapes.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// Whether Go matches `key` to the field `name`: by simple Unicode case folding, which for ASCII field names means
/// ASCII case plus the two other characters that fold to ASCII letters.
fn same_name(key: &str, name: &str) -> bool {
    let fold = |c: char| match c {
        'ſ' => 's',
        '\u{212a}' => 'k', // the Kelvin sign
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

/// Valid JSON without white space between tokens, as Go's `json.Compact` writes it.
pub fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for c in json.chars() {
        if in_string {
            (in_string, escaped) = (escaped || c != '"', !escaped && c == '\\');
        } else if c.is_ascii_whitespace() {
            continue;
        } else {
            in_string = c == '"';
        }
        out.push(c);
    }
    out
}

/// Valid JSON with the characters escaped that Go's `json.Marshal` escapes. They occur only inside strings.
pub fn escape_as_go(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

/// A foreign text, short enough for a log line.
pub(crate) fn shorten(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// JSON text in which each unpaired half of a surrogate pair is replaced by U+FFFD, as Go does; other parsers reject
/// such text.
pub fn replace_lone_surrogates(text: &str) -> Cow<'_, str> {
    const ESCAPE: usize = "\\uXXXX".len();
    let unit = |at: usize| {
        let digits = text.get(at..at + ESCAPE)?.strip_prefix("\\u")?;
        u32::from_str_radix(digits, 16).ok()
    };
    let mut replaced = String::new();
    let (mut copied, mut at) = (0, 0);
    while let Some(found) = text[at..].find('\\') {
        at += found;
        let low = |unit: u32| (0xdc00..0xe000).contains(&unit);
        at += match unit(at) {
            // A surrogate pair.
            Some(0xd800..0xdc00) if unit(at + ESCAPE).is_some_and(low) => 2 * ESCAPE,
            Some(0xd800..0xe000) => {
                replaced.push_str(&text[copied..at]);
                replaced.push_str("\\ufffd");
                copied = at + ESCAPE;
                ESCAPE
            }
            // Skip the escaped character, which may be a second backslash.
            _ => text[at..].chars().take(2).map(char::len_utf8).sum(),
        };
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    replaced.push_str(&text[copied..]);
    Cow::Owned(replaced)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lone_surrogates_are_replaced_and_nothing_else() {
        for (text, expected) in [
            (r#"{"a":"\ud800"}"#, r#"{"a":"\ufffd"}"#),
            (r#"{"a":"\udc00x\ud83d"}"#, r#"{"a":"\ufffdx\ufffd"}"#),
            (r#"{"a":"\ud83d\ude00"}"#, r#"{"a":"\ud83d\ude00"}"#),
            (
                r#"{"a":"\ud83d\ud83d\ude00"}"#,
                r#"{"a":"\ufffd\ud83d\ude00"}"#,
            ),
            (r#"{"a":"\\ud800"}"#, r#"{"a":"\\ud800"}"#),
            (r#"{"a":"\ud80"}"#, r#"{"a":"\ud80"}"#),
            ("\\", "\\"),
            ("ä\\ä", "ä\\ä"),
        ] {
            assert_eq!(replace_lone_surrogates(text), expected, "{text}");
        }
    }

    #[test]
    fn names_match_in_any_case_and_the_last_duplicate_counts() {
        let object =
            Object::parse(r#"{"vni":1,"VNI":7,"V\u004ei":9,"DirectRouting":true}"#).unwrap();
        assert_eq!(object.get::<u32>("VNI", "a number").unwrap(), Some(9));
        assert_eq!(object.get("Directrouting", "a bool").unwrap(), Some(true));
        assert_eq!(object.get::<u32>("Port", "a number").unwrap(), None);
        let kelvin = Object::parse("{\"\u{212a}ey\":1}").unwrap();
        assert_eq!(kelvin.get("Key", "a number").unwrap(), Some(1));
    }

    #[test]
    fn null_leaves_the_value_alone_and_is_refused_where_go_refuses_it() {
        let object = Object::parse(r#"{"A":5,"a":null,"B":null}"#).unwrap();
        assert_eq!(object.get("A", "a number").unwrap(), Some(5));
        assert_eq!(object.get::<u8>("B", "a number").unwrap(), None);
        assert!(object.get_not_null::<u8>("A", "a number").is_err());
        assert!(object.required::<u8>("B", "a number").is_err());
        assert!(object.required::<u8>("C", "a number").is_err());
        assert_eq!(object.raw("b").unwrap().get(), "null");
        assert!(Object::parse("null").unwrap().raw("A").is_none());
    }

    #[test]
    fn wrong_types_are_errors_that_name_key_value_and_range() {
        let object = Object::parse(r#"{"A":"x","a":5}"#).unwrap();
        let error = object.get::<u8>("A", "a number from 0 to 255").unwrap_err();
        assert_eq!(error.to_string(), r#"A: "x" is not a number from 0 to 255"#);
        for text in ["", "[1]", "5", "{} x", "{a:1}", r#"{"a":1,}"#] {
            assert!(Object::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn compact_keeps_strings() {
        let json = "{ \"a b\" :\t[ 1 ,\n\"c \\\" d\\\\\" , {} ] }";
        assert_eq!(compact(json), r#"{"a b":[1,"c \" d\\",{}]}"#);
        assert_eq!(
            escape_as_go(r#"{"a":"<&>"}"#),
            r#"{"a":"\u003c\u0026\u003e"}"#
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,64}") {
            let _ = Object::parse(&text);
        }

        #[test]
        fn compact_means_the_same(strings in prop::collection::vec(".*", 0..4)) {
            let value = serde_json::json!({ "k": strings });
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(compact(&pretty), serde_json::to_string(&value).unwrap());
            let back: serde_json::Value = serde_json::from_str(&escape_as_go(&pretty)).unwrap();
            prop_assert_eq!(back, value);
        }
    }
}
