//! The devices and networks that this agent claims on a host with several agents.

use std::io;

use ipnet::IpNet;
use thiserror::Error;

use super::Executor;
use crate::base::net::InterfaceName;
use crate::base::network_name::{NetworkName, describe};
use crate::host::claim::{self, Claims};
use crate::host::netlink::{DEVICES, KernelError, Mark};

/// How many TUN device names are tried.
const MAX_TUNS: u32 = 100;

/// Why this agent cannot claim a network or device.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// Another agent runs in the same network.
    #[error(
        "{network} already has an agent on this host (process {id}); give each network on a host its own name (--network)"
    )]
    Network {
        /// Which, in words.
        network: String,
        /// The other agent.
        id: i32,
    },
    /// Two network names map to the same next-hop ID range.
    #[error(
        "another agent on this host (process {id}) uses the same range of next-hop IDs as {network}; rename one of the networks"
    )]
    NextHops {
        /// Ours, in words.
        network: String,
        /// The other agent.
        id: i32,
    },
    /// Two overlay networks overlap, so that routing between them is ambiguous.
    #[error(
        "the overlay network {ours} overlaps {theirs} of another agent on this host (process {id}); networks on one host must not overlap"
    )]
    Overlap {
        /// Our overlay network, from the network config.
        ours: IpNet,
        /// The other agent's.
        theirs: String,
        /// The other agent.
        id: i32,
    },
    /// Another agent has the device.
    #[error(
        "the device {device} is in use by another agent on this host (process {id}); {remedy}", remedy = remedy(device)
    )]
    Device {
        /// Which.
        device: InterfaceName,
        /// The other agent.
        id: i32,
    },
    /// The device belongs to another network, whose agent is not running, or to another program.
    #[error(
        "the device {device} exists and belongs to {owner}; {remedy}", remedy = remedy(device)
    )]
    Foreign {
        /// Which.
        device: InterfaceName,
        /// The owner, as far as known.
        owner: String,
    },
    /// All TUN device names are taken.
    #[error("all TUN devices from flannel0 to flannel{} are in use; remove one", MAX_TUNS - 1)]
    NoTun,
    /// A claim cannot be made.
    #[error("failed to claim the abstract socket selvage/{what}")]
    Claim {
        /// The name.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A netlink request for the device, or for its mark, failed.
    #[error("failed to look up the owner of the device")]
    Kernel(#[from] KernelError),
}

/// The remedy for two networks with the same device.
fn remedy(device: &InterfaceName) -> &'static str {
    match device.as_str().contains('.') && !device.as_str().ends_with("ipip") {
        true => "give each network on a host its own VNI",
        false => "only one network per host can use this backend",
    }
}

fn device_claim(name: &InterfaceName) -> String {
    format!("device/{name}")
}

/// The claimed devices.
pub(super) fn devices(claims: &Claims) -> impl Iterator<Item = InterfaceName> {
    let names = claims.below("device/");
    names.filter_map(|name| name.parse().ok())
}

impl Executor {
    /// Claims this network, so that no other agent on this host uses it or one that overlaps it. The claim lasts until
    /// the process ends, or until the next call with other `networks`.
    ///
    /// # Errors
    ///
    /// Another agent has the network; the error names it.
    pub(crate) fn claim_network(&mut self, networks: &[IpNet]) -> Result<(), ClaimError> {
        let name = self.kernel.network().cloned();
        let network = describe(name.as_ref());
        let label = name.as_ref().map_or("", NetworkName::as_str);
        self.claim(&format!("network/{label}"), |id| ClaimError::Network {
            network: network.clone(),
            id,
        })?;
        if let Some(name) = &name {
            self.claim(&format!("next-hops/{}", name.number()), |id| {
                ClaimError::NextHops { network, id }
            })?;
        }
        self.claim_overlays(networks)
    }

    /// Claims a name; `taken` is the error if another process holds it.
    fn claim(
        &mut self,
        name: &str,
        taken: impl FnOnce(i32) -> ClaimError,
    ) -> Result<(), ClaimError> {
        self.claims.take(name).map_err(|error| match error {
            claim::Error::Taken(id) => taken(id),
            claim::Error::Io(source) => ClaimError::Claim {
                what: name.to_owned(),
                source,
            },
        })
    }

    /// First claims the overlay networks, then checks for other claims that overlap: of two agents that start at once,
    /// at least one sees the other.
    fn claim_overlays(&mut self, networks: &[IpNet]) -> Result<(), ClaimError> {
        const START: &str = "overlay/";
        let names: Vec<String> = networks.iter().map(|net| format!("{START}{net}")).collect();
        let before: Vec<String> = self.claims.below(START).map(str::to_owned).collect();
        let mut overlap = None;
        for (name, &ours) in names.iter().zip(networks) {
            match self.claims.take(name) {
                Ok(()) => {}
                Err(claim::Error::Taken(id)) => {
                    overlap = Some((ours, ours.to_string(), id));
                    break;
                }
                Err(claim::Error::Io(source)) => {
                    let what = name.clone();
                    return Err(ClaimError::Claim { what, source });
                }
            }
        }
        let others = self.claims.of_others(START).into_iter();
        let mut others = others.filter_map(|(text, id)| {
            let theirs: IpNet = text.parse().ok()?;
            let overlaps = |ours: &&IpNet| ours.contains(&theirs) || theirs.contains(*ours);
            let ours = networks.iter().find(overlaps)?;
            Some((*ours, text, id))
        });
        match overlap.or_else(|| others.next()) {
            None => {
                self.claims
                    .retain(|name| !name.starts_with(START) || names.iter().any(|own| own == name));
                Ok(())
            }
            // Keep the claims held before: those networks are still in use.
            Some((ours, theirs, id)) => {
                self.claims.retain(|name| {
                    let held = |net: &str| before.iter().any(|before| before == net);
                    name.strip_prefix(START).is_none_or(held)
                });
                Err(ClaimError::Overlap { ours, theirs, id })
            }
        }
    }

    /// Claims a device: if it exists, it must belong to this network, and no other agent on this host may take it. The
    /// claim lasts until the process ends or the device is removed.
    ///
    /// A named network takes over and marks a device without a mark if all its addresses are in `networks`, such as one
    /// that flannel left.
    ///
    /// # Errors
    ///
    /// The device belongs to another network or program, or another agent has claimed it.
    pub(crate) async fn claim_device(
        &mut self,
        name: &InterfaceName,
        networks: &[IpNet],
    ) -> Result<(), ClaimError> {
        let claim = device_claim(name);
        let device = name.clone();
        self.claim(&claim, |id| ClaimError::Device { device, id })?;
        let Err(mark) = self.kernel_mut().adopt(name, networks).await? else {
            return Ok(());
        };
        self.claims.retain(|name| *name != claim);
        let owner = match (mark, self.kernel.network()) {
            (Mark::Network(other), _) => format!("the network {other}"),
            (_, Some(_)) => "the default network, or to another program".to_owned(),
            (_, None) => "another program".to_owned(),
        };
        Err(ClaimError::Foreign {
            device: name.clone(),
            owner,
        })
    }

    /// The name for a TUN device: the one in use, otherwise the first free of `flannel0`, `flannel1` and so on, as
    /// flannel's `flannel%d`. The default network takes over an existing `flannel0`.
    ///
    /// # Errors
    ///
    /// No name is free.
    pub(crate) async fn claim_tun(&mut self) -> Result<InterfaceName, ClaimError> {
        let names: Vec<InterfaceName> = (0..MAX_TUNS)
            .filter_map(|n| format!("{DEVICES}{n}").parse().ok())
            .collect();
        if let Some(held) = names
            .iter()
            .find(|name| self.claims.has(&device_claim(name)))
        {
            return Ok(held.clone());
        }
        for (n, name) in names.into_iter().enumerate() {
            let claim = device_claim(&name);
            match self.claims.take(&claim) {
                Ok(()) => {}
                Err(claim::Error::Taken(_)) => continue,
                Err(claim::Error::Io(source)) => {
                    let what = claim;
                    return Err(ClaimError::Claim { what, source });
                }
            }
            let is_free = match self.kernel.mark_of(&name).await? {
                Mark::NoDevice => true,
                mark => {
                    n == 0 && self.kernel.network().is_none() && mark == Mark::Nothing
                        || self.data_plane.has(&name)
                }
            };
            if is_free {
                return Ok(name);
            }
            self.claims.retain(|name| *name != claim);
        }
        Err(ClaimError::NoTun)
    }

    /// Claims a device again before it is created, if its claim was released.
    pub(super) fn claim_again(&mut self, name: &InterfaceName) -> Result<(), claim::Error> {
        self.claims.take(&device_claim(name))
    }

    /// Releases the claims of devices that no longer exist.
    pub(super) fn release_devices(&mut self) {
        let kernel = &self.kernel;
        let claimed = |device: &str| {
            let name: Result<InterfaceName, _> = device.parse();
            name.is_ok_and(|name| kernel.has_seen(&name))
        };
        self.claims
            .retain(|name| name.strip_prefix("device/").is_none_or(claimed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remedies_fit_the_device() {
        for (device, remedy) in [
            ("flannel.1", "give each network on a host its own VNI"),
            ("flannel-v6.1", "give each network on a host its own VNI"),
            (
                "flannel.ipip",
                "only one network per host can use this backend",
            ),
            (
                "flannel-wg",
                "only one network per host can use this backend",
            ),
        ] {
            let error = ClaimError::Device {
                device: device.parse().unwrap(),
                id: 7,
            };
            assert_eq!(
                error.to_string(),
                format!(
                    "the device {device} is in use by another agent on this host (process 7); {remedy}"
                )
            );
        }
    }
}
