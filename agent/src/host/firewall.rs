//! The packet filter: what lets the overlay's packets through this host, and what gives them this host's address where
//! they leave the overlay.
//!
//! | mode | where the rules are |
//! |---|---|
//! | nftables | one table of our own, `inet selvage`, for both families; while no agent runs, flannel's two |
//! | iptables | flannel's chains: `FLANNEL-POSTRTG` in nat, `FLANNEL-FWD` in filter, one jump to each |
//!
//! Where several networks are on one host, those that have a name have it behind the names of their table and chains.
//!
//! An accept in nftables ends one chain, not the packet's way: what drops in another chain still drops. So in either mode
//! the agent also opens the ways that others closed, and only those: `FLANNEL-FWD` goes into each iptables `FORWARD` that
//! holds rules or drops by policy, `SELVAGE-RAW` before Docker's drops of packets sent straight to a container, and the
//! overlay into firewalld's trusted zone.
//!
//! What the other mode, or flannel itself in either mode, left behind is removed, the latter by the default network alone.
//! Nobody else's rules are touched.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing::warn;

pub mod docker;
mod firewalld;
mod generation;
pub(crate) mod iptables;
mod look;
mod nftables;
pub(crate) mod program;
mod watch;
mod worker;

pub(crate) use look::look;
pub use program::Error;
pub use watch::Watcher;
pub(crate) use worker::{Outcome, Worker};

use firewalld::Firewalld;
use generation::Generation;
use iptables::{Iptables, Look};
use nftables::{Nftables, Tables};

pub use crate::settings::FirewallMode as Mode;

use crate::base::logging::chain;
use crate::base::net::{Family, InterfaceName, Leased};
use crate::base::network_name::NetworkName;

/// How often the rules are looked at when nothing was announced; flannel's `--iptables-resync`.
pub const DEFAULT_RESYNC: Duration = Duration::from_secs(5);

/// Whether firewalld keeps this host's rules. Where nft is missing or says nothing, it does not.
pub(crate) async fn has_firewalld() -> bool {
    let listing = nftables::listing("inet", "firewalld").await;
    listing.is_ok_and(|listing| listing.is_some())
}

/// What the agent of the default network does to its rules when it stops: those in nftables go on in flannel's tables,
/// without a packet that meets neither. The next agent takes them back, as after a real flannel; a real flannel that comes
/// next would leave ours in force for ever. The chains of iptables are flannel's anyway.
///
/// # Errors
/// The rules stay where they are.
pub async fn hand_over(rules: &Rules) -> Result<(), Error> {
    nftables::hand_over(rules).await
}

/// What the firewall should do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// The overlay's IPv4, if it has one.
    pub v4: Option<Leased<Ipv4Net>>,
    /// The overlay's IPv6, if it has one.
    pub v6: Option<Leased<Ipv6Net>>,
    /// Whether packets that leave the overlay get this host's address.
    pub masquerade: bool,
    /// Whether packets from and to the overlay are accepted for forwarding.
    pub forward: bool,
    /// Whether masquerading picks source ports at random, which avoids the insertion races of parallel connections
    /// to one destination (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`). Left out where iptables is older than 1.6.2.
    pub random_fully: bool,
    /// Destinations that see the source as it is, whatever the other rules say.
    pub exclude: Vec<IpNet>,
    /// What lies inside the networks and is outside the overlay all the same: links and addresses of this host. Without
    /// any, the rules are flannel's.
    pub outside: Vec<IpNet>,
    /// The devices by which packets enter the overlay; none where peers are reached without encapsulation.
    pub devices: Vec<InterfaceName>,
    /// The network config's `EnableNFTables`, which decides in [`Mode::Auto`].
    pub prefer_nftables: bool,
}

impl Rules {
    /// The networks in the family's own terms, for rules in text.
    fn family(&self, ip: Family) -> Option<Leased<IpNet>> {
        match ip {
            Family::V4 => self.v4.map(|family| Leased {
                network: IpNet::V4(family.network.trunc()),
                subnet: IpNet::V4(family.subnet.trunc()),
            }),
            Family::V6 => self.v6.map(|family| Leased {
                network: IpNet::V6(family.network.trunc()),
                subnet: IpNet::V6(family.subnet.trunc()),
            }),
        }
    }

    fn families(&self) -> impl Iterator<Item = (Family, Leased<IpNet>)> {
        let of = |ip| Some((ip, self.family(ip)?));
        Family::BOTH.into_iter().filter_map(of)
    }

    fn excluded(&self, ip: Family) -> impl Iterator<Item = IpNet> {
        of(ip, &self.exclude)
    }

    fn outside(&self, ip: Family) -> impl Iterator<Item = IpNet> {
        of(ip, &self.outside)
    }

    /// Whether there is any rule to make.
    fn is_empty(&self) -> bool {
        !(self.masquerade || self.forward) || self.families().next().is_none()
    }
}

/// Those of one IP version.
fn of(ip: Family, nets: &[IpNet]) -> impl Iterator<Item = IpNet> {
    let nets = nets.iter().map(IpNet::trunc);
    nets.filter(move |net| matches!(net, IpNet::V4(_)) == (ip == Family::V4))
}

/// What is never masqueraded: multicast (RFC 5771, RFC 4291 §2.7).
fn multicast(family: Family) -> &'static str {
    match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    }
}

/// The rules in the network namespace of the caller.
pub struct Firewall {
    mode: Mode,
    resync: Duration,
    nftables: Nftables,
    iptables: Iptables,
    firewalld: Firewalld,
    generation: Option<Generation>,
    /// The rules last found to be in place, and the nftables generation at which they were.
    settled: Option<(Rules, u32)>,
    complaints: Complaints,
    /// By which rules it worked last.
    effective: Option<Mode>,
}

impl Firewall {
    /// Knows nothing yet; reads and changes nothing. `resync` is what [`Self::resync_interval`] returns.
    pub fn new(mode: Mode, resync: Duration) -> Self {
        Self {
            mode,
            resync,
            nftables: Nftables::new(None),
            iptables: Iptables::new(None),
            firewalld: Firewalld::default(),
            generation: None,
            settled: None,
            complaints: Complaints::default(),
            effective: None,
        }
    }

    /// Goes on by other rules, and with another [`Self::resync_interval`]. The next [`Self::ensure`] brings it about.
    pub fn set_mode(&mut self, mode: Mode, resync: Duration) {
        self.mode = mode;
        self.resync = resync;
        self.settled = None;
    }

    /// By which rules it worked last: never [`Mode::Auto`]; `None` before the first time.
    pub fn effective(&self) -> Option<Mode> {
        self.effective
    }

    /// The firewall of a named network, whose rules have names of their own. To be called before anything else.
    pub fn of_network(mut self, network: Option<&NetworkName>) -> Self {
        self.nftables = Nftables::new(network);
        self.iptables = Iptables::new(network);
        self
    }

    /// How often [`Self::ensure`] should be called when the [`Watcher`] is silent: the rules of `iptables-legacy` change
    /// without an announcement. Where those are not in use a call that finds nothing new costs one netlink message.
    pub fn resync_interval(&self) -> Duration {
        self.resync
    }

    /// Makes the host's rules say what `rules` want, if they do not yet; returns whether anything was changed.
    ///
    /// Each of our tables and chains is replaced in one transaction, so packets see the old rules or the new.
    ///
    /// # Errors
    /// When a program that the mode needs is missing, fails or hangs. What fails beside that, such as opening somebody
    /// else's chain or removing old rules, is logged once and tried again with the next change.
    pub async fn ensure(&mut self, rules: &Rules) -> Result<bool, Error> {
        let generation = self.generation().await;
        let same = |(seen, at): &(Rules, u32)| seen == rules && Some(*at) == generation;
        let quiet = self.settled.as_ref().is_some_and(same);
        if quiet && !self.iptables.must_look() {
            return Ok(false);
        }
        self.settled = None;
        let pass = self.pass(rules, quiet).await?;
        if !pass.changed && !pass.pending {
            self.settled = generation.map(|generation| (rules.clone(), generation));
        }
        Ok(pass.changed)
    }

    async fn pass(&mut self, rules: &Rules, quiet: bool) -> Result<Pass, Error> {
        let (tables, ()) = tokio::join!(tables(quiet), self.iptables.detect());
        let has_nft = !matches!(tables, Err(Error::NoProgram { .. }));
        let mode = self
            .mode
            .choose(rules.prefer_nftables, has_nft, self.iptables.is_installed());
        self.effective = Some(mode);
        let tables = match tables {
            Ok(tables) => tables,
            // Rules that need no table need no nft either.
            Err(Error::NoProgram { .. }) if mode == Mode::Iptables || rules.is_empty() => {
                Tables::unknown()
            }
            Err(error) if mode == Mode::Nftables => return Err(error),
            Err(error) => {
                self.complaints.log(&error);
                Tables::unknown()
            }
        };
        let mut pass = Pass::default();
        // New rules come before old ones go, so that no packet meets neither.
        if mode == Mode::Nftables && !quiet {
            pass.changed |= self.nftables.ensure(rules, &tables).await?;
        }
        let look = Look {
            main: mode == Mode::Iptables,
            tables: &tables,
            quiet,
        };
        let iptables = self.iptables.ensure(rules, look, &mut self.complaints);
        pass.changed |= iptables.await?;
        if quiet {
            return Ok(pass);
        }
        let stale = self.nftables.stale(&tables, mode == Mode::Nftables);
        match nftables::remove(&stale).await {
            Ok(removed) => pass.changed |= removed,
            Err(error) => self.complaints.log(&error),
        }
        if rules.forward && tables.has(firewalld::TABLE) {
            let networks = rules.families().map(|(_, family)| family.network);
            pass.pending = !self.firewalld.ensure(networks, &mut self.complaints).await;
        }
        Ok(pass)
    }

    /// Removes everything that the agent, or flannel, makes in either mode; returns whether there was anything.
    ///
    /// `networks` are the overlay's: they leave firewalld's trusted zone, unless its permanent configuration has them.
    /// Programs that are not installed have made nothing.
    ///
    /// # Errors
    /// The first failure, after all the rest was tried.
    pub async fn clear(&mut self, networks: &[IpNet]) -> Result<bool, Error> {
        self.settled = None;
        self.iptables.detect().await;
        let mut changed = false;
        let mut failure = None;
        let tables = match nftables::tables().await {
            Ok(tables) => tables,
            Err(Error::NoProgram { .. }) => Tables::unknown(),
            Err(error) => {
                failure = Some(error);
                Tables::unknown()
            }
        };
        let parts = [
            nftables::remove(&self.nftables.stale(&tables, false)).await,
            self.iptables.clear(&tables).await,
        ];
        for part in parts {
            match part {
                Ok(removed) => changed |= removed,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if tables.has(firewalld::TABLE) {
            changed |= firewalld::forget(networks).await;
        }
        failure.map_or(Ok(changed), Err)
    }

    /// The number of the nftables ruleset; `None` where there is no nftables.
    async fn generation(&mut self) -> Option<u32> {
        if self.generation.is_none() {
            self.generation = Generation::open().ok();
        }
        match self.generation.as_mut()?.read().await {
            Ok(generation) => Some(generation),
            Err(_) => {
                self.generation = None;
                None
            }
        }
    }
}

/// The names of the nftables tables; unknown where nobody needs them.
async fn tables(quiet: bool) -> Result<Tables, Error> {
    match quiet {
        true => Ok(Tables::unknown()),
        false => nftables::tables().await,
    }
}

/// What one look at all rules came to.
#[derive(Default)]
struct Pass {
    changed: bool,
    /// Whether something is left to do that no announcement will remind of.
    pending: bool,
}

/// How many different complaints are kept apart.
const MAX_COMPLAINTS: usize = 64;

/// Failures beside the matter, each of which is logged once.
#[derive(Default)]
struct Complaints(BTreeSet<String>);

impl Complaints {
    fn log(&mut self, what: &dyn std::error::Error) {
        let text = chain(what);
        if self.0.len() > MAX_COMPLAINTS {
            self.0.clear();
        }
        if self.0.insert(text.clone()) {
            warn!("firewall: {text}");
        }
    }
}
