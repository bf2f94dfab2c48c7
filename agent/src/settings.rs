//! Settings: where they come from, and what the rest of the agent sees of them.
//!
//! Three stages, so that a mistake is found once, early, and with its place:
//!
//! 1. *Fragments* ([`Fragment`]): what one source says, every key optional. Sources are the files
//!    `/usr/lib/selvage/agent.toml`, `/run/selvage/agent.toml` and `/etc/selvage/agent.toml`, then the drop-ins
//!    `agent.d/*.toml` beside them, then the environment, then the command line.
//! 2. *Inputs*: the fragments laid over each other, later ones on top; each value remembers where it is from.
//! 3. [`Settings`]: checked, with defaults filled in. Nothing else reads files, environment or flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use crate::base::net::InterfaceName;
use crate::base::network_name::NetworkName;

pub(crate) mod environment;
mod error;
mod files;
mod firewall_mode;
pub(crate) mod flags;
pub mod fleet;
mod fragment;
pub(crate) mod inputs;
pub(crate) mod key;
pub(crate) mod kind;
mod pattern;
mod remote;
mod secret;
pub mod table;
pub mod update;
pub(crate) mod validate;

pub use environment::Environment;
pub use error::{EXIT_CONFIG, EXIT_USAGE, Error, Source};
pub use firewall_mode::{FirewallMode, ParseModeError};
pub use flags::{
    CleanupFlags, DoctorSettings, FlagsOf, LeaveFlags, NetworkSettings, OptionsSettings,
    PeersSettings, ReserveSettings, RunFlags, ServeFlags, SettingsFlags, StatusSettings,
};
pub(crate) use kind::{Form, Texts, parse_bool, split_list};
pub use pattern::Pattern;
pub(crate) use remote::is_network_name;
pub use remote::{Listen, Remote};
pub use secret::Secret;
pub(crate) use validate::default_files;

use inputs::Origin;
pub(crate) use table::{Fragment, Inputs};

/// What the agent works by, all of it checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How the lease store is reached.
    pub etcd: Etcd,
    /// Leases kept by a server, and being one.
    pub remote: Remote,
    /// What carries the overlay's packets.
    pub underlay: Underlay,
    /// What the packet filter does.
    pub firewall: Firewall,
    /// What is written where.
    pub files: Files,
    /// Where the agent answers whether it is well.
    pub health: Health,
    /// How the agent itself behaves.
    pub agent: Agent,
}

/// How the lease store is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Etcd {
    /// At least one `http://HOST:PORT` or `https://HOST:PORT`, without a trailing slash.
    pub endpoints: Vec<String>,
    /// What all keys begin with, cleaned as Go's `path.Join` does, so that `{prefix}/config` is flannel's key. Empty
    /// when `/` was asked for.
    pub prefix: String,
    /// Certificate authorities that the server's certificate is checked against (PEM).
    pub cafile: Option<PathBuf>,
    /// Our certificate (PEM); there is a key whenever this is there.
    pub certfile: Option<PathBuf>,
    /// The key to our certificate (PEM).
    pub keyfile: Option<PathBuf>,
    /// Whom we log in as; there is a password whenever this is there.
    pub username: Option<String>,
    /// What we log in with.
    pub password: Option<Secret>,
    /// How long a lease outlives its node; a minute to a year.
    pub lease_ttl: Duration,
}

/// What carries the overlay's packets: one interface, and an address of each family that the overlay has.
///
/// The interface is the first that one of [`Self::interfaces`], [`Self::interface_regex`], [`Self::can_reach`] and
/// [`Self::interface_cidr`], in this order, leads to; if all of them are empty, it is the one that has the public
/// address, or else the default route's. Each list is tried in its own order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Underlay {
    /// By name or by address.
    pub interfaces: Vec<Interface>,
    /// By a pattern that is found in an address of the interface, or else in its name.
    pub interface_regex: Vec<Pattern>,
    /// By an address that the kernel reaches over the interface.
    pub can_reach: Option<IpAddr>,
    /// By a network that an address of the interface is in.
    pub interface_cidr: Vec<IpNet>,
    /// The unicast address that peers send to, where it is not the interface's own (behind NAT).
    pub public_ip: Option<Ipv4Addr>,
    /// The same for IPv6; not link-local.
    pub public_ipv6: Option<Ipv6Addr>,
}

/// How an interface is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Interface {
    /// By its name.
    Name(InterfaceName),
    /// By an address that it has, which is then the one used; not a link-local IPv6 one.
    Address(IpAddr),
}

/// What the packet filter does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Firewall {
    /// By which rules.
    pub mode: FirewallMode,
    /// Whether packets that leave the overlay get this host's address.
    pub masquerade: bool,
    /// Whether forwarding from and to the overlay is accepted.
    pub forward: bool,
    /// Whether masquerading picks source ports at random.
    pub random_fully: bool,
    /// Destinations that masquerading leaves out; no bits are set beyond the prefixes.
    pub masquerade_exclude: Vec<IpNet>,
    /// The longest time between two looks at the rules; 1 s to a day.
    pub resync: Duration,
    /// Whether packets to addresses of the own subnet that no container has are dropped.
    pub blackhole_route: bool,
}

/// What is written where; absolute paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Files {
    /// What container runtimes read.
    pub subnet_file: PathBuf,
    /// What must outlive a reboot.
    pub state_dir: PathBuf,
    /// The control socket, where operators' commands ask the agent.
    pub socket: PathBuf,
}

/// Where the agent answers whether it is well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// Where HTTP is served; `None` for nowhere.
    pub listen: Option<SocketAddr>,
}

/// How the agent itself behaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Agent {
    /// What the network is called where several are on this host; `None` for the first or only one.
    pub network: Option<NetworkName>,
    /// Who holds the lease; `None` means an identifier derived from the machine's.
    pub node_id: Option<String>,
    /// A level or a list of filters that [`crate::base::logging::parse_filter`] takes.
    pub log: String,
    /// The longest time between two complete comparisons of the kernel with what it should be.
    pub resync: Duration,
    /// Whether the subnet is given back when the agent is stopped.
    pub leave_on_stop: bool,
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

/// As [`load`], for who only looks: what may not be read with the caller's privileges is passed over, the password as well
/// as whole files. Returns what it was, too.
///
/// # Errors
/// As [`load`].
pub fn load_readable(sources: Sources<'_>) -> Result<(Settings, Vec<Error>), Error> {
    let mut unreadable = Unreadable::PassedOver(Vec::new());
    let settings = read(sources, &mut unreadable)?;
    Ok(match unreadable {
        Unreadable::PassedOver(errors) => (settings, errors),
        Unreadable::Fatal => (settings, Vec::new()),
    })
}

/// The settings of a machine that has none.
///
/// # Errors
/// None: the defaults are valid.
pub fn defaults() -> Result<Settings, Error> {
    validate::settings(Inputs::default())
}

/// What is done about files that may not be read.
enum Unreadable {
    Fatal,
    PassedOver(Vec<Error>),
}

impl Unreadable {
    /// What was read; `None` if that was not allowed and need not be.
    fn pass<T>(&mut self, result: Result<T, Error>) -> Result<Option<T>, Error> {
        match (result, self) {
            (Err(error), Self::PassedOver(errors)) if error.is_denied() => {
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
    overlay_own(&mut inputs, &sources)?;
    inputs.password = sources.environment.password();
    unreadable.pass(inputs.read_password())?;
    validate::settings(inputs)
}

fn read_files(
    inputs: &mut Inputs,
    paths: &[PathBuf],
    unreadable: &mut Unreadable,
) -> Result<(), Error> {
    for path in paths {
        let Some(text) = unreadable.pass(files::read(path))? else {
            continue;
        };
        let fragment = Fragment::parse(&text, path)?;
        inputs.overlay(fragment, &Origin::File { path, text: &text });
    }
    Ok(())
}

/// What whoever started this process says: environment and flags.
fn overlay_own(inputs: &mut Inputs, sources: &Sources<'_>) -> Result<(), Error> {
    let environment = sources.environment;
    let said = Fragment::of_environment(environment)?;
    inputs.overlay(said, &Origin::Environment(environment));
    inputs.overlay(sources.flags.fragment().clone(), &Origin::Flags);
    Ok(())
}

/// The network that environment and flags name: one of several, which share the settings files.
fn asked_for(sources: &Sources<'_>) -> Result<Option<NetworkName>, Error> {
    let mut own = Inputs::default();
    overlay_own(&mut own, sources)?;
    let named = own.agent.network.filter(|name| !name.value.is_empty());
    named.as_ref().map(validate::network).transpose()
}

/// Checks the text of one settings file as [`load`] would, had it no other source; reads no file that it names.
///
/// # Errors
/// The first mistake found; `path` is what messages call the file.
pub fn check_file(text: &str, path: &Path) -> Result<(), Error> {
    let mut inputs = Inputs::default();
    let fragment = Fragment::parse(text, path)?;
    inputs.overlay(fragment, &Origin::File { path, text });
    validate::settings(inputs)?;
    update::check_file(text, path)?;
    fleet::check_file(text, path)
}

#[cfg(test)]
mod tests;
