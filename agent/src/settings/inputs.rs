//! The merged sources; each value keeps its place.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::fragment::line_at;
use super::key::Key;
use super::{Environment, Error, Inputs, Secret, Source};

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Sourced<T> {
    pub(crate) value: T,
    pub(crate) place: Source,
    pub(crate) key: Key,
}

impl<T: Debug> Sourced<T> {
    /// The error that this value is not an expected one.
    pub(crate) fn error(&self, expected: impl Into<String>) -> Error {
        // Rust's `Debug` form of a string, number, boolean or list of strings is valid TOML.
        Error::Value {
            place: self.place.clone(),
            key: self.key.path,
            value: format!("{:?}", self.value),
            expected: expected.into(),
        }
    }
}

/// The source of a fragment.
pub(crate) enum Origin<'a> {
    File {
        path: &'a Path,
        text: &'a str,
    },
    Environment(&'a Environment),
    Flags,
    /// flanneld's flags and variables; the function returns the place of each.
    Flanneld(&'a dyn Fn(Key) -> Source),
}

impl Origin<'_> {
    pub(super) fn put<T, V: Into<T>>(
        &self,
        slot: &mut Option<Sourced<T>>,
        key: Key,
        value: Option<Spanned<V>>,
    ) {
        let Some(value) = value else { return };
        let place = match self {
            Self::File { path, text } => Source::File {
                path: (*path).to_owned(),
                line: line_at(text, value.span().start),
            },
            Self::Environment(environment) => environment.source(key),
            Self::Flags => Source::Flag(key.flag),
            Self::Flanneld(place) => place(key),
        };
        let value = value.into_inner().into();
        *slot = Some(Sourced { value, place, key });
    }
}

impl Inputs {
    /// Marks all values so far as those of the common files; what follows is for one network. The common prefix becomes
    /// the base of the network's own, and files and port are dropped, since no two networks can share them.
    pub(crate) fn share(&mut self) {
        self.base_prefix = self.etcd.prefix.take();
        self.drop_own();
    }

    /// Reads the file with the etcd password, if one is configured; it overrides flannel's environment variable.
    pub(crate) fn read_password(&mut self) -> Result<(), Error> {
        let Some(file) = &self.etcd.password_file else {
            return Ok(());
        };
        if file.value.is_empty() {
            return Ok(());
        }
        let text = fs::read_to_string(&file.value).map_err(|source| Error::PasswordFile {
            place: file.place.clone(),
            key: file.key.path,
            path: PathBuf::from(&file.value),
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
