//! Values of flannel's chart, retyped from what its users have published, and what its own tests expect of it.

use selvage::cluster::network_config::NetworkConfig;
use serde_json::{Value, json};

use crate::chart;
use crate::objects::{documents, one};

/// The container, the whole pod and the network config that values give, which the agent takes.
fn rendered(values: &str) -> (Value, Value, Value) {
    let documents = documents(&chart::render(values).expect(values));
    let pod = one(&documents, "DaemonSet")["spec"]["template"]["spec"].clone();
    let data = &one(&documents, "ConfigMap")["data"];
    let config = data["net-conf.json"].as_str().expect("a network config");
    NetworkConfig::parse(config).unwrap_or_else(|error| panic!("{error}: {config}"));
    let config = serde_json::from_str(config).expect("JSON");
    (pod["containers"][0].clone(), pod, config)
}

fn volume<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let mut volumes = pod["volumes"].as_array().into_iter().flatten();
    let found = volumes.find(|volume| volume["name"] == name);
    &found.unwrap_or_else(|| panic!("no volume {name}"))["hostPath"]["path"]
}

/// ryusstory/vagrant_k8s, __install_flannel.sh: machines whose first interface is Vagrant's NAT.
#[test]
fn the_interface_of_virtual_machines() {
    let (container, _, config) = rendered(
        r#"
podCidr: "10.244.0.0/16"

flannel:
  args:
  - "--ip-masq"
  - "--kube-subnet-mgr"
  - "--iface=eth1"
"#,
    );
    let args = ["--ip-masq", "--kube-subnet-mgr", "--iface=eth1"];
    let health = ["--healthz-ip=127.0.0.1", "--healthz-port=8081"];
    assert_eq!(container["args"], json!([&args[..], &health[..]].concat()));
    assert_eq!(config["Network"], "10.244.0.0/16");
}

/// A cluster of NixOS machines, which have the plugins elsewhere and write the CNI configuration themselves.
#[test]
fn another_directory_for_plugins_and_no_cni_configuration() {
    let (_, pod, config) = rendered(
        r#"
podCidr: 10.44.0.0/16
flannel:
  backend: wireguard
  cniBinDir: /run/current-system/sw/bin
  skipCNIConfigInstallation: true
"#,
    );
    assert_eq!(config["Backend"], json!({"Type": "wireguard"}));
    assert_eq!(volume(&pod, "cni-plugin"), "/run/current-system/sw/bin");
    // The configuration goes to where nobody looks.
    let mut volumes = pod["volumes"].as_array().into_iter().flatten();
    let conf = volumes.find(|volume| volume["name"] == "no-cni");
    assert_eq!(conf, Some(&json!({"name": "no-cni", "emptyDir": {}})));
    assert_eq!(
        pod["initContainers"][0]["volumeMounts"][1],
        json!({"name": "no-cni", "mountPath": "/etc/cni/net.d"})
    );
}

/// NVIDIA's doca-platform, where the nodes' runtime looks below Multus' directory.
#[test]
fn other_directories_for_plugins_and_cni_configuration() {
    let (_, pod, config) = rendered(
        r#"
podCidr: 10.244.0.0/14
flannel:
  skipCNIConfigInstallation: false
  cniBinDir: /var/lib/cni/bin/
  cniConfDir: /run/multus/cni/net.d/
"#,
    );
    assert_eq!(config["Network"], "10.244.0.0/14");
    assert_eq!(volume(&pod, "cni-plugin"), "/var/lib/cni/bin/");
    assert_eq!(volume(&pod, "cni"), "/run/multus/cni/net.d/");
    assert_eq!(
        pod["initContainers"][0]["args"],
        json!([
            "cni",
            "install",
            "--bin-dir",
            "/opt/cni/bin",
            "--conf-dir",
            "/etc/cni/net.d",
            "--conf-from",
            "/etc/kube-flannel/cni-conf.json"
        ])
    );
}

/// A custom-values.yaml for flannel 0.26 that names its images and has its network policies.
const PINNED: &str = r#"
podCidr: "10.42.0.0/16"

flannel:
  image:
    repository: docker.io/flannel/flannel
    tag: v0.26.2
  image_cni:
    repository: docker.io/flannel/flannel-cni-plugin
    tag: v1.6.0-flannel1
  args:
  - "--ip-masq"
  - "--kube-subnet-mgr"
  backend: "vxlan"
  backendPort: 4789
  mtu: 1450
  vni: 4096

netpol:
  enabled: true
"#;

#[test]
fn what_the_chart_cannot_do_is_refused_with_words() {
    let error = chart::render(PINNED).expect_err("network policies");
    assert!(
        error.contains("netpol.enabled: this chart does not install"),
        "{error}"
    );
    let error = chart::render(&PINNED.replace("true", "false")).expect_err("flannel's image");
    assert!(
        error.contains("docker.io/flannel/flannel:v0.26.2, which is flannel's own"),
        "{error}"
    );
    let ours = PINNED.replace("true", "false");
    let ours = ours.replace("docker.io/flannel/flannel\n", "registry.internal/selvage\n");
    let (container, _, config) = rendered(&ours.replace("v0.26.2", "0.1.0"));
    assert_eq!(container["image"], "registry.internal/selvage:0.1.0");
    assert_eq!(
        config["Backend"],
        json!({"Type": "vxlan", "Port": 4789, "MTU": 1450, "VNI": 4096})
    );
}

/// flannel's chart/kube-flannel/tests/daemonset_test.yaml; what differs there on purpose says so.
#[test]
fn flannels_own_tests_of_its_chart() {
    let image = "{image: {repository: cicker.io/selvage/agent, tag: v555.44.3}}";
    let (container, pod, _) = rendered(&format!("flannel: {image}"));
    // One image for both.
    for one in [&container, &pod["initContainers"][0]] {
        assert_eq!(one["image"], "cicker.io/selvage/agent:v555.44.3");
    }

    let (container, pod, _) = rendered("");
    // command has the program, args the flags, as in flannel's manifest.
    assert_eq!(container["command"], json!(["/opt/bin/flanneld"]));
    assert_eq!(
        container["ports"],
        json!([{"name": "healthz", "containerPort": 8081, "protocol": "TCP"}])
    );
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/healthz");
    assert_eq!(container["livenessProbe"]["periodSeconds"], 30);
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz");
    assert_eq!(container["readinessProbe"]["initialDelaySeconds"], 5);
    assert_eq!(pod["initContainers"][0]["name"], "install-cni");
    assert_eq!(pod["imagePullSecrets"], Value::Null);

    let (container, _, _) = rendered("flannel: {healthz: {port: 0}}");
    assert_eq!(container["args"], json!(["--ip-masq", "--kube-subnet-mgr"]));
    for absent in ["ports", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[absent], Value::Null, "{absent}");
    }

    let (_, pod, _) = rendered(r#"global: {imagePullSecrets: [{name: "a-test-secret"}]}"#);
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "a-test-secret"}]));
    let (_, pod, _) = rendered("flannel: {nodeSelector: {eks.amazonaws.com/compute-type: hybrid}}");
    assert_eq!(
        pod["nodeSelector"],
        json!({"eks.amazonaws.com/compute-type": "hybrid"})
    );
}

#[test]
fn every_family_and_backend_gives_a_config_that_the_agent_takes() {
    for (values, config) in [
        (
            "podCidr: ''\npodCidrv6: 2001:cafe:42::/56",
            json!({"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "2001:cafe:42::/56",
                   "EnableNFTables": false, "Backend": {"Type": "vxlan"}}),
        ),
        (
            "podCidr: 10.42.0.0/16\npodCidrv6: 2001:cafe:42::/56\nflannel: {enableNFTables: true, backend: host-gw}",
            json!({"Network": "10.42.0.0/16", "EnableIPv6": true, "IPv6Network": "2001:cafe:42::/56",
                   "EnableNFTables": true, "Backend": {"Type": "host-gw"}}),
        ),
        (
            // flannel's chart writes tunnelMode without quotes, which is no JSON.
            "flannel: {backend: wireguard, backendPort: 51821, backendPortv6: 51822, mtu: 1420, tunnelMode: auto, \
             psk: FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=, keepaliveInterval: 25, vni: 7}",
            json!({"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {
                "Type": "wireguard", "ListenPort": 51821, "ListenPortV6": 51822, "MTU": 1420, "Mode": "auto",
                "PSK": "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=", "PersistentKeepaliveInterval": 25}}),
        ),
        (
            "flannel: {GBP: true, directRouting: true, macPrefix: 0E-2A}",
            json!({"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {
                "Type": "vxlan", "GBP": true, "DirectRouting": true, "MacPrefix": "0E-2A"}}),
        ),
        (
            "flannel: {backend: udp, backendPort: 8286, mtu: 1400}",
            json!({"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "udp", "Port": 8286}}),
        ),
        (
            // 0 is flannel's word for the default.
            "flannel: {backend: ipip, backendPort: 0, mtu: 0}",
            json!({"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "ipip"}}),
        ),
    ] {
        assert_eq!(rendered(values).2, config, "{values}");
    }
}

#[test]
fn metrics_for_all_keep_the_probes_on_loopback() {
    for (address, host) in [
        ("0.0.0.0", "127.0.0.1"),
        ("'::'", "127.0.0.1"),
        ("10.77.0.11", "10.77.0.11"),
    ] {
        let (container, _, _) = rendered(&format!(
            "flannel: {{healthz: {{address: {address}, port: 9091}}}}"
        ));
        assert_eq!(container["readinessProbe"]["httpGet"]["host"], host);
        let flag = format!("--healthz-ip={}", address.trim_matches('\''));
        assert_eq!(container["args"][2], flag);
        assert_eq!(container["args"][3], "--healthz-port=9091");
    }
}

#[test]
fn udp_gets_the_device_that_only_privileged_containers_have() {
    let (container, _, _) = rendered("flannel: {backend: udp}");
    assert_eq!(
        container["securityContext"],
        json!({"privileged": true, "readOnlyRootFilesystem": true})
    );
}
