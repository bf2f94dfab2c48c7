//! What is wrong with the settings, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Exit status for bad arguments: `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// Exit status for bad configuration: `EX_CONFIG` of sysexits.h.
pub const EXIT_CONFIG: u8 = 78;

/// Where a value is from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Line of a file, counted from 1.
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
    /// A settings file or directory is there but unreadable.
    #[error("failed to read the settings from {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not TOML, or has a key that is unknown or of the wrong type.
    #[error("{place}: {message}")]
    Syntax {
        /// The line.
        place: Source,
        /// The key, where the line has one, and what is wrong.
        message: String,
    },
    /// A value is not allowed.
    #[error("{place}: {key} = {value}: expected {expected}")]
    Value {
        /// Where the value is from.
        place: Source,
        /// The setting.
        key: &'static str,
        /// The value as it is written in a settings file.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// Two settings belong together.
    #[error("{place}: {key} is set, but {partner} is not: expected both or neither")]
    Alone {
        /// Where the one is from.
        place: Source,
        /// The one that is there.
        key: &'static str,
        /// The one that is missing.
        partner: &'static str,
    },
    /// The password cannot be read.
    #[error("{place}: {key} = {path:?}: failed to read the file")]
    PasswordFile {
        /// Where the path is from.
        place: Source,
        /// The setting.
        key: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether another user could have read it.
    pub(super) fn is_denied(&self) -> bool {
        match self {
            Self::Read { source, .. } | Self::PasswordFile { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            Self::Syntax { .. } | Self::Value { .. } | Self::Alone { .. } => false,
        }
    }

    /// What the process should end with: 64 when the command line is wrong, 78 when something else is.
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
