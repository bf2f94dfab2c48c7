//! The merged sources; each value keeps its place.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::check::{Given, NETWORK, optional};
use super::kind::Value;
use super::setting::Setting;
use super::table::{ALL, key};
use super::{Environment, Error, Secret, SettingsFlags, Source, fleet, update};
use crate::base::network_name::NetworkName;

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Sourced {
    pub(crate) value: Value,
    pub(crate) place: Source,
    pub(crate) setting: &'static Setting,
}

impl Sourced {
    /// The error that this value is not an expected one.
    pub(super) fn error(&self, expected: impl Into<String>) -> Error {
        Error::Value {
            place: self.place.clone(),
            key: self.setting.path,
            value: format!("{:?}", self.value),
            expected: expected.into(),
        }
    }

    /// The text; that of any other value is empty.
    pub(crate) fn text(&self) -> &str {
        match &self.value {
            Value::Text(text) => text,
            _ => "",
        }
    }

    /// The list; that of any other value is empty.
    pub(super) fn texts(&self) -> &[String] {
        match &self.value {
            Value::Texts(texts) => texts,
            _ => &[],
        }
    }
}

/// The merged settings; a setting that no source has is missing.
#[derive(Default)]
pub(crate) struct Inputs {
    values: BTreeMap<&'static str, Sourced>,
    /// The base of a named network's prefix, used if `etcd.prefix` is not set for that network.
    pub(super) base_prefix: Option<Sourced>,
    /// The content of the password file, or else flannel's environment variable.
    pub(crate) password: Option<Secret>,
}

/// Read by other commands than the agent, whose network must not depend on them.
const TABLES_OF_OTHERS: [&str; 2] = [update::TABLE, fleet::TABLE];

impl Inputs {
    /// Puts a value in place of one from a weaker source.
    pub(crate) fn put(&mut self, setting: &'static Setting, value: Value, place: Source) {
        let sourced = Sourced {
            value,
            place,
            setting,
        };
        self.values.insert(setting.path, sourced);
    }

    pub(crate) fn get(&self, setting: &Setting) -> Option<&Sourced> {
        self.values.get(setting.path)
    }

    /// A text that is there and not empty.
    pub(crate) fn filled(&self, setting: &Setting) -> Option<&Sourced> {
        self.get(setting).filter(|found| !found.text().is_empty())
    }

    pub(super) fn given(&self, setting: &'static Setting) -> Given<'_> {
        Given {
            setting,
            inputs: self,
        }
    }

    /// The network that is named.
    pub(super) fn network(&self) -> Result<Option<NetworkName>, Error> {
        optional(NETWORK)(&self.given(&key::agent::network))
    }

    /// Reads the text of one settings file; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Syntax`] for invalid TOML, wrong types, and unknown keys and tables, so that a misspelt one is noticed.
    pub(super) fn read_file(&mut self, text: &str, path: &Path) -> Result<(), Error> {
        let place = |at: usize| Source::File {
            path: path.to_owned(),
            line: line_at(text, at),
        };
        let wrong = |at, message: &str| syntax_error(text, path, at, message);
        let wrong_toml = |error| toml_error(text, path, &error);
        let file = DeTable::parse(text).map_err(wrong_toml)?;
        for (table, keys) in file.into_inner() {
            if TABLES_OF_OTHERS.contains(&table.get_ref().as_ref()) {
                continue;
            }
            let settings = ALL
                .iter()
                .filter(|setting| setting.table == table.get_ref());
            if settings.clone().next().is_none() {
                let mut tables: Vec<_> = ALL.iter().map(|setting| setting.table).collect();
                tables.extend(TABLES_OF_OTHERS);
                tables.dedup();
                return Err(wrong(table.span().start, &unknown(table.get_ref(), tables)));
            }
            let at = keys.span().start;
            let DeValue::Table(keys) = keys.into_inner() else {
                return Err(wrong(at, "expected a table"));
            };
            for (name, value) in keys {
                let Some(setting) = settings
                    .clone()
                    .find(|setting| setting.name == name.get_ref())
                else {
                    let names = settings.map(|setting| setting.name).collect();
                    return Err(wrong(name.span().start, &unknown(name.get_ref(), names)));
                };
                let place = place(value.span().start);
                self.put(
                    setting,
                    setting.kind.take(value).map_err(wrong_toml)?,
                    place,
                );
            }
        }
        Ok(())
    }

    /// Takes what whoever started this process says: environment, and flags, which are stronger.
    pub(super) fn read_own(
        &mut self,
        environment: &Environment,
        flags: &SettingsFlags,
    ) -> Result<(), Error> {
        self.read_environment(environment)?;
        for (setting, value) in flags.given() {
            self.put(setting, value.clone(), Source::Flag(setting.flag));
        }
        Ok(())
    }

    pub(crate) fn read_environment(&mut self, environment: &Environment) -> Result<(), Error> {
        for setting in ALL {
            if let Some((value, place)) = environment.get(setting)? {
                self.put(setting, value, place);
            }
        }
        Ok(())
    }

    /// Marks all values so far as those of the common files; what follows is for one network. The common prefix becomes
    /// the base of the network's own, and what no two networks can share is dropped.
    pub(super) fn share(&mut self) {
        self.base_prefix = self.values.remove(key::etcd::prefix.path);
        self.values.retain(|_, found| found.setting.named.is_none());
    }

    /// Reads the file with the etcd password, if one is configured; it overrides flannel's environment variable.
    pub(crate) fn read_password(&mut self) -> Result<(), Error> {
        let Some(file) = self.filled(&key::etcd::password) else {
            return Ok(());
        };
        let text = fs::read_to_string(file.text()).map_err(|source| Error::PasswordFile {
            place: file.place.clone(),
            key: file.setting.path,
            path: PathBuf::from(file.text()),
            source,
        })?;
        let password = text.trim_end_matches(['\n', '\r']);
        if password.is_empty() || password.contains('\n') {
            return Err(file.error("a file of exactly one line, the password"));
        }
        self.password = Some(Secret::new(password.to_owned()));
        Ok(())
    }
}

/// The error for a key or table that there is not.
fn unknown(name: &str, known: Vec<&str>) -> String {
    format!(
        "unknown field `{name}`, expected one of `{}`",
        known.join("`, `")
    )
}

/// The line number of the byte `at`, counted from 1.
pub(super) fn line_at(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// What is wrong with the file `path` at the byte `at` of its text.
fn syntax_error(text: &str, path: &Path, at: usize, message: &str) -> Error {
    Error::Syntax {
        place: Source::File {
            path: path.to_owned(),
            line: line_at(text, at),
        },
        message: match key_at(text, at) {
            Some(key) => format!("{key}: {message}"),
            None => message.to_owned(),
        },
    }
}

/// The same, as the TOML parser has found it.
pub(super) fn toml_error(text: &str, path: &Path, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(0, |span| span.start);
    syntax_error(text, path, at, error.message())
}

/// The key in the line of the byte `at`. Not the whole line: a password in the file must not end up in the journal.
fn key_at(text: &str, at: usize) -> Option<&str> {
    let line = text.lines().nth(line_at(text, at) - 1)?;
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}
