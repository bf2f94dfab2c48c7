//! Renders a cluster description to one Ignition config per node.

use std::fmt::Write as _;

use ignition_config::v3_3 as spec;
use serde_json::Value;
use toml::{Table, Value as Toml};

use super::cluster::{Cluster, Node};
use super::{Error, agent_settings, data_url, validate};

/// etcd's client and peer ports, as registered with IANA.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// The file name of a node's underlay configuration. It sorts before the image's own `.network` files, whose names
/// begin with 50 and more.
const NETWORK_FILE: &str = "/etc/systemd/network/20-underlay.network";

/// Debian's etcd.service stays down after an error (`Restart=on-abnormal`).
const ETCD_DROP_IN: &str = "\
# Written by `selvage ignition render`.
[Unit]
# Members boot in any order, and none becomes ready before a majority is up.
StartLimitIntervalSec=0

[Service]
Restart=on-failure
RestartSec=1s
";

/// etcd binds to the underlay address and exits if that is not set yet. No unit can be ordered after an address, and
/// waiting for the network would slow down every boot for a race that is rarely lost.
const ETCD_SYSCTL: &str = "\
# Written by `selvage ignition render`: etcd may start before the underlay has its address.
net.ipv4.ip_nonlocal_bind = 1
";

/// One node's Ignition config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedNode {
    /// The node's name.
    pub name: String,
    /// The config, spec 3.3.0, as indented JSON with a final newline.
    pub json: String,
}

impl Cluster {
    /// Renders one Ignition config per node, in the order of [`Cluster::nodes`]. The same description always gives the
    /// same bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if fields were changed after [`Cluster::from_toml`] and now violate a rule.
    pub fn render(&self) -> Result<Vec<RenderedNode>, Error> {
        validate::check(self).map_err(Error::Invalid)?;
        self.nodes
            .iter()
            .map(|node| {
                Ok(RenderedNode {
                    name: node.name.clone(),
                    json: to_json(&self.config(node)?)?,
                })
            })
            .collect()
    }

    fn config(&self, node: &Node) -> Result<spec::Config, Error> {
        let mut files = vec![
            file("/etc/hostname", &format!("{}\n", node.name)),
            file("/etc/hosts", &self.hosts()),
            file(NETWORK_FILE, &network_file(node)),
            file("/etc/selvage/agent.toml", &self.agent_toml(node)?),
        ];
        let mut units = Vec::new();
        match &self.kubernetes {
            Some(kubernetes) => {
                kubernetes.add_to(&self.cluster.name, node, &mut files, &mut units);
            }
            None => self.add_agent_to(node, &mut files, &mut units),
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        units.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(spec::Config {
            passwd: self.passwd(),
            storage: Some(spec::Storage {
                files: Some(files),
                ..Default::default()
            }),
            systemd: Some(spec::Systemd { units: Some(units) }),
            ..Default::default()
        })
    }

    /// What a node has on which the agent itself runs, with etcd as its lease store.
    fn add_agent_to(&self, node: &Node, files: &mut Vec<spec::File>, units: &mut Vec<spec::Unit>) {
        units.extend([enabled("docker.service"), enabled("selvage.service")]);
        if self.etcd.members.contains(&node.name) {
            files.push(file("/etc/default/etcd", &self.etcd_environment(node)));
            files.push(file("/etc/sysctl.d/20-etcd.conf", ETCD_SYSCTL));
            let mut etcd = enabled("etcd.service");
            let mut drop_in = spec::Dropin::new("10-selvage.conf".to_owned());
            drop_in.contents = Some(ETCD_DROP_IN.to_owned());
            etcd.dropins = Some(vec![drop_in]);
            units.push(etcd);
        }
        if self.publisher() == Some(node) {
            let network = format!("{:#}\n", self.network);
            files.push(file("/etc/selvage/network.json", &network));
            units.push(enabled("selvage-network.service"));
        }
    }

    /// The node that publishes the network config, unless there is one already: the first etcd member, or the first
    /// node with an external etcd.
    fn publisher(&self) -> Option<&Node> {
        if self.network.is_null() {
            return None;
        }
        self.members().next().or(self.nodes.first())
    }

    fn passwd(&self) -> Option<spec::Passwd> {
        let keys = &self.cluster.ssh_authorized_keys;
        if keys.is_empty() {
            return None;
        }
        // The image has this user; Ignition only adds the keys.
        let mut core = spec::User::new("core".to_owned());
        core.ssh_authorized_keys = Some(keys.clone());
        Some(spec::Passwd {
            users: Some(vec![core]),
            ..Default::default()
        })
    }

    /// /etc/hosts with all nodes, so that `ssh node2` works without a name server.
    fn hosts(&self) -> String {
        let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
        for node in &self.nodes {
            push_line(
                &mut hosts,
                &format!("{} {}", node.address.addr(), node.name),
            );
        }
        hosts
    }

    fn agent_toml(&self, node: &Node) -> Result<String, Error> {
        let mut settings = Table::new();
        if self.kubernetes.is_none() {
            let endpoints = self.client_urls(node).into_iter().map(Toml::String);
            let etcd = ("endpoints".to_owned(), Toml::Array(endpoints.collect()));
            let address = node.address.addr().to_string();
            let interfaces = Toml::Array(vec![Toml::String(address)]);
            let underlay = ("interfaces".to_owned(), interfaces);
            for (name, setting) in [("etcd", etcd), ("underlay", underlay)] {
                settings.insert(name.to_owned(), Toml::Table(Table::from_iter([setting])));
            }
        }
        agent_settings::merge(&mut settings, &self.agent);
        let name = &self.cluster.name;
        let settings = toml::to_string(&settings)?;
        Ok(format!(
            "# Written by `selvage ignition render` for cluster {name}.\n{settings}"
        ))
    }

    /// The etcd endpoints for `node`, its own member first: that one answers even without a network.
    fn client_urls(&self, node: &Node) -> Vec<String> {
        if self.etcd.members.is_empty() {
            return self.etcd.endpoints.clone();
        }
        let mut members: Vec<&Node> = self.members().collect();
        members.sort_by_key(|member| member.name != node.name);
        members
            .into_iter()
            .map(|member| url(member, CLIENT_PORT))
            .collect()
    }

    /// The environment of Debian's etcd.service, which reads `/etc/default/etcd`.
    fn etcd_environment(&self, node: &Node) -> String {
        let client = url(node, CLIENT_PORT);
        let peer = url(node, PEER_PORT);
        let cluster: Vec<String> = self
            .members()
            .map(|member| format!("{}={}", member.name, url(member, PEER_PORT)))
            .collect();
        let mut text = format!(
            "# Written by `selvage ignition render` for cluster {}.\n",
            self.cluster.name
        );
        for (key, value) in [
            ("NAME", node.name.as_str()),
            ("DATA_DIR", "/var/lib/etcd/default"),
            (
                "LISTEN_CLIENT_URLS",
                &format!("{client},http://127.0.0.1:{CLIENT_PORT}"),
            ),
            ("ADVERTISE_CLIENT_URLS", &client),
            ("LISTEN_PEER_URLS", &peer),
            ("INITIAL_ADVERTISE_PEER_URLS", &peer),
            ("INITIAL_CLUSTER", &cluster.join(",")),
            ("INITIAL_CLUSTER_STATE", "new"),
            ("INITIAL_CLUSTER_TOKEN", &self.cluster.name),
        ] {
            push_line(&mut text, &format!("ETCD_{key}={value}"));
        }
        text
    }
}

fn url(node: &Node, port: u16) -> String {
    format!("http://{}:{port}", node.address.addr())
}

fn network_file(node: &Node) -> String {
    let mut text = format!(
        "\
# Written by `selvage ignition render`: the underlay of {name}.
[Match]
MACAddress={mac}
Type=ether
# Only the NIC itself: a VLAN or bridge on it has the same MAC address.
Kind=!*

[Link]
# Online means that the address is set, with or without a cable.
RequiredForOnline=no-carrier

[Network]
Address={address}
",
        name = node.name,
        mac = node.mac,
        address = node.address,
    );
    if let Some(gateway) = node.gateway {
        push_line(&mut text, &format!("Gateway={gateway}"));
    }
    for server in &node.dns {
        push_line(&mut text, &format!("DNS={server}"));
    }
    text.push_str(
        "\
# Keep the address while the link is down: etcd and the overlay are bound to it.
ConfigureWithoutCarrier=yes
# Everything is static: ignore router advertisements, use no link-local addresses.
LinkLocalAddressing=no
IPv6AcceptRA=no
",
    );
    text
}

fn push_line(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _infallible = writeln!(text, "{line}");
}

/// A file of root that replaces the image's file at that path, mode 0644.
pub(super) fn file(path: &str, contents: &str) -> spec::File {
    let mut file = spec::File::new(path.to_owned());
    file.contents = Some(spec::Resource {
        source: Some(data_url::encode(contents)),
        ..Default::default()
    });
    file.mode = Some(0o644);
    file.overwrite = Some(true);
    file
}

pub(super) fn enabled(name: &str) -> spec::Unit {
    let mut unit = spec::Unit::new(name.to_owned());
    unit.enabled = Some(true);
    unit
}

/// JSON with sorted keys, and without the nulls that the crate writes for unset fields.
fn to_json(config: &spec::Config) -> Result<String, Error> {
    let mut value = serde_json::to_value(config)?;
    strip_nulls(&mut value);
    Ok(format!("{value:#}\n"))
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        _ => {}
    }
}
