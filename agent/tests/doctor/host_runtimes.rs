//! Faults between the overlay and the container runtimes, on hosts whose Docker is a stand-in that answers its API.

use std::fs;

use serde_json::{Value, json};

use crate::cluster::{NETWORK, Store};
use crate::diagnosis::Diagnosis;
use crate::host::Host;
use crate::host_docker::{Docker, bridge, container};
use crate::host_world::{CHECKS, finds, is_silent, look_after, obey, pair};

/// Lets the doctor on the host find such a Docker.
fn with_docker(host: &mut Host, networks: &Value, containers: &Value) -> Docker {
    let docker = Docker::start(networks, containers);
    host.environment.retain(|(name, _)| *name != "DOCKER_HOST");
    host.environment.push(("DOCKER_HOST", docker.address()));
    docker
}

/// The host's subnet as Docker writes it.
fn subnet(host: &Host) -> String {
    host.lease_key().replace('-', "/")
}

#[test]
fn docker_in_one_network_of_a_host_is_not_missed_in_the_other() {
    let store = Store::start(NETWORK);
    store.etcdctl(&[
        "put",
        "/coreos.com/network/blue/config",
        r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#,
    ]);
    let mut one = store.host(1);
    one.join();
    let mut blue = one.in_network("blue");
    blue.start_agent();
    blue.wait_ready();
    for (subnet, missed) in [(subnet(&one), false), ("172.17.0.0/16".to_owned(), true)] {
        let _docker = with_docker(&mut blue, &bridge(&subnet, "1450", true), &json!([]));
        let diagnosis = Diagnosis::without_probes(&blue);
        let found = diagnosis.of_check("docker-subnet");
        assert_eq!(!found.is_empty(), missed, "{diagnosis:#?}");
    }
}

#[test]
fn docker_beside_the_subnet_is_told_with_its_options() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    is_silent(&one);
    let beside = bridge("172.17.0.0/16", "1450", true);
    let _docker = with_docker(&mut one, &beside, &json!([]));
    let gateway = one.subnet_env("FLANNEL_SUBNET");
    // A rootless Docker's bridge is not here.
    is_silent(&one);
    one.namespace.ip("link add docker0 type bridge");
    one.namespace.ip("address add 172.17.0.1/16 dev docker0");
    let finding = finds(&one, "docker-subnet", &format!("\"bip\": \"{gateway}\""));
    assert!(finding.what.contains("172.17.0.0/16"), "{finding:#?}");
    // Docker for something else, beside a CNI plugin on our subnet, is none of our business.
    one.namespace.ip("link add cni0 type bridge");
    one.namespace.ip(&format!("address add {gateway} dev cni0"));
    is_silent(&one);
    // Docker on our subnet, and without a bridge.
    one.namespace.ip("link delete cni0");
    let own = subnet(&one);
    let _docker = with_docker(&mut one, &bridge(&own, "1450", true), &json!([]));
    is_silent(&one);
    let _docker = with_docker(&mut one, &json!([]), &json!([]));
    is_silent(&one);
    // Too large, and smaller than could be.
    let _docker = with_docker(&mut one, &bridge(&own, "1500", true), &json!([]));
    let finding = finds(&one, "docker-subnet", "\"mtu\": 1450");
    assert!(finding.what.contains("1500"), "{finding:#?}");
    let _docker = with_docker(&mut one, &bridge(&own, "1400", true), &json!([]));
    is_silent(&one);
}

#[test]
fn subnet_file_that_is_missing_or_wrong_is_told() {
    let (_store, one, _two) = pair(NETWORK);
    let file = one.subnet_file();
    let text = fs::read_to_string(&file).expect("subnet.env");
    fs::remove_file(&file).expect("to remove it");
    finds(&one, "subnet-file", "systemctl restart selvage.service");
    let wrong = text.replace("FLANNEL_MTU=1450", "FLANNEL_MTU=1472");
    assert_ne!(wrong, text);
    fs::write(&file, wrong).expect("to write it");
    let finding = finds(&one, "subnet-file", "systemctl restart selvage.service");
    assert!(
        finding
            .what
            .contains("FLANNEL_MTU is 1472 and should be 1450"),
        "{finding:#?}"
    );
    // Another spelling of the same is none.
    fs::write(&file, format!("# comment\nexport OTHER=1\n{text}")).expect("to write it");
    is_silent(&one);
}

#[test]
fn old_subnet_of_dockers_containers_is_told_by_name() {
    let (_store, mut one, two) = pair(NETWORK);
    let networks = bridge(&subnet(&one), "1450", true);
    let inside = container("fresh", &one.container_address().to_string());
    let elsewhere = container("other", "172.20.0.3");
    let _docker = with_docker(&mut one, &networks, &json!([inside, elsewhere]));
    is_silent(&one);
    // The peer's subnet is outside ours, and inside the overlay.
    let outside = container("left", &two.container_address().to_string());
    let _docker = with_docker(&mut one, &networks, &json!([inside, outside]));
    let finding = finds(&one, "old-subnet", "docker restart left");
    assert_eq!(finding.subject.as_deref(), Some("left"));
}

/// What libcni keeps of a container that flannel's plugin attached.
fn cni_result(address: &str, port: &str) -> String {
    json!({
        "kind": "cniCacheV1", "containerId": "c0ffee", "ifName": "eth0", "networkName": "cbr0",
        // {"name":"cbr0","plugins":[{"type":"flannel"}]}
        "config": "eyJuYW1lIjoiY2JyMCIsInBsdWdpbnMiOlt7InR5cGUiOiJmbGFubmVsIn1dfQ==",
        "result": {"cniVersion": "0.3.1", "interfaces": [{"name": "cni0"}, {"name": port},
                   {"name": "eth0", "sandbox": "/run/netns/x"}],
                   "ips": [{"version": "4", "interface": 2, "address": address}]},
    })
    .to_string()
}

#[test]
fn old_subnet_of_cnis_containers_and_bridge_is_told() {
    let (_store, one, _two) = pair(NETWORK);
    let look = |address: &str, port: &str| {
        let result = cni_result(address, port);
        let script = format!(
            "mount -t tmpfs none /var/lib; mkdir -p /var/lib/cni/results\n\
             cat > /var/lib/cni/results/cbr0-c0ffee-eth0 <<'END'\n{result}\nEND"
        );
        let report = look_after(&one, &script);
        let ours = report.findings.into_iter();
        let ours = ours.filter(|finding| CHECKS.contains(&finding.check.as_str()));
        ours.collect::<Vec<_>>()
    };
    let inside = format!("{}/24", one.container_address());
    assert_eq!(look(&inside, "veth0"), []);
    // Who is gone left only the file.
    assert_eq!(look("10.5.250.7/24", "veth99"), []);
    // On a subnet of the present network, and of one that the overlay had before.
    for address in ["10.5.250.7/24", "10.99.1.7/24"] {
        let findings = look(address, "veth0");
        let [finding] = &findings[..] else {
            panic!("{findings:#?}")
        };
        assert_eq!(finding.check, "old-subnet");
        assert!(
            finding.remedy.iter().any(|line| line.contains("c0ffee")),
            "{finding:#?}"
        );
    }

    one.namespace.ip("link add cni0 type bridge");
    is_silent(&one);
    one.namespace.ip("address add 10.5.250.1/24 dev cni0");
    let finding = finds(&one, "old-subnet", "ip address del 10.5.250.1/24 dev cni0");
    obey(&one, &finding.remedy[0]);
    is_silent(&one);
}

#[test]
fn old_subnet_of_whoever_answers_behind_a_bridge_is_told() {
    let (_store, one, _two) = pair(NETWORK);
    one.namespace
        .ip("route add 10.5.251.9/32 dev docker0 proto kernel");
    one.container().ip("address add 10.5.251.9/32 dev eth0");
    is_silent(&one);
    let answered = one.namespace.try_run("ping -c 1 -W 2 10.5.251.9");
    assert!(answered.status.success());
    let finding = finds(
        &one,
        "old-subnet",
        "ip neighbor show dev docker0 10.5.251.9",
    );
    assert!(finding.what.contains("10.5.251.9"), "{finding:#?}");
}

#[test]
fn br_netfilter_is_asked_for_where_somebody_needs_it_alone() {
    let (_store, mut one, _two) = pair(NETWORK);
    // Nobody needs it: a plain Docker does not.
    one.namespace
        .sysctl("net.bridge.bridge-nf-call-iptables", "0");
    is_silent(&one);
    let own = subnet(&one);
    let _docker = with_docker(&mut one, &bridge(&own, "1450", true), &json!([]));
    is_silent(&one);
    let _docker = with_docker(&mut one, &bridge(&own, "1450", false), &json!([]));
    let finding = finds(
        &one,
        "br-netfilter",
        "sysctl -w net.bridge.bridge-nf-call-iptables=1",
    );
    assert!(finding.what.contains("icc=false"), "{finding:#?}");
    let _docker = with_docker(&mut one, &bridge(&own, "1450", true), &json!([]));
    obey(&one, "iptables -t nat -N KUBE-SERVICES");
    let finding = finds(
        &one,
        "br-netfilter",
        "sysctl -w net.bridge.bridge-nf-call-iptables=1",
    );
    assert!(finding.what.contains("kube-proxy"), "{finding:#?}");
    obey(&one, &finding.remedy[0]);
    is_silent(&one);
}
