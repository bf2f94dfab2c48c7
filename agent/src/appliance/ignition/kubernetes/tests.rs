//! What a node of Kubernetes gets, with the values of public documentation, and what its description may not say.

use serde_json::{Value, json};

use super::super::cluster::tests::assert_refused;
use super::super::tests::{KUBERNETES, config, contents};
use super::super::{RenderedNode, data_url};
use super::*;
use crate::base::yaml;

const HASH: &str = "sha256:a4863cde706cfc580a439f842cc65d5ef112b7b2be31628513a9881cf0d9fe0e";

fn rendered(text: &str) -> RenderedNode {
    Cluster::from_toml(text)
        .unwrap()
        .render()
        .unwrap()
        .remove(0)
}

fn join(node: &RenderedNode) -> Value {
    yaml::parse(&contents(node, "/etc/kubernetes/join.yaml").unwrap()).unwrap()
}

fn unit(node: &RenderedNode, name: &str) -> String {
    let mut units = config(node).systemd.unwrap().units.unwrap().into_iter();
    units.find(|u| u.name == name).unwrap().contents.unwrap()
}

/// `kubeadm join` commands and configurations, retyped: where from, their parts, and what kubeadm reads from them.
#[test]
fn documented_joins_come_to_the_same_configuration() {
    // kubernetes.io/docs/setup/production-environment/tools/kubeadm/dual-stack-support: a worker's JoinConfiguration.
    let dual_stack = r#"
apiVersion: kubeadm.k8s.io/v1beta4
kind: JoinConfiguration
discovery:
  bootstrapToken:
    apiServerEndpoint: 10.100.0.1:6443
    token: "clvldh.vjjwg16ucnhp94qr"
    caCertHashes:
    - "sha256:a4863cde706cfc580a439f842cc65d5ef112b7b2be31628513a9881cf0d9fe0e"
    # change auth info above to match the actual token and CA certificate hash for your cluster
nodeRegistration:
  kubeletExtraArgs:
  - name: "node-ip"
    value: "10.100.0.2,fd00:1:2:3::3"
"#;
    // `kubeadm join ENDPOINT --token TOKEN --discovery-token-ca-cert-hash HASH`, as kubeadm printed it for others.
    let command = |endpoint: &str, token: &str, hash: &str| json!({"apiServerEndpoint": endpoint, "token": token, "caCertHashes": [hash]});
    for expected in [
        yaml::parse(dual_stack).unwrap()["discovery"]["bootstrapToken"].clone(),
        // sudo kubeadm join kube-master:6443 --token w33hha.…
        command(
            "kube-master:6443",
            "w33hha.ww9jxt7t7gwnziqn",
            "sha256:c5b4ef8a6dfb9da6f76f7938a92306f990a4532c81217a031042b3477da1c327",
        ),
        // kubeadm join 192.168.205.10:6443 --token gsvzsq.… \
        command(
            "192.168.205.10:6443",
            "gsvzsq.3k76aiuuj12dk1fm",
            "sha256:8f478c0f3440f8cf6b108f4a947b8c5d3a6185419c5d23033f378e5d9fc3cf66",
        ),
    ] {
        let of = |key: &str| expected[key].as_str().unwrap_or_default().to_owned();
        let text = KUBERNETES
            .replace("192.168.10.5:6443", &of("apiServerEndpoint"))
            .replace("abcdef.0123456789abcdef", &of("token"))
            .replace(HASH, expected["caCertHashes"][0].as_str().unwrap());
        let join = join(&rendered(&text));
        assert_eq!(join["discovery"], json!({"bootstrapToken": expected}));
        assert_eq!(join["apiVersion"], "kubeadm.k8s.io/v1beta4");
        assert_eq!(join["kind"], "JoinConfiguration");
    }
}

#[test]
fn nodes_get_a_runtime_a_kubelet_and_one_join_and_no_agent() {
    let node = rendered(KUBERNETES);
    let units = config(&node).systemd.unwrap().units.unwrap();
    let states: Vec<_> = units.iter().map(|u| (u.name.as_str(), u.enabled)).collect();
    assert_eq!(
        states,
        [
            ("docker.service", Some(false)),
            ("docker.socket", Some(false)),
            ("kubernetes-node.service", Some(true)),
            ("kubernetes-programs.service", None),
        ]
    );
    let has = |path: &str, line: &str| {
        let text = contents(&node, path).unwrap();
        assert!(text.lines().any(|l| l.trim() == line), "{path}:\n{text}");
    };
    has("/etc/containerd/config.toml", "SystemdCgroup = true");
    has("/etc/containerd/config.toml", "bin_dir = \"/opt/cni/bin\"");
    has(
        "/etc/sysctl.d/60-kubernetes.conf",
        "net.bridge.bridge-nf-call-iptables = 1",
    );
    has(
        "/etc/default/kubelet",
        "KUBELET_EXTRA_ARGS=--node-ip=192.168.10.21",
    );
    let containerd = contents(&node, "/etc/containerd/config.toml").unwrap();
    toml::from_str::<toml::Table>(&containerd).unwrap();
    let settings = contents(&node, "/etc/selvage/agent.toml").unwrap();
    assert_eq!(
        toml::from_str::<toml::Table>(&settings).unwrap(),
        toml::toml! {
            [fleet]
            lock = "none"
            [update]
            server = "https://example.net/selvage"
        }
    );
    let registration = &join(&node)["nodeRegistration"];
    assert_eq!(
        registration["criSocket"],
        "unix:///run/containerd/containerd.sock"
    );
    assert_eq!(
        registration["ignorePreflightErrors"][0],
        "SystemVerification"
    );
}

#[test]
fn only_one_file_has_the_token_and_only_root_reads_it() {
    let token = "abcdef.0123456789abcdef";
    let node = rendered(KUBERNETES);
    assert_eq!(node.json.matches(token).count(), 1);
    for file in config(&node).storage.unwrap().files.unwrap() {
        let text = data_url::decode(&file.contents.unwrap().source.unwrap()).unwrap();
        let has_token = String::from_utf8(text).unwrap().contains(token);
        assert_eq!(has_token, file.path == "/etc/kubernetes/join.yaml");
        assert_eq!(
            file.mode,
            Some(if has_token { 0o600 } else { 0o644 }),
            "{}",
            file.path
        );
    }
    let cluster = Cluster::from_toml(KUBERNETES).unwrap();
    assert!(!format!("{cluster:?}").contains(token));
}

#[test]
fn the_extension_comes_from_the_release_server_or_by_its_url() {
    let url = "https://10.0.2.2:8080/sysexts/selvage_0.1.0~3_kubernetes.sysext.raw";
    let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    for (keys, expected) in [
        (String::new(), "kubernetes".to_owned()),
        (format!("sysext = \"{url}\""), url.to_owned()),
        (
            format!("sysext = \"{url}\"\nsysext-sha256 = \"{sha256}\""),
            format!("--sha256 {sha256} {url}"),
        ),
    ] {
        let text = KUBERNETES.replace("[kubernetes]", &format!("[kubernetes]\n{keys}"));
        let node = rendered(&text);
        let programs = unit(&node, "kubernetes-programs.service");
        let command = format!("ExecStart=/usr/bin/selvage sysext add {expected}");
        assert!(programs.lines().any(|line| line == command), "{programs}");
        assert_eq!(super::super::check(&node.json).findings, []);
    }
    // With its URL no release server is needed.
    let alone = KUBERNETES
        .replace("[kubernetes]", &format!("[kubernetes]\nsysext = \"{url}\""))
        .replace(
            "[agent.update]\nserver = \"https://example.net/selvage\"",
            "",
        );
    rendered(&alone);
}

/// As the table of the other descriptions' faults.
#[rustfmt::skip] // One fault, one line.
const BAD_DESCRIPTIONS: &[(&str, &str, &str, &str, &str)] = &[
    ("endpoint_is_a_url", "\"192.168.10.5:6443\"", "\"https://192.168.10.5:6443\"", "\"https://192", "kubernetes.endpoint: \"https://192.168.10.5:6443\" is not an API server as `kubeadm join` has it: expected HOST:PORT"),
    ("endpoint_without_port", "192.168.10.5:6443", "192.168.10.5", "\"192.168.10.5\"", "kubernetes.endpoint: \"192.168.10.5\" is not an API server"),
    ("endpoint_ends_the_quotes", "\"192.168.10.5:6443\"", "'a\": x:1'", "'a", "kubernetes.endpoint: "),
    ("no_endpoint", "endpoint = \"192.168.10.5:6443\"", "", "[kubernetes]", "kubernetes: missing field `endpoint`"),
    ("token_of_the_manual_cut_short", "abcdef.0123456789abcdef", "abcdef.0123456789abcde", "\"abcdef.", "kubernetes.token: the value, not shown here, is not a bootstrap token"),
    ("token_upper_case", "abcdef.0123456789abcdef", "ABCDEF.0123456789abcdef", "\"ABCDEF", "kubernetes.token: "),
    ("token_placeholder", "abcdef.0123456789abcdef", "<token>", "\"<token>\"", "kubernetes.token: "),
    ("token_not_a_text", "\"abcdef.0123456789abcdef\"", "12", "12", "kubernetes.token: invalid type: integer `12`, expected a string"),
    // As kubernetes.io/docs/reference/setup-tools/kubeadm/kubeadm-join abbreviates it.
    ("hash_of_the_manual", HASH, "sha256:1234..cdef", "\"sha256:1234..cdef\"", "kubernetes.ca-cert-hashes[0]: \"sha256:1234..cdef\" is not the hash of a CA's key"),
    ("hash_without_its_kind", "sha256:a4863", "a4863", "\"a4863", "kubernetes.ca-cert-hashes[0]: "),
    ("hash_too_long", "fe0e\"", "fe0e00\"", "\"sha256:", "kubernetes.ca-cert-hashes[0]: "),
    ("no_hash", "[\"sha256:a4863cde706cfc580a439f842cc65d5ef112b7b2be31628513a9881cf0d9fe0e\"]", "[]", "[]", "kubernetes.ca-cert-hashes: the list is empty"),
    // flatcar.org/docs/latest/container-runtimes/getting-started-with-kubernetes: an extension of another system.
    ("sysext_of_flatcar", "[kubernetes]", "[kubernetes]\nsysext = \"https://github.com/flatcar/sysext-bakery/releases/download/latest/kubernetes-v1.27.4-x86-64.raw\"", "\"https://github.com", "kubernetes.sysext: \"https://github.com/flatcar/sysext-bakery/releases/download/latest/kubernetes-v1.27.4-x86-64.raw\" is not where"),
    ("sysext_without_a_host", "[kubernetes]", "[kubernetes]\nsysext = \"http://selvage_1_kubernetes.sysext.raw\"", "\"http:", "kubernetes.sysext: "),
    ("sysext_with_a_specifier", "[kubernetes]", "[kubernetes]\nsysext = \"http://a/%H/selvage_1_kubernetes.sysext.raw\"", "\"http:", "kubernetes.sysext: "),
    ("sysext_is_two_words", "[kubernetes]", "[kubernetes]\nsysext = \"http://a/ b/selvage_1_kubernetes.sysext.raw\"", "\"http:", "kubernetes.sysext: "),
    ("sha256_too_short", "[kubernetes]", "[kubernetes]\nsysext = \"http://a/selvage_1_kubernetes.sysext.raw\"\nsysext-sha256 = \"e3b0\"", "\"e3b0\"", "kubernetes.sysext-sha256: \"e3b0\" is not a SHA-256"),
    ("no_source", "server = \"https://example.net/selvage\"", "", "[kubernetes]", "kubernetes: say where the kubelet comes from"),
    ("unknown_key", "[kubernetes]", "[kubernetes]\nversion = \"v1.35.0\"", "version", "kubernetes.version: unknown field `version`"),
    ("etcd_beside_it", "[agent.update]", "[etcd]\nmembers = [\"worker1\"]\n[agent.update]", "[etcd]", "etcd: this has no effect on nodes of Kubernetes"),
    ("network_beside_it", "[agent.update]", "[network]\nNetwork = \"10.244.0.0/16\"\n[agent.update]", "[network]", "network: this has no effect on nodes of Kubernetes"),
    ("settings_of_an_agent", "[agent.update]", "[agent.firewall]\nmasquerade = true\n[agent.update]", "[agent.firewall]", "agent.firewall: this has no effect on nodes of Kubernetes"),
];

#[test]
fn bad_descriptions_are_refused_at_the_field() {
    assert_refused(KUBERNETES, BAD_DESCRIPTIONS);
}
