//! The host's directories that flannel's pods have, against those of our manifest.

use super::Judgement;
use super::daemon::{Daemon, Made};
use super::kubectl::{MANIFEST, word};
use crate::base::go_json::shorten;
use crate::flannel::install;

/// The name of these checks.
const CHECK: &str = "migrate-directories";

/// Where CNI plugins and their configs are in a container of flannel's, where our manifest has them on the host, and what
/// the volume is called there.
const CNI: [(&str, &str, &str); 2] = [
    ("/cni/bin", "/opt/cni/bin", "cni-plugin"),
    ("/cni/net.d", "/etc/cni/net.d", "cni"),
];

/// What else our manifest has, or has no use for.
const KNOWN: [&str; 5] = [
    "/run",
    "/run/flannel",
    "/run/xtables.lock",
    "/lib/modules",
    "/var/lib/selvage",
];

/// Looks at the directories, and returns what must be written into our manifest.
pub(super) fn judge(daemon: &Daemon, judgement: &mut Judgement) -> Vec<String> {
    let shown = daemon.shown();
    let mut edits = Vec::new();
    for (mount, ours, volume) in CNI {
        if let Some(theirs) = daemon
            .host_directory(mount)
            .filter(|theirs| *theirs != ours)
        {
            let theirs = shorten(theirs);
            edits.push(format!(
                "volume {volume}: path: {theirs} in place of {ours}"
            ));
        }
    }
    // A release's values give the same to our chart.
    if matches!(daemon.made, Made::Helm { .. }) {
        edits.clear();
    }
    if !edits.is_empty() {
        judgement.warn(
            CHECK,
            &shown,
            format!("{shown} installs the CNI plugin in other directories than our manifest"),
            "the container runtime looks where it did, finds flannel's plugin and config, and never ours",
            edits.iter().map(|edit| format!("in {MANIFEST}, {edit}")).collect(),
        );
    }
    judge_configs(daemon, judgement);
    tell_changes(daemon, judgement);
    edits
}

/// A CNI config of another name stays beside ours.
fn judge_configs(daemon: &Daemon, judgement: &mut Judgement) {
    let configs = daemon.configs();
    for config in configs
        .iter()
        .filter(|config| **config != install::CONFLIST)
    {
        let config = shorten(config);
        judgement.warn(
            CHECK,
            daemon.shown(),
            format!("{} writes the CNI config {config}, and ours is {}", daemon.shown(), install::CONFLIST),
            "container runtimes take the first by name, so pods may still be attached as flannel's says, and nobody keeps that file up to date",
            vec![format!("when all nodes have moved, on each: rm {}", word(&format!("/etc/cni/net.d/{config}")))],
        );
    }
}

/// What the pods do not have any more, and what they have besides.
fn tell_changes(daemon: &Daemon, judgement: &mut Judgement) {
    let is_plugins = |path: &str| {
        CNI.iter()
            .any(|(mount, ..)| daemon.host_directory(mount) == Some(path))
    };
    let is_known = |path: &str| {
        let is_cni = CNI
            .iter()
            .any(|(mount, ours, _)| path == *ours || path.ends_with(mount));
        is_cni || is_plugins(path) || KNOWN.contains(&path)
    };
    let others: Vec<_> = (daemon.host_paths.iter())
        .map(|path| path.path.trim_end_matches('/'))
        .filter(|path| !is_known(path))
        .map(shorten)
        .collect();
    if !others.is_empty() {
        judgement.changes.push(format!(
            "the pods do not have {} of the host any more",
            others.join(", ")
        ));
    }
    judgement.changes.push(
        "the pods have /var/lib/selvage of the host, where each node's MAC address or WireGuard key is kept".to_owned(),
    );
}
