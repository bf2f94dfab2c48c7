//! Which kernel objects belong to this agent's network when a host is in several networks.
//!
//! | object | recognised by |
//! |---|---|
//! | next hop | its ID ([`super::nexthop`]) |
//! | route with a next hop | the next hop |
//! | any other route | its device, if that is an overlay device; otherwise its destination |
//! | device | `IFLA_IFALIAS`, which `ip link` shows; a device of the default network has none |
//!
//! Running agents avoid each other by [`crate::host::claim`]. The marks name the owner while no agent runs.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::link::{self, KernelLink};
use super::nexthop::Ids;
use super::{Kernel, KernelError, address};
use crate::base::net::{InterfaceName, is_link_local};
use crate::base::network_name::NetworkName;
use crate::plan::state::{Object, Tun};

/// The prefix of the alias of a named network's device.
pub(crate) const MARK: &str = "selvage network ";

/// The prefix of all overlay device names.
pub(crate) const DEVICES: &str = "flannel";

/// The mark of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mark {
    /// No such device.
    NoDevice,
    /// No mark: a device of the default network or of another program.
    Nothing,
    /// A network.
    Network(String),
}

/// The network in a device's mark.
fn owner(link: &KernelLink) -> Option<&str> {
    link.alias.as_deref()?.strip_prefix(MARK)
}

impl Kernel {
    /// Restricts this to the objects of a named network, or of the default network without a name.
    pub fn of_network(mut self, network: Option<&NetworkName>) -> Self {
        self.network = network.cloned();
        self.ids = self.new_ids();
        self
    }

    /// The network whose objects count as ours; `None` is the default network.
    pub(crate) fn network(&self) -> Option<&NetworkName> {
        self.network.as_ref()
    }

    /// Sets the devices reserved for this agent on this host, and the TUN device that this process serves.
    pub(crate) fn set_claimed(
        &mut self,
        claimed: BTreeSet<InterfaceName>,
        tun: Option<(InterfaceName, Tun)>,
    ) {
        self.claimed = claimed;
        self.tun = tun;
    }

    /// Whether a device existed at the last look-up.
    pub(crate) fn has_seen(&self, name: &InterfaceName) -> bool {
        self.indices.contains_key(name)
    }

    /// A device's mark.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed.
    pub(crate) async fn mark_of(&mut self, name: &InterfaceName) -> Result<Mark, KernelError> {
        let found = self.find_link(name).await?;
        Ok(found.map_or(Mark::NoDevice, |found| match owner(&found) {
            Some(network) => Mark::Network(network.to_owned()),
            None => Mark::Nothing,
        }))
    }

    /// Takes over a device, if it exists: a named network marks one without a mark. Returns the mark if it belongs to
    /// another network.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed.
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
            // A refusal is ignored: a device removed meanwhile needs no mark.
            let request = link::set_alias(found.index, mark);
            self.socket.batch(&[request]).await?;
        }
        Ok(Ok(()))
    }

    /// The IDs of this network, with no next hop known yet.
    pub(super) fn new_ids(&self) -> Ids {
        Ids::of_network(self.network.as_ref())
    }

    /// The mark of this network's devices; `None` for the default network.
    pub(super) fn mark(&self) -> Option<String> {
        let network = self.network.as_ref()?;
        Some(format!("{MARK}{network}"))
    }

    /// A device, if it belongs to this network. `networks` are the overlay networks that it is known to have had.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed.
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
                        (of == index && !is_link_local(address.addr())).then_some(address)
                    })
                    .await?;
                let inside =
                    |address: &IpNet| networks.iter().any(|network| network.contains(address));
                // Without known networks, no address proves that the device is ours.
                Ok(!networks.is_empty() && dump.items.iter().all(inside))
            }
        }
    }

    /// Whether a device in our scope is no longer ours: it may have been removed and recreated by another network's
    /// agent.
    pub(super) fn is_lost(&self, found: &KernelLink) -> bool {
        match (owner(found), &self.network) {
            (Some(owner), own) => own.as_ref().is_none_or(|own| own.as_str() != owner),
            (None, Some(_)) => !self.claimed.contains(&found.name),
            (None, None) => false,
        }
    }

    /// Whether a device outside our scope looks like another network's, so that routes over it are not ours.
    pub(super) fn is_others(&self, found: &KernelLink) -> bool {
        match (owner(found), &self.network) {
            (Some(owner), own) => own.as_ref().is_none_or(|own| own.as_str() != owner),
            (None, Some(_)) => found.name.as_str().starts_with(DEVICES),
            (None, None) => false,
        }
    }
}
