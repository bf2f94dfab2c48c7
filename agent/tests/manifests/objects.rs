//! The objects are Kubernetes' own, apply over flannel's, and ask for no more rights than the agent needs.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use selvage::base::yaml;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{chart, read};

/// The documents of a manifest.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let text = format!("\n{text}");
    let documents = text.split("\n---\n").map(yaml::parse);
    let documents: Result<Vec<_>, _> = documents.collect();
    let mut documents = documents.expect("YAML");
    documents.retain(|document| !document.is_null());
    documents
}

/// The one object of this kind.
pub(crate) fn one<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let mut found = documents.iter().filter(|object| object["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("there is no {kind}"));
    assert!(found.next().is_none(), "there are two of {kind}");
    object
}

/// Reads an object as one of Kubernetes' types; the error names what is wrong with it.
fn check(object: &Value) -> Result<(), String> {
    let name = format!("{} {}", object["apiVersion"], object["kind"]).replace('"', "");
    let read = match name.as_str() {
        "v1 Namespace" => typed::<Namespace>(object),
        "v1 ServiceAccount" => typed::<ServiceAccount>(object),
        "v1 ConfigMap" => typed::<ConfigMap>(object),
        "apps/v1 DaemonSet" => typed::<DaemonSet>(object),
        "rbac.authorization.k8s.io/v1 ClusterRole" => typed::<ClusterRole>(object),
        "rbac.authorization.k8s.io/v1 ClusterRoleBinding" => typed::<ClusterRoleBinding>(object),
        "rbac.authorization.k8s.io/v1 Role" => typed::<Role>(object),
        "rbac.authorization.k8s.io/v1 RoleBinding" => typed::<RoleBinding>(object),
        _ => Err("it is of no kind that this test knows".to_owned()),
    };
    read.map_err(|error| format!("{name}: {error}"))
}

fn typed<T: DeserializeOwned>(object: &Value) -> Result<(), String> {
    let mut unknown = BTreeSet::new();
    let read: Result<T, _> =
        serde_ignored::deserialize(object, |path| _ = unknown.insert(path.to_string()));
    read.map_err(|error| error.to_string())?;
    if unknown.is_empty() {
        Ok(())
    } else {
        Err(format!("unknown fields: {unknown:?}"))
    }
}

#[test]
fn kubernetes_knows_every_field_of_every_object() {
    for (name, text) in [
        ("the manifest", read("selvage.yaml")),
        ("the chart", chart::render("").expect("objects")),
        ("every value", chart::render(EVERYTHING).expect("objects")),
        (
            "udp",
            chart::render("flannel: {backend: udp, backendPort: 8286}").expect("objects"),
        ),
    ] {
        let documents = documents(&text);
        assert!(documents.len() >= 7, "{name} has {}", documents.len());
        for object in &documents {
            check(object).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}

/// Values that have every line of the templates rendered.
const EVERYTHING: &str = r#"
global: {imagePullSecrets: [{name: a-test-secret}]}
podCidrv6: "2001:cafe:42::/56"
createNamespace: true
flannel:
  env: [{name: SELVAGE_LOG, value: debug}]
  backendPort: 4789
  vni: 4096
  GBP: true
  directRouting: true
  mtu: 1450
  macPrefix: 0E-2A
  nodeSelector: {"eks.amazonaws.com/compute-type": hybrid}
  resources: {requests: {cpu: 100m}, limits: {memory: 256Mi}}
"#;

#[test]
fn a_field_that_kubernetes_does_not_know_is_found() {
    let manifest = read("selvage.yaml");
    for (right, wrong, said) in [
        (
            "readOnlyRootFilesystem",
            "readOnlyRootFileSystem",
            "readOnlyRootFileSystem",
        ),
        (
            "maxUnavailable",
            "maxUnavaliable",
            "rollingUpdate.?.maxUnavaliable",
        ),
        (
            "    hostNetwork: true",
            "    hostNetwork: enabled",
            "boolean",
        ),
        ("  verbs: [patch]", "  verb: [patch]", "verb"),
    ] {
        assert!(manifest.contains(right), "{right}");
        let text = manifest.replace(right, wrong);
        let errors = documents(&text);
        let errors: Vec<_> = errors
            .iter()
            .filter_map(|object| check(object).err())
            .collect();
        assert!(
            errors.iter().any(|error| error.contains(said)),
            "{wrong}: {errors:?}"
        );
    }
}

/// flannel v0.28.9's Documentation/kube-flannel.yml. `kubectl apply` changes the objects of these names; the selector of
/// a DaemonSet cannot change, and what is in lists is known by its name.
#[test]
fn the_manifest_applies_over_that_of_flannel() {
    let documents = documents(&read("selvage.yaml"));
    let name = |kind| {
        let metadata = &one(&documents, kind)["metadata"];
        (metadata["name"].clone(), metadata["namespace"].clone())
    };
    assert_eq!(name("Namespace"), (json!("kube-flannel"), Value::Null));
    assert_eq!(name("ClusterRole"), (json!("flannel"), Value::Null));
    assert_eq!(name("ClusterRoleBinding"), (json!("flannel"), Value::Null));
    assert_eq!(
        name("ServiceAccount"),
        (json!("flannel"), json!("kube-flannel"))
    );
    assert_eq!(
        name("ConfigMap"),
        (json!("kube-flannel-cfg"), json!("kube-flannel"))
    );
    assert_eq!(
        name("DaemonSet"),
        (json!("kube-flannel-ds"), json!("kube-flannel"))
    );

    let namespace = &one(&documents, "Namespace")["metadata"]["labels"];
    assert_eq!(
        namespace["pod-security.kubernetes.io/enforce"],
        "privileged"
    );
    assert_eq!(namespace["k8s-app"], "flannel");
    let spec = &one(&documents, "DaemonSet")["spec"];
    assert_eq!(spec["selector"], json!({"matchLabels": {"app": "flannel"}}));
    assert_eq!(
        spec["template"]["metadata"]["labels"],
        json!({"app": "flannel", "tier": "node"})
    );
    let config = one(&documents, "ConfigMap")["data"]["net-conf.json"].as_str();
    let words = config.expect("a text").split_whitespace();
    assert_eq!(
        words.collect::<String>(),
        r#"{"Network":"10.244.0.0/16","EnableNFTables":false,"Backend":{"Type":"vxlan"}}"#
    );
}

#[test]
fn containers_and_volumes_have_flannels_names() {
    let documents = documents(&read("selvage.yaml"));
    let pod = &one(&documents, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["name"], "kube-flannel");
    assert_eq!(
        pod["containers"][0]["command"],
        json!(["/opt/bin/flanneld"])
    );
    assert_eq!(pod["initContainers"][0]["name"], "install-cni");
    let names = |list: &Value| -> BTreeSet<String> {
        let list = list.as_array().expect("a list").iter();
        list.map(|one| one["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    let volumes = names(&pod["volumes"]);
    for volume in ["run", "cni-plugin", "cni", "flannel-cfg", "xtables-lock"] {
        assert!(volumes.contains(volume), "{volume}");
    }
    for container in pod["initContainers"]
        .as_array()
        .into_iter()
        .chain(pod["containers"].as_array())
        .flatten()
    {
        let mounts = names(&container["volumeMounts"]);
        assert!(mounts.is_subset(&volumes), "{mounts:?}");
    }
}

#[test]
fn the_service_account_has_no_more_rights_than_the_agent_needs() {
    let documents = documents(&read("selvage.yaml"));
    let rule = |resource, verbs: &[&str]| json!({"apiGroups": [""], "resources": [resource], "verbs": verbs});
    assert_eq!(
        one(&documents, "ClusterRole")["rules"],
        json!([
            rule("nodes", &["get", "list", "watch"]),
            rule("nodes/status", &["patch"])
        ])
    );
    // Events about nodes are in this namespace.
    let role = one(&documents, "Role");
    assert_eq!(role["metadata"]["namespace"], "default");
    assert_eq!(role["rules"], json!([rule("events", &["create"])]));
    for kind in ["RoleBinding", "ClusterRoleBinding"] {
        let subjects = &one(&documents, kind)["subjects"];
        assert_eq!(
            subjects,
            &json!([{"kind": "ServiceAccount", "name": "flannel", "namespace": "kube-flannel"}])
        );
    }
}

#[test]
fn the_containers_have_no_more_privileges_than_the_agent_needs() {
    let documents = documents(&read("selvage.yaml"));
    let pod = &one(&documents, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(
        pod["securityContext"],
        json!({"seccompProfile": {"type": "RuntimeDefault"}})
    );
    assert_eq!(
        pod["containers"][0]["securityContext"],
        json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
        })
    );
    assert_eq!(
        pod["initContainers"][0]["securityContext"],
        json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["DAC_OVERRIDE"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
        })
    );
    for absent in ["hostPID", "hostIPC"] {
        assert!(pod[absent].is_null(), "{absent}");
    }
    let paths: BTreeSet<_> = pod["volumes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["hostPath"]["path"].as_str())
        .collect();
    assert_eq!(
        paths,
        BTreeSet::from([
            "/etc/cni/net.d",
            "/opt/cni/bin",
            "/run/flannel",
            "/run/xtables.lock",
            "/var/lib/selvage"
        ])
    );
}

#[test]
fn an_agent_is_on_every_node_and_replaced_without_a_gap_in_the_network() {
    let documents = documents(&read("selvage.yaml"));
    let spec = &one(&documents, "DaemonSet")["spec"];
    assert_eq!(
        spec["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "10%"}})
    );
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(
        pod["tolerations"],
        json!([{"effect": "NoExecute", "operator": "Exists"}, {"effect": "NoSchedule", "operator": "Exists"}])
    );
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &pod["containers"][0][probe]["httpGet"];
        assert_eq!(
            get,
            &json!({"host": "127.0.0.1", "path": path, "port": "healthz"})
        );
    }
}
