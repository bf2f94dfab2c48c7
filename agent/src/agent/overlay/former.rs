//! What an earlier run of the agent left in the kernel.

use ipnet::IpNet;

use crate::base::net::InterfaceName;
use crate::host::former;
use crate::host::netlink::{Kernel, KernelError};
use crate::host::subnet_file;
use crate::plan::backend::table;
use crate::plan::state::Scope;
use crate::settings::Settings;

/// What an earlier run of the agent left, perhaps under another network config. What of it is not wanted any more is
/// removed: with an address of the former network, say, packets to the new one would have the wrong source.
#[derive(Debug, Default)]
pub(crate) struct Former {
    links: Vec<InterfaceName>,
    networks: Vec<IpNet>,
}

impl Former {
    /// The overlay devices whose MAC address is kept, and those that routes of ours lead over; the networks of
    /// `subnet.env`.
    pub(crate) async fn find(
        settings: &Settings,
        kernel: &mut Kernel,
    ) -> Result<Self, KernelError> {
        // A file that cannot be read was reported by who asks it for the subnet.
        let previous = subnet_file::read_previous(&settings.files.subnet_file).unwrap_or_default();
        let v4 = previous.network.map(IpNet::V4);
        let v6 = previous.network_v6.map(IpNet::V6);
        let networks: Vec<IpNet> = v4.into_iter().chain(v6).collect();
        let mut found = kernel.marked_links(&networks).await?;
        for (name, _) in former::identities(&settings.files.state_dir) {
            if let Some(object) = kernel.own_device(&name, &networks).await? {
                found.push((name, object));
            }
        }
        let overlay = |(name, object)| table::maker(&name, &object).map(|_| name);
        Ok(Self {
            links: found.into_iter().filter_map(overlay).collect(),
            networks,
        })
    }

    /// A scope that takes in what is left.
    pub(super) fn widen(self, mut scope: Scope) -> Scope {
        for link in self.links {
            if !scope.links.contains(&link) {
                scope.links.push(link);
            }
        }
        for network in self.networks {
            if !scope.networks.contains(&network) {
                scope.networks.push(network);
            }
        }
        scope
    }
}
