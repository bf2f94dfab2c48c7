//! The cluster description, made to fit a run: as many nodes as wanted, the run's ssh key, single nodes altered.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use selvage::appliance::ignition;
use selvage::base::net::MacAddr;
use serde_json::{Value, json};

use crate::cluster::Node;

/// The nodes of a run.
///
/// # Errors
/// When the description cannot be read, is wrong, or has no address left for more nodes.
pub(crate) fn nodes(path: &Path, count: usize, public_key: &str) -> Result<Vec<Node>> {
    altered(path, count, public_key, |_| {})
}

/// As [`nodes`], of a cluster that `alter` has changed.
///
/// # Errors
/// As [`nodes`].
pub(crate) fn altered(
    path: &Path,
    count: usize,
    public_key: &str,
    alter: impl FnOnce(&mut ignition::Cluster),
) -> Result<Vec<Node>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    from_text(&text, count, public_key, alter).with_context(|| path.display().to_string())
}

/// A configuration with which `core` logs in, and nothing else.
pub(crate) fn only_a_login(public_key: &str) -> Value {
    json!({
        "ignition": {"version": "3.3.0"},
        "passwd": {"users": [{"name": "core", "sshAuthorizedKeys": [public_key]}]},
    })
}

fn from_text(
    text: &str,
    count: usize,
    public_key: &str,
    alter: impl FnOnce(&mut ignition::Cluster),
) -> Result<Vec<Node>> {
    let mut cluster = ignition::Cluster::from_toml(text)?;
    alter(&mut cluster);
    fit(&mut cluster.nodes, count)?;
    cluster
        .cluster
        .ssh_authorized_keys
        .push(public_key.to_owned());
    let rendered = cluster.render()?;
    cluster
        .nodes
        .iter()
        .map(|node| {
            let config = rendered.iter().find(|config| config.name == node.name);
            let ignition = config
                .with_context(|| format!("nothing was rendered for {}", node.name))?
                .json
                .clone();
            Ok(Node {
                name: node.name.clone(),
                underlay: node.address,
                mac: node.mac.to_string(),
                ignition,
                served: Vec::new(),
                azure_host: Vec::new(),
                drive: None,
                network: None,
            })
        })
        .collect()
}

/// Cuts the list, or goes on with it: `node3` follows `node2`, each with the next address and the next MAC.
fn fit(nodes: &mut Vec<ignition::Node>, count: usize) -> Result<()> {
    nodes.truncate(count);
    while nodes.len() < count {
        let last = nodes
            .last()
            .context("the description has no node to go on from")?;
        let mut node = last.clone();
        node.name = format!("node{}", nodes.len() + 1);
        let next = u32::from(last.address.addr())
            .checked_add(1)
            .map(std::net::Ipv4Addr::from);
        let next =
            next.filter(|next| last.address.contains(next) && *next != last.address.broadcast());
        let Some(next) = next else {
            bail!(
                "no address is left in {} for {}",
                last.address.trunc(),
                node.name
            )
        };
        node.address = ipnet::Ipv4Net::new(next, last.address.prefix_len())?;
        let MacAddr([.., end]) = &mut node.mac;
        ensure!(
            *end < u8::MAX,
            "no MAC address is left after {} for {}",
            last.mac,
            node.name
        );
        *end += 1;
        nodes.push(node);
    }
    Ok(())
}

/// Gives a node's configuration more files, each with path, mode and text, and more units.
///
/// # Errors
/// When the node's configuration is not one that [`nodes`] made.
pub(crate) fn add(
    node: &mut Node,
    files: &[(&str, u32, &str)],
    units: impl IntoIterator<Item = Value>,
) -> Result<()> {
    let mut config: Value =
        serde_json::from_str(&node.ignition).context("the rendered configuration is not JSON")?;
    let list = |config: &mut Value, part: &str, list: &str| -> Result<Vec<Value>> {
        let list = config[part][list].as_array_mut().map(std::mem::take);
        list.with_context(|| format!("the rendered configuration has no {part}"))
    };
    let mut all = list(&mut config, "storage", "files")?;
    all.extend(files.iter().map(|(path, mode, text)| {
        json!({"path": path, "mode": mode, "contents": {"source": data_url(text)}})
    }));
    config["storage"]["files"] = all.into();
    let mut all = list(&mut config, "systemd", "units")?;
    all.extend(units);
    config["systemd"]["units"] = all.into();
    node.ignition = config.to_string();
    Ok(())
}

/// A text as a `data:` URL; everything that is not plain is percent-encoded.
pub(crate) fn data_url(text: &str) -> String {
    let mut url = String::from("data:,");
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            url.push(char::from(byte));
        } else {
            url += &format!("%{byte:02X}");
        }
    }
    url
}

/// The node as a machine that was moved here from CoreOS with its configuration: `flanneld.service` in place of the
/// agent's own unit, and the drop-ins that were usual there. `etcd` is an endpoint's URL: flannel's flags are all that
/// flanneld goes by.
///
/// # Errors
/// When the node's configuration is not one that [`nodes`] made.
pub(crate) fn as_coreos(node: &Node, etcd: &str) -> Result<Node> {
    let mut config: Value =
        serde_json::from_str(&node.ignition).context("the rendered configuration is not JSON")?;
    let list = config["systemd"]["units"]
        .as_array_mut()
        .context("the rendered configuration has no units")?;
    // As container-linux-config-transpiler wrote it for `flannel:`.
    let flannel = format!(
        "[Service]\nExecStart=\nExecStart=/usr/lib/coreos/flannel-wrapper $FLANNEL_OPTS \\\n  \
         --etcd-endpoints=\"{etcd}\" \\\n  --iface=\"{}\"\n",
        node.underlay.addr()
    );
    let docker = "[Unit]\nRequires=flanneld.service\nAfter=flanneld.service\n";
    let mut changed = 0;
    for unit in list {
        let (name, drop_in, contents) = match unit["name"].as_str() {
            Some("selvage.service") => ("flanneld.service", "20-clct-flannel.conf", &*flannel),
            Some("docker.service") => ("docker.service", "40-flannel.conf", docker),
            _ => continue,
        };
        *unit = json!({"name": name, "enabled": true, "dropins": [{"name": drop_in, "contents": contents}]});
        changed += 1;
    }
    ensure!(
        changed == 2,
        "the rendered configuration has {changed} of the units of the agent and Docker"
    );
    Ok(Node {
        ignition: config.to_string(),
        ..node.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f harness";
    const TEXT: &str = r#"
        [cluster]
        name = "demo"
        [etcd]
        members = ["node1"]
        [network]
        Network = "10.5.0.0/16"
        [network.Backend]
        Type = "vxlan"
        [[node]]
        name = "node1"
        address = "10.77.0.11/24"
        mac = "52:54:00:77:00:0b"
        [[node]]
        name = "node2"
        address = "10.77.0.12/24"
        mac = "52:54:00:77:00:0c"
    "#;

    #[test]
    fn nodes_are_added_by_pattern() {
        let nodes = from_text(TEXT, 4, KEY, |_| {}).unwrap();
        let last = nodes.last().unwrap();
        assert_eq!(
            (
                last.name.as_str(),
                last.underlay.to_string().as_str(),
                last.mac.as_str()
            ),
            ("node4", "10.77.0.14/24", "52:54:00:77:00:0e")
        );
        assert!(last.ignition.contains(KEY.split(' ').nth(1).unwrap()));
    }

    #[test]
    fn nodes_are_left_out() {
        assert_eq!(from_text(TEXT, 1, KEY, |_| {}).unwrap().len(), 1);
    }

    #[test]
    fn a_full_underlay_is_an_error() {
        let text = TEXT.replace("10.77.0.12/24", "10.77.0.254/24");
        let error = from_text(&text, 3, KEY, |_| {}).unwrap_err().to_string();
        assert!(error.contains("10.77.0.0/24"), "{error}");
        let text = TEXT.replace("77:00:0c", "77:00:ff");
        assert!(
            from_text(&text, 3, KEY, |_| {})
                .unwrap_err()
                .to_string()
                .contains("52:54:00:77:00:ff")
        );
    }

    #[test]
    fn files_and_units_are_added() {
        let elsewhere = |cluster: &mut ignition::Cluster| {
            cluster.etcd.members.clear();
            cluster.etcd.endpoints = vec!["http://10.0.2.4:1".into()];
        };
        let mut node = from_text(TEXT, 1, KEY, elsewhere).unwrap().remove(0);
        assert!(node.ignition.contains("http://10.0.2.4:1"));
        let count = |node: &Node, part: &str, list: &str| {
            let config: Value = serde_json::from_str(&node.ignition).unwrap();
            config[part][list].as_array().unwrap().len()
        };
        let before = (
            count(&node, "storage", "files"),
            count(&node, "systemd", "units"),
        );
        add(
            &mut node,
            &[("/etc/x", 0o755, "a b\n")],
            [json!({"name": "x.service"})],
        )
        .unwrap();
        let after = (
            count(&node, "storage", "files"),
            count(&node, "systemd", "units"),
        );
        assert_eq!(after, (before.0 + 1, before.1 + 1));
        assert!(node.ignition.contains("data:,a%20b%0A") && node.ignition.contains(":493"));
        node.ignition = "{}".into();
        assert!(add(&mut node, &[], []).is_err());
    }

    #[test]
    fn a_coreos_machine_has_flannels_unit() {
        let node = from_text(TEXT, 1, KEY, |_| {}).unwrap().remove(0);
        let coreos = as_coreos(&node, "http://10.77.0.1:2379").unwrap().ignition;
        assert!(!coreos.contains("\"selvage.service\""));
        let config: Value = serde_json::from_str(&coreos).unwrap();
        let units = config["systemd"]["units"].as_array().unwrap();
        let unit = units.iter().find(|unit| unit["name"] == "flanneld.service");
        let contents = unit.unwrap()["dropins"][0]["contents"].as_str().unwrap();
        let flags =
            " \\\n  --etcd-endpoints=\"http://10.77.0.1:2379\" \\\n  --iface=\"10.77.0.11\"\n";
        assert!(contents.ends_with(flags), "{contents}");
        let twice = Node {
            ignition: coreos,
            ..node
        };
        assert!(as_coreos(&twice, "").is_err());
    }
}
