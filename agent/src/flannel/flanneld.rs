//! flanneld's command line: its flags and its environment, for hosts on which the agent stands in for flanneld.
//!
//! Units, wrappers and options files that start flanneld go on working: all flags of v0.28.9 are taken, in the syntax of
//! Go's `flag` package, and so are the `FLANNELD_*` variables. What differs on purpose is listed in `docs/flannel.md`.
//!
//! Settings files are not read: who replaces flanneld by a program of another name expects the flags and the environment
//! to be all there is. Settings that flannel does not know have their defaults, or `SELVAGE_*` variables.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use thiserror::Error;

use crate::settings::Source;

mod definition;
mod flags;
mod go_flag;
pub(crate) mod listed;
mod removed;
mod settings;
pub(crate) mod several;
mod usage;

pub(crate) use definition::{DEFAULT_ENDPOINTS, DEFAULT_SUBNET_DIR};
pub use flags::Flags;
pub use settings::load_flanneld;
pub use several::Several;

/// Exit status for a command line that cannot be understood, as Go's programs have it.
const EXIT_USAGE: u8 = 2;

/// flanneld cannot be started like this.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Error {
    /// An argument is not UTF-8.
    #[error("the argument {0:?} is not UTF-8")]
    NotUtf8(OsString),
    /// An argument of dashes, or with nothing before its `=`.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// There is no such flag, and never was.
    #[error("flag provided but not defined: -{0}")]
    Undefined(String),
    /// There was such a flag once.
    #[error("flag -{name} was removed in flannel 0.8: {advice}")]
    Removed {
        /// The flag.
        name: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// The command line ends where the flag's value should be.
    #[error("flag needs an argument: -{0}")]
    Missing(&'static str),
    /// A value is not allowed.
    #[error("{place}: invalid value {value:?}: expected {expected}")]
    Value {
        /// The flag or the variable.
        place: Source,
        /// The value.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Several networks are asked for.
    #[error(
        "{place}: {value:?}: expected one name, because each network has its own agent: systemctl enable --now {units}"
    )]
    Networks {
        /// The flag or the variable.
        place: Source,
        /// The names.
        value: String,
        /// The units to enable instead.
        units: String,
    },
    /// A server of leases is no client of another.
    #[error("{0} and {1} exclude each other: a flanneld either serves leases or asks for one")]
    Both(Source, Source),
    /// A node of Kubernetes has its subnet from there.
    #[error("{0} and {1} exclude each other: a node of Kubernetes has its subnet from there")]
    NotInKubernetes(Source, Source),
}

impl Error {
    /// Whether the command line is to blame, so that a usage message may help.
    fn is_usage(&self) -> bool {
        match self {
            Self::NotUtf8(_)
            | Self::Syntax(_)
            | Self::Undefined(_)
            | Self::Removed { .. }
            | Self::Missing(_)
            | Self::Networks { .. } => true,
            // flannel checks the margin's range apart from the flags, and ends with 1.
            Self::Value {
                place, expected, ..
            } => matches!(place, Source::Flag(_)) && *expected != flags::MARGIN_FORM,
            Self::Both(..) | Self::NotInKubernetes(..) => false,
        }
    }
}

/// What the command line asks for.
enum Request {
    Run(Flags),
    Help,
    Version,
}

/// Reads the arguments that follow the program's name `program`, and the environment.
///
/// # Errors
/// The status to end with when there is nothing to run: help and version were printed, or what is wrong.
pub fn flags(program: &str, arguments: Vec<OsString>) -> Result<Flags, ExitCode> {
    let variable = |name: &str| std::env::var(name).ok();
    let (text, status) = match read(arguments, variable) {
        Ok(Request::Run(flags)) => return Ok(flags),
        Ok(Request::Help) => (usage::text(program), ExitCode::SUCCESS),
        Ok(Request::Version) => (
            format!("{}\n", env!("CARGO_PKG_VERSION")),
            ExitCode::SUCCESS,
        ),
        Err(error) if error.is_usage() => (
            format!("{error}\n{}", usage::text(program)),
            ExitCode::from(EXIT_USAGE),
        ),
        Err(error) => (format!("{program}: {error}\n"), ExitCode::FAILURE),
    };
    // All of it goes to standard error, as from flanneld. Nobody could be told that it is gone.
    let _ = io::stderr().write_all(text.as_bytes());
    Err(status)
}

fn read(
    arguments: Vec<OsString>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Request, Error> {
    let mut flags = Flags::default();
    if !go_flag::parse(arguments, &mut flags)? {
        return Ok(Request::Help);
    }
    // Before the environment is looked at, so that a wrong variable does not hide it.
    if flags.is_on("version") {
        return Ok(Request::Version);
    }
    flags.add_environment(variable)?;
    flags.check()?;
    Ok(Request::Run(flags))
}

#[cfg(test)]
mod tests;
