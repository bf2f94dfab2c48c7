//! Every way in which a description can be wrong, and where the message points then.

use super::super::tests::DEMO;
use super::super::{Error, Faults};
use super::*;

/// The fault's name, what to replace in the demo's description and by what, the text that the message points at, and
/// how the message goes on after the position.
#[rustfmt::skip] // One fault, one line.
const BAD_DESCRIPTIONS: &[(&str, &str, &str, &str, &str)] = &[
    ("not_toml", "[cluster]", "[cluster", "", ": unclosed table"),
    ("unknown_table", "[network.Backend]", "[netwrk]", "netwrk", "netwrk: unknown field `netwrk`"),
    ("unknown_key", "mac = \"52:54:00:77:00:0b\"", "mca = \"\"", "mca", "node[0].mca: unknown field `mca`"),
    ("missing_key", "mac = \"52:54:00:77:00:0c\"", "", "[[node]]", "node[1]: missing field `mac`"),
    ("wrong_type", "name = \"node2\"", "name = 2", "2", "node[1].name: invalid type: integer `2`"),
    ("address_not_one", "10.77.0.12/24", "10.77.0.300/24", "\"10.77.0.300/24\"", "node[1].address: \"10.77.0.300/24\" is not an IPv4 address with a prefix"),
    ("address_without_prefix", "10.77.0.12/24", "10.77.0.12", "\"10.77.0.12\"", "node[1].address: \"10.77.0.12\" is not an IPv4 address with a prefix"),
    ("mac_not_one", "52:54:00:77:00:0c", "52:54", "\"52:54\"", "node[1].mac: \"52:54\" is not"),
    ("date_in_network", "Type = \"vxlan\"", "Type = 2026-01-01", "[network]", "network: JSON has no dates"),
    ("nan_in_network", "Type = \"vxlan\"", "VNI = nan", "[network]", "network: JSON has no infinity"),
    ("cluster_name_with_space", "\"demo\"", "\"my demo\"", "\"my demo\"", "cluster.name: \"my demo\" is not"),
    ("ssh_key_not_one", "keys = []", "keys = [\"hello\"]", "\"hello\"", "cluster.ssh-authorized-keys[0]: \"hello\""),
    ("ssh_private_key", "keys = []", "keys = [\"-----BEGIN OPENSSH PRIVATE KEY-----\"]", "\"-----BEGIN OPENSSH PRIVATE KEY-----\"", "cluster.ssh-authorized-keys[0]: this is a private key"),
    ("host_name_upper_case", "\"node2\"", "\"Node2\"", "\"Node2\"", "node[1].name: \"Node2\" is not a host name"),
    ("host_name_is_a_path", "\"node2\"", "\"../x\"", "\"../x\"", "node[1].name: "),
    ("host_name_is_an_address", "\"node2\"", "\"10.0.0.1\"", "\"10.0.0.1\"", "node[1].name: "),
    ("name_twice", "\"node2\"", "\"node1\"", "\"node1\"", "node[1].name: \"node1\" is already used by node[0].name"),
    ("address_twice", "10.77.0.12", "10.77.0.11", "\"10.77.0.11/24\"", "node[1].address: 10.77.0.11 is already used by node[0].address"),
    ("mac_twice", "00:0c", "00:0b", "\"52:54:00:77:00:0b\"", "node[1].mac: 52:54:00:77:00:0b is already used by node[0].mac"),
    ("group_mac", "52:54:00:77:00:0c", "53:54:00:77:00:0c", "\"53:54:00:77:00:0c\"", "node[1].mac: 53:54:00:77:00:0c is not"),
    ("network_address", "10.77.0.12/24", "10.77.0.0/24", "\"10.77.0.0/24\"", "node[1].address: 10.77.0.0/24 is not"),
    ("broadcast_address", "10.77.0.12/24", "10.77.0.255/24", "\"10.77.0.255/24\"", "node[1].address: "),
    ("multicast_address", "10.77.0.12/24", "224.0.0.1/24", "\"224.0.0.1/24\"", "node[1].address: "),
    ("host_prefix", "10.77.0.12/24", "10.77.0.12/32", "\"10.77.0.12/32\"", "node[1].address: "),
    ("other_underlay", "10.77.0.12/24", "10.78.0.12/24", "\"10.78.0.12/24\"", "node[1].address: 10.78.0.12/24 is not on the underlay"),
    ("other_prefix_length", "10.77.0.12/24", "10.77.0.12/25", "\"10.77.0.12/25\"", "node[1].address: "),
    ("gateway_elsewhere", "[[node]]\nname = \"node2\"", "[[node]]\ngateway = \"10.78.0.1\"\nname = \"node2\"", "\"10.78.0.1\"", "node[1].gateway: 10.78.0.1 is not"),
    ("gateway_is_the_node", "[[node]]\nname = \"node2\"", "[[node]]\ngateway = \"10.77.0.12\"\nname = \"node2\"", "\"10.77.0.12\"", "node[1].gateway: "),
    ("gateway_not_one", "[[node]]\nname = \"node2\"", "[[node]]\ngateway = \"x\"\nname = \"node2\"", "\"x\"", "node[1].gateway: \"x\" is not an IPv4 address"),
    ("name_server_not_one", "[[node]]\nname = \"node2\"", "[[node]]\ndns = [\"x\"]\nname = \"node2\"", "[\"x\"]", "node[1].dns: \"x\" is not an IP address"),
    ("name_server_multicast", "[[node]]\nname = \"node2\"", "[[node]]\ndns = [\"224.0.0.1\"]\nname = \"node2\"", "\"224.0.0.1\"", "node[1].dns[0]: 224.0.0.1 is not"),
    ("unknown_member", "members = [\"node1\"]", "members = [\"node3\"]", "\"node3\"", "etcd.members[0]: no [[node]] has the name \"node3\""),
    ("member_twice", "members = [\"node1\"]", "members = [\"node1\", \"node1\"]", "\"node1\"", "etcd.members[1]: \"node1\" is already used"),
    ("no_etcd", "members = [\"node1\"]", "", "[etcd]", "etcd: give either"),
    ("two_etcds", "members = [\"node1\"]", "members = [\"node1\"]\nendpoints = [\"http://a:1\"]", "[etcd]", "etcd: give either"),
    ("endpoint_without_port", "members = [\"node1\"]", "endpoints = [\"http://a\"]", "\"http://a\"", "etcd.endpoints[0]: \"http://a\" is not"),
    ("no_network", "[network]\nNetwork = \"10.5.0.0/16\"\n\n[network.Backend]\nType = \"vxlan\"", "", "#", "network: the [network] table is missing"),
    ("network_without_range", "Network = \"10.5.0.0/16\"", "", "[network]", "network: Network is missing or empty"),
    ("network_without_ipv4", "Network = \"10.5.0.0/16\"", "enableipv4 = false", "[network]", "network: EnableIPv4: false and"),
    ("network_not_a_range", "10.5.0.0/16", "10.5.0.0", "[network]", "network: Network: \"10.5.0.0\" is not"),
    ("network_too_small", "10.5.0.0/16", "10.5.0.0/29", "[network]", "network: Network: /29 is too small"),
    ("overlay_inside_underlay", "10.5.0.0/16", "10.77.0.128/25", "\"10.77.0.128/25\"", "network.Network: the overlay network 10.77.0.128/25 overlaps 10.77.0.0/24"),
    ("overlay_around_underlay", "10.5.0.0/16", "10.0.0.0/8", "\"10.0.0.0/8\"", "network.Network: the overlay network 10.0.0.0/8 overlaps"),
    ("overlay_around_name_server", "[[node]]\nname = \"node2\"", "[[node]]\ndns = [\"10.5.0.1\"]\nname = \"node2\"", "\"10.5.0.0/16\"", "network.Network: the overlay network 10.5.0.0/16 overlaps 10.5.0.1/32"),
    ("unknown_settings_table", "[agent.firewall]", "[agent.firewal]", "[agent.firewal]", "agent.firewal: unknown field `firewal`"),
    ("unknown_setting", "masquerade = true", "masqerade = true", "true", "agent.firewall.masqerade: masqerade: unknown field"),
    ("setting_of_wrong_type", "masquerade = true", "masquerade = \"yes\"", "\"yes\"", "agent.firewall.masquerade: masquerade: invalid type"),
    ("settings_table_is_a_value", "[agent.firewall]\nmasquerade = true", "[agent]\nfirewall = true", "true", "agent.firewall: "),
    ("setting_out_of_range", "[agent.firewall]\nmasquerade = true", "[agent.agent]\nresync = 0", "0", "agent.agent.resync: agent.resync = 0: expected 1 to 86400 seconds"),
    ("setting_without_its_partner", "[agent.firewall]\nmasquerade = true", "[agent.etcd]\ncertfile = \"/etc/ssl/client.pem\"", "", "agent: etcd.certfile is set, but etcd.keyfile is not"),
    ("node_id_as_setting", "[agent.firewall]\nmasquerade = true", "[agent.agent]\nnode-id = \"one\"", "\"one\"", "agent.agent.node-id: this cannot be set here"),
    ("etcd_endpoints_as_setting", "[agent.firewall]\nmasquerade = true", "[agent.etcd]\nendpoints = []", "[]", "agent.etcd.endpoints: this cannot be set here, because it differs between nodes"),
    ("public_ip_as_setting", "[agent.firewall]\nmasquerade = true", "[agent.underlay]\npublic-ip = \"10.77.0.11\"", "\"10.77.0.11\"", "agent.underlay.public-ip: this cannot be set here"),
    ("public_ipv6_as_setting", "[agent.firewall]\nmasquerade = true", "[agent.underlay]\npublic-ipv6 = \"2001:db8::1\"", "\"2001:db8::1\"", "agent.underlay.public-ipv6: this cannot be set here"),
    ("address_of_one_node_as_setting", "[agent.firewall]\nmasquerade = true", "[agent.underlay]\ninterfaces = [\"eth1\", \"10.77.0.11\"]", "[\"eth1\", \"10.77.0.11\"]", "agent.underlay.interfaces: this cannot be set here"),
];

#[test]
fn bad_descriptions_are_refused_at_the_field() {
    assert_refused(DEMO, BAD_DESCRIPTIONS);
}

/// Alters the description by each row, and compares what it is refused with.
pub(in super::super) fn assert_refused(description: &str, rows: &[(&str, &str, &str, &str, &str)]) {
    let mut wrong = Vec::new();
    for (fault, from, to, at, expected) in rows {
        assert!(description.contains(from), "{fault}: {from:?} is not there");
        let text = description.replacen(from, to, 1);
        let (position, message) = match Cluster::from_toml(&text) {
            Ok(_) => (None, "accepted".to_owned()),
            Err(Error::Syntax {
                position,
                path,
                message,
            }) => (Some(position), format!("{path}: {message}")),
            Err(Error::Invalid(Faults(faults))) => (
                faults[0].position,
                format!("{}: {}", faults[0].path, faults[0].fault),
            ),
            Err(other) => panic!("{fault}: {other}"),
        };
        let points_at = position.map_or("", |position| {
            let line = text.split('\n').nth(position.line - 1).unwrap();
            &line[position.column - 1..]
        });
        if !message.starts_with(expected) || !points_at.starts_with(at) {
            wrong.push(format!(
                "{fault}:\n  expected {at} {expected}\n  got      {points_at} {message}"
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_cluster_without_nodes_is_refused() {
    let text = DEMO.split("[[node]]").next().unwrap();
    let error = Cluster::from_toml(text).unwrap_err().to_string();
    assert!(
        error.contains("node: a cluster needs at least one [[node]]"),
        "{error}"
    );
}

#[test]
fn all_faults_are_reported_at_once_in_the_order_of_the_text() {
    let text = DEMO.replace("00:0c", "00:0b").replace("\"demo\"", "\"-\"");
    let message = Cluster::from_toml(&text).unwrap_err().to_string();
    let paths: Vec<&str> = message
        .lines()
        .map(|l| l.split(": ").nth(1).unwrap())
        .collect();
    assert_eq!(paths, ["cluster.name", "node[1].mac"], "{message}");
}
