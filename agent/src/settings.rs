//! Settings: where they come from, and what the rest of the agent sees of them.
//!
//! Three stages, so that a mistake is found once, early, and with its place:
//!
//! 1. *Sources*: the files `/usr/lib/selvage/agent.toml`, `/run/selvage/agent.toml` and `/etc/selvage/agent.toml`, then the
//!    drop-ins `agent.d/*.toml` beside them, then the environment, then the command line.
//! 2. *Inputs*: what the sources say, later ones on top; each value remembers where it is from.
//! 3. [`Settings`]: checked, with defaults filled in. Nothing else reads files, environment or flags.
//!
//! Which settings there are, [`table`] says.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::base::net::InterfaceName;
use crate::base::network_name::NetworkName;

mod changes;
mod check;
mod environment;
mod error;
mod files;
mod firewall_mode;
pub(crate) mod flags;
pub mod fleet;
pub(crate) mod inputs;
pub(crate) mod kind;
mod kubernetes;
mod pattern;
mod remote;
mod secret;
pub mod setting;
pub(crate) mod table;
pub mod update;

pub use environment::Environment;
pub use error::{EXIT_CONFIG, EXIT_USAGE, Error, Source};
pub use firewall_mode::{FirewallMode, ParseModeError};
pub use flags::{
    CleanupFlags, DoctorSettings, FlagsOf, LeaveFlags, MigrateSettings, NetworkSettings,
    OptionsSettings, PeersSettings, ReserveSettings, RunFlags, ServeFlags, SettingsFlags,
    StatusSettings,
};
pub(crate) use kind::{parse_bool, split_list};
pub(crate) use kubernetes::is_node_name;
pub use pattern::Pattern;
pub use remote::Listen;
pub(crate) use remote::is_network_name;
pub use secret::Secret;
pub use table::{
    Agent, Cloud, Cni, Etcd, Files, Firewall, Health, Ipsec, Kubernetes, Remote, Settings, Underlay,
};

use inputs::Inputs;

/// How an interface is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Interface {
    /// By its name.
    Name(InterfaceName),
    /// By an address that it has, which is then the one used; not a link-local IPv6 one.
    Address(IpAddr),
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Health {
    /// Where HTTP is served; `None` for nowhere.
    pub fn listen(&self) -> Option<SocketAddr> {
        (self.port != 0).then(|| SocketAddr::new(self.address, self.port))
    }
}

impl Default for Settings {
    /// The settings when nothing is configured.
    #[expect(clippy::expect_used, reason = "constants that a test checks")]
    fn default() -> Self {
        Self::check(&Inputs::default()).expect("the defaults are settings")
    }
}

/// Where settings are taken from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// What the directories are below: `/`, except in tests.
    pub root: &'a Path,
    /// The only file to read, instead of those in the directories.
    pub config: Option<&'a Path>,
    /// The variables `SELVAGE_*` and `FLANNELD_*`.
    pub environment: &'a Environment,
    /// The command line, which beats all else.
    pub flags: &'a SettingsFlags,
}

/// Reads all sources and checks the result.
///
/// # Errors
/// The first mistake found, with its place, the value, and what would be right; [`Error::exit_code`] is what to end with.
pub fn load(sources: Sources<'_>) -> Result<Settings, Error> {
    read(sources, &mut Unreadable::Fatal)
}

/// The files that [`load`] reads, so far as they can be listed.
pub fn files(sources: Sources<'_>) -> Vec<PathBuf> {
    if let Some(path) = sources.config {
        return vec![path.to_owned()];
    }
    let mut paths = files::list(sources.root).unwrap_or_default();
    if let Ok(Some(network)) = asked_for(&sources) {
        paths.extend(files::list_of_network(sources.root, &network));
    }
    paths
}

/// As [`load`], for commands that only look: files that the caller may not read are skipped, and so is the password.
/// Returns their errors, too.
///
/// # Errors
/// As [`load`].
pub fn load_readable(sources: Sources<'_>) -> Result<(Settings, Vec<Error>), Error> {
    let mut unreadable = Unreadable::Skipped(Vec::new());
    let settings = read(sources, &mut unreadable)?;
    Ok(match unreadable {
        Unreadable::Skipped(errors) => (settings, errors),
        Unreadable::Fatal => (settings, Vec::new()),
    })
}

/// The settings of a machine that has none.
///
/// # Errors
/// None: the defaults are valid.
pub fn defaults() -> Result<Settings, Error> {
    Settings::check(&Inputs::default())
}

/// What is done about files that may not be read.
enum Unreadable {
    Fatal,
    Skipped(Vec<Error>),
}

impl Unreadable {
    /// What was read; `None` if that was not allowed and need not be.
    fn pass<T>(&mut self, result: Result<T, Error>) -> Result<Option<T>, Error> {
        match (result, self) {
            (Err(error), Self::Skipped(errors)) if error.is_denied() => {
                errors.push(error);
                Ok(None)
            }
            (result, _) => result.map(Some),
        }
    }
}

fn read(sources: Sources<'_>, unreadable: &mut Unreadable) -> Result<Settings, Error> {
    let mut inputs = Inputs::default();
    let paths = match sources.config {
        Some(path) => vec![path.to_owned()],
        None => unreadable
            .pass(files::list(sources.root))?
            .unwrap_or_default(),
    };
    read_files(&mut inputs, &paths, unreadable)?;
    if sources.config.is_none()
        && let Some(network) = asked_for(&sources)?
    {
        inputs.share();
        let paths = files::list_of_network(sources.root, &network);
        read_files(&mut inputs, &paths, unreadable)?;
    }
    inputs.read_own(sources.environment, sources.flags)?;
    inputs.password = sources.environment.password();
    unreadable.pass(inputs.read_password())?;
    Settings::check(&inputs)
}

fn read_files(
    inputs: &mut Inputs,
    paths: &[PathBuf],
    unreadable: &mut Unreadable,
) -> Result<(), Error> {
    for path in paths {
        if let Some(text) = unreadable.pass(files::read(path))? {
            inputs.read_file(&text, path)?;
        }
    }
    Ok(())
}

/// The network that environment and flags name: one of several, which share the settings files.
fn asked_for(sources: &Sources<'_>) -> Result<Option<NetworkName>, Error> {
    let mut own = Inputs::default();
    own.read_own(sources.environment, sources.flags)?;
    own.network()
}

/// Checks the text of one settings file as [`load`] would, had it no other source; reads no file that it names.
///
/// # Errors
/// The first mistake found; `path` is what messages call the file.
pub fn check_file(text: &str, path: &Path) -> Result<(), Error> {
    let mut inputs = Inputs::default();
    inputs.read_file(text, path)?;
    Settings::check(&inputs)?;
    update::check_file(text, path)?;
    fleet::check_file(text, path)
}

#[cfg(test)]
mod tests;
