//! The cluster's nodes: what their kubelets say of them, and what they publish.

use super::daemon::Daemon;
use super::kubectl::{CONFIG_MAP, DAEMON_SET, NAMESPACE, edit_config_map, rollout};
use super::{Judgement, Node};
use crate::base::go_json::shorten;
use crate::cluster::lease::kube::SeenNode;
use crate::cluster::network_config::NetworkConfig;
use crate::command::doctor::{judge_nodes, sample};

/// The name of these checks.
const CHECK: &str = "migrate-nodes";

/// The architectures that `make oci` builds for.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// As in the report.
pub(super) fn shown(node: &SeenNode) -> Node {
    Node {
        name: node.name.clone(),
        pod_cidrs: node.cidrs.iter().map(ToString::to_string).collect(),
        annotated: node.takes_part,
        backend: node.backend.clone(),
        facts: node.facts.clone(),
    }
}

/// Whether a node may have an agent: what says nothing of itself runs Linux.
pub(super) fn is_linux(node: &SeenNode) -> bool {
    matches!(node.facts.os.as_str(), "" | "linux")
}

fn names<'a>(nodes: impl Iterator<Item = &'a SeenNode>) -> Vec<&'a str> {
    nodes.map(|node| node.name.as_str()).collect()
}

/// `the node a` or `3 nodes (a, b, c)`.
fn called(names: &[&str]) -> String {
    match names {
        [one] => format!("the node {}", shorten(one)),
        names => format!("{} nodes ({})", names.len(), sample(names)),
    }
}

/// `has` or `have`.
fn verb<'a>(names: &[&str], one: &'a str, many: &'a str) -> &'a str {
    if names.len() == 1 { one } else { many }
}

/// What both directions look at: podCIDRs, annotations, the backends, and whether the network is up.
pub(super) fn judge(
    nodes: &[SeenNode],
    config: Option<&NetworkConfig>,
    main: Option<&Daemon>,
    judgement: &mut Judgement,
) {
    let networks: Vec<_> = config
        .into_iter()
        .flat_map(NetworkConfig::networks)
        .collect();
    let linux: Vec<_> = nodes
        .iter()
        .filter(|node| is_linux(node))
        .cloned()
        .collect();
    for mut finding in judge_nodes(&linux, &networks) {
        for remedy in &mut finding.remedy {
            *remedy = remedy.replace(&edit_config_map(NAMESPACE, CONFIG_MAP), &edit(main));
        }
        judgement.findings.push(finding);
    }
    if let Some(config) = config {
        judge_backends(&linux, config, main, judgement);
    }
    let down = names(linux.iter().filter(|node| node.unavailable.is_some()));
    if !down.is_empty() {
        judgement.warn(
            CHECK,
            down[0],
            format!(
                "{} {} the condition NetworkUnavailable",
                called(&down),
                verb(&down, "has", "have")
            ),
            "the overlay is not up there now; what is broken before a move is broken after it",
            vec!["see the reason: kubectl describe node NODE".to_owned()],
        );
    }
}

/// Opens the ConfigMap, wherever it is.
fn edit(main: Option<&Daemon>) -> String {
    let named = main.and_then(|daemon| Some((&daemon.namespace, daemon.config_map.as_ref()?)));
    match named {
        Some((namespace, name)) => edit_config_map(namespace, name),
        None => edit_config_map(NAMESPACE, CONFIG_MAP),
    }
}

/// Restarts the pods, wherever they are.
fn restart(main: Option<&Daemon>) -> String {
    match main {
        Some(daemon) => rollout("restart", &daemon.namespace, &daemon.name),
        None => rollout("restart", NAMESPACE, DAEMON_SET),
    }
}

/// Nodes whose backend is not that of the network config.
fn judge_backends(
    nodes: &[SeenNode],
    config: &NetworkConfig,
    main: Option<&Daemon>,
    judgement: &mut Judgement,
) {
    let kind = config.backend.kind.as_str();
    // These publish no name.
    let published = if matches!(kind, "udp" | "alloc") {
        ""
    } else {
        kind
    };
    let others = nodes
        .iter()
        .filter(|node| node.takes_part && node.backend != published);
    let others: Vec<_> = others.collect();
    let Some(first) = others.first() else {
        return;
    };
    let names = names(others.iter().copied());
    let theirs = match first.backend.as_str() {
        "" => "no backend, as udp and alloc do".to_owned(),
        theirs => format!("the backend {}", shorten(theirs)),
    };
    judgement.bar(
        CHECK,
        names[0],
        format!(
            "{} {} {theirs}, but the network config says {kind}",
            called(&names),
            verb(&names, "publishes", "publish"),
        ),
        "nodes of different backends do not reach each other: flannel read the config before it was changed, and each node that is moved follows it and leaves the others. Until all have moved, all must have one backend, with the same VNI or port",
        vec![
            format!("have flannel read the config, which interrupts traffic between nodes: {}", restart(main)),
            format!("or put into the config what runs: {}", edit(main)),
        ],
    );
}

/// Nodes that our image does not run on.
pub(super) fn judge_platforms(nodes: &[SeenNode], judgement: &mut Judgement) {
    let is_foreign = |node: &&SeenNode| {
        let arch = node.facts.arch.as_str();
        is_linux(node) && !arch.is_empty() && !ARCHITECTURES.contains(&arch)
    };
    let foreign: Vec<_> = nodes.iter().filter(is_foreign).collect();
    if let Some(first) = foreign.first() {
        let names = names(foreign.iter().copied());
        judgement.bar(
            CHECK,
            names[0],
            format!(
                "{} {} of the architecture {}, and our image is for {}",
                called(&names),
                verb(&names, "is", "are"),
                shorten(&first.facts.arch),
                ARCHITECTURES.join(" and ")
            ),
            "the pod there ends with exec format error; flannel's is gone then, and its network stays as it is until something changes",
            vec![
                "build the agent for it, as image/README.md says".to_owned(),
                "or keep flannel on these nodes: a DaemonSet of its own, with another name and a nodeSelector on kubernetes.io/arch, and the same for ours with the others".to_owned(),
            ],
        );
    }
    let windows = names(nodes.iter().filter(|node| !is_linux(node)));
    if !windows.is_empty() {
        judgement.warn(
            CHECK,
            windows[0],
            format!(
                "{} {} not of Linux",
                called(&windows),
                verb(&windows, "is", "are")
            ),
            "this agent is for Linux; other nodes keep flannel, and are peers as before",
            vec![
                "leave their DaemonSet as it is; Windows needs \"VNI\": 4096 and \"Port\": 4789 in Backend, which stay"
                    .to_owned(),
            ],
        );
    }
}

/// Different values with how many nodes have each: `3 linux/amd64, 1 linux/arm64`.
pub(super) fn counted(nodes: &[Node], value: fn(&Node) -> String) -> String {
    let mut counts = std::collections::BTreeMap::<String, usize>::new();
    for node in nodes {
        *counts.entry(value(node)).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let more = counts.len().saturating_sub(MOST_VALUES);
    counts.truncate(MOST_VALUES);
    let texts = counts.iter().map(|(value, count)| match value.as_str() {
        "" => format!("{count} unknown"),
        value => format!("{count} {}", shorten(value)),
    });
    let mut text = texts.collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// So many different values are told: kernels of a large cluster may be many.
const MOST_VALUES: usize = 4;
