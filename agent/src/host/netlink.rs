//! The kernel's network configuration over rtnetlink: the current state (`Kernel::observe`), the changes that lead to
//! the wanted state (`Kernel::apply`), and notifications that another program changed it ([`Monitor`]).
//!
//! Requests go over one socket, in batches, and the agent waits for the results; there is no background task.
//! Notifications have their own socket: on a socket that also makes changes, notifications about those changes would be
//! mistaken for replies.

mod address;
mod apply;
mod batch;
mod bridge;
mod device;
mod filter;
mod generic;
pub(crate) mod host;
pub(crate) mod inventory;
mod link;
mod message;
mod monitor;
mod neighbor;
pub(in crate::host) mod netfilter;
mod nexthop;
mod observe;
mod ownership;
mod route;
mod socket;
pub(crate) mod survey;
mod tun;
mod wireguard;
mod xfrm;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rtnetlink::packet_route::AddressFamily;

pub(crate) use self::apply::{Applied, HandshakeRequest};
pub use self::apply::{ChangeError, Failure};
pub use self::bridge::Bridge;
pub use self::device::Device;
pub(in crate::host) use self::generic::{Attributes, attributes, flagged_attributes};
pub use self::monitor::{Changed, Monitor, Watch};
pub(crate) use self::observe::Observed;
pub(crate) use self::ownership::{DEVICES, MARK, Mark};
pub use self::socket::{KernelError, Refused};
pub(crate) use self::tun::TunDevices;
pub use self::wireguard::Session;
pub(crate) use self::xfrm::CHARON_PRIORITY;
use crate::base::net::{Family, InterfaceName};
use crate::base::network_name::NetworkName;
use crate::plan::state::{Object, Tun};

/// The kernel's network configuration.
#[derive(Debug)]
pub struct Kernel {
    socket: socket::Socket,
    /// Interface indices of the relevant devices, as of the last observation.
    indices: BTreeMap<InterfaceName, u32>,
    ids: nexthop::Ids,
    wireguard: wireguard::Client,
    xfrm: xfrm::Client,
    /// Whether routes go through next-hop objects. Linux has them since 5.3; detected at the first observation.
    next_hops: bool,
    /// The network whose objects count as ours; `None` is the default network.
    network: Option<NetworkName>,
    /// The devices reserved for this agent on this host.
    claimed: BTreeSet<InterfaceName>,
    /// The TUN device that this process serves.
    tun: Option<(InterfaceName, Tun)>,
}

impl Kernel {
    /// Opens a socket in the current network namespace. Needs a tokio runtime of any kind; changes need
    /// `CAP_NET_ADMIN`.
    ///
    /// # Errors
    ///
    /// Out of file descriptors, or the kernel has no netlink.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self {
            socket: socket::Socket::open()?,
            indices: BTreeMap::new(),
            ids: nexthop::Ids::of_network(None),
            wireguard: wireguard::Client::default(),
            xfrm: xfrm::Client::default(),
            next_hops: true,
            network: None,
            claimed: BTreeSet::new(),
            tun: None,
        })
    }

    /// Uses routes with inline gateways even if the kernel has next-hop objects, as before Linux 5.3.
    pub fn without_next_hops(mut self) -> Self {
        self.next_hops = false;
        self
    }

    /// Whether routes go through next-hop objects; reliable after the first observation.
    pub fn has_next_hops(&self) -> bool {
        self.next_hops
    }

    /// Gets one device: [`Object::Link`], or [`Object::OtherLink`] for any other kind of device with that name.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed.
    pub async fn link(&mut self, name: &InterfaceName) -> Result<Option<Object>, KernelError> {
        Ok(self.find_link(name).await?.map(|link| link.object))
    }

    /// Looks up a device by name and remembers its index.
    async fn find_link(
        &mut self,
        name: &InterfaceName,
    ) -> Result<Option<link::KernelLink>, KernelError> {
        // The only refusal is ENODEV: no such device.
        let answer = self.socket.get(link::get_by_name(name)).await?;
        let link = answer.ok().flatten().as_ref().and_then(link::read);
        // The kernel also finds devices by their alternative names.
        let link = link.filter(|link| link.name == *name);
        let link = link.map(|link| self.recognise(link));
        match &link {
            Some(link) => self.indices.insert(name.clone(), link.index),
            None => self.indices.remove(name),
        };
        Ok(link)
    }
}

/// The address family of an address.
fn family(address: IpAddr) -> AddressFamily {
    address_family(Family::of(address))
}

fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The address families, each with its own requests.
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];
