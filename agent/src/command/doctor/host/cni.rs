//! The containers attached by CNI runtimes (containerd, CRI-O, podman, nerdctl), from the results that libcni caches
//! below `/var/lib/cni/results` (github.com/containernetworking/cni, libcni/api.go, `cachedInfo`).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use serde::Deserialize;

use crate::flannel::install;

/// libcni's default directory.
const RESULTS: &str = "/var/lib/cni/results";

/// The longest result that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// One attachment of a container.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) container: String,
    /// The network's name in its configuration.
    pub(super) network: String,
    /// Whether flannel's plugin created it.
    pub(super) by_flannel: bool,
    pub(super) addresses: Vec<IpAddr>,
    /// Its interfaces on this host, such as the bridge and its port.
    pub(super) interfaces: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    container_id: String,
    network_name: String,
    /// Base64, as Go encodes bytes.
    #[serde(default)]
    config: String,
    result: CniResult,
}

#[derive(Deserialize)]
struct CniResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    /// Empty for interfaces on the host.
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    #[serde(default)]
    address: String,
}

/// All cached attachments. Some may be stale, for example after a power loss.
pub(super) fn attachments() -> Vec<Attachment> {
    let Ok(entries) = fs::read_dir(RESULTS) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .flatten()
        .filter_map(|entry| read(&entry.path()))
        .collect();
    found.sort_by(|one, other| one.container.cmp(&other.container));
    found
}

fn read(path: &Path) -> Option<Attachment> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return None;
    }
    parse(&fs::read(path).ok()?)
}

fn parse(text: &[u8]) -> Option<Attachment> {
    let cached: Cached = serde_json::from_slice(text).ok()?;
    let config = STANDARD.decode(&cached.config).unwrap_or_default();
    let by_flannel = install::plugin_types(&config)
        .is_ok_and(|types| types.iter().any(|kind| kind == "flannel"));
    let addresses = cached.result.ips.iter();
    let addresses = addresses.filter_map(|ip| Some(ip.address.parse::<IpNet>().ok()?.addr()));
    let on_host = |interface: &&Interface| interface.sandbox.is_empty();
    Some(Attachment {
        container: cached.container_id,
        network: cached.network_name,
        by_flannel,
        addresses: addresses.collect(),
        interfaces: cached
            .result
            .interfaces
            .iter()
            .filter(on_host)
            .map(|interface| interface.name.clone())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_result_is_read() {
        // {"name":"cbr0","plugins":[{"type":"flannel"}]}
        let text = br#"{"kind":"cniCacheV1","containerId":"abc","ifName":"eth0","networkName":"cbr0",
            "config":"eyJuYW1lIjoiY2JyMCIsInBsdWdpbnMiOlt7InR5cGUiOiJmbGFubmVsIn1dfQ==",
            "result":{"cniVersion":"0.3.1","interfaces":[{"name":"cni0","mac":"0a:58:0a:05:48:01"},
            {"name":"veth12"},{"name":"eth0","sandbox":"/run/netns/x"}],
            "ips":[{"version":"4","interface":2,"address":"10.5.72.7/24"},{"address":"rubbish"}]}}"#;
        let found = parse(text).unwrap();
        assert!(found.by_flannel);
        assert_eq!(found.interfaces, ["cni0", "veth12"]);
        assert_eq!(found.addresses, ["10.5.72.7".parse::<IpAddr>().unwrap()]);
        for length in 0..text.len() {
            assert!(parse(&text[..length]).is_none(), "cut to {length} bytes");
        }
    }
}
