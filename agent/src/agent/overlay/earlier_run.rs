//! What an earlier run of the agent left in the kernel.

use ipnet::IpNet;
use tracing::debug;

use crate::base::logging::chain;
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
    /// of IPsec for those. `scope` is the present backend's.
    ///
    /// # Errors
    ///
    /// The netlink exchange with the kernel failed, except about policies: most hosts never had any, and some do not let
    /// the agent ask.
    pub(crate) async fn find(
        settings: &Settings,
        kernel: &mut Kernel,
        scope: &Scope,
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
        // The first question loads the kernel's module: ask only where there may be policies, and no backend will look.
        let may_have_policies = !scope.ipsec && !networks.is_empty();
        Ok(Self {
            ipsec: may_have_policies && found_policies(kernel.has_policies(&networks).await),
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

/// Whether there are policies; where nobody can say, there are none to remove either.
fn found_policies(answer: Result<bool, KernelError>) -> bool {
    answer.unwrap_or_else(|error| {
        debug!(
            "cannot look for an earlier run's policies of IPsec: {}",
            chain(&error)
        );
        false
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_host_that_does_not_let_the_agent_ask_has_no_policies() {
        for errno in [
            // SELinux; a sandbox that filters socket families; a kernel without XFRM.
            Errno::EACCES,
            Errno::EPERM,
            Errno::EAFNOSUPPORT,
            Errno::EPROTONOSUPPORT,
        ] {
            let error = io::Error::from_raw_os_error(errno as i32);
            assert!(!found_policies(Err(KernelError::Open(error))), "{errno}");
        }
        assert!(found_policies(Ok(true)));
    }
}
