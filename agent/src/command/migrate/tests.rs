//! Objects that no API server should have, and what is said of all checks.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::cluster::Seen;
use super::daemon::{Container, Daemon, Program, image_name};
use super::{back, from_flannel, plugins};
use crate::cluster::lease::kube::SeenNode;

/// A DaemonSet with this container.
fn set(container: Value) -> Value {
    json!({
        "metadata": {"name": "kube-flannel-ds", "namespace": "kube-flannel"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    })
}

fn program(container: Value) -> Option<Program> {
    Daemon::read(&set(container)).map(|daemon| daemon.program)
}

#[test]
fn flannel_is_known_by_its_program_and_we_by_ours() {
    for flannel in [
        json!({"command": ["/opt/bin/flanneld"], "args": ["--kube-subnet-mgr"]}),
        json!({"image": "registry:5000/rancher/mirrored-flannel-io-flannel:v0.28.9", "args": ["--kube-subnet-mgr"]}),
        json!({"image": "flannel/flannel@sha256:00", "args": ["-kube-subnet-mgr"]}),
        json!({"command": ["/bin/sh", "-c", "set -e; exec /opt/bin/flanneld --ip-masq"]}),
    ] {
        assert_eq!(
            program(flannel.clone()),
            Some(Program::Flannel),
            "{flannel}"
        );
    }
    for ours in [
        json!({"image": "registry.internal/infra/selvage:0.1.0", "command": ["/opt/bin/flanneld"]}),
        json!({"image": "x", "command": ["/usr/bin/selvage", "run", "--kube-subnet-mgr"]}),
    ] {
        assert_eq!(program(ours.clone()), Some(Program::Selvage), "{ours}");
    }
    for other in [
        json!({"image": "flannel/flannel-cni-plugin:v1"}),
        json!({"image": "calico/node", "args": ["--kube-subnet-manager"]}),
        json!({}),
    ] {
        assert_eq!(program(other.clone()), None, "{other}");
    }
    assert_eq!(image_name("h:5000/a/b:v1@sha256:c"), "b");
    assert_eq!(image_name(""), "");
}

#[test]
fn flags_of_a_script_are_not_guessed() {
    let script = json!({"command": ["/bin/sh", "-c"], "args": ["flanneld --ip-masq --bad"]});
    let script = Container::read(&script);
    assert!(script.is_script() && script.command_line().flags.is_empty());
    let ours = json!({"command": ["/usr/bin/selvage"], "args": ["run", "--kube-subnet-mgr", "--firewall-mode", "nftables"]});
    let ours = Container::read(&ours).command_line();
    assert_eq!((ours.flags.len(), ours.unread), (2, None));
    // The image's own program.
    let bare = Container::read(&json!({"args": ["--ip-masq", "-iface", "eth1"]}));
    assert_eq!(bare.command_line().flags.len(), 2);
    assert!(
        Container::read(&json!({"command": []}))
            .command_line()
            .flags
            .is_empty()
    );
}

/// A cluster with this DaemonSet.
fn seen(sets: &[Value]) -> Seen {
    Seen {
        has_daemons: true,
        daemons: sets.iter().filter_map(Daemon::read).collect(),
        plugins: sets.iter().filter_map(plugins::of_daemon_set).collect(),
        nodes: Some(vec![SeenNode::default()]),
        ..Seen::default()
    }
}

#[test]
fn names_that_are_no_names_stay_one_word_of_a_command() {
    let mut odd = set(json!({"command": ["/opt/bin/flanneld"], "args": ["--kube-subnet-mgr"]}));
    odd["metadata"] = json!({"name": "x; reboot", "namespace": "$(id)"});
    odd["spec"]["template"]["spec"]["volumes"] = json!([{"configMap": {"name": "`id`"}}]);
    let judgement = from_flannel::judge(&seen(&[odd]));
    let mut how = judgement.steps.iter().flat_map(|step| &step.how);
    assert!(
        how.any(|line| line == "kubectl -n '$(id)' delete daemonset 'x; reboot'"),
        "{:?}",
        judgement.steps
    );
    let mut how = judgement.steps.iter().flat_map(|step| &step.how);
    assert!(
        how.all(|line| !line.contains(" `id`")),
        "{:?}",
        judgement.steps
    );
}

#[test]
fn long_texts_are_shortened() {
    let long = "x".repeat(1 << 20);
    let container = json!({
        "name": &long, "image": &long, "command": ["/opt/bin/flanneld"],
        "args": [format!("--iface={long}"), format!("--{long}"), "--kube-subnet-mgr", &long],
        "env": [{"name": format!("FLANNELD_{long}"), "value": &long}, {"name": "FLANNELD_PUBLIC_IP", "value": &long}],
    });
    let mut long_set = set(container);
    long_set["metadata"] = json!({"name": &long, "namespace": &long});
    let judgement = from_flannel::judge(&seen(&[long_set]));
    let findings = judgement.findings.iter();
    let texts = findings.flat_map(|finding| finding.remedy.iter().chain([&finding.what]));
    let texts = texts.chain(&judgement.changes).chain(&judgement.pods);
    for text in texts {
        assert!(text.len() < 2000, "{} bytes: {:.200}", text.len(), text);
    }
    assert!(judgement.findings.len() > 2);
}

/// Texts that mean something somewhere.
const TEXTS: &[&str] = &[
    "",
    "/opt/bin/flanneld",
    "--kube-subnet-mgr",
    "--iface",
    "selvage",
    "In",
    "windows",
    "kubernetes.io/os",
    "flannel",
    "/etc/cni/net.d",
    "$(X)",
    "\u{202e}\u{0}",
    "FLANNELD_IFACE",
];

/// Keys that are looked for.
const KEYS: &[&str] = &[
    "metadata",
    "name",
    "namespace",
    "annotations",
    "spec",
    "template",
    "containers",
    "initContainers",
    "command",
    "args",
    "env",
    "value",
    "valueFrom",
    "volumes",
    "hostPath",
    "path",
    "volumeMounts",
    "mountPath",
    "configMap",
    "selector",
    "matchLabels",
    "status",
    "desiredNumberScheduled",
    "numberReady",
    "affinity",
    "nodeAffinity",
    "nodeSelectorTerms",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "image",
    "app",
    "securityContext",
    "privileged",
];

/// JSON with the keys that are looked for, in any place and of any type.
fn odd_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(TEXTS).prop_map(Value::from),
    ];
    leaf.prop_recursive(8, 64, 6, move |inner| {
        let key = prop::sample::select(KEYS).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

proptest! {
    #[test]
    fn no_object_makes_it_panic(container in odd_json(), anything in odd_json(), part in odd_json()) {
        let mut known = set(container);
        let containers = known["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
        containers.push(json!({"command": ["/opt/bin/flanneld"], "args": part}));
        let mut replaced = known.clone();
        replaced["spec"]["template"]["spec"]["volumes"] = anything.clone();
        replaced["metadata"] = anything.clone();
        let sets = [known, replaced, anything];
        let cluster = seen(&sets);
        prop_assert!(!cluster.daemons.is_empty());
        from_flannel::judge(&cluster);
        back::judge(&cluster);
    }
}

#[test]
fn every_check_is_in_the_guide() {
    let guide = include_str!("../../../docs/kubernetes.md");
    let files = [
        include_str!("cluster.rs"),
        include_str!("config.rs"),
        include_str!("flags.rs"),
        include_str!("mounts.rs"),
        include_str!("nodes.rs"),
        include_str!("plugins.rs"),
    ];
    let name = regex_lite::Regex::new("\"(migrate-[a-z]+)\"").unwrap();
    let mut names: Vec<_> = files
        .iter()
        .flat_map(|text| name.captures_iter(text))
        .map(|found| found[1].to_owned())
        .collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 7, "{names:?}");
    for name in names {
        assert!(guide.contains(&format!("`{name}`")), "{name}");
    }
}
