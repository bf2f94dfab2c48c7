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

/// The image that a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// Its version.
    pub version: String,
    /// The slot that it is in: `a` or `b`.
    pub slot: String,
    /// How far the node is with an update, in a few words.
    pub update: String,
}

/// Asks a node for its image.
///
/// # Errors
/// When it does not answer, or the answer is not understood.
pub(crate) async fn image(machine: &Machine) -> Result<Image> {
    // As root, so that it says what boots; 1 and 2 tell of updates.
    let script = "sudo selvage update status --json || [ $? -le 2 ]";
    let said = machine.ssh.run(script).await?;
    serde_json::from_str(&said)
        .ok()
        .and_then(|status| image_in(&status))
        .with_context(|| format!("{}: state of updates: {said}", machine.name()))
}

fn image_in(status: &Value) -> Option<Image> {
    let version = status["running"].as_str()?;
    let slots = status["slots"].as_array()?;
    let slot = slots.iter().position(|slot| slot["version"] == version);
    let slot = slot.and_then(|at| ["a", "b"].get(at));
    let pending = status["pending"]["version"].as_str();
    let failed = status["failed"].as_array()?.last();
    let failed = failed.and_then(|failed| failed["version"].as_str());
    let update = match (pending, failed) {
        (Some(pending), _) if pending == version => "on trial".to_owned(),
        (Some(pending), _) => format!("{pending} waits for a reboot"),
        (None, Some(failed)) if status["fell_back"] == true => format!("fell back from {failed}"),
        (None, _) if status["blessed"] == true => "passed its boot check".to_owned(),
        (None, _) => "none is pending".to_owned(),
    };
    Some(Image {
        version: version.to_owned(),
        slot: slot.map_or_else(|| "?".to_owned(), |slot| (*slot).to_owned()),
        update,
    })
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
    fn the_state_of_updates_is_told_in_a_few_words() {
        let status = serde_json::json!({
            "running": "1", "blessed": false, "fell_back": false, "pending": null, "failed": [],
            "slots": [{"version": "0"}, {"version": "1"}],
        });
        let told = |key: &str, value: Value| {
            let mut status = status.clone();
            status[key] = value;
            image_in(&status).map(|image| image.update)
        };
        let image = image_in(&status).unwrap();
        assert_eq!((image.version.as_str(), image.slot.as_str()), ("1", "b"));
        assert_eq!(image.update, "none is pending");
        for (key, value, expected) in [
            ("blessed", true.into(), "passed its boot check"),
            ("pending", serde_json::json!({"version": "1"}), "on trial"),
            (
                "pending",
                serde_json::json!({"version": "2"}),
                "2 waits for a reboot",
            ),
        ] {
            assert_eq!(told(key, value).unwrap(), expected);
        }
        let mut fallen = status.clone();
        fallen["failed"] = serde_json::json!([{"version": "2"}]);
        fallen["fell_back"] = true.into();
        assert_eq!(image_in(&fallen).unwrap().update, "fell back from 2");
        assert_eq!(told("slots", Value::Null), None);
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
