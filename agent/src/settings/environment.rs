//! Settings from the environment: `SELVAGE_*`, and for users of flannel `FLANNELD_*`.

use std::collections::BTreeMap;
use std::env;

use toml::Spanned;

use super::key::{self, Key};
use super::kind::Kind;
use super::{Error, Secret, Source};

/// The environment variables that can be settings. No derived `Debug`: one of them may be a password.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Self {
        // Skip what is not UTF-8: none of our names or values can be.
        env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// Without flannel's variables.
    pub(crate) fn ours(&self) -> Self {
        let variables = self.0.iter().filter(|(name, _)| key::is_ours(name));
        Self(
            variables
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        )
    }

    /// The stronger of a setting's variables that is set and not empty, and its value.
    fn variable(&self, names: [String; 2]) -> Option<(String, &str)> {
        names.into_iter().find_map(|name| {
            let value = self.0.get(&name).filter(|value| !value.is_empty())?;
            Some((name, value.as_str()))
        })
    }

    /// Where the value of the setting `key` comes from.
    pub(super) fn source(&self, key: Key) -> Source {
        let [ours, _] = key.variables();
        Source::Variable(
            self.variable(key.variables())
                .map_or(ours, |(name, _)| name),
        )
    }

    /// flannel's `FLANNELD_ETCD_PASSWORD`. It has neither a flag nor a key here: a file is safer.
    pub(super) fn password(&self) -> Option<Secret> {
        let (_, value) = self.variable(key::variables("etcd-password"))?;
        Some(Secret::new(value.to_owned()))
    }

    /// The value of one setting.
    pub(super) fn get<K: Kind>(&self, key: Key) -> Result<Option<Spanned<K::File>>, Error> {
        let Some((name, value)) = self.variable(key.variables()) else {
            return Ok(None);
        };
        match K::read(value) {
            Ok(value) => Ok(Some(unplaced(value))),
            Err(expected) => Err(Error::Value {
                place: Source::Variable(name),
                key: key.path,
                value: format!("{value:?}"),
                expected,
            }),
        }
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let ours = |name: &String| key::is_variable(name);
        Self(
            variables
                .into_iter()
                .filter(|(name, _)| ours(name))
                .collect(),
        )
    }
}

/// A value that does not come from a file.
pub(crate) fn unplaced<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}
