//! The packet filter: rules that let overlay packets through this host, and rules that masquerade packets that leave
//! the overlay.
//!
//! | mode | where the rules are |
//! |---|---|
//! | nftables | one table of our own, `inet selvage`, for both families; while no agent runs, flannel's two |
//! | iptables | flannel's chains: `FLANNEL-POSTRTG` in nat, `FLANNEL-FWD` in filter, one jump to each |
//!
//! For a named network, the names of table and chains end with its name.
//!
//! In nftables an accept ends only its own chain: another chain may still drop the packet. So in either mode the agent
//! also adds accepts next to the drops of other programs: `FLANNEL-FWD` in each iptables `FORWARD` that has rules or
//! the policy DROP, `SELVAGE-RAW` before Docker's drops of packets sent directly to a container, and the overlay in
//! firewalld's trusted zone.
//!
//! The agent removes what the other mode left behind. The default network also removes flannel's rules. Rules of other
//! programs are never touched.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing::warn;

mod current;
pub mod docker;
mod firewalld;
pub(crate) mod iptables;
mod nftables;
pub(crate) mod program;
mod watch;
mod worker;

pub(crate) use current::current_mode;
pub use program::Error;
pub use watch::Watcher;
pub(crate) use worker::{Outcome, Worker};

use firewalld::Firewalld;
use iptables::{Iptables, View};
use nftables::{Nftables, Tables};

pub use crate::settings::FirewallMode as Mode;

use crate::base::logging::chain;
use crate::base::net::{Family, InterfaceName, Leased};
use crate::base::network_name::NetworkName;

/// Interval of resyncs without a notification; flannel's `--iptables-resync`.
pub const DEFAULT_RESYNC: Duration = Duration::from_secs(5);

/// Whether firewalld manages this host's rules. Without the right to read them it does not.
pub(crate) async fn has_firewalld() -> bool {
    nftables::exists(firewalld::TABLE).await.unwrap_or(false)
}

/// Called when the agent of the default network stops: moves its nftables rules to flannel's tables in one transaction,
/// so that no packet misses both. The next agent takes them back, as it does after a real flannel. Without this, a
/// flannel that starts next would leave our rules in place forever. The iptables chains are flannel's anyway.
///
/// # Errors
/// The rules stay in our table.
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
    /// Whether to masquerade packets that leave the overlay.
    pub masquerade: bool,
    /// Whether to accept forwarded packets from and to the overlay.
    pub forward: bool,
    /// Whether masquerading picks source ports at random, which avoids the insertion races of parallel connections
    /// to one destination (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`). Left out where iptables is older than 1.6.2.
    pub random_fully: bool,
    /// Destinations that are never masqueraded.
    pub exclude: Vec<IpNet>,
    /// Networks and addresses inside the overlay network that do not belong to the overlay: on-link networks and
    /// addresses of this host. If empty, the rules are flannel's.
    pub outside: Vec<IpNet>,
    /// Overlay devices; empty if peers are reached without encapsulation.
    pub devices: Vec<InterfaceName>,
    /// The network config's `EnableNFTables`, which decides in [`Mode::Auto`].
    pub prefer_nftables: bool,
}

impl Rules {
    /// The networks, whatever the family.
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

    /// Whether there are no rules to create.
    fn is_empty(&self) -> bool {
        !(self.masquerade || self.forward) || self.families().next().is_none()
    }
}

/// Those of one IP version.
fn of(ip: Family, nets: &[IpNet]) -> impl Iterator<Item = IpNet> {
    let nets = nets.iter().map(IpNet::trunc);
    nets.filter(move |net| matches!(net, IpNet::V4(_)) == (ip == Family::V4))
}

/// Destinations that are never masqueraded: multicast (RFC 5771, RFC 4291 §2.7).
const fn multicast(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4)),
        Family::V6 => IpNet::V6(Ipv6Net::new_assert(
            Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0),
            8,
        )),
    }
}

/// The rules in the network namespace of the caller.
pub struct Firewall {
    mode: Mode,
    resync: Duration,
    nftables: Nftables,
    iptables: Iptables,
    firewalld: Firewalld,
    /// The rules last seen in place, and the nftables generation at that time.
    settled: Option<(Rules, u32)>,
    failures: Failures,
    /// The mode of the last pass.
    effective: Option<Mode>,
}

impl Firewall {
    /// Starts without state; reads and changes nothing. `resync` is what [`Self::resync_interval`] returns.
    pub fn new(mode: Mode, resync: Duration) -> Self {
        Self {
            mode,
            resync,
            nftables: Nftables::new(None),
            iptables: Iptables::new(None),
            firewalld: Firewalld::default(),
            settled: None,
            failures: Failures::default(),
            effective: None,
        }
    }

    /// Changes mode and resync interval. The next [`Self::ensure`] applies the new mode.
    pub fn set_mode(&mut self, mode: Mode, resync: Duration) {
        self.mode = mode;
        self.resync = resync;
        self.settled = None;
    }

    /// The mode of the last pass: never [`Mode::Auto`]; `None` before the first one.
    pub fn effective(&self) -> Option<Mode> {
        self.effective
    }

    /// For a named network, whose table and chains have their own names. Call it before anything else.
    pub fn of_network(mut self, network: Option<&NetworkName>) -> Self {
        self.nftables = Nftables::new(network);
        self.iptables = Iptables::new(network);
        self
    }

    /// How often to call [`Self::ensure`] while the [`Watcher`] reports nothing: the kernel does not announce changes
    /// by `iptables-legacy`. Without legacy rules, a call that finds no change costs one netlink message.
    pub fn resync_interval(&self) -> Duration {
        self.resync
    }

    /// Changes the host's rules to `rules` if they differ; returns whether anything changed.
    ///
    /// Each of our tables and chains is replaced in one transaction, so packets see the old rules or the new.
    ///
    /// # Errors
    /// If the kernel refuses, or a program that the mode needs is missing, fails or hangs. Other failures, such as opening another program's
    /// chain or removing old rules, are logged once and retried at the next change.
    pub async fn ensure(&mut self, rules: &Rules) -> Result<bool, Error> {
        let generation = self.nftables.generation().await;
        let same = |(seen, at): &(Rules, u32)| seen == rules && Some(*at) == generation;
        let quiet = self.settled.as_ref().is_some_and(same);
        if quiet && !self.iptables.needs_polling() {
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
        let tables = match quiet {
            true => Ok(Tables::unknown()),
            false => self.nftables.tables().await,
        };
        let has_nftables = !matches!(tables, Err(Error::NoNftables));
        let iptables = self.iptables.is_installed();
        let mode = self
            .mode
            .choose(rules.prefer_nftables, has_nftables, iptables)
            .await;
        self.effective = Some(mode);
        let mut tables = match tables {
            Ok(tables) => tables,
            // Rules that need no table do not need nftables either.
            Err(Error::NoNftables) if mode == Mode::Iptables || rules.is_empty() => {
                Tables::unknown()
            }
            Err(error) if mode == Mode::Nftables => return Err(error),
            Err(error) => {
                self.failures.log(&error);
                Tables::unknown()
            }
        };
        let mut pass = Pass::default();
        // Add new rules before removing old ones, so that no packet misses both.
        if mode == Mode::Nftables && !quiet {
            pass.changed |= self.nftables.ensure(rules, &mut tables).await?;
        }
        let view = View {
            main: mode == Mode::Iptables,
            tables: &tables,
            quiet,
        };
        let iptables = self.iptables.ensure(rules, view, &mut self.failures);
        pass.changed |= iptables.await?;
        if quiet {
            return Ok(pass);
        }
        let stale = self.nftables.stale(&tables, mode == Mode::Nftables);
        match self.nftables.remove(&stale).await {
            Ok(removed) => pass.changed |= removed,
            Err(error) => self.failures.log(&error),
        }
        if rules.forward && firewalld::is_in(&tables) {
            let networks = rules.families().map(|(_, family)| family.network);
            let (nftables, failures) = (&mut self.nftables, &mut self.failures);
            pass.pending = !self.firewalld.ensure(networks, nftables, failures).await;
        }
        Ok(pass)
    }

    /// Removes all rules of the agent and of flannel, in either mode; returns whether there were any.
    ///
    /// `networks` are the overlay's: they are removed from firewalld's trusted zone unless its permanent configuration
    /// lists them. A program that is not installed has no rules to remove.
    ///
    /// # Errors
    /// The first failure, after all the rest was tried.
    pub async fn clear(&mut self, networks: &[IpNet]) -> Result<bool, Error> {
        self.settled = None;
        let mut changed = false;
        let mut failure = None;
        let tables = match self.nftables.tables().await {
            Ok(tables) => tables,
            Err(Error::NoNftables) => Tables::unknown(),
            Err(error) => {
                failure = Some(error);
                Tables::unknown()
            }
        };
        let stale = self.nftables.stale(&tables, false);
        let parts = [
            self.nftables.remove(&stale).await,
            self.iptables.clear(&tables).await,
        ];
        for part in parts {
            match part {
                Ok(removed) => changed |= removed,
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if firewalld::is_in(&tables) {
            changed |= firewalld::untrust(networks).await;
        }
        failure.map_or(Ok(changed), Err)
    }
}

/// Outcome of one pass over all rules.
#[derive(Default)]
struct Pass {
    changed: bool,
    /// Whether some work is left that no notification will trigger.
    pending: bool,
}

/// Number of different failures that are told apart.
const MAX_FAILURES: usize = 64;

/// Failures that do not stop a pass. Each is logged once.
#[derive(Default)]
struct Failures(BTreeSet<String>);

impl Failures {
    fn log(&mut self, what: &dyn std::error::Error) {
        let text = chain(what);
        if self.0.len() > MAX_FAILURES {
            self.0.clear();
        }
        if self.0.insert(text.clone()) {
            warn!("firewall: {text}");
        }
    }
}
