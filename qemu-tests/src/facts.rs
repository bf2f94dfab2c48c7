//! What a node says about its place in the overlay.

use std::{collections::HashMap, net::Ipv4Addr};

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use serde_json::Value;

use crate::machine::Machine;

/// The file that the agent writes for Docker.
pub(crate) const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Identity and overlay of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The leased subnet.
    pub subnet: Ipv4Net,
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// MTU for containers.
    pub mtu: u32,
    /// Address of Docker's bridge.
    pub docker_bridge: Ipv4Net,
    /// MTU of Docker's bridge.
    pub docker_mtu: u32,
    /// MAC address of the overlay device.
    pub overlay_mac: String,
    /// Underlay addresses of the peers that the overlay device knows, sorted.
    pub peers: Vec<Ipv4Addr>,
}

/// The commands whose outputs [`parse`] reads, in its order. `flannel.1`: VNI 1 is flannel's default.
const QUESTIONS: [&str; 5] = [
    "cat /etc/machine-id",
    "cat /run/flannel/subnet.env",
    "ip -j addr show dev docker0",
    "ip -j link show dev flannel.1",
    // A command over ssh has no sbin in its PATH.
    "/usr/sbin/bridge -j fdb show dev flannel.1",
];
const SEPARATOR: &str = "----8<----";

/// Asks a node, in one command.
///
/// # Errors
/// When one of the questions fails (no lease yet, no Docker), or an answer is not understood.
pub(crate) async fn ask(machine: &Machine) -> Result<Facts> {
    let script = QUESTIONS.join(&format!(" && echo && echo '{SEPARATOR}' && "));
    let said = machine
        .ssh
        .run(&script)
        .await
        .with_context(|| format!("{}: not on the overlay", machine.name()))?;
    parse(&said).with_context(|| format!("{}: not understood", machine.name()))
}

fn parse(said: &str) -> Result<Facts> {
    let answers: Vec<&str> = said.split(SEPARATOR).map(str::trim).collect();
    let [machine_id, subnet_file, bridge, overlay, fdb] = answers[..] else {
        anyhow::bail!("{} answers instead of {}", answers.len(), QUESTIONS.len());
    };
    let subnet = variables(subnet_file);
    let variable = |key: &str| {
        subnet
            .get(key)
            .copied()
            .with_context(|| format!("no {key} in {SUBNET_FILE}"))
    };
    let bridge: Value = serde_json::from_str(bridge).context(QUESTIONS[2])?;
    let overlay: Value = serde_json::from_str(overlay).context(QUESTIONS[3])?;
    let fdb: Value = serde_json::from_str(fdb).context(QUESTIONS[4])?;
    Ok(Facts {
        machine_id: machine_id.to_owned(),
        subnet: variable("FLANNEL_SUBNET")?
            .parse::<Ipv4Net>()
            .context("FLANNEL_SUBNET")?
            .trunc(),
        network: variable("FLANNEL_NETWORK")?
            .parse()
            .context("FLANNEL_NETWORK")?,
        mtu: variable("FLANNEL_MTU")?.parse().context("FLANNEL_MTU")?,
        docker_bridge: bridge_address(&bridge).context("no IPv4 address on Docker's bridge")?,
        docker_mtu: bridge[0]["mtu"]
            .as_u64()
            .and_then(|mtu| mtu.try_into().ok())
            .context("no MTU")?,
        overlay_mac: overlay[0]["address"]
            .as_str()
            .context("no MAC address")?
            .to_owned(),
        peers: peers(&fdb),
    })
}

/// The variables that a node's agent has written for container runtimes.
///
/// # Errors
/// When there is no such file yet.
pub(crate) async fn subnet_file(machine: &Machine) -> Result<HashMap<String, String>> {
    let said = machine.ssh.run(&format!("cat {SUBNET_FILE}")).await?;
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Ok(variables(&said).into_iter().map(owned).collect())
}

/// `KEY=VALUE` lines.
fn variables(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .collect()
}

fn bridge_address(answer: &Value) -> Option<Ipv4Net> {
    let address = answer[0]["addr_info"]
        .as_array()?
        .iter()
        .find(|info| info["family"] == "inet")?;
    let prefix = address["prefixlen"].as_u64()?.try_into().ok()?;
    Ipv4Net::new(address["local"].as_str()?.parse().ok()?, prefix).ok()
}

fn peers(fdb: &Value) -> Vec<Ipv4Addr> {
    let mut peers: Vec<Ipv4Addr> = fdb
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["dst"].as_str()?.parse().ok())
        .collect();
    peers.sort_unstable();
    peers.dedup();
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> String {
        [
            "0123456789abcdef0123456789abcdef",
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true",
            r#"[{"mtu":1450,"addr_info":[{"family":"inet","local":"10.5.72.1","prefixlen":24},{"family":"inet6"}]}]"#,
            r#"[{"ifname":"flannel.1","address":"0e:00:00:00:00:01"}]"#,
            r#"[{"mac":"aa:bb:cc:dd:ee:ff","dst":"10.77.0.12"},{"mac":"33:33:00:00:00:01"}]"#,
        ]
        .join(&format!("\n{SEPARATOR}\n"))
    }

    #[test]
    fn answers_are_read() {
        let facts = parse(&said()).unwrap();
        assert_eq!(facts.subnet.to_string(), "10.5.72.0/24");
        assert_eq!(facts.docker_bridge.to_string(), "10.5.72.1/24");
        assert_eq!((facts.mtu, facts.docker_mtu), (1450, 1450));
        assert_eq!(facts.peers, [Ipv4Addr::new(10, 77, 0, 12)]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = parse(&said().replace("FLANNEL_MTU", "X"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("FLANNEL_MTU"), "{error}");
        let error = parse(&said().replace("10.5.72.1\",", "x\","))
            .unwrap_err()
            .to_string();
        assert!(error.contains("bridge"), "{error}");
        assert!(parse("").is_err());
    }
}
