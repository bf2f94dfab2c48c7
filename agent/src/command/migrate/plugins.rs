//! Other pod networks, by the DaemonSets that run them, and flannel where no DaemonSet runs it.

use serde_json::Value;

use super::Judgement;
use super::cluster::Seen;
use super::daemon::{Container, Daemon, Program, image_name, list, text};
use super::kubectl::{FLANNELS, word};
use crate::base::go_json::shorten;
use crate::cluster::lease::kube::SeenNode;

/// The name of these checks.
const CHECK: &str = "migrate-plugins";

/// The name of the checks about flannel itself.
pub(super) const FLANNEL: &str = "migrate-flannel";

/// Names of images that are pod networks, which mirrors put something before, with what they are called.
const NETWORKS: [(&str, &str); 12] = [
    ("amazon-k8s-cni", "the Amazon VPC CNI"),
    ("antrea-agent-ubuntu", "Antrea"),
    ("antrea-ubuntu", "Antrea"),
    ("azure-cns", "the Azure CNI"),
    ("calico-node", CALICO),
    ("cilium", "Cilium"),
    ("kilo", "Kilo"),
    ("kindnetd", "kindnet"),
    ("kube-ovn", "Kube-OVN"),
    ("kube-router", "kube-router"),
    ("terway", "Terway"),
    ("weave-kube", "Weave Net"),
];

const CALICO: &str = "Calico";

/// A DaemonSet that is a pod network, or may be one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plugin {
    /// As in `kubectl -n`.
    shown: String,
    /// What it is called.
    called: &'static str,
}

/// What a container is, if it is a pod network.
fn called(container: &Container) -> Option<&'static str> {
    // Its own image has too common a name.
    if container.name == "calico-node" || container.image.contains("calico/node") {
        return Some(CALICO);
    }
    let name = image_name(&container.image);
    let is_it = |image: &str| {
        let mirror = name.strip_suffix(image);
        mirror.is_some_and(|mirror| mirror.is_empty() || mirror.ends_with('-'))
    };
    let mut networks = NETWORKS.iter();
    networks
        .find(|(image, _)| is_it(image))
        .map(|(_, called)| *called)
}

/// What a DaemonSet that does not run flannel is, if it is a pod network.
pub(super) fn of_daemon_set(set: &Value) -> Option<Plugin> {
    let containers = list(set, "/spec/template/spec/containers").iter();
    let called = containers.map(Container::read).find_map(|it| called(&it))?;
    let (namespace, name) = (
        text(set, "/metadata/namespace"),
        text(set, "/metadata/name"),
    );
    Some(Plugin {
        shown: format!("{}/{}", shorten(namespace), shorten(name)),
        called,
    })
}

/// Pod networks beside flannel. Multus calls whichever plugin is there, so it is none.
pub(super) fn judge(seen: &Seen, judgement: &mut Judgement) {
    for Plugin { shown, called } in &seen.plugins {
        judgement.warn(
            CHECK,
            shown,
            format!("{called} runs here as well: {shown}"),
            "container runtimes take the first config by name in their directory, so pods may be in its network and not in the overlay; a move changes nothing about that",
            vec!["after the move: selvage doctor in a pod of the agent names the config that counts on its node".to_owned()],
        );
    }
}

/// A DaemonSet that has more than flannel.
pub(super) fn judge_beside(daemon: &Daemon, judgement: &mut Judgement) -> bool {
    let shown = daemon.shown();
    if let Some(called) = daemon.beside.iter().find_map(called) {
        judgement.bar(
            FLANNEL,
            &shown,
            format!("{shown} has {called} beside flannel, as Canal does"),
            "our manifest takes the place of the whole DaemonSet: without the other container, network policies are not enforced any more",
            vec![
                "install Calico for network policies alone by a manifest of its own first, then delete this DaemonSet and install the agent".to_owned(),
                "or leave it as it is".to_owned(),
            ],
        );
        return true;
    }
    let others = daemon.beside.iter();
    // What old manifests had in place of an init container.
    let others = others.filter(|container| !container.name.starts_with("install-cni"));
    let others: Vec<_> = others
        .map(|container| format!("{} ({})", container.name, shorten(&container.image)))
        .collect();
    if !others.is_empty() {
        judgement.warn(
            FLANNEL,
            &shown,
            format!("{shown} has other containers beside flannel: {}", others.join(", ")),
            "our manifest has them not, so they end with the move",
            vec!["if they are needed, run them in a DaemonSet of their own first: kube-network-policies has a manifest".to_owned()],
        );
    }
    false
}

/// Where no DaemonSet runs flannel: why, and what that means.
pub(super) fn judge_absence(seen: &Seen, judgement: &mut Judgement) {
    if !seen.has_daemons || !seen.daemons.is_empty() {
        return;
    }
    let nodes = seen.nodes();
    let annotated = nodes.iter().filter(|node| node.takes_part).count();
    let is_k3s = |node: &&SeenNode| node.facts.kubelet.contains("+k3s");
    let k3s = nodes.iter().filter(is_k3s).count();
    if k3s > 0 && annotated > 0 {
        judgement.bar(
            FLANNEL,
            "k3s",
            format!("flannel runs inside k3s on {k3s} nodes, and not as a DaemonSet"),
            "while it does, an agent beside it programs the same device: each has its own idea of it",
            vec![
                "have k3s start without it, on each server: --flannel-backend=none in its arguments or flannel-backend: none in /etc/rancher/k3s/config.yaml".to_owned(),
                "put the plugins bridge, host-local, loopback and portmap into /opt/cni/bin of each node: without flannel, k3s's containerd looks there and in /etc/cni/net.d, not in its own directories".to_owned(),
                "apply the manifest, with the cluster's --cluster-cidr (10.42.0.0/16 unless it was given) as Network, and restart k3s node by node".to_owned(),
            ],
        );
        return;
    }
    let (what, why, remedy) = if annotated > 0 {
        (
            format!("{annotated} nodes have flannel's annotations, but no DaemonSet runs it"),
            "flannel is a service of the hosts, or runs no more",
            vec!["if it is a service: move node by node, as docs/hosts.md says, with --kube-subnet-mgr".to_owned()],
        )
    } else {
        (
            match seen.nodes {
                Some(_) => {
                    "no DaemonSet of this cluster runs flannel, and no node has its annotations"
                }
                None => "no DaemonSet of this cluster runs flannel",
            }
            .to_owned(),
            "there is nothing to move; or its annotations have another prefix",
            vec![
                "install the agent as docs/kubernetes.md says: Install".to_owned(),
                format!(
                    "if flannel has --kube-annotation-prefix: call this with it; here {} counts",
                    word(&seen.prefix)
                ),
            ],
        )
    };
    judgement.bar(FLANNEL, "flannel", what, why, remedy);
}

/// Where no DaemonSet runs this agent.
pub(super) fn judge_our_absence(seen: &Seen, judgement: &mut Judgement) {
    if !seen.has_daemons || seen.of(Program::Selvage).next().is_some() {
        return;
    }
    let theirs = seen.of(Program::Flannel).next();
    let what = match theirs {
        Some(daemon) => format!(
            "{} runs flannel already, and no DaemonSet runs this agent",
            daemon.shown()
        ),
        None => "no DaemonSet of this cluster runs this agent".to_owned(),
    };
    judgement.bar(
        FLANNEL,
        "selvage",
        what,
        "there is nothing to move back; an agent that is a service of its host is moved as docs/hosts.md says",
        vec![format!("where flannel is wanted as well: kubectl apply -f {FLANNELS}")],
    );
}
