//! What an earlier run of the agent left in the kernel.

use ipnet::IpNet;

use crate::base::net::InterfaceName;
use crate::host::identity::vxlan::stored_devices;
use crate::host::netlink::{Kernel, KernelError};
use crate::host::subnet_file;
use crate::plan::backend::table;
use crate::plan::state::Scope;
use crate::settings::Settings;

/// What an earlier run of the agent left, possibly under another network config. Whatever of it is stale is removed: an
/// address of the former network, for example, would give packets to the new one the wrong source.
#[derive(Debug, Default)]
pub(crate) struct EarlierRun {
    links: Vec<InterfaceName>,
    networks: Vec<IpNet>,
    /// Whether it left policies of IPsec.
    ipsec: bool,
}

impl EarlierRun {
    /// Finds the overlay devices that keep a MAC address or carry our routes, the networks in `subnet.env`, and policies
    /// of IPsec for those.
    pub(crate) async fn find(
        settings: &Settings,
        kernel: &mut Kernel,
    ) -> Result<Self, KernelError> {
        // The caller that reads the previous subnet reports an unreadable file.
        let previous = subnet_file::read_previous(&settings.files.subnet_file).unwrap_or_default();
        let v4 = previous.network.map(IpNet::V4);
        let v6 = previous.network_v6.map(IpNet::V6);
        let networks: Vec<IpNet> = v4.into_iter().chain(v6).collect();
        let mut found = kernel.marked_links(&networks).await?;
        for (name, _) in stored_devices(&settings.files.state_dir) {
            if let Some(object) = kernel.own_device(&name, &networks).await? {
                found.push((name, object));
            }
        }
        let overlay = |(name, object)| table::maker(&name, &object).map(|_| name);
        Ok(Self {
            ipsec: kernel.has_policies(&networks).await?,
            links: found.into_iter().filter_map(overlay).collect(),
            networks,
        })
    }

    /// Extends a scope by these devices and networks.
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
        scope.ipsec |= self.ipsec;
        scope
    }
}
