//! A place in a document, whose name is in every complaint about it.

use std::str::FromStr;

use serde_json::Value;

use super::Problem;
use crate::base::yaml::text_of;

/// How much of a foreign key or value a message shows, in characters.
const SHOWN: usize = 60;

/// A value of a document, and the keys that lead to it.
#[derive(Clone, Debug)]
pub(super) struct Node<'v> {
    value: &'v Value,
    path: String,
}

impl<'v> Node<'v> {
    /// The whole document.
    pub(super) fn root(value: &'v Value) -> Self {
        let path = String::new();
        Self { value, path }
    }

    /// The keys, as `ethernets.eth0.mtu`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    fn below(&self, key: &str, value: &'v Value) -> Self {
        let key: String = key.chars().take(SHOWN).collect();
        let path = match self.path.is_empty() {
            true => key,
            false => format!("{}.{key}", self.path),
        };
        Self { value, path }
    }

    /// What a mapping has under a key; `None` where that is absent or null, and where this is no mapping.
    pub(super) fn get(&self, key: &str) -> Option<Self> {
        match self.value.get(key) {
            None | Some(Value::Null) => None,
            Some(value) => Some(self.below(key, value)),
        }
    }

    /// As [`Self::get`], where it must be there.
    pub(super) fn needed(&self, key: &str) -> Result<Self, Problem> {
        self.get(key)
            .ok_or_else(|| Problem::Missing(self.below(key, self.value).path))
    }

    /// The entries of a mapping, without those that are null.
    pub(super) fn entries(&self, most: usize) -> Result<Vec<(&'v str, Self)>, Problem> {
        let Value::Object(object) = self.value else {
            return Err(self.wrong("a mapping"));
        };
        self.limit(object.len(), most)?;
        let entries = object.iter();
        Ok(entries
            .map(|(key, value)| (key.as_str(), self.below(key, value)))
            .collect())
    }

    /// The elements of a list.
    pub(super) fn elements(&self, most: usize) -> Result<Vec<Self>, Problem> {
        let Value::Array(elements) = self.value else {
            return Err(self.wrong("a list"));
        };
        self.limit(elements.len(), most)?;
        let numbered = elements.iter().enumerate();
        Ok(numbered
            .map(|(number, value)| self.below(&number.to_string(), value))
            .collect())
    }

    /// The elements of a list, or none where there is no such key.
    pub(super) fn list(&self, key: &str, most: usize) -> Result<Vec<Self>, Problem> {
        self.get(key)
            .map_or(Ok(Vec::new()), |node| node.elements(most))
    }

    /// Values of a list, or of one text with spaces or commas between them, as ifupdown had it. Empty ones do not count.
    pub(super) fn parsed_list<T: FromStr>(
        &self,
        key: &str,
        most: usize,
        expected: &'static str,
    ) -> Result<Vec<T>, Problem> {
        let Some(node) = self.get(key) else {
            return Ok(Vec::new());
        };
        let nodes = match node.value {
            Value::Array(_) => node.elements(most)?,
            _ => vec![node.clone()],
        };
        let mut values = Vec::new();
        for node in nodes {
            let text = node.text(expected)?;
            let words = text.split([' ', '\t', ',']).filter(|word| !word.is_empty());
            for word in words {
                values.push(word.parse().map_err(|_| node.wrong(expected))?);
            }
        }
        node.limit(values.len(), most)?;
        Ok(values)
    }

    fn limit(&self, count: usize, most: usize) -> Result<(), Problem> {
        match count <= most {
            true => Ok(()),
            false => Err(Problem::TooMany {
                path: self.path.clone(),
                count,
                most,
            }),
        }
    }

    /// A plain value as text.
    pub(super) fn text(&self, expected: &'static str) -> Result<String, Problem> {
        text_of(self.value).ok_or_else(|| self.wrong(expected))
    }

    /// A plain value as something else.
    pub(super) fn parsed<T: FromStr>(&self, expected: &'static str) -> Result<T, Problem> {
        let text = self.text(expected)?;
        text.parse().map_err(|_| self.wrong(expected))
    }

    /// A truth value, in the words of YAML 1.1, which most examples have.
    pub(super) fn flag(&self) -> Result<bool, Problem> {
        let expected = "true or false";
        match self.text(expected)?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Ok(true),
            "false" | "no" | "off" => Ok(false),
            _ => Err(self.wrong(expected)),
        }
    }

    /// The complaint that this is not what it should be.
    pub(super) fn wrong(&self, expected: &'static str) -> Problem {
        let value = match self.value {
            Value::Array(_) => "a list".to_owned(),
            Value::Object(_) => "a mapping".to_owned(),
            value => {
                let text = text_of(value).unwrap_or_else(|| "null".to_owned());
                let start: String = text.chars().take(SHOWN).collect();
                format!("{start:?}")
            }
        };
        let path = match self.path.is_empty() {
            true => "the document".to_owned(),
            false => self.path.clone(),
        };
        Problem::Value {
            path,
            value,
            expected,
        }
    }
}
