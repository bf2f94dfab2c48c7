//! Settings from the environment: `SELVAGE_*`, and for users of flannel `FLANNELD_*`.
//!
//! Drop-ins for CoreOS name a variable of the platform's metadata as the value: `FLANNELD_IFACE=${COREOS_EC2_IPV4_LOCAL}`.
//! systemd puts variables into command lines only, so it is done here.

use std::collections::BTreeMap;
use std::env;

use super::kind::Value;
use super::setting::{self, Setting};
use super::{Error, Secret, Source};
use crate::base::env_file::is_name;

/// What starts the variables of `/run/metadata/` (`selvage metadata`).
const METADATA: [&str; 3] = ["AFTERBURN_", "COREOS_", "SELVAGE_METADATA_"];

/// The variable of the metadata that a value is a reference to, `${COREOS_EC2_IPV4_LOCAL}`.
fn reference(value: &str) -> Option<&str> {
    let name = value.strip_prefix("${")?.strip_suffix('}')?;
    let of_metadata = METADATA.iter().any(|start| name.starts_with(start));
    (of_metadata && is_name(name)).then_some(name)
}

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
        if let Some(name) = reference(text) {
            return Err(Error::Value {
                place,
                key: setting.path,
                value: format!("{text:?}"),
                expected: format!(
                    "{name} to be set; the unit needs Requires= and After=coreos-metadata.service and \
                     EnvironmentFile=/run/metadata/coreos, and `selvage metadata show` lists what this platform has"
                ),
            });
        }
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
        let all: BTreeMap<String, String> = variables.into_iter().collect();
        let ours = all.iter().filter(|(name, _)| setting::is_variable(name));
        let value = |value: &String| {
            let referred = reference(value).and_then(|name| all.get(name));
            referred.unwrap_or(value).clone()
        };
        Self(
            ours.map(|(name, text)| (name.clone(), value(text)))
                .collect(),
        )
    }
}
