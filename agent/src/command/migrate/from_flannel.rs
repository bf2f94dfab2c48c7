//! From kube-flannel to this agent.

use std::collections::BTreeSet;

use super::cluster::{Role, Seen};
use super::daemon::{Daemon, Made, Program};
use super::kubectl::{
    self, CONFIG_MAP, DAEMON_SET, MANIFEST, NAMESPACE, copy_config_map, delete, exec, wait, word,
};
use super::plugins::FLANNEL;
use super::{Judgement, Step, bar_both, config, flags, mounts, nodes, plugins};
use crate::base::go_json::shorten;
use crate::cluster::network_config::NetworkConfig;

/// The rights of our ClusterRole.
const OUR_RIGHTS: [&str; 4] = [
    "get nodes",
    "list nodes",
    "watch nodes",
    "patch nodes/status",
];

/// The first minor version of Kubernetes that knows all fields of our manifest: `seccompProfile` is of 1.19.
const LEAST_MINOR: u32 = 19;

/// What becomes of a DaemonSet of flannel's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// A chart's release is upgraded.
    Helm,
    /// Our manifest is applied over it.
    Over,
    /// It is deleted without its pods, which ours takes over.
    Orphan,
    /// It is deleted.
    Delete,
}

fn way(daemon: &Daemon) -> Way {
    if matches!(daemon.made, Made::Helm { .. }) {
        return Way::Helm;
    }
    // A DaemonSet finds its pods by labels, in its own namespace.
    if daemon.namespace != NAMESPACE || !daemon.is_found_by_ours {
        return Way::Delete;
    }
    let is_the_same = daemon.name == DAEMON_SET && daemon.has_our_selector;
    match is_the_same && daemon.made == Made::Applied {
        true => Way::Over,
        false => Way::Orphan,
    }
}

pub(super) fn judge(seen: &Seen) -> Judgement {
    let mut judgement = Judgement::default();
    let flannels: Vec<_> = seen.of(Program::Flannel).collect();
    plugins::judge_absence(seen, &mut judgement);
    plugins::judge(seen, &mut judgement);
    judge_both(seen, &flannels, &mut judgement);
    let main = seen.main(Program::Flannel);
    let map = main.and_then(|daemon| seen.config_map(daemon));
    let network = map.and_then(|map| map.judge_network(&mut judgement));
    if let Some(daemon) = flannels
        .first()
        .filter(|daemon| daemon.config_map.is_none())
    {
        config::judge_absence(daemon, &mut judgement);
    }
    nodes::judge(seen.nodes(), network.as_ref(), main, &mut judgement);
    judgement.network = network.as_ref().map(config::shown);
    if flannels.is_empty() {
        tell_moved(seen, &mut judgement);
        return judgement;
    }
    nodes::judge_platforms(seen.nodes(), &mut judgement);
    judge_version(seen, &mut judgement);
    judge_move(seen, &flannels, network.as_ref(), &mut judgement);
    judgement
}

/// The move of DaemonSets that are there.
fn judge_move(
    seen: &Seen,
    flannels: &[&Daemon],
    network: Option<&NetworkConfig>,
    judgement: &mut Judgement,
) {
    let mut is_futile = false;
    for daemon in flannels {
        is_futile |= judge_daemon(daemon, judgement);
        flags::judge_prefix(daemon, &seen.prefix, judgement);
    }
    if is_futile {
        return;
    }
    let map = flannels.first().and_then(|daemon| seen.config_map(daemon));
    if let Some(map) = map {
        map.judge_cni(judgement);
    }
    for daemon in flannels {
        tell_changes(daemon, judgement);
    }
    let mut edits = judge_agents(flannels, judgement);
    edits.extend(judge_backend(network, flannels, judgement));
    judge_reach(seen, flannels, judgement);
    judge_role(seen.role.as_ref(), judgement);
    judgement.changes.push(format!(
        "the network config, the nodes' podCIDRs and their annotations {}… stay as they are",
        shorten(&seen.prefix)
    ));
    // Of several DaemonSets, each says the same.
    let mut told = BTreeSet::new();
    let changes = &mut judgement.changes;
    changes.retain(|change| told.insert(change.clone()));
    judgement.steps = steps(flannels, edits);
}

/// What there is to say where the move has been made.
fn tell_moved(seen: &Seen, judgement: &mut Judgement) {
    for daemon in seen.of(Program::Selvage) {
        let moved = format!("{} runs this agent already", daemon.shown());
        judgement.changes.push(moved);
        judgement.steps = vec![look()];
    }
}

fn judge_both(seen: &Seen, flannels: &[&Daemon], judgement: &mut Judgement) {
    let ours = seen.of(Program::Selvage).next();
    let Some((ours, theirs)) = ours.zip(flannels.first()) else {
        return;
    };
    let delete = delete(&theirs.namespace, &theirs.name, true);
    bar_both(
        ours,
        theirs,
        format!("delete flannel's: {delete}"),
        judgement,
    );
}

fn judge_version(seen: &Seen, judgement: &mut Judgement) {
    let Some(version) = &seen.version else {
        return;
    };
    if version.minor.is_some_and(|minor| minor < LEAST_MINOR) {
        judgement.bar(
            FLANNEL,
            "server",
            format!("the API server is {}, which does not know seccompProfile", shorten(&version.text)),
            "kubectl apply refuses our manifest",
            vec![format!("take securityContext of the pod out of {MANIFEST}, or upgrade the cluster to 1.19 or later")],
        );
    }
}

/// What is particular to a DaemonSet; returns whether the move is futile.
fn judge_daemon(daemon: &Daemon, judgement: &mut Judgement) -> bool {
    let shown = daemon.shown();
    let mut is_futile = plugins::judge_beside(daemon, judgement);
    let line = daemon.agent.command_line();
    let variable = daemon.agent.variable("FLANNELD_KUBE_SUBNET_MGR");
    let by_variable = variable.is_some_and(|variable| variable.value.as_deref() != Some("false"));
    if !line.is_on("kube-subnet-mgr") && !by_variable && !daemon.agent.is_script() {
        is_futile = true;
        judgement.bar(
            FLANNEL,
            &shown,
            format!("flannel in {shown} has no --kube-subnet-mgr: its leases are in etcd, not in Kubernetes"),
            "a node's subnet would become another one, its podCIDR, and pods keep the old one",
            vec!["move it as docs/hosts.md says: the agent with the same etcd endpoints and prefix".to_owned()],
        );
    }
    if daemon.ready < daemon.desired {
        judgement.warn(
            FLANNEL,
            &shown,
            format!(
                "flannel is ready on {} of {} nodes of {shown}",
                daemon.ready, daemon.desired
            ),
            "what is broken before a move is broken after it, and then looks like its fault",
            vec![format!(
                "see why: kubectl -n {} get pods -o wide, and kubectl logs",
                word(&daemon.namespace)
            )],
        );
    }
    is_futile
}

/// What becomes of a DaemonSet and its pods.
fn tell_changes(daemon: &Daemon, judgement: &mut Judgement) {
    let (shown, image) = (daemon.shown(), shorten(&daemon.agent.image));
    judgement.changes.push(match way(daemon) {
        Way::Delete => format!(
            "{shown} ({image}) is deleted, and {NAMESPACE}/{DAEMON_SET} made; in between nothing follows changes, and the nodes' network stays as it is"
        ),
        _ => format!(
            "{shown}: the image {image} becomes this agent's, one node after the other, a tenth of them at a time"
        ),
    });
    if !daemon.init.is_empty() {
        let names: Vec<_> = daemon.init.iter().map(|init| init.name.as_str()).collect();
        judgement.changes.push(format!(
            "selvage cni install does the work of the init container{} {}: it writes plugin and config list in one step each, and keeps what somebody changed",
            if names.len() == 1 { "" } else { "s" },
            names.join(", ")
        ));
    }
    if daemon.agent.is_privileged {
        let less = "the agent is not privileged any more: NET_ADMIN, NET_RAW and a read-only root are enough";
        judgement.changes.push(less.to_owned());
    }
}

/// Flags, variables and directories, of each kind of agent once; returns what must be written into our manifest.
fn judge_agents(flannels: &[&Daemon], judgement: &mut Judgement) -> Vec<String> {
    let mut kinds: Vec<&Daemon> = Vec::new();
    for daemon in flannels {
        let same = |known: &&Daemon| {
            let (known, daemon) = (&known.agent, &daemon.agent);
            known.words == daemon.words && known.variables == daemon.variables
        };
        if !kinds.iter().any(same) {
            kinds.push(daemon);
        }
    }
    if let [first, second, ..] = kinds.as_slice() {
        judgement.warn(
            flags::CHECK,
            second.shown(),
            format!("{} and {} differ in flags or variables", first.shown(), second.shown()),
            "our manifest is one DaemonSet for all Linux nodes, and has the same flags everywhere",
            vec!["make a copy of ours for each kind of node, with another name and label, and flannel's nodeSelector or affinity".to_owned()],
        );
    }
    let mut edits = Vec::new();
    for daemon in kinds {
        edits.extend(flags::judge(daemon, judgement));
        edits.extend(mounts::judge(daemon, judgement));
    }
    edits.dedup();
    edits
}

/// What the backend asks for, and what pods notice.
fn judge_backend(
    network: Option<&NetworkConfig>,
    flannels: &[&Daemon],
    judgement: &mut Judgement,
) -> Vec<String> {
    let Some(network) = network else {
        return Vec::new();
    };
    let mut edits = Vec::new();
    let kind = network.backend.kind.as_str();
    let is_helm = flannels.iter().all(|daemon| way(daemon) == Way::Helm);
    if kind == "udp" && !is_helm {
        let edit =
            "securityContext of the container kube-flannel: privileged: true, and no capabilities";
        judgement.warn(
            flags::CHECK,
            kind,
            "the backend udp needs /dev/net/tun, which only a privileged container has",
            "without it the agent waits, and the node has no overlay",
            vec![format!("in {MANIFEST}, {edit}")],
        );
        edits.push(edit.to_owned());
    }
    judgement.pods.push(
        match kind {
            "udp" => "packets between nodes pass through flannel: those of a node are lost from the end of its flannel until the agent runs, some seconds",
            "wireguard" => "flannel removes its device when it stops: a node's pods reach no other node from then until the agent runs, some seconds",
            _ => "pods keep running, and no packet is lost: device, MAC address, routes and rules stay while a node's pod is replaced",
        }
        .to_owned(),
    );
    judgement.changes.extend(mixed(kind).map(|needs| {
        format!("until all nodes have moved, those with flannel and those with the agent are peers; for that {needs}")
    }));
    if kind == "vxlan" && network.ipv6.is_some() {
        judgement.pods.push(
            "pods that start after the move have an MTU of 20 bytes less, 1430 on an underlay of 1500: flannel forgets that an outer IPv6 header is longer".to_owned(),
        );
    }
    edits
}

/// What nodes with flannel and with this agent need to reach each other, besides one network config.
fn mixed(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "vxlan" => "all must have the VNI and Port of the network config, as they have it now",
        "wireguard" => {
            "all must have the PSK, Mode and ports of the network config, as they have them now"
        }
        "host-gw" => "all must be in one layer 2 network, as they are now",
        "udp" => "all must have the Port of the network config, as they have it now",
        "ipip" => "nothing is needed but IP protocol 4 between them, as now",
        _ => return None,
    })
}

/// Nodes that flannel does not run on, and ours will.
fn judge_reach(seen: &Seen, flannels: &[&Daemon], judgement: &mut Judgement) {
    let Some(nodes) = &seen.nodes else { return };
    let linux = nodes.iter().filter(|node| nodes::is_linux(node)).count();
    let desired: u64 = flannels.iter().map(|daemon| daemon.desired).sum();
    let has_status = desired > 0;
    if has_status && desired < linux as u64 {
        judgement.changes.push(format!(
            "the agent runs on all {linux} Linux nodes, flannel on {desired}: ours tolerates every taint and selects nothing but Linux"
        ));
    }
}

fn judge_role(role: Option<&Role>, judgement: &mut Judgement) {
    let Some(role) = role else { return };
    let lost = role
        .rights
        .iter()
        .filter(|right| !OUR_RIGHTS.contains(&right.as_str()));
    let lost: Vec<_> = lost.take(8).map(|right| shorten(right)).collect();
    if !lost.is_empty() {
        judgement.changes.push(format!(
            "the ClusterRole flannel allows no more: {}. A flannel that restarts before its turn waits in a crash loop for its successor; the network of its node goes on",
            lost.join(", ")
        ));
    }
    let ours = format!("{NAMESPACE}/flannel");
    let others = role.accounts.iter().filter(|account| **account != ours);
    let others: Vec<_> = others.take(8).map(|account| shorten(account)).collect();
    if !others.is_empty() {
        judgement.changes.push(format!(
            "the ClusterRoleBinding flannel is for the service account {ours}, and no more for {}",
            others.join(", ")
        ));
    }
    judgement.changes.push(
        "a Role and a RoleBinding flannel in the namespace default allow the agent to create events about nodes".to_owned(),
    );
}

fn look() -> Step {
    Step::new(
        "look at the nodes, and at what one agent sees",
        vec![
            wait(),
            "kubectl get nodes -o wide".to_owned(),
            exec("status"),
            exec("doctor"),
        ],
    )
}

fn steps(flannels: &[&Daemon], edits: Vec<String>) -> Vec<Step> {
    let mut steps = vec![Step::new(
        "push the image to a registry that the nodes reach",
        vec!["make oci && skopeo copy --all oci-archive:target/oci/selvage_VERSION.oci.tar docker://REGISTRY/selvage:VERSION".to_owned()],
    )];
    if !edits.is_empty() {
        steps.push(Step::new(
            format!("write into {MANIFEST} what flannel has"),
            edits,
        ));
    }
    let is_helm = |daemon: &&&Daemon| way(daemon) == Way::Helm;
    if let Some(daemon) = flannels.iter().find(is_helm) {
        steps.extend(helm(daemon));
    } else {
        steps.extend(apply(flannels));
    }
    steps.push(look());
    steps.extend(leftovers(flannels));
    steps
}

fn helm(daemon: &Daemon) -> Option<Step> {
    let Made::Helm { release, namespace } = &daemon.made else {
        return None;
    };
    let (release, namespace) = (word(release), word(namespace));
    Some(Step::new(
        "upgrade the release to our chart, with its values but for flannel's images",
        vec![
            format!("helm -n {namespace} get values {release} -o yaml > values.yaml"),
            "take flannel.image and flannel.flannel_cni out of values.yaml, and netpol if it is on"
                .to_owned(),
            format!(
                "helm -n {namespace} upgrade {release} units/kubernetes/chart -f values.yaml --set flannel.image.repository=REGISTRY/selvage,flannel.image.tag=VERSION"
            ),
        ],
    ))
}

/// Whether the ConfigMap is where our manifest mounts it from.
fn has_our_config_map(daemon: &Daemon) -> bool {
    daemon.namespace == NAMESPACE && daemon.config_map.as_deref() == Some(CONFIG_MAP)
}

fn apply(flannels: &[&Daemon]) -> Vec<Step> {
    let mut steps = Vec::new();
    let main = flannels
        .first()
        .filter(|daemon| !has_our_config_map(daemon));
    if let Some((daemon, map)) =
        main.and_then(|daemon| daemon.config_map.as_ref().map(|map| (daemon, map)))
    {
        steps.push(Step::new(
            format!("bring the ConfigMap to where the manifest has it, {NAMESPACE}/{CONFIG_MAP}"),
            vec![
                format!("kubectl create namespace {NAMESPACE}"),
                copy_config_map(&daemon.namespace, map),
            ],
        ));
    }
    for daemon in flannels {
        let (namespace, name) = (&daemon.namespace, &daemon.name);
        match way(daemon) {
            Way::Orphan => steps.push(Step::new(
                "delete the DaemonSet without its pods, which ours takes over: it cannot be changed into ours, or would keep what is flannel's",
                vec![delete(namespace, name, false)],
            )),
            Way::Delete => steps.push(Step::new(
                "delete the DaemonSet, since two cannot be on one node; its network stays while nothing runs",
                vec![delete(namespace, name, true)],
            )),
            Way::Helm | Way::Over => {}
        }
    }
    let has_config = flannels.iter().any(|daemon| daemon.config_map.is_some());
    let what = match has_config {
        true => "apply all but the ConfigMap, which stays as it is",
        false => "apply all of it",
    };
    steps.push(Step::new(what, vec![kubectl::apply(!has_config)]));
    steps
}

/// What the new DaemonSet does not use, of those that were elsewhere.
fn leftovers(flannels: &[&Daemon]) -> Option<Step> {
    let elsewhere = flannels.iter().filter(|daemon| way(daemon) == Way::Delete);
    let mut how: Vec<String> = elsewhere
        .map(|daemon| {
            let map = daemon.config_map.iter();
            let map = map.map(|map| format!("configmap/{map}"));
            let account = Some(&daemon.service_account).filter(|name| !name.is_empty());
            let account = account.map(|name| format!("serviceaccount/{name}"));
            let objects: Vec<_> = map.chain(account).map(|object| word(&object)).collect();
            format!(
                "kubectl -n {} delete {}",
                word(&daemon.namespace),
                objects.join(" ")
            )
        })
        .filter(|command| !command.ends_with("delete "))
        .collect();
    how.dedup();
    let what = "when all nodes are well, remove what nobody uses any more";
    (!how.is_empty()).then(|| Step::new(what, how))
}
