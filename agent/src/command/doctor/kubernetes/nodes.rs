//! The cluster's other nodes: those that the overlay does not reach, for want of a podCIDR, of one inside the network,
//! or of an agent.

use ipnet::IpNet;

use super::{not_checked, sample, survey};
use crate::cluster::lease::kube::SeenNode;
use crate::command::doctor::{Context, Finding, Outcome, Severity, cluster};

pub(super) const NAME: &str = "kube-nodes";

pub(super) async fn check(context: &Context<'_>) -> Outcome {
    let nodes = survey(context).nodes().await.map_err(not_checked)?;
    let status = context.status.as_ref().ok();
    let networks: Vec<_> = status.into_iter().flat_map(cluster::networks).collect();
    Ok(judge(&nodes, &networks))
}

/// Findings about the nodes of an overlay with these networks; without them, nobody is outside.
pub(in crate::command) fn judge(nodes: &[SeenNode], networks: &[IpNet]) -> Vec<Finding> {
    let is_outside = |node: &&SeenNode| is_outside(node, networks);
    let lacks_one = |node: &&SeenNode| lacks_one(node, networks);
    let (outside, inside): (Vec<_>, Vec<_>) = nodes.iter().partition(is_outside);
    let (bare, inside): (Vec<_>, Vec<_>) = inside.into_iter().partition(lacks_one);
    let silent: Vec<_> = inside.into_iter().filter(|node| !node.takes_part).collect();
    let mut findings = Vec::new();
    if !outside.is_empty() {
        let shown: Vec<_> = networks.iter().map(ToString::to_string).collect();
        findings.push(about(
            &outside,
            Severity::Error,
            &format!("a podCIDR outside the network {}", shown.join(" and ")),
            "their pods get addresses that the overlay does not carry, and the agents there wait",
            "make Network in net-conf.json the --cluster-cidr of kube-controller-manager: kubectl -n kube-flannel edit configmap kube-flannel-cfg",
        ));
    }
    if !bare.is_empty() {
        let has_some = bare.iter().any(|node| !node.cidrs.is_empty());
        let of_a_family = " of a family that the network has";
        findings.push(about(
            &bare,
            Severity::Error,
            &format!("no podCIDR{}", if has_some { of_a_family } else { "" }),
            "the agents there have no subnet and wait",
            "have kube-controller-manager assign them: --allocate-node-cidrs=true --cluster-cidr=NETWORK",
        ));
    }
    if !silent.is_empty() {
        findings.push(about(
            &silent,
            Severity::Warning,
            "a podCIDR, but no annotations of flannel or of this agent",
            "no agent has run there yet, or it uses another annotation prefix: other nodes have no route to their pods",
            "see whether it runs there: kubectl -n kube-flannel get pods -o wide",
        ));
    }
    findings
}

/// The podCIDRs of a network's family.
fn cidrs<'a>(node: &'a SeenNode, network: &IpNet) -> impl Iterator<Item = &'a IpNet> {
    let is_v4 = network.addr().is_ipv4();
    let cidrs = node.cidrs.iter();
    cidrs.filter(move |cidr| cidr.addr().is_ipv4() == is_v4)
}

/// Whether all podCIDRs of a family are outside the network: the agent there waits, whatever the other family has.
fn is_outside(node: &SeenNode, networks: &[IpNet]) -> bool {
    networks.iter().any(|network| {
        let mut cidrs = cidrs(node, network).peekable();
        cidrs.peek().is_some() && !cidrs.any(|cidr| network.contains(cidr))
    })
}

/// Whether there is no podCIDR, or none of a family that the network has.
fn lacks_one(node: &SeenNode, networks: &[IpNet]) -> bool {
    let lacks = |network: &IpNet| cidrs(node, network).next().is_none();
    node.cidrs.is_empty() || networks.iter().any(lacks)
}

fn about(nodes: &[&SeenNode], severity: Severity, have: &str, why: &str, remedy: &str) -> Finding {
    let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    let what = match names.as_slice() {
        [one] => format!("the node {one} has {have}"),
        names => format!("{} nodes have {have}: {}", names.len(), sample(names)),
    };
    let see = "see what Kubernetes has: kubectl get node -o custom-columns=NAME:.metadata.name,PODCIDR:.spec.podCIDRs";
    Finding::new(
        NAME,
        severity,
        names.first().copied().unwrap_or_default(),
        what,
        why,
        vec![remedy.to_owned(), see.to_owned()],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    fn node(name: &str, cidrs: &[&str], takes_part: bool) -> SeenNode {
        SeenNode {
            name: name.to_owned(),
            cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            takes_part,
            ..SeenNode::default()
        }
    }

    fn networks(cidrs: &[&str]) -> Vec<IpNet> {
        cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()
    }

    #[test]
    fn in_dual_stack_each_family_counts() {
        let nodes = [
            node("both", &["10.244.2.0/24", "fd00:10:244:2::/64"], true),
            node("half", &["10.42.2.0/24", "fd00:10:244:3::/64"], true),
            node("one", &["10.244.1.0/24"], true),
        ];
        let said = judge(&nodes, &networks(&["10.244.0.0/16", "fd00:10:244::/48"]));
        let said: Vec<_> = said.into_iter().map(|finding| finding.what).collect();
        assert_eq!(
            said,
            [
                "the node half has a podCIDR outside the network 10.244.0.0/16 and fd00:10:244::/48",
                "the node one has no podCIDR of a family that the network has",
            ]
        );
    }

    #[test]
    fn each_kind_of_node_is_one_finding() {
        let networks = networks(&["10.244.0.0/16"]);
        let nodes = [
            node("good", &["10.244.1.0/24"], true),
            // A cluster in dual stack whose overlay is IPv4.
            node("both", &["10.244.2.0/24", "fd00:10:244:2::/64"], true),
            node("k3s", &["10.42.1.0/24"], false),
            node("bare", &[], false),
            node("new1", &["10.244.3.0/24"], false),
            node("new2", &["10.244.4.0/24"], false),
        ];
        let said: Vec<_> = judge(&nodes, &networks)
            .into_iter()
            .map(|finding| finding.what)
            .collect();
        assert_eq!(
            said,
            [
                "the node k3s has a podCIDR outside the network 10.244.0.0/16",
                "the node bare has no podCIDR",
                "2 nodes have a podCIDR, but no annotations of flannel or of this agent: new1, new2",
            ]
        );
        assert!(judge(&nodes[..2], &networks).is_empty());
        // Without the network nobody is outside it.
        let said = judge(&nodes, &[]);
        assert!(
            said.iter().all(|finding| !finding.what.contains("outside")),
            "{said:?}"
        );
    }
}
