//! JSON objects as Go's `encoding/json` reads them, for what flannel writes: keys match in any case of letters, the last of
//! several wins, unknown keys are skipped, `null` leaves the default.

use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use thiserror::Error;

use super::KINDS;

/// The network config's `Backend` object, or a lease's back end data, is unusable.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BackendConfigError {
    /// Not a JSON object.
    #[error("expected a JSON object: {0}")]
    Syntax(String),
    /// No such back end.
    #[error("the back end {0} does not exist; there is: {list}", list = KINDS.join(", "))]
    Kind(String),
    /// One key is wrong.
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// A key of a JSON object has an unusable value.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{key} is {value}: expected {expected}")]
pub struct FieldError {
    /// The key in flannel's spelling.
    pub key: &'static str,
    /// The value as JSON, shortened.
    pub value: String,
    /// What is allowed.
    pub expected: String,
}

/// The fields of a JSON object in their order.
#[derive(Debug)]
pub(super) struct Fields(Vec<(String, Value)>);

impl Fields {
    /// Reads a JSON object; `null` has no fields.
    pub(super) fn parse(json: &str) -> Result<Self, BackendConfigError> {
        let fields: Option<Self> = serde_json::from_str(json)
            .map_err(|error| BackendConfigError::Syntax(error.to_string()))?;
        Ok(fields.unwrap_or(Self(Vec::new())))
    }

    /// An integer within a range.
    pub(super) fn integer(
        &self,
        key: &'static str,
        range: RangeInclusive<u32>,
    ) -> Result<Option<u32>, FieldError> {
        self.get(key, |value| {
            let number = u32::try_from(value.as_u64()?).ok()?;
            range.contains(&number).then_some(number)
        })
        .map_err(|value| FieldError {
            key,
            value,
            expected: format!("an integer from {} to {}", range.start(), range.end()),
        })
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &'static str) -> Result<Option<bool>, FieldError> {
        self.get(key, Value::as_bool).map_err(|value| FieldError {
            key,
            value,
            expected: "true or false".into(),
        })
    }

    /// A string.
    pub(super) fn text(&self, key: &'static str) -> Result<Option<String>, FieldError> {
        self.get(key, |value| value.as_str().map(str::to_owned))
            .map_err(|value| FieldError {
                key,
                value,
                expected: "a string".into(),
            })
    }

    /// The last value of a key; its text, shortened, if it does not convert.
    fn get<T>(
        &self,
        key: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let named = |(name, _): &&(String, Value)| name.eq_ignore_ascii_case(key);
        match self.0.iter().rev().find(named) {
            None | Some((_, Value::Null)) => Ok(None),
            Some((_, value)) => match convert(value) {
                Some(converted) => Ok(Some(converted)),
                None => Err(value.to_string().chars().take(64).collect()),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}
