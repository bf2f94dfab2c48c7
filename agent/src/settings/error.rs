//! Errors in the settings, with their place.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Exit status for bad arguments: `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// Exit status for bad configuration: `EX_CONFIG` of sysexits.h.
pub const EXIT_CONFIG: u8 = 78;

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A line of a file, counted from 1.
    File {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// This environment variable.
    Variable(String),
    /// This flag, without its dashes.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// The settings cannot be used.
#[derive(Debug, Error)]
pub enum Error {
    /// A settings file or directory exists but is unreadable.
    #[error("failed to read the settings from {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is not valid TOML, or has a key that is unknown or of the wrong type.
    #[error("{place}: {message}")]
    Syntax {
        /// The line.
        place: Source,
        /// The key, if the line has one, and the error.
        message: String,
    },
    /// A value is not allowed.
    #[error("{place}: {key} = {value}: expected {expected}")]
    Value {
        /// Where the value comes from.
        place: Source,
        /// The setting.
        key: &'static str,
        /// The value in settings file syntax.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// Two settings must be set together.
    #[error("{place}: {key} is set, but {partner} is not: expected both or neither")]
    Alone {
        /// Where the first comes from.
        place: Source,
        /// The one that is set.
        key: &'static str,
        /// The one that is missing.
        partner: &'static str,
    },
    /// The password cannot be read.
    #[error("{place}: {key} = {path:?}: failed to read the file")]
    PasswordFile {
        /// Where the path comes from.
        place: Source,
        /// The setting.
        key: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the error is a lack of permission.
    pub(super) fn is_denied(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::PasswordFile { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            Self::Syntax { .. } | Self::Value { .. } | Self::Alone { .. } => false,
        }
    }

    /// The exit status: 64 if the command line is wrong, 78 otherwise.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Syntax { place, .. }
            | Self::Value { place, .. }
            | Self::Alone { place, .. }
            | Self::PasswordFile { place, .. }
                if matches!(place, Source::Flag(_)) =>
            {
                EXIT_USAGE
            }
            _ => EXIT_CONFIG,
        }
    }
}
