//! The sources laid over each other; each value remembers where it is from.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::fragment::line_at;
use super::key::Key;
use super::{Environment, Error, Inputs, Secret, Source};

/// A value and where it is from.
#[derive(Clone, Debug)]
pub(crate) struct Sourced<T> {
    pub(crate) value: T,
    pub(crate) place: Source,
    pub(crate) key: Key,
}

impl<T: Debug> Sourced<T> {
    /// The error that this value is not what is allowed.
    pub(crate) fn error(&self, expected: impl Into<String>) -> Error {
        // Rust's form of a text, number, truth value or list of texts is TOML's.
        Error::Value {
            place: self.place.clone(),
            key: self.key.path,
            value: format!("{:?}", self.value),
            expected: expected.into(),
        }
    }
}

/// Which source a fragment is from.
pub(crate) enum Origin<'a> {
    File {
        path: &'a Path,
        text: &'a str,
    },
    Environment(&'a Environment),
    Flags,
    /// flanneld's flags and variables, which are asked for the place.
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
    /// What the sources say so far is meant for all networks of the host, and from now on for one of them: a prefix is what
    /// its own begins with, and no two networks can have the same files and port.
    pub(crate) fn share(&mut self) {
        self.base_prefix = self.etcd.prefix.take();
        self.drop_own();
    }

    /// Reads the file that holds the etcd password, if one is named; it beats flannel's environment variable.
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
