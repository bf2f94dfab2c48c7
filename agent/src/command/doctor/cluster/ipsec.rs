//! Peers without an IPsec tunnel, and a kernel that can make none.

use std::collections::BTreeMap;
use std::fs;
use std::future::ready;
use std::path::Path;

use super::advice::Advice;
use super::{Check, Context, name, sample};
use crate::command::doctor::{Finding, Outcome, Severity};
use crate::host::ike::TunnelState;
use crate::plan::backend::ipsec::KIND;
use crate::telemetry::status::{Peer, Status};

const NAME: &str = "ipsec";

/// The kernel's module for ESP over IPv4.
const MODULE: &str = "esp4";

/// Peers that the nodes have negotiated no tunnel with, and the reasons that show from here.
pub(super) const CHECK: Check = Check {
    name: NAME,
    looks_for: "peers without an IPsec tunnel, and a kernel without ESP",
    run: |context| Box::pin(ready(check(context))),
};

fn check(context: &Context<'_>) -> Outcome {
    let status = context.status()?;
    if status
        .network
        .as_ref()
        .is_none_or(|network| network.backend != KIND)
    {
        return Ok(Vec::new());
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    let has_esp = release
        .ok()
        .and_then(|release| has_esp("/".as_ref(), release.trim()));
    Ok(find(status, has_esp))
}

/// Whether the kernel of that release has ESP, or can load it; `None` if its modules are not to be seen from here.
fn has_esp(root: &Path, release: &str) -> Option<bool> {
    if root.join("sys/module").join(MODULE).exists() {
        return Some(true);
    }
    let modules = ["lib/modules", "usr/lib/modules"];
    let lists = modules.iter().flat_map(|directory| {
        let directory = root.join(directory).join(release);
        ["modules.builtin", "modules.dep"].map(|list| fs::read_to_string(directory.join(list)))
    });
    let lists: Vec<String> = lists.flatten().collect();
    let is_listed = |list: &String| list.contains(&format!("/{MODULE}.ko"));
    (!lists.is_empty()).then(|| lists.iter().any(is_listed))
}

/// One finding for each reason, and one for the kernel.
fn find(status: &Status, has_esp: Option<bool>) -> Vec<Finding> {
    let mut by_reason: BTreeMap<&str, Vec<&Peer>> = BTreeMap::new();
    for peer in &status.peers {
        if let Some(reason) = peer.reason.as_deref() {
            by_reason.entry(reason).or_default().push(peer);
        }
    }
    let of_peers = TunnelState::ALL.into_iter().filter_map(|state| {
        let reason = state.lack()?;
        let peers = by_reason.get(reason)?;
        let advice = explain(state)?;
        let mut finding = finding(
            peers.first().map(|peer| name(peer)).unwrap_or_default(),
            format!("{}: {reason}", sample(peers)),
            advice,
        );
        finding.peers = peers.iter().flat_map(|peer| peer.nets()).collect();
        Some(finding)
    });
    let of_kernel = (has_esp == Some(false)).then(|| {
        finding(
            MODULE.to_owned(),
            "this kernel has no ESP, so it can make no IPsec tunnel".to_owned(),
            Advice::new(
                "the nodes negotiate, and then this one refuses; its containers reach no peer",
                [
                    format!(
                        "use a kernel with the module {MODULE} (CONFIG_INET_ESP): modinfo {MODULE}"
                    ),
                    "or choose another backend for all nodes, such as wireguard".into(),
                ],
            ),
        )
    });
    of_kernel.into_iter().chain(of_peers).collect()
}

fn finding(subject: String, what: String, advice: Advice) -> Finding {
    Finding::new(
        NAME,
        Severity::Error,
        subject,
        what,
        &advice.why,
        advice.remedy,
    )
}

fn explain(state: TunnelState) -> Option<Advice> {
    let look = "see what charon says, here and there: journalctl --unit selvage-charon; swanctl --list-sas --uri unix:///run/selvage/charon.vici";
    match state {
        TunnelState::Up => None,
        TunnelState::Begun => Some(Advice::new(
            "packets between the containers are dropped until there is a tunnel; they are never sent in plain text",
            [
                "let the firewalls between the nodes pass UDP ports 500 and 4500, and IP protocol 50 (ESP)".into(),
                "see whether charon runs on the peer: systemctl status selvage-charon (or the peer's flanneld)".into(),
                look.into(),
            ],
        )),
        TunnelState::Keyless => Some(Advice::new(
            "packets between the containers are dropped until there is a tunnel; the nodes' ESPProposal differ, or one of the kernels lacks ESP or an algorithm",
            [
                format!("on both nodes: modprobe {MODULE}; ip xfrm state"),
                "compare the network config of both".into(),
                look.into(),
            ],
        )),
        TunnelState::Down => Some(Advice::new(
            "packets between the containers are dropped until there is a tunnel; usually the nodes have different secrets",
            [
                "compare PSK in the network config that both use; a flannel node reads it only when it starts".into(),
                "see that the peer's PublicIP is the address that it sends from".into(),
                look.into(),
            ],
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::{PeerState, samples};

    fn status(states: &[TunnelState]) -> Status {
        let mut status = samples::full();
        let peer = |(n, state): (u8, &TunnelState)| Peer {
            state: PeerState::Failed,
            reason: state.lack().map(str::to_owned),
            ..samples::peer(n, n + 10)
        };
        status.peers = (0..).zip(states).map(peer).collect();
        status
    }

    #[test]
    fn peers_are_named_by_the_reason_that_they_share() {
        use TunnelState::{Begun, Down, Keyless, Up};
        assert!(find(&status(&[Up, Up]), Some(true)).is_empty());
        assert!(find(&status(&[Up]), None).is_empty());
        let findings = find(&status(&[Begun, Up, Begun, Down, Keyless]), Some(true));
        let texts: Vec<_> = findings
            .iter()
            .map(|finding| finding.what.as_str())
            .collect();
        assert_eq!(
            texts,
            [
                "10.5.0.0/24 and 10.5.2.0/24: no IPsec tunnel: the peer does not answer IKE",
                "10.5.4.0/24: no IPsec tunnel: the nodes have proved to each other who they are, but one of them refuses the tunnel",
                "10.5.3.0/24: no IPsec tunnel: the nodes do not accept each other",
            ]
        );
        assert!(findings[0].remedy[0].contains("UDP ports 500 and 4500"));
        assert_eq!(findings[0].peers.len(), 2);
        let kernel = find(&status(&[Up]), Some(false));
        assert!(kernel[0].remedy[0].contains("CONFIG_INET_ESP"));
    }

    /// Lines of Debian 13's kernel package linux-image-cloud-amd64, and of a kernel with all built in.
    #[test]
    fn esp_is_looked_for_among_the_kernels_modules() {
        for (list, text, expected) in [
            (
                "modules.dep",
                "kernel/net/ipv4/esp4.ko.xz: kernel/net/xfrm/xfrm_algo.ko.xz\n",
                Some(true),
            ),
            ("modules.builtin", "kernel/net/ipv4/esp4.ko\n", Some(true)),
            (
                "modules.dep",
                "kernel/net/ipv4/esp4_offload.ko.xz:\n",
                Some(false),
            ),
            ("modules.alias", "alias xfrm-type-2-50 esp4\n", None),
        ] {
            let root = tempfile::tempdir().unwrap();
            let directory = root.path().join("usr/lib/modules/6.12.0");
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(list), text).unwrap();
            assert_eq!(has_esp(root.path(), "6.12.0"), expected, "{text}");
        }
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("sys/module/esp4")).unwrap();
        assert_eq!(has_esp(root.path(), "6.12.0"), Some(true));
    }
}
