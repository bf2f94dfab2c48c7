//! The table `[fleet]` of the settings files: who lets this machine reboot into an update.
//!
//! Apart from the table of the agent's own settings, as `[update]` is: a mistake in it must not keep the overlay network
//! down. `selvage ignition check` finds the mistake earlier.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Uri;
use serde::Deserialize;
use toml::{Spanned, Value};

use super::error::{Error, Source};
use super::inputs::{line_at, toml_error};
use super::update::shown;
use super::{Sources, files};

/// The table's name.
pub(super) const TABLE: &str = "fleet";

/// The checked settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fleet {
    /// Who keeps the lock.
    pub lock: Lock,
    /// The machines that share it.
    pub group: String,
    /// The authorities that vouch for a lock server, instead of the system's (PEM).
    pub cafile: Option<PathBuf>,
    /// How long each drain hook may take.
    pub drain_timeout: Duration,
}

/// Who keeps the lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lock {
    /// etcd, where the agent's leases are.
    Etcd,
    /// A server that speaks FleetLock.
    Server(Uri),
    /// Nobody.
    None,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            lock: Lock::Etcd,
            group: "default".to_owned(),
            cafile: None,
            drain_timeout: Duration::from_secs(300),
        }
    }
}

/// The table as a file has it. A value of a wrong type is told as any other wrong value is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
struct Fragment {
    lock: Option<Spanned<Value>>,
    group: Option<Spanned<Value>>,
    cafile: Option<Spanned<Value>>,
    drain_timeout: Option<Spanned<Value>>,
}

/// A file of which only this table matters.
#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    fleet: Fragment,
}

/// Reads `[fleet]` from the same files as [`super::load`]. Environment and flags have no such settings.
///
/// # Errors
/// The first mistake, with its place, the value and what would be right.
pub fn load(sources: Sources<'_>) -> Result<Fleet, Error> {
    let paths = match sources.config {
        Some(path) => vec![path.to_owned()],
        None => files::list(sources.root)?,
    };
    let mut fleet = Fleet::default();
    for path in paths {
        overlay(&mut fleet, &files::read(&path)?, &path)?;
    }
    Ok(fleet)
}

/// Checks the text of one file as [`load`] would.
///
/// # Errors
/// As [`load`].
pub(super) fn check_file(text: &str, path: &Path) -> Result<(), Error> {
    overlay(&mut Fleet::default(), text, path)
}

const LOCK: &str =
    "etcd, none, or the address of a FleetLock server: http://HOST[:PORT][/PATH] or https://...";
const GROUP: &str = "1 to 64 of a-z, A-Z, 0-9, . and -";
const CAFILE: &str = "an absolute path";
const TIMEOUT: &str = "1 to 86400 seconds";

/// Puts what a file says on top. Every value is checked where it stands, so that its place is known.
fn overlay(fleet: &mut Fleet, text: &str, path: &Path) -> Result<(), Error> {
    let at = |start| Source::File {
        path: path.to_owned(),
        line: line_at(text, start),
    };
    let file: File = toml::from_str(text).map_err(|error| toml_error(text, path, &error))?;
    let wrong = |key, start, value: &Value, expected: &str| Error::Value {
        place: at(start),
        key,
        value: shown(value),
        expected: expected.to_owned(),
    };
    let defaults = Fleet::default;
    let said = file.fleet;
    if let Some(input) = said.lock {
        let (start, value) = (input.span().start, input.into_inner());
        let lock = value.as_str().and_then(lock);
        fleet.lock = lock.ok_or_else(|| wrong("fleet.lock", start, &value, LOCK))?;
    }
    if let Some(input) = said.group {
        let (start, value) = (input.span().start, input.into_inner());
        fleet.group = match value.as_str() {
            Some("") => defaults().group,
            Some(text) if is_group(text) => text.to_owned(),
            _ => return Err(wrong("fleet.group", start, &value, GROUP)),
        };
    }
    if let Some(input) = said.cafile {
        let (start, value) = (input.span().start, input.into_inner());
        fleet.cafile = match value.as_str() {
            Some("") => None,
            Some(path) if path.starts_with('/') && !path.contains('\0') => Some(path.into()),
            _ => return Err(wrong("fleet.cafile", start, &value, CAFILE)),
        };
    }
    if let Some(input) = said.drain_timeout {
        let (start, value) = (input.span().start, input.into_inner());
        let seconds = value
            .as_integer()
            .and_then(|value| u64::try_from(value).ok());
        let seconds = seconds.filter(|seconds| (1..=86_400).contains(seconds));
        fleet.drain_timeout = seconds
            .map(Duration::from_secs)
            .ok_or_else(|| wrong("fleet.drain-timeout", start, &value, TIMEOUT))?;
    }
    Ok(())
}

/// What is said of the lock. As elsewhere, an empty text is the default.
fn lock(text: &str) -> Option<Lock> {
    match text {
        "etcd" | "" => Some(Lock::Etcd),
        "none" => Some(Lock::None),
        address => {
            let address: Uri = address.trim().parse().ok()?;
            let known = matches!(address.scheme_str(), Some("http" | "https"));
            let authority = address.authority()?.as_str();
            let bare = !authority.contains('@') && !authority.ends_with(':');
            let has_host = address.host().is_some_and(|host| !host.is_empty());
            (known && bare && has_host && address.query().is_none())
                .then_some(Lock::Server(address))
        }
    }
}

/// Whether a text can be a group: what FleetLock allows, and safe as a part of a key.
pub fn is_group(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
    (1..=64).contains(&text.len()) && text.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Fleet, Error> {
        let mut fleet = Fleet::default();
        overlay(&mut fleet, text, Path::new("/etc/selvage/agent.toml"))?;
        Ok(fleet)
    }

    #[test]
    fn the_table_is_read_beside_others() {
        assert_eq!(read("[etcd]\nprefix = \"/x\"\n").unwrap(), Fleet::default());
        let fleet = read(
            "[fleet]\nlock = \"https://locks.example:3333/base\"\ngroup = \"db.1\"\ncafile = \"/etc/ca.pem\"\ndrain-timeout = 60\n",
        )
        .unwrap();
        assert_eq!(
            fleet.lock,
            Lock::Server("https://locks.example:3333/base".parse().unwrap())
        );
        assert_eq!(fleet.group, "db.1");
        assert_eq!(fleet.cafile, Some(PathBuf::from("/etc/ca.pem")));
        assert_eq!(fleet.drain_timeout, Duration::from_secs(60));
        assert_eq!(read("[fleet]\nlock = \"none\"").unwrap().lock, Lock::None);
    }

    #[test]
    fn a_later_file_wins_and_an_empty_text_is_the_default() {
        let mut fleet = read("[fleet]\nlock = \"none\"\ngroup = \"a\"\ncafile = \"/a\"").unwrap();
        let path = Path::new("/etc/selvage/agent.d/a.toml");
        overlay(&mut fleet, "[fleet]\ngroup = \"b\"", path).unwrap();
        assert_eq!((&fleet.lock, fleet.group.as_str()), (&Lock::None, "b"));
        let empty = "[fleet]\nlock = \"\"\ngroup = \"\"\ncafile = \"\"";
        overlay(&mut fleet, empty, path).unwrap();
        assert_eq!(fleet, Fleet::default());
    }

    #[test]
    fn a_mistake_has_its_place_and_what_would_be_right() {
        for (line, expected) in [
            ("lock = \"consul\"", LOCK),
            ("lock = \"ftp://locks.example\"", LOCK),
            ("lock = \"http://user:word@locks.example\"", LOCK),
            ("lock = \"http://locks.example:\"", LOCK),
            ("lock = \"http://locks.example/?a\"", LOCK),
            ("group = \"a/b\"", GROUP),
            ("group = \"a b\"", GROUP),
            ("cafile = \"ca.pem\"", CAFILE),
            ("drain-timeout = 0", TIMEOUT),
            ("drain-timeout = -1", TIMEOUT),
            ("drain-timeout = 86401", TIMEOUT),
            ("locks = 1", "unknown field"),
            ("lock = 1", "fleet.lock = 1: expected etcd, none, or"),
            ("group = [\"a\"]", "fleet.group = [\"a\"]: expected 1 to 64"),
            (
                "cafile = false",
                "fleet.cafile = false: expected an absolute path",
            ),
            (
                "drain-timeout = \"5min\"",
                "fleet.drain-timeout = \"5min\": expected 1 to 86400",
            ),
            (
                "drain-timeout = 1.5",
                "fleet.drain-timeout = 1.5: expected 1 to 86400",
            ),
        ] {
            let error = read(&format!("# a fleet\n[fleet]\n{line}\n"))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("/etc/selvage/agent.toml:3: "), "{error}");
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
