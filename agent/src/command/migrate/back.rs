//! From this agent back to kube-flannel, of the version that is compared with.

use super::cluster::Seen;
use super::daemon::{Daemon, Made, Program};
use super::kubectl::{DAEMON_SET, FLANNELS, NAMESPACE, delete, wait, word};
use super::{Judgement, Step, bar_both, config, flags, nodes, plugins};
use crate::base::go_json::shorten;
use crate::cluster::network_config::NetworkConfig;
use crate::flannel::flanneld::listed::{self, Listed};

/// What flannel's manifest gives it.
const THEIRS: [(&str, &str); 3] = [
    ("ip-masq", "true"),
    ("kube-subnet-mgr", "true"),
    ("healthz-port", "8081"),
];

pub(super) fn judge(seen: &Seen) -> Judgement {
    let mut judgement = Judgement::default();
    plugins::judge_our_absence(seen, &mut judgement);
    let ours: Vec<_> = seen.of(Program::Selvage).collect();
    let theirs = seen.of(Program::Flannel).next();
    if let Some((ours, theirs)) = ours.first().zip(theirs) {
        let delete = delete(&ours.namespace, &ours.name, true);
        let remedy = format!("delete the one that is not wanted: {delete}");
        bar_both(ours, theirs, remedy, &mut judgement);
    }
    let main = seen.main(Program::Selvage);
    let map = main.and_then(|daemon| seen.config_map(daemon));
    let network = map.and_then(|map| map.judge_for_flannel(&mut judgement));
    judgement.network = network.as_ref().map(config::shown);
    nodes::judge(seen.nodes(), network.as_ref(), main, &mut judgement);
    if ours.is_empty() {
        return judgement;
    }
    let mut edits = Vec::new();
    for daemon in &ours {
        edits.extend(judge_flags(daemon, &mut judgement));
    }
    if map.is_some_and(super::config::ConfigMap::asks_for_status) {
        judgement.changes.push(
            "flannel's CNI plugin says that it is ready whether or not it is, so pods may start before the overlay is there, and are tried again".to_owned(),
        );
    }
    judge_process(network.as_ref(), &mut judgement);
    judge_pods(network.as_ref(), &mut judgement);
    judgement.steps = steps(&ours, edits, network.as_ref());
    judgement
}

/// Settings that flannel lacks, or takes otherwise; returns what must be written into its manifest.
fn judge_flags(daemon: &Daemon, judgement: &mut Judgement) -> Vec<String> {
    let shown = daemon.shown();
    let line = daemon.agent.command_line();
    let variables = daemon.variables().iter().filter_map(|variable| {
        listed::of_variable(&variable.name, variable.value.as_deref().unwrap_or("$(…)"))
    });
    let given: Vec<Listed> = line.flags.iter().cloned().chain(variables).collect();
    let is_flannels = |flag: &&Listed| flag.meaning.is_some_and(|meaning| meaning.is_flannels);
    let lacking = given.iter().filter(|flag| !is_flannels(flag));
    let lacking = lacking.map(|flag| shorten(&flag.argument()));
    let own = daemon
        .variables()
        .iter()
        .map(|variable| variable.name.as_str());
    let own = own.filter(|name| name.starts_with("SELVAGE_")).map(shorten);
    let lacking: Vec<_> = lacking.chain(own).collect();
    if !lacking.is_empty() {
        judgement.warn(
            flags::CHECK,
            &shown,
            format!("flannel lacks settings that {shown} has: {}", lacking.join(", ")),
            "what they do is not done any more; a flag that flannel does not know makes it end at once, with status 0",
            vec!["leave them out, and see in docs/settings.md what they are for".to_owned()],
        );
    }
    let has = |name: &str| {
        given
            .iter()
            .any(|flag| flag.name == name && !flag.value.is_empty())
    };
    let has_interface = ["iface", "iface-regex", "iface-can-reach"]
        .into_iter()
        .any(has);
    if has("public-ip") && !has_interface {
        judgement.warn(
            flags::CHECK,
            &shown,
            format!("{shown} has --public-ip, and does not name an interface"),
            "flannel then ends with status 1, unless an interface of the node has that address",
            vec!["add --iface, with the interface of the default route".to_owned()],
        );
    }
    given.iter().filter_map(edit).collect()
}

/// What must be written into flannel's manifest for a flag; `None` if it has it, or has no use for it.
fn edit(flag: &Listed) -> Option<String> {
    let meaning = flag.meaning.filter(|meaning| meaning.counts)?;
    let mut theirs = THEIRS.iter();
    let is_theirs = theirs.any(|(name, value)| *name == flag.name && *value == flag.value);
    let is_needed = meaning.is_flannels && !is_theirs && !flag.is_default();
    // Ours listens on loopback alone, flannel's everywhere.
    (is_needed && flag.name != "healthz-ip").then(|| {
        let argument = shorten(&flag.argument());
        format!("add to args of the container kube-flannel: {argument}")
    })
}

/// What flannel does in another way.
fn judge_process(network: Option<&NetworkConfig>, judgement: &mut Judgement) {
    let rules = match network.is_some_and(|network| network.enable_nftables) {
        true => {
            "rules are in the tables ip flannel-ipv4 and ip6 flannel-ipv6, which flannel writes once: what somebody else flushes is not repaired"
        }
        false => {
            "rules stay in the chains FLANNEL-FWD and FLANNEL-POSTRTG, and are checked every 5 seconds as before"
        }
    };
    for change in [
        "two init containers, install-cni-plugin and install-cni, write flannel's plugin and the config list over ours; selvage cni uninstall is not needed",
        "the ClusterRole flannel allows get pods as well, by which flannel finds its node's name",
        "/healthz and /readyz are answered on all addresses of a node, port 8081; /metrics is gone",
        "where the agent waits, flannel ends with status 1, in a crash loop: without a podCIDR, without rights, without an API server, with a bad config",
        "the condition NetworkUnavailable is set to False once, and never to True; there are no events",
        "a changed net-conf.json needs a restart of every flannel",
        rules,
    ] {
        judgement.changes.push(change.to_owned());
    }
}

fn judge_pods(network: Option<&NetworkConfig>, judgement: &mut Judgement) {
    let kind = network.map_or("", |network| network.backend.kind.as_str());
    judgement.pods.push(
        match kind {
            "udp" => "packets between nodes pass through the agent: those of a node are lost from its end until flannel runs, some seconds",
            "wireguard" => "flannel deletes the device and makes it anew when it starts: a node's pods reach no other node for a moment, and peers learn a new key",
            "" => return,
            _ => "pods keep running, and no packet is lost: an agent that stops leaves device, routes and rules in place, and flannel takes them over",
        }
        .to_owned(),
    );
    if kind == "vxlan" && network.is_some_and(|network| network.ipv6.is_some()) {
        judgement.pods.push(
            "pods that start after the move have an MTU of 20 bytes more than fit when the outer header is IPv6's: 1450 on an underlay of 1500".to_owned(),
        );
    }
}

fn steps(ours: &[&Daemon], edits: Vec<String>, network: Option<&NetworkConfig>) -> Vec<Step> {
    let mut steps = Vec::new();
    if !network.is_some_and(|network| network.enable_nftables) {
        steps.push(Step::new(
            "load br_netfilter on each node: flannel ends with status 1 without it, and the agent does not need it",
            vec![
                "modprobe br_netfilter".to_owned(),
                "echo br_netfilter > /etc/modules-load.d/br_netfilter.conf".to_owned(),
            ],
        ));
    }
    let helm = ours.iter().find_map(|daemon| match &daemon.made {
        Made::Helm { release, namespace } => Some((word(release), word(namespace))),
        _ => None,
    });
    match helm {
        Some((release, namespace)) => steps.push(Step::new(
            "go back to the release's revision with flannel's chart",
            vec![
                format!("helm -n {namespace} history {release}"),
                format!("helm -n {namespace} rollback {release} REVISION"),
            ],
        )),
        None => steps.extend(apply(ours, edits, network)),
    }
    steps.push(Step::new(
        "wait until flannel is ready everywhere",
        vec![wait(), "kubectl get nodes -o wide".to_owned()],
    ));
    steps.push(Step::new(
        "remove the rights that flannel does not use",
        vec!["kubectl -n default delete role,rolebinding flannel".to_owned()],
    ));
    steps.push(remains(network));
    steps
}

fn apply(ours: &[&Daemon], edits: Vec<String>, network: Option<&NetworkConfig>) -> Vec<Step> {
    let mut how = vec![
        format!("curl -LO {FLANNELS}"),
        "take its ConfigMap out of kube-flannel.yml: yours stays".to_owned(),
    ];
    how.extend(edits);
    if network.is_some_and(|network| network.backend.kind == "udp") {
        how.push("securityContext of the container kube-flannel: privileged: true".to_owned());
    }
    let mut steps = vec![Step::new(
        "get flannel's manifest, and make it fit this cluster",
        how,
    )];
    for daemon in ours {
        let is_in_place = daemon.namespace == NAMESPACE && daemon.name == DAEMON_SET;
        if is_in_place && daemon.made == Made::Applied {
            continue;
        }
        let is_adopted = daemon.namespace == NAMESPACE && daemon.is_found_by_ours;
        let what = match is_adopted {
            true => {
                "delete the DaemonSet without its pods, which flannel's takes over: it would keep what is ours"
            }
            false => {
                "delete the DaemonSet, since two cannot be on one node; its network stays while nothing runs"
            }
        };
        let command = delete(&daemon.namespace, &daemon.name, !is_adopted);
        steps.push(Step::new(what, vec![command]));
    }
    steps.push(Step::new(
        "apply it over ours: the nodes change one after the other",
        vec!["kubectl apply -f kube-flannel.yml".to_owned()],
    ));
    steps
}

/// What stays on a node, as `docs/hosts.md` has it.
fn remains(network: Option<&NetworkConfig>) -> Step {
    let mut how = vec![
        "rm -rf /var/lib/selvage".to_owned(),
        "mv /etc/cni/net.d/10-flannel.conflist.replaced to where it belongs, if there is one"
            .to_owned(),
    ];
    let kind = network.map_or("", |network| network.backend.kind.as_str());
    if !matches!(kind, "host-gw" | "udp" | "alloc" | "extension") {
        how.push("ip nexthop flush proto 83, for next-hop objects that no route uses".to_owned());
    }
    if network.is_none_or(|network| network.enable_nftables) {
        how.push("nft delete table inet selvage, if an agent was killed with kill -9".to_owned());
    }
    Step::new(
        "on each node, remove what remains; until then it harms nobody",
        how,
    )
}
