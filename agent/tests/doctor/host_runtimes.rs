//! Faults between the overlay and the container runtimes, on hosts whose Docker is a stand-in that answers its API.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::{NETWORK, Store};
use crate::diagnosis::Diagnosis;
use crate::host::Host;
use crate::host_docker::{Daemon, Docker, bridge, container};
use crate::host_world::{CHECKS, finds, is_silent, look_after, obey, pair};
use crate::wait::wait_for;

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
fn docker_whose_networks_live_restore_keeps_is_told_what_helps() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    one.namespace.ip("link add docker0 type bridge");
    let running: Vec<_> = (1..=12)
        .map(|number| container(&format!("c{number}"), "172.17.0.2"))
        .collect();
    let helps = "docker stop $running; systemctl restart docker.service; docker start";
    let own = subnet(&one);
    for (subnet, mtu) in [("10.5.250.0/24", "1450"), (own.as_str(), "1500")] {
        let networks = bridge(subnet, mtu, true);
        let of = |containers: &[Value], live| {
            Docker::with_live_restore(&networks, &json!(containers), live)
        };
        let docker = of(&running, true);
        one.environment.push(("DOCKER_HOST", docker.address()));
        let finding = finds(&one, "docker-subnet", helps);
        assert!(
            finding
                .why
                .ends_with("c1, c2, c3, c4, c5, c6, c7, c8, c9, c10 and 2 more"),
            "{finding:#?}"
        );
        assert!(finding.remedy[0].contains(helps), "{finding:#?}");
        // Nothing holds them: none runs, or Docker stops all.
        for docker in [of(&[], true), of(&running, false)] {
            one.environment.push(("DOCKER_HOST", docker.address()));
            let finding = finds(&one, "docker-subnet", "systemctl restart docker.service");
            let all = finding.remedy.concat();
            assert!(!all.contains(helps), "{finding:#?}");
        }
    }
}

#[test]
fn bridge_that_did_not_follow_docker_is_told_by_the_agent() {
    let run = TempDir::new().expect("a directory");
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.run_directory = Some(run.path().to_owned());
    one.join();
    let pid_file = run.path().join("docker.pid");
    let status = || -> (Option<i32>, Value) {
        let output = one.selvage("status").arg("--json").output();
        let output = output.expect("selvage status");
        let said = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), said)
    };
    let is_well = || {
        let (code, said) = status();
        assert_eq!(
            (code, &said["health"]["state"]),
            (Some(0), &json!("ready")),
            "{said:#}"
        );
        said["docker"].clone()
    };
    assert_eq!(is_well(), Value::Null);

    let gateway = one.subnet_env("FLANNEL_SUBNET");
    let options = format!("--bip={gateway}");
    let daemon = Daemon::start(&["--mtu=1450", &options]);
    fs::write(&pid_file, daemon.id().to_string()).expect("a process id");
    assert_eq!(
        is_well(),
        json!({"bridge": "docker0", "options": [options], "addresses": [gateway], "trouble": null})
    );

    one.namespace.ip("address replace 10.99.3.1/24 dev docker0");
    one.namespace
        .ip(&format!("address del {gateway} dev docker0"));
    let (code, said) = status();
    assert_eq!(code, Some(1), "{said:#}");
    assert_eq!(said["health"]["state"], "degraded", "{said:#}");
    assert_eq!(said["health"]["reasons"][0], said["docker"]["trouble"]);
    assert_eq!(said["docker"]["addresses"], json!(["10.99.3.1/24"]));
    let reason = said["docker"]["trouble"].as_str().unwrap_or_default();
    assert!(reason.contains("live-restore"), "{said:#}");
    // The loop tells the one once it turns, and the other's sample may be a second old.
    wait_for(Duration::from_secs(5), "monitoring to say so", || {
        let (code, body) = one.ask("/readyz");
        let (_, metrics) = one.ask("/metrics");
        let told = metrics.contains("selvage_not_ready_reasons{reason=\"docker\"} 1\n");
        (code == 503 && body.contains(reason) && told).then_some(())
    });
    // The doctor tells it once, though the subnet is of no network that the overlay has.
    let networks = bridge("10.99.3.0/24", "1450", true);
    let left = json!([container("left", "10.99.3.2")]);
    let docker = Docker::with_live_restore(&networks, &left, true);
    one.environment.push(("DOCKER_HOST", docker.address()));
    let diagnosis = Diagnosis::without_probes(&one);
    let finding = diagnosis.assert_finds("docker-subnet", "docker stop $running");
    assert!(finding.why.contains("got another subnet"), "{finding:#?}");
    assert!(diagnosis.of_check("agent").is_empty(), "{diagnosis:#?}");

    // Another choice than ours, no bridge, and no Docker.
    let other = Daemon::start(&["--bip=10.99.3.1/24"]);
    fs::write(&pid_file, other.id().to_string()).expect("a process id");
    let status = || {
        one.selvage("status")
            .arg("--json")
            .output()
            .map(|o| o.status.code())
    };
    assert_eq!(status().ok(), Some(Some(0)));
    fs::write(&pid_file, daemon.id().to_string()).expect("a process id");
    assert_eq!(status().ok(), Some(Some(1)));
    drop(daemon);
    assert_eq!(status().ok(), Some(Some(0)));
}

#[test]
fn options_that_docker_has_twice_are_told() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.start_agent();
    one.wait_ready();
    let look = |config: &str| {
        let script = format!(
            "mount -t tmpfs none /etc; mkdir -p /etc/docker /etc/systemd/system/docker.service.d\n\
             echo 'ExecStart=/usr/sbin/dockerd $DOCKER_OPT_BIP $DOCKER_OPT_MTU' >/etc/systemd/system/docker.service.d/x.conf\n\
             echo '{config}' >/etc/docker/daemon.json"
        );
        let report = look_after(&one, &script);
        let mut findings = report.findings;
        findings.retain(|finding| CHECKS.contains(&finding.check.as_str()));
        findings
    };
    assert_eq!(look("{\"live-restore\": true}"), []);
    let findings = look("{\"bip\": \"192.168.9.1/24\"}");
    let [finding] = &findings[..] else {
        panic!("{findings:#?}")
    };
    assert_eq!(finding.check, "docker-config");
    assert!(finding.what.contains("with bip in"), "{finding:#?}");
}

#[test]
fn subnet_file_that_is_missing_or_wrong_is_told() {
    let (_store, one, _two) = pair(NETWORK);
    let file = one.subnet_file();
    let text = fs::read_to_string(&file).expect("subnet.env");
    fs::remove_file(&file).expect("to remove it");
    finds(&one, "subnet-file", "systemctl restart selvage");
    let wrong = text.replace("FLANNEL_MTU=1450", "FLANNEL_MTU=1472");
    assert_ne!(wrong, text);
    fs::write(&file, wrong).expect("to write it");
    let finding = finds(&one, "subnet-file", "systemctl restart selvage");
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
