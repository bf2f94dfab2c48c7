//! Faults in what the kernel has for the overlay: a MAC address that is not the published one, and what another agent left.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use selvage::command::doctor::{Finding, Severity};

use crate::cluster::NETWORK;
use crate::host::Host;
use crate::host_world::{finds, is_silent, look_after, obey, pair};

#[test]
fn mac_policy_that_changed_the_address_is_told() {
    let (_store, mut one, _two) = pair(NETWORK);
    // A running agent puts the address right.
    one.namespace
        .ip("link set flannel.1 address 02:00:00:00:00:01");
    is_silent(&one);
    one.kill_agent();
    one.namespace
        .ip("link set flannel.1 address 02:00:00:00:00:02");
    let report = look_after(&one, "true");
    let found: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| finding.check == "mac-policy")
        .collect();
    let [finding] = found[..] else {
        panic!("{report:#?}")
    };
    assert!(finding.what.contains("02:00:00:00:00:02"), "{finding:#?}");
    let remedy = finding
        .remedy
        .iter()
        .find(|line| line.starts_with("ip link set flannel.1 address "));
    let command = remedy.and_then(|line| line.split(',').next());
    obey(&one, command.expect("a command"));
    let report = look_after(&one, "true");
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.check != "mac-policy"),
        "{report:#?}"
    );
}

/// What the check says where systemd-udevd runs, with these `.link` files.
fn mac_policy(host: &Host, files: &[(&str, &str)]) -> Vec<Finding> {
    let mut script = "mount -t sysfs none /sys; mount -t tmpfs none /run; mkdir -p /run/udev; touch /run/udev/control; \
                      for d in /etc/systemd /usr/lib/systemd; do mkdir -p $d; mount -t tmpfs none $d; mkdir $d/network; done\n"
        .to_owned();
    for (path, text) in files {
        script.push_str(&format!("cat > {path} <<'END'\n{text}\nEND\n"));
    }
    let report = look_after(host, &script);
    let findings = report.findings.into_iter();
    findings
        .filter(|finding| finding.check == "mac-policy")
        .collect()
}

#[test]
fn mac_policy_that_may_change_the_address_is_told() {
    const DEFAULT: (&str, &str) = (
        "/usr/lib/systemd/network/99-default.link",
        "[Match]\nOriginalName=*\n[Link]\nNamePolicy=keep\nMACAddressPolicy=persistent",
    );
    let ours = include_str!("../../../units/network/50-selvage.link");
    let ours = ("/usr/lib/systemd/network/50-selvage.link", ours);
    let (_store, mut one, _two) = pair(NETWORK);
    // The agent chose the address of the device that it made, and systemd-udevd leaves such alone.
    assert_eq!(mac_policy(&one, &[DEFAULT]), []);
    // A device that another agent made, with the kernel's choice of an address, and ours adopts.
    one.kill_agent();
    one.namespace.ip("link delete flannel.1");
    let address = one.address;
    one.namespace.ip(&format!(
        "link add flannel.1 type vxlan id 1 dev eth0 local {address} dstport 8472 nolearning"
    ));
    one.start_agent();
    one.wait_ready();
    let findings = mac_policy(&one, &[DEFAULT]);
    let [finding] = &findings[..] else {
        panic!("{findings:#?}")
    };
    assert_eq!(finding.severity, Severity::Warning);
    assert!(
        finding.remedy[0].contains("MACAddressPolicy=none"),
        "{finding:#?}"
    );
    assert_eq!(mac_policy(&one, &[DEFAULT, ours]), []);
}

#[test]
fn stale_devices_and_routes_are_told_with_what_removes_them() {
    let (_store, one, two) = pair(NETWORK);
    let plant = [
        (
            "link add flannel.9 type vxlan id 9 dev eth0 dstport 8473",
            "ip link delete flannel.9",
        ),
        (
            "route add blackhole 10.5.200.0/24",
            "ip route del blackhole 10.5.200.0/24",
        ),
    ];
    for (fault, remedy) in plant {
        one.namespace.ip(fault);
        let finding = finds(&one, "stale-objects", remedy);
        obey(&one, &finding.remedy[0]);
        is_silent(&one);
    }
    // What is over a live peer's subnet hurts now.
    let taken = two.lease_key().replace('-', "/");
    one.namespace
        .ip(&format!("route add unreachable {taken} metric 5"));
    let finding = finds(
        &one,
        "stale-objects",
        &format!("ip route del unreachable {taken}"),
    );
    assert_eq!(finding.severity, Severity::Error);
    obey(&one, &finding.remedy[0]);
    // Each container's own route, as CNI's ptp plugin makes it, and a routing daemon's.
    let own = one.container_address();
    one.namespace
        .ip(&format!("route add {own}/32 dev docker0 scope host"));
    is_silent(&one);
}

#[test]
fn stale_objects_flanneld_beside_the_agent_is_told() {
    let (_store, one, _two) = pair(NETWORK);
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("flanneld");
    fs::copy("/bin/sleep", &program).expect("a program of that name");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("to make it one");
    let program = program.to_str().expect("a path in UTF-8");
    let mut flanneld = one
        .namespace
        .command(program)
        .arg("60")
        .spawn()
        .expect("to run");
    let finding = finds(&one, "stale-objects", &format!("kill {}", flanneld.id()));
    assert!(finding.what.contains(program), "{finding:#?}");
    flanneld.kill().expect("to stop it");
    flanneld.wait().expect("its end");
    is_silent(&one);
    // One in another namespace is not beside us.
    let mut elsewhere = std::process::Command::new(program)
        .arg("60")
        .spawn()
        .expect("to run");
    is_silent(&one);
    elsewhere.kill().expect("to stop it");
    elsewhere.wait().expect("its end");
}
