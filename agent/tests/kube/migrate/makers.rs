//! The manifests of flannel and of others who bring it along.

use std::io::Write;
use std::process::{Command, Stdio};

use selvage::base::yaml;
use serde_json::json;

use super::world::{APPLY, World, manifest};

#[tokio::test]
async fn flannels_own_manifest_is_applied_over_and_nothing_stands_in_the_way() {
    let world = World::of("flannel-0.28.9.yaml");
    let report = world.report().await;
    assert_eq!(report.findings(), [""; 0]);
    assert_eq!(report.status, 0);
    let program = &report.list("daemon_sets")[0];
    assert_eq!(program["program"], "flannel");
    assert_eq!(
        (&program["desired"], &program["ready"]),
        (&json!(3), &json!(3))
    );
    let network = json!({"networks": ["10.244.0.0/16"], "backend": "vxlan"});
    assert_eq!(report.value["network"], network);
    let node = &report.list("nodes")[0];
    assert_eq!(node["name"], "n1");
    assert_eq!(node["kernel"], "6.12.41+deb13-amd64");
    assert_eq!(node["runtime"], "containerd://2.1.4");
    assert!(report.says("changes", "init containers install-cni-plugin, install-cni"));
    assert!(report.says(
        "changes",
        "the ClusterRole flannel allows no more: get pods"
    ));
    assert!(report.says("changes", "no more on 0.0.0.0:8081"));
    assert!(report.says(
        "changes",
        "CONT_WHEN_CACHE_NOT_READY, EVENT_QUEUE_DEPTH, POD_NAME"
    ));
    assert!(report.says("pods", "no packet is lost"));
    assert!(report.says(
        "changes",
        "all must have the VNI and Port of the network config"
    ));
    let how = report.how();
    assert_eq!(how[1], APPLY);
    assert!(how.iter().all(|line| !line.contains(" delete ")), "{how:?}");
    world.server.look(|cluster| {
        let reads = cluster.asked.iter().all(|line| line.starts_with("GET "));
        assert!(reads, "{:?}", cluster.asked);
    });
}

#[tokio::test]
async fn the_text_says_the_same() {
    let world = World::of("flannel-0.28.9.yaml");
    let (status, text) = world.run(false, false).await;
    assert_eq!(status, 0);
    if world.server.real().is_none() {
        assert!(text.starts_with("Server     v1.33.1-eks-0\n"), "{text}");
    }
    for line in [
        "flannel    kube-flannel/kube-flannel-ds, ghcr.io/flannel-io/flannel:v0.28.9, ready on 3 of 3 nodes",
        "           --healthz-port=8081: TCP port of the health endpoints; 0 is off",
        "Network    10.244.0.0/16, backend vxlan",
        "Nodes      3: 3 linux/amd64",
        "Kernels    3 6.12.41+deb13-amd64",
        "Will change",
        "Steps",
        "2. apply all but the ConfigMap, which stays as it is",
    ] {
        assert!(text.lines().any(|said| said == line), "{line:?} in {text}");
    }
    assert!(
        text.lines().all(|line| line.chars().count() < 400),
        "{text}"
    );
}

/// One DaemonSet for each architecture, as flannel had them until 0.13.
#[tokio::test]
async fn an_old_flannel_in_kube_system_is_deleted_and_its_config_brought_along() {
    let mut objects = manifest("flannel-0.11.yaml");
    let amd64 = objects.iter().find(|object| object["kind"] == "DaemonSet");
    let arm64 = amd64.unwrap().to_string().replace("amd64", "arm64");
    objects.push(serde_json::from_str(&arm64).unwrap());
    let world = World::new(objects);
    let report = world.report().await;
    assert_eq!((report.findings(), report.status), (Vec::new(), 0));
    let how = report.how();
    let expected = [
        "kubectl create namespace kube-flannel",
        "kubectl -n kube-system get configmap kube-flannel-cfg -o yaml | sed -e '/^  \\(uid\\|resourceVersion\\|creationTimestamp\\):/d' -e 's/^  namespace: .*/  namespace: kube-flannel/' -e 's/^  name: .*/  name: kube-flannel-cfg/' | kubectl create -f -",
        "kubectl -n kube-system delete daemonset kube-flannel-ds-amd64",
        "kubectl -n kube-system delete daemonset kube-flannel-ds-arm64",
        APPLY,
    ];
    assert_eq!(how[1..6], expected);
    assert_eq!(
        how.last(),
        Some(&"kubectl -n kube-system delete configmap/kube-flannel-cfg serviceaccount/flannel")
    );
    assert!(report.says("changes", "not privileged any more"));
    assert!(report.says("changes", "where flannel answers nothing"));
    assert!(report.says("changes", "no more for kube-system/flannel"));
    assert!(!report.says("changes", " /run of the host"));
}

#[tokio::test]
async fn a_daemon_set_that_cannot_become_ours_leaves_its_pods_to_it() {
    let world = World::of("kops.yaml");
    world.server.change(|cluster| {
        for number in 1..=3 {
            cluster.edit(&format!("n{number}"), |node| {
                let cidr = format!("100.96.{number}.0/24");
                node["spec"] = json!({"podCIDR": &cidr, "podCIDRs": [&cidr]});
            });
        }
    });
    let report = world.report().await;
    let expected =
        "warning migrate-flannel: flannel is ready on 2 of 3 nodes of kube-flannel/kube-flannel-ds";
    assert_eq!(
        (report.findings(), report.status),
        (vec![expected.to_owned()], 2)
    );
    let how = report.how();
    let orphan = "kubectl -n kube-flannel delete daemonset kube-flannel-ds --cascade=orphan";
    assert_eq!(how[1..3], [orphan, APPLY]);
    // Five seconds are the default.
    assert!(!how.iter().any(|line| line.contains("iptables-resync")));
}

#[tokio::test]
async fn flags_in_the_command_are_carried_over() {
    let world = World::of("kubespray.yaml");
    world.server.change(|cluster| {
        for number in 1..=3 {
            cluster.edit(&format!("n{number}"), |node| {
                let cidr = format!("10.233.{}.0/24", 63 + number);
                node["spec"] = json!({"podCIDR": &cidr, "podCIDRs": [&cidr]});
            });
        }
    });
    let report = world.report().await;
    let expected =
        "warning migrate-flags: kube-system/kube-flannel has settings that our manifest lacks";
    assert_eq!(
        (report.findings(), report.status),
        (vec![expected.to_owned()], 2)
    );
    let remedies = report.remedies("migrate-flags");
    assert_eq!(remedies.len(), 1);
    assert!(
        remedies[0].contains(r"add to args: --iface-regex=10\.34\..* (pattern for"),
        "{remedies:?}"
    );
    assert!(report.how()[1].starts_with(r"add to args: --iface-regex=10\.34\..*"));
    assert!(report.says("changes", "runs on all 3 Linux nodes, flannel on 2"));
}

#[tokio::test]
async fn canal_is_not_taken_apart() {
    let world = World::of("canal.yaml");
    let report = world.report().await;
    assert_eq!(report.status, 1);
    let findings = report.findings();
    assert_eq!(
        findings[0],
        "error migrate-flannel: kube-system/canal has Calico beside flannel, as Canal does"
    );
    assert_eq!(report.list("steps").len(), 0, "{report:?}");
    assert_eq!((findings.len(), report.list("changes").len()), (1, 0));
    let flags = report.list("daemon_sets")[0]["flags"].as_array().unwrap();
    assert_eq!(flags[2]["flag"], "FLANNELD_IFACE=$(a field or an object)");
    assert_eq!(flags.len(), 3, "--ip-masq wins over FLANNELD_IP_MASQ");
}

#[tokio::test]
async fn a_release_is_upgraded_by_helm() {
    let world = World::of("helm.yaml");
    world.server.change(|cluster| {
        for number in 1..=3 {
            cluster.edit(&format!("n{number}"), |node| {
                let cidrs = [
                    format!("10.44.{number}.0/24"),
                    format!("fd00:44:0:{number}::/64"),
                ];
                node["spec"] = json!({"podCIDR": &cidrs[0], "podCIDRs": cidrs});
            });
            cluster.annotate(&format!("n{number}"), "backend-type", Some("wireguard"));
        }
    });
    let report = world.report().await;
    let policies = "warning migrate-flannel: kube-flannel/kube-flannel-ds has other containers beside flannel: kube-network-policies (registry.k8s.io/networking/kube-network-policies:v1.0.0)";
    // The release's values have --iface and the plugins' directory for our chart as well.
    assert_eq!(
        (report.findings(), report.status),
        (vec![policies.to_owned()], 2)
    );
    let how = report.how();
    assert_eq!(
        how[1],
        "helm -n kube-flannel get values flannel -o yaml > values.yaml"
    );
    assert!(how[3].starts_with(
        "helm -n kube-flannel upgrade flannel units/kubernetes/chart -f values.yaml --set"
    ));
    assert!(report.says("pods", "flannel removes its device when it stops"));
}

/// What `kubectl get configmap -o yaml` prints.
const PRINTED: &str = r#"apiVersion: v1
data:
  cni-conf.json: |
    {
      "name": "cbr0",
      "plugins": [{"type": "flannel"}]
    }
  net-conf.json: |
    namespace: 10.244.0.0/16
kind: ConfigMap
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"metadata":{"name":"kube-flannel-cfg","namespace":"kube-system"}}
  creationTimestamp: "2019-03-01T10:00:00Z"
  labels:
    app: flannel
  name: kube-flannel-cfg
  namespace: kube-system
  resourceVersion: "289"
  uid: 8a4b0b3c-3c05-11e9-8f1d-0800274a6f6a
"#;

#[tokio::test]
async fn a_config_is_brought_along_as_it_is() {
    let report = World::of("flannel-0.11.yaml").report().await;
    let how = report.how();
    let copy = how
        .iter()
        .find(|line| line.contains("get configmap"))
        .unwrap();
    let sed = copy.split(" | ").nth(1).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", sed])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(PRINTED.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let copied = yaml::parse(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let mut expected = yaml::parse(PRINTED).unwrap();
    let metadata = expected["metadata"].as_object_mut().unwrap();
    metadata.retain(|name, _| {
        !["creationTimestamp", "resourceVersion", "uid"].contains(&name.as_str())
    });
    metadata.insert("namespace".to_owned(), json!("kube-flannel"));
    assert_eq!(copied, expected);
}
