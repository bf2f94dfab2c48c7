//! Which of the kernel's objects are those of this agent's network, where several networks are on one host.
//!
//! | object | is told by |
//! |---|---|
//! | next hop | its number ([`super::nexthop`]) |
//! | route with a next hop | the next hop |
//! | any other route | its device, if that is an overlay device; else its destination |
//! | device | `IFLA_IFALIAS`, which `ip link` shows; a device of the default network has none |
//!
//! Running agents keep out of each other's way by [`crate::host::claim`]. The marks say whose it is when nobody runs.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::link::{self, KernelLink};
use super::nexthop::Ids;
use super::{Kernel, KernelError, address};
use crate::base::net::InterfaceName;
use crate::base::network_name::NetworkName;
use crate::plan::state::{Object, Tun};

/// What the alias of a named network's device begins with.
pub(crate) const MARK: &str = "selvage network ";

/// What all overlay devices' names begin with.
pub(crate) const DEVICES: &str = "flannel";

/// What a device of some name is marked with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mark {
    /// There is no device.
    NoDevice,
    /// Nothing, as those of the default network and of other programs.
    Nothing,
    /// A network.
    Network(String),
}

/// The network that a device is marked as belonging to.
fn owner(link: &KernelLink) -> Option<&str> {
    link.alias.as_deref()?.strip_prefix(MARK)
}

impl Kernel {
    /// The kernel as the agent of a named network sees it: what other networks have made is not its own. Without a name it
    /// is the default network's.
    pub fn of_network(mut self, network: Option<&NetworkName>) -> Self {
        self.network = network.cloned();
        self.ids = self.new_ids();
        self
    }

    /// The network whose the objects are that count as ours; the default one if it has no name.
    pub(crate) fn network(&self) -> Option<&NetworkName> {
        self.network.as_ref()
    }

    /// Says which devices no other agent on this host may have, and which TUN device this process stands behind.
    pub(crate) fn set_held(
        &mut self,
        held: BTreeSet<InterfaceName>,
        tun: Option<(InterfaceName, Tun)>,
    ) {
        self.held = held;
        self.tun = tun;
    }

    /// Whether a device was there when last looked at.
    pub(crate) fn has_seen(&self, name: &InterfaceName) -> bool {
        self.indices.contains_key(name)
    }

    /// What a device is marked with.
    ///
    /// # Errors
    ///
    /// The kernel cannot be talked to.
    pub(crate) async fn mark_of(&mut self, name: &InterfaceName) -> Result<Mark, KernelError> {
        let found = self.find_link(name).await?;
        Ok(found.map_or(Mark::NoDevice, |found| match owner(&found) {
            Some(network) => Mark::Network(network.to_owned()),
            None => Mark::Nothing,
        }))
    }

    /// Takes over a device, if it exists: a named network marks one that has no mark. Returns what it is marked with if it
    /// is not this network's.
    ///
    /// # Errors
    ///
    /// The kernel cannot be talked to.
    pub(crate) async fn adopt(
        &mut self,
        name: &InterfaceName,
        networks: &[IpNet],
    ) -> Result<Result<(), Mark>, KernelError> {
        let Some(found) = self.find_link(name).await? else {
            return Ok(Ok(()));
        };
        if !self.is_own(&found, networks).await? {
            let network = owner(&found).map(str::to_owned);
            return Ok(Err(network.map_or(Mark::Nothing, Mark::Network)));
        }
        if let Some(mark) = self.mark().filter(|_| found.alias.is_none()) {
            // A device that goes away meanwhile needs no mark.
            let request = link::set_alias(found.index, mark);
            self.socket.batch(&[request]).await?;
        }
        Ok(Ok(()))
    }

    /// Knows no next hop yet.
    pub(super) fn new_ids(&self) -> Ids {
        Ids::of_network(self.network.as_ref())
    }

    /// What devices of this network are marked with, if they are.
    pub(super) fn mark(&self) -> Option<String> {
        let network = self.network.as_ref()?;
        Some(format!("{MARK}{network}"))
    }

    /// A device, if it is this network's. `networks` are those that this network is known to have had.
    ///
    /// # Errors
    ///
    /// The kernel cannot be talked to.
    pub(crate) async fn own_device(
        &mut self,
        name: &InterfaceName,
        networks: &[IpNet],
    ) -> Result<Option<Object>, KernelError> {
        let Some(found) = self.find_link(name).await? else {
            return Ok(None);
        };
        Ok(match self.is_own(&found, networks).await? {
            true => Some(found.object),
            false => None,
        })
    }

    async fn is_own(
        &mut self,
        found: &KernelLink,
        networks: &[IpNet],
    ) -> Result<bool, KernelError> {
        match (owner(found), &self.network) {
            (Some(owner), own) => Ok(own.as_ref().is_some_and(|own| own.as_str() == owner)),
            (None, None) => Ok(true),
            (None, Some(_)) => {
                let index = found.index;
                let dump = self
                    .socket
                    .dump("addresses", address::list(index), |message| {
                        let (of, address) = address::read(&message)?;
                        (of == index && !is_link_local(&address)).then_some(address)
                    })
                    .await?;
                let inside =
                    |address: &IpNet| networks.iter().any(|network| network.contains(address));
                // Where no network is known, nothing can be told to be of it.
                Ok(!networks.is_empty() && dump.items.iter().all(inside))
            }
        }
    }

    /// Whether a device that is in our scope is not ours after all: it may have gone, and come back as another network's.
    pub(super) fn is_lost(&self, found: &KernelLink) -> bool {
        match (owner(found), &self.network) {
            (Some(owner), own) => own.as_ref().is_none_or(|own| own.as_str() != owner),
            (None, Some(_)) => !self.held.contains(&found.name),
            (None, None) => false,
        }
    }

    /// Whether a device that is not in our scope looks like another network's, so that what leads over it is not ours.
    pub(super) fn is_others(&self, found: &KernelLink) -> bool {
        match (owner(found), &self.network) {
            (Some(owner), own) => own.as_ref().is_none_or(|own| own.as_str() != owner),
            (None, Some(_)) => found.name.as_str().starts_with(DEVICES),
            (None, None) => false,
        }
    }
}

fn is_link_local(address: &IpNet) -> bool {
    match address {
        IpNet::V4(v4) => v4.addr().is_link_local(),
        IpNet::V6(v6) => v6.addr().is_unicast_link_local(),
    }
}
