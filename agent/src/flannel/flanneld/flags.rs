//! The values of the flags, and where each is from.

use std::collections::BTreeMap;

use tracing::warn;

use super::definition::{self, Definition};
use super::{Error, go_flag};
use crate::base::network_name::{self, NetworkName};
use crate::settings::Source;

/// The flag for how long before its end a lease is renewed.
pub(super) const RENEW_MARGIN: &str = "subnet-lease-renew-margin";

/// flannel 0.5's flag for several networks.
pub(super) const NETWORKS: &str = "networks";

/// flannel's allowed minutes for it; a lease has 24 hours.
const MARGIN_MINUTES: std::ops::RangeInclusive<i64> = 1..=1439;

/// The same in words.
pub(super) const MARGIN_FORM: &str = "1 to 1439 minutes";

/// The value of a flag.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Value {
    Switch(bool),
    Number(i64),
    Text(String),
}

/// What was given for a flag.
#[derive(Clone, PartialEq, Eq)]
struct Given {
    /// As many as were given. All of a repeatable flag's count, the last of any other's.
    values: Vec<Value>,
    place: Source,
}

/// What the command line and the environment say. Not `Debug`: one of the values may be a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Flags {
    given: BTreeMap<&'static str, Given>,
    /// The first argument that was not read because it is no flag.
    pub(super) unread: Option<String>,
}

impl Flags {
    /// Takes one more value for a flag.
    pub(super) fn set(
        &mut self,
        definition: &'static Definition,
        text: &str,
        place: Source,
    ) -> Result<(), Error> {
        let value = match go_flag::value(definition.kind, text) {
            Ok(value) => value,
            Err(expected) => {
                return Err(Error::Value {
                    place,
                    value: text.to_owned(),
                    expected,
                });
            }
        };
        let given = self.given.entry(definition.name).or_insert(Given {
            values: Vec::new(),
            place,
        });
        given.values.push(value);
        Ok(())
    }

    /// Takes `FLANNELD_*` for the flags that are not given; an empty variable counts as missing. A repeatable flag gets
    /// one value, commas and all.
    pub(super) fn add_environment(
        &mut self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(), Error> {
        for definition in definition::ALL {
            let name = definition.name;
            if self.given.contains_key(name) || name == "version" {
                continue;
            }
            let name = format!("FLANNELD_{}", name.to_ascii_uppercase().replace('-', "_"));
            if let Some(value) = variable(&name).filter(|value| !value.is_empty()) {
                self.set(definition, &value, Source::Variable(name))?;
            }
        }
        Ok(())
    }

    /// Checks what flanneld checks before it does anything.
    pub(super) fn check(&self) -> Result<(), Error> {
        if let Some(minutes) = self.number(RENEW_MARGIN)
            && !MARGIN_MINUTES.contains(&minutes)
        {
            return Err(Error::Value {
                place: self.place(RENEW_MARGIN),
                value: minutes.to_string(),
                expected: MARGIN_FORM,
            });
        }
        if let [_, _, ..] = self.networks().as_slice() {
            let unit = |name: &str| network_name::unit(Some(&NetworkName::derive(name)));
            let units: Vec<_> = self.networks().into_iter().map(unit).collect();
            return Err(Error::Networks {
                place: self.place(NETWORKS),
                value: self.text(NETWORKS).unwrap_or_default().to_owned(),
                units: units.join(" "),
            });
        }
        if let Some(name) = self.network().filter(|name| name.contains('/')) {
            return Err(Error::Value {
                place: self.place(NETWORKS),
                value: name.to_owned(),
                expected: "a name without a slash",
            });
        }
        if self.has("listen") && self.has("remote") {
            return Err(Error::Both(self.place("listen"), self.place("remote")));
        }
        for other in ["listen", "remote"] {
            if self.is_on("kube-subnet-mgr") && self.has(other) {
                let place = self.place("kube-subnet-mgr");
                return Err(Error::NotInKubernetes(place, self.place(other)));
            }
        }
        Ok(())
    }

    /// The networks that `--networks` names.
    fn networks(&self) -> Vec<&str> {
        let names = self.text(NETWORKS).unwrap_or_default().split(',');
        names
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect()
    }

    /// The one network that `--networks` names.
    pub(crate) fn network(&self) -> Option<&str> {
        self.networks().first().copied()
    }

    /// Where a flag's value is from.
    pub(crate) fn place(&self, name: &'static str) -> Source {
        self.given
            .get(name)
            .map_or(Source::Flag(name), |given| given.place.clone())
    }

    /// Puts into the log what is taken but not heeded, and what had better be given otherwise.
    pub fn log_advice(&self) {
        if let Some(argument) = &self.unread {
            warn!("{argument:?} is not a flag: ignoring it and all arguments after it");
        }
        if let Some(Source::Flag(name)) = self.given.get("etcd-password").map(|given| &given.place)
        {
            warn!(
                "every user of this host can read the value of --{name}: set FLANNELD_ETCD_PASSWORD instead"
            );
        }
        for name in ["vmodule", "log_backtrace_at"] {
            if self.given.contains_key(name) {
                warn!("{} is ignored: use -v", self.place(name));
            }
        }
    }

    /// Whether a text was given that is not empty.
    fn has(&self, name: &str) -> bool {
        self.text(name).is_some_and(|text| !text.is_empty())
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.switch(name) == Some(true)
    }

    /// What a switch was set to.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        match self.last(name)? {
            Value::Switch(on) => Some(*on),
            _ => None,
        }
    }

    /// A number that was given.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        match self.last(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A text that was given; it may be empty.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.last(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The texts of a repeatable flag, in order.
    pub(crate) fn texts(&self, name: &str) -> Option<Vec<String>> {
        let text = |value: &Value| match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        Some(
            self.given
                .get(name)?
                .values
                .iter()
                .filter_map(text)
                .collect(),
        )
    }

    fn last(&self, name: &str) -> Option<&Value> {
        self.given.get(name)?.values.last()
    }
}
