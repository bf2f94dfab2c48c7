//! What stands in the way of a move, and what must be carried over.

use std::fs;

use selvage::base::terminal::Colour;
use selvage::command::cli::{MigrateCommand, MigrateFlags};
use selvage::command::migrate;
use selvage::settings::{MigrateSettings, Settings};
use serde_json::json;

use super::world::{World, info, manifest};
use crate::access::kubeconfig;
use crate::node::{Files, bare, flannel};
use crate::server::ApiServer;

/// flannel with flags, variables and directories of its own: what tkestack/tke and KubeEdge's guide have, and somebody who
/// has mixed up two programs.
fn with_settings() -> World {
    World::changed("flannel-0.28.9.yaml", "DaemonSet", |set| {
        let pod = &mut set["spec"]["template"]["spec"];
        pod["containers"][0]["args"] = json!([
            "--kube-subnet-mgr",
            "--iface=$(HOST_IP)",
            "--kube-api-url=http://127.0.0.1:10550",
            "--healthz-port=9440",
            "--etcd-endpoints=http://secret:2379",
            "--cluster-cidr=10.244.0.0/16",
            "--subnet-file=/var/run/f/subnet.env",
            "-v=5",
        ]);
        let env = pod["containers"][0]["env"].as_array_mut().unwrap();
        env.push(
            json!({"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}),
        );
        env.push(json!({"name": "FLANNELD_PUBLIC_IP", "value": "198.51.100.7"}));
        env.push(json!({"name": "KUBERNETES_SERVICE_HOST", "value": "10.0.0.5"}));
        pod["volumes"][1]["hostPath"]["path"] = json!("/var/lib/cni/bin/");
        pod["volumes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "z", "hostPath": {"path": "/etc/kubernetes"}}));
    })
}

#[tokio::test]
async fn what_the_manifest_lacks_is_named_with_its_meaning() {
    let world = with_settings();
    let report = world.report().await;
    assert_eq!(report.status, 2);
    assert_eq!(
        report.findings(),
        [
            "warning migrate-flags: kube-flannel/kube-flannel-ds has flags that are not known here: --cluster-cidr=10.244.0.0/16",
            "warning migrate-flags: kube-flannel/kube-flannel-ds has settings that our manifest lacks",
            "warning migrate-directories: kube-flannel/kube-flannel-ds installs the CNI plugin in other directories than our manifest",
        ]
    );
    let edits: Vec<_> = report
        .remedies("migrate-flags")
        .into_iter()
        .skip(1)
        .map(|edit| {
            let edit = edit
                .strip_prefix("in units/kubernetes/selvage.yaml, container kube-flannel: ")
                .unwrap();
            edit.split(" (").next().unwrap()
        })
        .collect();
    assert_eq!(
        edits,
        [
            "take --ip-masq out of args: flannel does not masquerade here",
            "add to args: --iface=$(HOST_IP)",
            "add to env what flannel has: HOST_IP, for --iface=$(HOST_IP)",
            "add to args: --kube-api-url=http://127.0.0.1:10550",
            "add to args: --healthz-port=9440",
            "add to args: --subnet-file=/var/run/f/subnet.env",
            "mount into the container what flannel has: /var/run/f/subnet.env",
            "add to args: --v=5",
            "add to env what flannel has: FLANNELD_PUBLIC_IP",
            "add to env what flannel has: KUBERNETES_SERVICE_HOST",
        ]
    );
    let directories = report.remedies("migrate-directories");
    assert_eq!(
        directories,
        [
            "in units/kubernetes/selvage.yaml, volume cni-plugin: path: /var/lib/cni/bin in place of /opt/cni/bin"
        ]
    );
    assert!(report.says(
        "changes",
        "--etcd-endpoints of flannel's, without effect here, is left out"
    ));
    assert!(report.says(
        "changes",
        "the pods do not have /etc/kubernetes of the host any more"
    ));
    assert!(!report.value.to_string().contains("secret"), "{report:?}");
}

#[tokio::test]
async fn every_flag_is_listed_with_its_meaning() {
    let report = with_settings().report().await;
    let flags = report.list("daemon_sets")[0]["flags"].as_array().unwrap();
    let effects: Vec<_> = flags
        .iter()
        .map(|flag| flag["has_effect"].as_bool())
        .collect();
    let (yes, no) = (Some(true), Some(false));
    assert_eq!(effects, [yes, yes, yes, yes, no, None, yes, yes, yes]);
    assert_eq!(flags[4]["flag"], "--etcd-endpoints");
    assert_eq!(
        flags[1]["meaning"],
        "underlay interface, by name or address; the first one found is used"
    );
    assert!(flags[5]["meaning"].is_null());
}

#[tokio::test]
async fn nodes_that_are_not_as_they_must_be_are_named() {
    let world = World::of("flannel-0.28.9.yaml");
    world.server.change(|cluster| {
        cluster.edit("n1", |node| node["status"]["nodeInfo"] = info("linux", "riscv64", "v1.33.1"));
        cluster.annotate("n2", "backend-type", Some("host-gw"));
        let condition = json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        cluster.edit("n3", |node| node["status"]["conditions"] = json!([condition]));
        cluster.put(bare("n4", &[]));
        cluster.put(bare("n5", &["10.99.5.0/24"]));
        cluster.put(bare("n6", &["10.244.6.0/24"]));
        let mut windows = flannel("w1", 9);
        windows["status"]["nodeInfo"] = info("windows", "amd64", "v1.33.1");
        cluster.put(windows);
    });
    let report = world.report().await;
    assert_eq!(report.status, 1);
    let expected = [
        "error kube-nodes: the node n5 has a podCIDR outside the network 10.244.0.0/16",
        "error kube-nodes: the node n4 has no podCIDR",
        "error migrate-nodes: the node n2 publishes the backend host-gw, but the network config says vxlan",
        "error migrate-nodes: the node n1 is of the architecture riscv64, and our image is for amd64 and arm64",
        "warning kube-nodes: the node n6 has a podCIDR, but no annotations of flannel or of this agent",
        "warning migrate-nodes: the node n3 has the condition NetworkUnavailable",
        "warning migrate-nodes: the node w1 is not of Linux",
    ];
    assert_eq!(report.findings(), expected);
}

#[tokio::test]
async fn configs_that_the_agent_would_refuse_stand_in_the_way() {
    for (net_conf, expected) in [
        (
            r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "amazon", "PSK": "hidden"}}"#,
            "the backend \"amazon\" does not exist",
        ),
        (
            r#"{"Network": "10.244.0.0/33", "Backend": {"Type": "vxlan"}}"#,
            "Network: \"10.244.0.0/33\" is not",
        ),
        (r#"{"Network": "10.244.0.0/16","#, "not valid JSON: EOF"),
    ] {
        let world = World::changed("flannel-0.28.9.yaml", "ConfigMap", |map| {
            map["data"]["net-conf.json"] = json!(net_conf);
        });
        let report = world.report().await;
        assert_eq!(report.status, 1);
        let start = "error migrate-config: net-conf.json in kube-flannel/kube-flannel-cfg: ";
        let findings = report.findings();
        let finding = findings.iter().find(|finding| finding.starts_with(start));
        assert!(
            finding.is_some_and(|finding| finding.contains(expected)),
            "{findings:?}"
        );
        assert!(!report.value.to_string().contains("hidden"));
    }
    let world = World::changed("flannel-0.28.9.yaml", "ConfigMap", |map| {
        map["data"] =
            json!({"cni-conf.json": r#"{"name": "cbr0", "plugins": [{"type": "bridge"}]}"#});
    });
    assert_eq!(
        world.report().await.findings(),
        [
            "error migrate-config: the ConfigMap kube-flannel/kube-flannel-cfg has no net-conf.json",
            "error migrate-config: cni-conf.json in kube-flannel/kube-flannel-cfg: none of plugins is of type flannel: its pods would not be in the overlay",
        ]
    );
    let mut objects = manifest("flannel-0.28.9.yaml");
    objects.retain(|object| object["kind"] == "DaemonSet");
    let findings = World::new(objects).report().await.findings();
    assert_eq!(
        findings,
        [
            "error migrate-config: there is no ConfigMap kube-flannel/kube-flannel-cfg, which the pods mount"
        ]
    );
}

#[tokio::test]
async fn flannel_where_no_daemon_set_runs_it() {
    // k3s has it inside; its nodes tell by their kubelets' version.
    let world = World::new(Vec::new());
    let findings = world.report().await.findings();
    assert_eq!(
        findings,
        ["error migrate-flannel: 3 nodes have flannel's annotations, but no DaemonSet runs it"]
    );
    world.server.change(|cluster| {
        for name in ["n1", "n2"] {
            cluster.edit(name, |node| {
                node["status"]["nodeInfo"] = info("linux", "amd64", "v1.33.4+k3s1")
            });
        }
    });
    let report = world.report().await;
    assert_eq!(
        report.findings(),
        ["error migrate-flannel: flannel runs inside k3s on 2 nodes, and not as a DaemonSet"]
    );
    assert!(report.remedies("migrate-flannel")[0].contains("--flannel-backend=none"));
    let server = ApiServer::start();
    server.change(|cluster| cluster.put(bare("n1", &["10.244.1.0/24"])));
    let mut settings = Settings::default();
    settings.kubernetes.api_url = Some(server.url());
    let report = World { server, settings }.report().await;
    assert_eq!(
        report.findings()[0],
        "error migrate-flannel: no DaemonSet of this cluster runs flannel, and no node has its annotations"
    );
}

#[tokio::test]
async fn other_plugins_are_told_among_many_daemon_sets() {
    let world = World::of("flannel-0.28.9.yaml");
    let set = |name: &str, image: &str, container: &str| {
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": name, "namespace": "kube-system"},
            "spec": {
                "selector": {"matchLabels": {"name": name}},
                "template": {
                    "metadata": {"labels": {"name": name}},
                    "spec": {"containers": [{"name": container, "image": image, "args": ["flannel"]}]},
                },
            },
        })
    };
    world.put(set(
        "cilium",
        "quay.io/cilium/cilium:v1.17.1@sha256:0",
        "cilium-agent",
    ));
    world.put(set(
        "calico-node",
        "docker.io/calico/node:v3.30.0",
        "calico-node",
    ));
    world.put(set(
        "kube-multus-ds",
        "ghcr.io/k8snetworkplumbingwg/multus-cni:snapshot-thick",
        "kube-multus",
    ));
    world.put(set(
        "kube-proxy",
        "registry.k8s.io/kube-proxy:v1.33.1",
        "kube-proxy",
    ));
    for number in 0..150 {
        world.put(set(&format!("x{number:03}"), "node", "node"));
    }
    let report = world.report().await;
    assert_eq!(
        report.findings(),
        [
            "warning migrate-plugins: Calico runs here as well: kube-system/calico-node",
            "warning migrate-plugins: Cilium runs here as well: kube-system/cilium",
        ]
    );
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_and_the_rest_is_checked() {
    for (forbidden, right) in [
        (
            "GET /apis/apps/v1/daemonsets",
            "list daemonsets.apps in all namespaces",
        ),
        ("GET /api/v1/nodes", "list nodes"),
        (
            "GET /api/v1/namespaces/kube-flannel/configmaps",
            "get configmaps in kube-flannel",
        ),
    ] {
        let world = World::of("flannel-0.28.9.yaml");
        world
            .server
            .change(|cluster| cluster.faults.forbidden.push(forbidden));
        let report = world.report().await;
        assert_eq!(report.status, 1);
        let findings = report.findings();
        let [finding] = findings.as_slice() else {
            panic!("{findings:?}")
        };
        assert!(
            finding.starts_with(&format!("error migrate-rights: you may not {right}: "))
                && finding.contains(" is forbidden: User \"flannel\" cannot "),
            "{finding}"
        );
    }
    let world = World::of("flannel-0.28.9.yaml");
    world.server.change(|cluster| {
        cluster
            .faults
            .forbidden
            .extend(["GET /apis/rbac", "GET /version"]);
    });
    let report = world.report().await;
    assert_eq!(
        (report.status, report.list("unchecked").len()),
        (0, 2),
        "{report:?}"
    );
    assert!(report.value["server"].is_null());
}

#[tokio::test]
async fn an_unreachable_server_and_a_bad_login_end_it_with_words() {
    let mut files = Files::new("");
    let world = World::of("flannel-0.28.9.yaml");
    world
        .server
        .change(|cluster| cluster.tokens = vec!["right".to_owned()]);
    files.settings.api_url = None;
    let path = files.path("kubeconfig");
    let mut settings = Settings::default();
    settings.kubernetes.kubeconfig = Some(path.clone());
    let error = async |user: &str, settings: &Settings| {
        fs::write(&path, kubeconfig(&world.server.url(), None, user)).unwrap();
        let flags = MigrateFlags {
            json: false,
            color: Colour::Never,
            settings: MigrateSettings::default(),
        };
        let command = MigrateCommand::FromFlannel(flags);
        let mut output = Vec::new();
        let error = migrate::run(&command, settings, &mut output)
            .await
            .unwrap_err();
        assert!(output.is_empty());
        error.to_string()
    };
    let wrong = error("    token: wrong\n", &settings).await;
    assert!(
        wrong.contains("Unauthorized: the token in the kubeconfig is not accepted"),
        "{wrong}"
    );
    let exec = error("    exec:\n      command: aws\n", &settings).await;
    assert!(
        exec.contains("exec is not supported") && exec.contains("kubectl proxy"),
        "{exec}"
    );
    settings.kubernetes.kubeconfig = None;
    settings.kubernetes.api_url = Some("http://127.0.0.1:1".to_owned());
    let refused = error("    token: right\n", &settings).await;
    assert!(
        refused.contains("API server at http://127.0.0.1:1: connection refused"),
        "{refused}"
    );
    assert!(!refused.contains("kubectl proxy"), "{refused}");
}

/// A cluster of two networks, each with its own flannel, and its config from the host.
#[tokio::test]
async fn a_prefix_and_a_config_from_elsewhere_are_noticed() {
    let mut world = World::changed("flannel-0.28.9.yaml", "DaemonSet", |set| {
        let pod = &mut set["spec"]["template"]["spec"];
        let args = pod["containers"][0]["args"].as_array_mut().unwrap();
        args.push(json!("--kube-annotation-prefix=org.example/blue"));
        let config = json!({"name": "flannel-cfg", "hostPath": {"path": "/etc/kube-flannel"}});
        pod["volumes"][3] = config;
    });
    let expected = [
        "warning kube-nodes: 3 nodes have a podCIDR, but no annotations of flannel or of this agent: n1, n2, n3",
        "warning migrate-flags: flannel's annotations begin with org.example/blue, and those with flannel.alpha.coreos.com/ were looked for",
        "warning migrate-flags: kube-flannel/kube-flannel-ds has settings that our manifest lacks",
    ];
    world.server.change(|cluster| {
        for number in 1..=3 {
            let name = format!("n{number}");
            cluster.annotate(&name, "kube-subnet-manager", None);
            cluster.edit(&name, |node| {
                node["metadata"]["annotations"]["org.example/blue-kube-subnet-manager"] =
                    json!("true");
                node["metadata"]["annotations"]["org.example/blue-backend-type"] = json!("vxlan");
            });
        }
    });
    let report = world.report().await;
    let config = "warning migrate-config: kube-flannel/kube-flannel-ds mounts no ConfigMap with the network config, so this cannot check it";
    assert_eq!(report.findings(), [&[config], &expected[..]].concat());
    assert!(
        report
            .how()
            .iter()
            .any(|line| line.ends_with("| kubectl apply -f -"))
    );
    world.settings.kubernetes.annotation_prefix = "org.example/blue-".to_owned();
    assert_eq!(world.report().await.findings(), [config, expected[2]]);
}

/// flannel before 0.10 had a config of one plugin; kubespray named what its script wrote by a variable.
#[tokio::test]
async fn another_cni_config_would_stay_beside_ours() {
    let world = World::changed("flannel-0.28.9.yaml", "DaemonSet", |set| {
        let pod = &mut set["spec"]["template"]["spec"];
        pod["initContainers"][1]["command"] = json!(["/bin/sh"]);
        pod["initContainers"][1]["args"][1] = json!("/etc/cni/net.d/10-flannel.conf");
    });
    let report = world.report().await;
    assert_eq!(
        report.findings(),
        [
            "warning migrate-directories: kube-flannel/kube-flannel-ds writes the CNI config 10-flannel.conf, and ours is 10-flannel.conflist"
        ]
    );
    let remedy = "when all nodes have moved, on each: rm /etc/cni/net.d/10-flannel.conf";
    assert_eq!(report.remedies("migrate-directories"), [remedy]);
    let world = World::changed("flannel-0.28.9.yaml", "DaemonSet", |set| {
        let init = &mut set["spec"]["template"]["spec"]["initContainers"];
        init[1]["args"] = json!([]);
        init[1]["command"] = json!(["/install-cni.sh"]);
        init[1]["env"] = json!([{"name": "CNI_CONF_NAME", "value": "10-flannel.conflist"}]);
    });
    assert_eq!(world.report().await.findings(), [""; 0]);
}
