//! What the doctor says of nodes that are one to their peers, of the wrong interface, and of networks that overlap.

use selvage::command::doctor::{Finding, Severity};

use crate::cluster::{NETWORK, Store, pair};
use crate::diagnosis::Diagnosis;
use crate::host::Host;
use crate::wait::wait_until;

fn lease(public_ip: &str, mac: &str, owner: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}},"SelvageOwner":"{owner}"}}"#
    )
}

/// A second interface of the host, with an address, whose other end leads nowhere.
fn second_interface(host: &Host, name: &str, address: &str) {
    host.namespace
        .ip(&format!("link add {name} type veth peer name {name}-far"));
    host.namespace.ip(&format!("link set {name}-far up"));
    host.namespace
        .ip(&format!("address add {address} dev {name}"));
    host.namespace.ip(&format!("link set {name} up"));
}

fn forget(store: &Store, key: &str) {
    store.etcdctl(&["del", &format!("/coreos.com/network/subnets/{key}")]);
}

#[test]
fn two_nodes_with_one_public_ip_are_told() {
    let (store, one, _two) = pair();
    // Two leases of one machine, and a reservation, are no two nodes.
    store.put_lease(
        "10.5.240.0-24",
        r#"{"PublicIP":"10.77.0.11","PublicIPv6":null}"#,
    );
    store.put_lease(
        "10.5.241.0-24",
        &lease("10.77.0.11", "02:00:00:00:00:41", &format!("{:032x}", 11)),
    );
    // Another lease shows that both have been looked at.
    store.put_lease(
        "10.5.242.0-24",
        &lease("10.77.0.90", "02:00:00:00:00:42", "f"),
    );
    wait_until("the leases to be known", || {
        one.namespace.ip("route show").contains("10.5.242.0/24")
    });
    assert!(
        Diagnosis::without_probes(&one)
            .of_check("duplicate-address")
            .is_empty()
    );

    store.put_lease(
        "10.5.243.0-24",
        &lease("10.77.0.11", "02:00:00:00:00:43", "e"),
    );
    let remedy = "selvage network leases";
    let diagnosis = Diagnosis::until_finds(&one, "duplicate-address", remedy);
    let finding = diagnosis.assert_finds("duplicate-address", remedy);
    assert_eq!(finding.subject.as_deref(), Some("10.77.0.11"));
    assert!(
        finding.what.contains("this node") && finding.what.contains("10.5.243.0/24"),
        "{finding:?}"
    );
    assert!(
        diagnosis.of_check("refused-peers").is_empty(),
        "{diagnosis:#?}"
    );
    forget(&store, "10.5.243.0-24");

    // Two others.
    store.put_lease(
        "10.5.244.0-24",
        &lease("10.77.0.90", "02:00:00:00:00:44", "d"),
    );
    Diagnosis::until(&one, "the other two to be told", |diagnosis| {
        let found = diagnosis.of_check("duplicate-address");
        found.len() == 1 && found[0].subject.as_deref() == Some("10.77.0.90")
    });
}

#[test]
fn cloned_disks_are_told() {
    let (store, one, two) = pair();
    let link = two.namespace.ip("-o link show flannel.1");
    let mac = link
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .nth(1);
    let mac = mac.expect("a MAC address");
    // The second host's state directory on another machine.
    store.put_lease("10.5.245.0-24", &lease("10.77.0.95", mac, "c"));
    for host in [&one, &two] {
        let remedy = format!("{}/flannel.*.mac", host.state_dir().display());
        let remedy = remedy.as_str();
        let diagnosis = Diagnosis::until_finds(host, "duplicate-address", remedy);
        let finding = diagnosis.assert_finds("duplicate-address", remedy);
        assert_eq!(finding.subject.as_deref(), Some("10.5.245.0/24"));
        assert_eq!(finding.severity, Severity::Error);
        assert!(
            diagnosis.of_check("refused-peers").is_empty(),
            "{diagnosis:#?}"
        );
    }
    forget(&store, "10.5.245.0-24");
    Diagnosis::until_silent(&one);

    // The machine id alone.
    store.put_lease(
        "10.5.246.0-24",
        &lease("10.77.0.96", "02:00:00:00:00:46", &format!("{:032x}", 12)),
    );
    let remedy = "systemd-machine-id-setup";
    let diagnosis = Diagnosis::until_finds(&one, "duplicate-address", remedy);
    let finding = diagnosis.assert_finds("duplicate-address", remedy);
    assert_eq!(finding.severity, Severity::Warning);
    assert!(
        finding.what.contains("at 10.77.0.12") && finding.what.contains("at 10.77.0.96"),
        "{finding:?}"
    );
}

#[test]
fn nat_address_that_others_publish_too_is_the_wrong_interface() {
    let (store, one, _two) = pair();
    second_interface(&one, "eth1", "192.168.33.11/24");
    Diagnosis::until_silent(&one);
    store.put_lease(
        "10.5.243.0-24",
        &lease("10.77.0.11", "02:00:00:00:00:43", "e"),
    );
    let diagnosis = Diagnosis::until_finds(&one, "nat-interface", "--iface=eth1");
    let finding = diagnosis.assert_finds("nat-interface", "--iface=eth1");
    assert!(
        finding.what.contains("10.77.0.11") && finding.what.contains("eth0"),
        "{finding:?}"
    );
    // One fault, told once.
    assert_eq!(diagnosis.report.findings.len(), 1, "{diagnosis:#?}");
}

#[test]
fn interface_that_peers_are_not_next_to_is_the_wrong_one() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    second_interface(&one, "eth1", "192.168.33.11/24");
    // Behind a router, as far as either interface tells.
    store.put_lease(
        "10.5.240.0-24",
        &lease("192.0.2.9", "02:00:00:00:00:40", "f"),
    );
    wait_until("the lease to be known", || {
        one.namespace.ip("route show").contains("10.5.240.0/24")
    });
    assert!(
        Diagnosis::without_probes(&one)
            .of_check("nat-interface")
            .is_empty()
    );
    store.put_lease(
        "10.5.241.0-24",
        &lease("192.168.33.12", "02:00:00:00:00:41", "e"),
    );
    let diagnosis = Diagnosis::until_finds(&one, "nat-interface", "--iface=eth1");
    let finding = diagnosis.assert_finds("nat-interface", "--iface=eth1");
    assert!(
        finding.what.contains("1 of 2 peers (10.5.241.0/24)"),
        "{finding:?}"
    );
}

/// The one finding of the check, whose remedy has a word; there may be another one before.
fn overlap(host: &Host, subject: &str, word: &str) -> Finding {
    let diagnosis = Diagnosis::until_finds(host, "overlap", word);
    let finding = diagnosis.assert_finds("overlap", word).clone();
    assert_eq!(finding.subject.as_deref(), Some(subject), "{diagnosis:#?}");
    finding
}

#[test]
fn networks_that_overlap_are_told() {
    let (_store, one, _two) = pair();
    let ip = |arguments: &str| one.namespace.ip(arguments);

    // A network of Docker's.
    ip("link add br-0123456789ab type bridge");
    ip("address add 10.5.177.1/24 dev br-0123456789ab");
    ip("link set br-0123456789ab up");
    let finding = overlap(
        &one,
        "br-0123456789ab",
        "docker network inspect 0123456789ab",
    );
    assert_eq!(finding.severity, Severity::Error);
    ip("link del br-0123456789ab");
    Diagnosis::until_silent(&one);

    // A VPN's routes: a part of the overlay, and a network that the overlay is part of.
    ip("tuntap add tun0 mode tun");
    ip("address add 10.8.0.2/24 dev tun0");
    ip("link set tun0 up");
    Diagnosis::until_silent(&one);
    ip("route add 10.5.128.0/17 dev tun0 proto static");
    let finding = overlap(&one, "10.5.128.0/17", "ip route del 10.5.128.0/17 dev tun0");
    assert_eq!(finding.severity, Severity::Error);
    ip("route del 10.5.128.0/17");
    ip("route add 10.0.0.0/8 via 10.8.0.1 dev tun0");
    let finding = overlap(
        &one,
        "10.0.0.0/8",
        "ip route del 10.0.0.0/8 via 10.8.0.1 dev tun0",
    );
    assert_eq!(finding.severity, Severity::Warning);
    ip("route del 10.0.0.0/8");

    // The underlay's own network.
    ip("address add 10.77.0.11/8 dev eth0");
    ip("address del 10.77.0.11/24 dev eth0");
    Diagnosis::until(&one, "eth0", |diagnosis| {
        let found = diagnosis.of_check("overlap");
        found
            .iter()
            .any(|finding| finding.subject.as_deref() == Some("eth0"))
    });
    ip("address add 10.77.0.11/24 dev eth0");
    ip("address del 10.77.0.11/8 dev eth0");
    Diagnosis::until_silent(&one);
}

#[test]
fn vpn_that_takes_the_peers_packets_is_told() {
    let (_store, one, two) = pair();
    let ip = |arguments: &str| one.namespace.ip(arguments);
    ip("tuntap add tun0 mode tun");
    ip("address add 10.8.0.2/24 dev tun0");
    ip("link set tun0 up");
    // All traffic through the VPN, as wg-quick(8) does it: what the main table has besides default routes comes first.
    ip("route add default dev tun0 table 51820");
    ip("rule add pref 100 not fwmark 51820 lookup 51820");
    ip("rule add pref 99 lookup main suppress_prefixlength 0");
    // And as OpenVPN does it.
    ip("route add 0.0.0.0/1 dev tun0");
    ip("route add 128.0.0.0/1 dev tun0");
    Diagnosis::until_silent(&one);
    // Without heed of the main table, but for the underlay: etcd stays in reach.
    ip("rule add pref 98 to 10.77.0.0/16 lookup main");
    ip("rule del pref 99");
    let finding = overlap(&one, "tun0", "ip rule");
    let subnet = two.lease_key().replace('-', "/");
    assert!(
        finding.what.contains(&format!("1 of 1 peers ({subnet})")),
        "{finding:?}"
    );
}

#[test]
fn rule_ahead_of_the_main_table_is_told_with_what_it_takes() {
    let (_store, one, two) = pair();
    let ip = |arguments: &str| one.namespace.ip(arguments);
    let subnet = two.lease_key().replace('-', "/");
    // As NetworkManager's cloud set-up and multi-homed hosts have it; what it says does not touch the overlay.
    ip("route add default via 10.77.0.1 table 30400");
    ip("rule add pref 30399 from 10.77.0.11 lookup 30400");
    Diagnosis::until_silent(&one);
    ip("rule add pref 30400 lookup 30400");
    let remedy = "ip rule add pref 30399 to 10.5.0.0/16 lookup main";
    let finding = overlap(&one, "eth0", remedy);
    assert_eq!(finding.severity, Severity::Error);
    assert!(
        finding.what.starts_with(&format!(
            "packets for 1 of 1 peers ({subnet}) leave by eth0 via 10.77.0.1 instead of the overlay"
        )),
        "{finding:?}"
    );
    assert!(
        finding
            .why
            .contains("the rule 30400: from all lookup 30400 "),
        "{finding:?}"
    );
    assert_eq!(Diagnosis::without_probes(&one).status, Some(1));
    ip(remedy.trim_start_matches("ip "));
    one.wait_reaches(&two);
    Diagnosis::until_silent(&one);
    ip("rule del pref 30400");

    // A rule for containers alone: the host's own packets take the overlay.
    let own = one.lease_key().replace('-', "/");
    ip("rule del pref 30399 to 10.5.0.0/16");
    ip(&format!("rule add pref 100 from {own} lookup 30400"));
    let finding = overlap(
        &one,
        "eth0",
        "ip rule add pref 99 to 10.5.0.0/16 lookup main",
    );
    assert!(
        finding
            .what
            .starts_with("packets from local containers for 1 of 1 peers")
            && finding
                .why
                .contains(&format!("the rule 100: from {own} lookup 30400 ")),
        "{finding:?}"
    );
    ip("rule del pref 100");
    Diagnosis::until_silent(&one);
}

#[test]
fn network_with_the_hosts_addresses_in_it_is_warned_of() {
    let (_store, one, _two) =
        crate::cluster::pair_in(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#);
    let of_underlay = |finding: &Finding| finding.subject.as_deref() == Some("eth0");
    let diagnosis = Diagnosis::until(&one, "a word about the underlay", |diagnosis| {
        diagnosis.report.findings.iter().any(of_underlay)
    });
    let mut findings = diagnosis.report.findings.iter();
    let finding = findings.find(|finding| of_underlay(finding)).expect("it");
    assert!(
        finding
            .remedy
            .iter()
            .any(|remedy| remedy.contains("SubnetMin")),
        "{finding:?}"
    );
    assert_eq!(finding.severity, Severity::Warning);
    assert!(
        finding
            .what
            .contains("10.0.0.0/8 overlaps the underlay's network 10.77.0.0/24 on eth0"),
        "{finding:?}"
    );
}

#[test]
fn servers_inside_the_overlay_are_told() {
    let (_store, mut one, two) = pair();
    let etcd = one.etcd.clone();
    one.etcd = format!("{etcd},http://10.5.177.9:2379");
    let finding = overlap(&one, "10.5.177.9", "SubnetMin");
    assert_eq!(finding.severity, Severity::Warning);
    one.etcd = format!("{etcd},http://{}:2379", two.container_address());
    let finding = overlap(&one, &two.container_address().to_string(), "SubnetMin");
    assert_eq!(finding.severity, Severity::Error);
    one.etcd = etcd;

    let resolvers = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(
        resolvers.path(),
        "nameserver 10.5.177.8\nnameserver 10.77.0.1\n",
    )
    .expect("to write it");
    let doctor = one.selvage("doctor");
    let output = one
        .namespace
        .command("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"",
        ])
        .arg(resolvers.path())
        .arg(doctor.get_program())
        .args(doctor.get_args())
        .envs(
            doctor
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .output()
        .expect("the doctor");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("the resolver 10.5.177.8 (/etc/resolv.conf) is inside the overlay's network"),
        "{text}"
    );
    assert!(!text.contains("10.77.0.1 "), "{text}");
    Diagnosis::until_silent(&one);
}
