//! The bridge after a change of the host's subnet.
//!
//! The bridge plugin gives the bridge the subnet's first address, and refuses a bridge with another IPv4 address:
//! `"cni0" already has an IP address different from …` (containernetworking/cni#306, flannel#1850, #2063). So after a
//! change of the subnet no container starts until the bridge is deleted by hand. Once no container is attached, the old
//! address is useless: then we remove it, and the plugin adds the new one.

use ipnet::IpNet;
use nix::errno::Errno;
use serde_json::{Map, Value};

use super::delegate::{BRIDGE, HOST_LOCAL};
use super::error::Error;
use super::subnet_env::SubnetEnv;
use super::verbs::note;
use crate::base::logging;
use crate::base::net::InterfaceName;
use crate::host::netlink::{Kernel, KernelError};
use crate::host::subnet_file::bridge_address;

/// The bridge plugin's default name for its bridge.
const DEFAULT_BRIDGE: &str = "cni0";

/// Removes addresses of old subnets from the delegate's bridge.
///
/// Addresses outside the overlay's networks are never touched. Failing to query the kernel is not an error: the bridge
/// plugin will report what it cannot do.
pub(super) fn remove_old_addresses(
    delegate: &Map<String, Value>,
    env: &SubnetEnv,
) -> Result<(), Error> {
    let Some(bridge) = managed_bridge(delegate) else {
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(replace(&bridge, env)),
        Err(source) => Err(Failure::Kernel(KernelError::Open(source))),
    };
    match outcome {
        Ok(()) => Ok(()),
        Err(Failure::InUse(error)) => Err(error),
        Err(Failure::Kernel(error)) => {
            note(&format!(
                "flannel: failed to read bridge {bridge}: {}",
                logging::chain(&error)
            ));
            Ok(())
        }
    }
}

enum Failure {
    Kernel(KernelError),
    InUse(Error),
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}

/// The bridge whose address is the first of our subnet, by the delegate's configuration; `None` if an administrator
/// chose another address.
fn managed_bridge(delegate: &Map<String, Value>) -> Option<InterfaceName> {
    let is = |key| delegate.get(key) == Some(&Value::Bool(true));
    let text = |value: Option<&Value>, default: &str| match value {
        None => Some(default.to_owned()),
        Some(value) => value.as_str().map(ToOwned::to_owned),
    };
    let ipam = delegate.get("ipam")?.get("type");
    let managed = delegate.get("type")? == BRIDGE
        && (is("isGateway") || is("isDefaultGateway"))
        && !is("forceAddress")
        && ipam.is_some_and(|kind| kind == HOST_LOCAL);
    let name = text(delegate.get("bridge"), DEFAULT_BRIDGE)?;
    let name = name.parse().ok()?;
    managed.then_some(name)
}

async fn replace(name: &InterfaceName, env: &SubnetEnv) -> Result<(), Failure> {
    let mut kernel = Kernel::open()?;
    let Some(bridge) = kernel.bridge(name).await? else {
        return Ok(());
    };
    for address in old_addresses(&bridge.addresses, env) {
        if let [first, rest @ ..] = &bridge.ports[..] {
            let ports = match rest {
                [] => first.clone(),
                rest => format!("{first} and {} more", rest.len()),
            };
            return Err(Failure::InUse(Error::OldBridge {
                bridge: name.to_string(),
                address: address.to_string(),
                ports,
            }));
        }
        match kernel.delete_address(bridge.index, address).await? {
            Ok(()) => note(&format!(
                "flannel: removed the address {address} of an old subnet from {name}"
            )),
            // A parallel ADD removed it first.
            Err(refused) if refused.errno == Errno::EADDRNOTAVAIL => {}
            Err(refused) => note(&format!(
                "flannel: failed to remove {address} from {name}: {refused}"
            )),
        }
    }
    Ok(())
}

/// Addresses inside the overlay that are not the first of one of our subnets.
fn old_addresses(addresses: &[IpNet], env: &SubnetEnv) -> Vec<IpNet> {
    let is_ours = |address: &IpNet| {
        env.subnets
            .iter()
            .any(|subnet| bridge_address(*subnet) == *address)
    };
    let in_overlay = |address: &IpNet| env.networks.iter().any(|net| net.contains(&address.addr()));
    let old = |address: &&IpNet| in_overlay(address) && !is_ours(address);
    addresses.iter().filter(old).copied().collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn env() -> SubnetEnv {
        let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.9.1/24\n\
                    FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:9::1/64\n\
                    FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        SubnetEnv::parse(text, Path::new("subnet.env")).unwrap()
    }

    #[test]
    fn only_overlay_addresses_of_other_subnets_are_old() {
        let cases = [
            ("10.5.9.1/24", false),
            ("10.5.9.1/25", true),
            ("10.5.9.2/24", true),
            ("10.5.1.1/24", true),
            ("192.168.0.1/24", false),
            ("fd00:0:0:9::1/64", false),
            ("fd00:0:0:1::1/64", true),
            ("fe80::1/64", false),
        ];
        for (address, old) in cases {
            let address: IpNet = address.parse().unwrap();
            let found = old_addresses(&[address], &env());
            assert_eq!(!found.is_empty(), old, "{address}");
        }
    }

    #[test]
    fn bridge_is_managed_only_with_our_gateway() {
        let ipam = json!({"type": "host-local"});
        let managed = |value: Value| {
            let name = managed_bridge(value.as_object().unwrap());
            name.map(|name| name.to_string())
        };
        let base = json!({"type": "bridge", "isGateway": true, "ipam": ipam});
        assert_eq!(managed(base.clone()).as_deref(), Some("cni0"));
        let with = |key: &str, value: Value| {
            let mut changed = base.clone();
            changed[key] = value;
            managed(changed)
        };
        assert_eq!(with("bridge", json!("br7")).as_deref(), Some("br7"));
        for (key, value) in [
            ("type", json!("ipvlan")),
            ("isGateway", json!(false)),
            ("forceAddress", json!(true)),
            ("ipam", json!({"type": "dhcp"})),
            ("bridge", json!(5)),
            ("bridge", json!("a/b")),
        ] {
            assert_eq!(with(key, value.clone()), None, "{key} {value}");
        }
    }
}
