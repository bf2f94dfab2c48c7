//! Nodes of ours beside nodes that run flannel's own flanneld, and one after the other on the same node:
//! `FLANNELD=/path/to/flanneld`.

use std::process::{Child, Command, Stdio};

use crate::fleet::{Fleet, VXLAN};
use crate::host::Host;
use crate::wait::{PATIENCE, wait_for, wait_until};

const DUAL_CIDRS: [&[&str]; 2] = [
    &["10.244.1.0/24", "fd00:10:244:1::/64"],
    &["10.244.2.0/24", "fd00:10:244:2::/64"],
];

fn dual(backend: &str) -> String {
    format!(
        r#"{{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{backend}}}"#
    )
}

/// flanneld on a host, as kube-flannel's DaemonSet starts it. It ends with this.
struct Flanneld(Child);

impl Flanneld {
    fn start(fleet: &Fleet, host: &Host) -> Self {
        let program = std::env::var("FLANNELD").expect("FLANNELD=/path/to/flanneld");
        let mut command: Command = host.namespace.command(&program);
        let log = host.state_dir().with_file_name("flanneld.log");
        let child = command
            .args([
                "--kube-subnet-mgr",
                "--kube-api-url=http://10.77.0.1:8001",
                "--iface=eth0",
                "--ip-masq",
            ])
            .arg(format!("--subnet-file={}", host.subnet_file().display()))
            .arg(format!("--net-config-path={}", fleet.config().display()))
            .envs(host.environment.iter().cloned())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).expect("a log"))
            .spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{program}: {error}"));
        wait_for(PATIENCE, "flanneld to write subnet.env", || {
            if let Some(status) = child.try_wait().expect("its status") {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("flanneld ended with {status}\n{log}");
            }
            host.subnet_file().exists().then_some(())
        });
        Self(child)
    }
}

impl Drop for Flanneld {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node of ours and one of flannel's that starts first or second, whose containers reach each other.
fn pair(config: &str, cidrs: [&[&str]; 2], ours_first: bool) -> (Fleet, Host, Host, Flanneld) {
    let fleet = Fleet::start(config);
    let [mut ours, mut theirs] =
        [(1, cidrs[0]), (2, cidrs[1])].map(|(number, cidrs)| fleet.host(number, cidrs));
    if ours_first {
        ours.join();
    }
    let flanneld = Flanneld::start(&fleet, &theirs);
    theirs.start_container();
    if !ours_first {
        ours.join();
    }
    ours.wait_reaches(&theirs);
    fleet.wait_condition("n1", "False", "FlannelIsUp");
    fleet.wait_condition("n2", "False", "FlannelIsUp");
    (fleet, ours, theirs, flanneld)
}

/// Each takes the other's place: what the former one left is used or replaced, and both still reach each other.
fn change_places(fleet: &Fleet, mut ours: Host, mut theirs: Host, flanneld: Flanneld) {
    drop(flanneld);
    theirs.start_agent();
    theirs.wait_ready();
    ours.wait_reaches(&theirs);
    ours.kill_agent();
    std::fs::remove_file(ours.subnet_file()).expect("subnet.env");
    let _flanneld = Flanneld::start(fleet, &ours);
    wait_until("both to reach each other", || {
        ours.reaches(&theirs) && theirs.reaches(&ours)
    });
}

#[test]
fn over_vxlan() {
    let (fleet, ours, theirs, flanneld) =
        pair(VXLAN, [&["10.244.0.0/24"], &["10.244.7.0/24"]], true);
    change_places(&fleet, ours, theirs, flanneld);
}

#[test]
fn over_vxlan_in_dual_stack() {
    let (fleet, ours, theirs, flanneld) = pair(&dual(r#"{"Type":"vxlan"}"#), DUAL_CIDRS, false);
    change_places(&fleet, ours, theirs, flanneld);
}

#[test]
fn over_vxlan_in_ipv6_alone() {
    let config = r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/56","Backend":{"Type":"vxlan"}}"#;
    let cidrs: [&[&str]; 2] = [&["fd00:10:244:1::/64"], &["fd00:10:244:2::/64"]];
    let (fleet, ours, theirs, flanneld) = pair(config, cidrs, true);
    change_places(&fleet, ours, theirs, flanneld);
}

/// `DirectRouting` sends plain packets to nodes on the same link, as host-gw does.
#[test]
fn over_vxlan_with_direct_routing() {
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}"#;
    let (fleet, ours, theirs, flanneld) =
        pair(config, [&["10.244.1.0/24"], &["10.244.2.0/24"]], false);
    change_places(&fleet, ours, theirs, flanneld);
}

#[test]
fn over_host_gw_in_dual_stack() {
    let (fleet, ours, theirs, flanneld) = pair(&dual(r#"{"Type":"host-gw"}"#), DUAL_CIDRS, true);
    change_places(&fleet, ours, theirs, flanneld);
}

#[test]
fn over_udp() {
    let config = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;
    let (fleet, ours, theirs, flanneld) =
        pair(config, [&["10.244.1.0/24"], &["10.244.2.0/24"]], false);
    change_places(&fleet, ours, theirs, flanneld);
}

/// A node that goes takes its routes with it on both kinds.
#[test]
fn a_node_of_either_kind_that_goes_is_removed_by_the_other() {
    let cidrs: [&[&str]; 2] = [&["10.244.1.0/24"], &["10.244.2.0/24"]];
    let (fleet, ours, theirs, flanneld) = pair(VXLAN, cidrs, true);
    let has_route = |host: &Host, subnet: &str| {
        let routes = host.namespace.ip(&format!("route show {subnet}"));
        routes.contains("flannel.1")
    };
    assert!(has_route(&ours, cidrs[1][0]) && has_route(&theirs, cidrs[0][0]));
    let third = {
        let mut host = fleet.host(3, &["10.244.3.0/24"]);
        host.join();
        host
    };
    wait_until("flanneld to know the third", || {
        has_route(&theirs, "10.244.3.0/24")
    });
    drop(third);
    fleet.server.change(|cluster| cluster.delete("n3"));
    wait_until("flanneld to remove the third", || {
        !has_route(&theirs, "10.244.3.0/24")
    });
    drop(flanneld);
    fleet.server.change(|cluster| cluster.delete("n2"));
    wait_until("ours to remove flanneld's", || {
        !has_route(&ours, cidrs[1][0])
    });
}
