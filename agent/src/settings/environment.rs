//! Settings from the environment: `SELVAGE_*`, and for users of flannel `FLANNELD_*`.

use std::collections::BTreeMap;
use std::env;

use super::kind::Value;
use super::setting::{self, Setting};
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
        let variables = self.0.iter().filter(|(name, _)| setting::is_ours(name));
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

    /// flannel's `FLANNELD_ETCD_PASSWORD`. It has neither a flag nor a key here: a file is safer.
    pub(super) fn password(&self) -> Option<Secret> {
        let (_, value) = self.variable(setting::variables("etcd-password"))?;
        Some(Secret::new(value.to_owned()))
    }

    /// The value of one setting, and the variable.
    pub(super) fn get(&self, setting: &Setting) -> Result<Option<(Value, Source)>, Error> {
        let Some((name, text)) = self.variable(setting.variables()) else {
            return Ok(None);
        };
        let place = Source::Variable(name);
        match setting.kind.read(text) {
            Ok(value) => Ok(Some((value, place))),
            Err(expected) => Err(Error::Value {
                place,
                key: setting.path,
                value: format!("{text:?}"),
                expected: expected.to_owned(),
            }),
        }
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let ours = |name: &String| setting::is_variable(name);
        Self(
            variables
                .into_iter()
                .filter(|(name, _)| ours(name))
                .collect(),
        )
    }
}
