//! YAML, as programs and platforms write it, read into the form of JSON.

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::Value;

/// How deep a document may nest; those of platforms have some six levels.
const DEEPEST: usize = 64;

/// The first document of a text that is JSON or YAML.
///
/// # Errors
/// What is wrong with it, as a phrase.
pub fn parse(text: &str) -> Result<Value, String> {
    let error = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    // What begins so is meant to be JSON, and its fault is what counts.
    if text.trim_start().starts_with(['{', '[']) {
        return Err(format!("bad JSON: {error}"));
    }
    // The parser calls itself for each level.
    let depth = text.lines().map(indentation).max().unwrap_or_default();
    if depth > DEEPEST * 8 || text.matches(['[', '{']).count() > DEEPEST * 16 {
        return Err("bad YAML: it nests too deep".to_owned());
    }
    let documents = Yaml::load_from_str(text).map_err(|error| format!("bad YAML: {error}"))?;
    Ok(documents
        .first()
        .map_or(Value::Null, |yaml| value_of(yaml, 0)))
}

/// Spaces, and dashes of lists in lists, before the contents of a line.
fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches([' ', '-', '?']).len()
}

fn value_of(yaml: &Yaml<'_>, depth: usize) -> Value {
    if depth > DEEPEST {
        return Value::Null;
    }
    match yaml {
        Yaml::Value(Scalar::Boolean(is)) => Value::Bool(*is),
        Yaml::Value(Scalar::Integer(number)) => Value::from(*number),
        Yaml::Value(Scalar::FloatingPoint(number)) => Value::from(number.into_inner()),
        Yaml::Value(Scalar::String(text)) => Value::from(text.as_ref()),
        Yaml::Sequence(elements) => (elements.iter())
            .map(|element| value_of(element, depth + 1))
            .collect(),
        Yaml::Mapping(mapping) => mapping
            .iter()
            .filter_map(|(key, value)| {
                let key = text_of(&value_of(key, depth + 1))?;
                Some((key, value_of(value, depth + 1)))
            })
            .collect(),
        _ => Value::Null,
    }
}

/// A plain value as text; `None` for a list, a mapping or null.
pub(crate) fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is) => Some(is.to_string()),
        _ => None,
    }
}
