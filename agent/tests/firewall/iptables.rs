//! flannel's chains in iptables of both kinds: what is in them, what undoes their edits, and what they leave alone.

use std::time::Duration;

use selvage::host::firewall::{Mode, Rules};

use crate::host::{
    Agent, Installed, IptablesLegacy, IptablesNft, Nft, dual, nothing, on_host, saved, sh,
    uninstall,
};

/// What flannel's own tests assert, in the words of `iptables-save`.
const FLANNEL_V4: &str = "\
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.72.0/24 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 -d 10.5.72.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.72.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
";

/// The lines of a listing that are rules, sorted by chain as little as `iptables-save` does.
fn rules_in(listing: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = listing
        .lines()
        .filter(|line| line.starts_with("-A"))
        .collect();
    lines.sort_by_key(|line| line.contains("flanneld forward"));
    lines
}

fn on_both(case: fn(Installed)) {
    for installed in [IptablesNft, IptablesLegacy] {
        on_host(installed, || case(installed));
    }
}

#[test]
fn rules_are_listed_as_flannels_and_a_restart_changes_nothing() {
    on_both(|installed| {
        let mut agent = Agent::new(Mode::Iptables);
        assert!(agent.ensure(&dual()));
        assert!(!agent.ensure(&dual()));
        let kind = installed.kind();
        assert_eq!(
            rules_in(&sh(&format!("iptables-{kind}-save"))),
            rules_in(FLANNEL_V4)
        );
        let v6 = FLANNEL_V4
            .replace("10.5.0.0/16", "fd00:5::/48")
            .replace("10.5.72.0/24", "fd00:5:0:48::/64")
            .replace("224.0.0.0/4", "ff00::/8");
        assert_eq!(
            rules_in(&sh(&format!("ip6tables-{kind}-save"))),
            rules_in(&v6)
        );
        let other = if kind == "nft" { "legacy" } else { "nft" };
        assert_eq!(rules_in(&saved(other)), Vec::<&str>::new());

        let before = sh("nft -a list ruleset");
        agent.restart();
        assert!(!agent.ensure(&dual()));
        assert_eq!(sh("nft -a list ruleset"), before);
    });
}

#[test]
fn every_edit_by_hand_is_undone_and_rules_of_others_stay() {
    on_both(|installed| {
        let kind = installed.kind();
        let ipt = |command: &str| sh(&format!("iptables-{kind} {command}"));
        ipt("-t nat -A POSTROUTING -s 192.168.0.0/16 -j MASQUERADE");
        ipt("-N MINE");
        ipt("-A MINE -m comment --comment \"quote \\\" me\" -j DROP");
        ipt("-A FORWARD -i eth7 -j MINE");
        let mut agent = Agent::new(Mode::Iptables);
        agent.ensure(&dual());
        let whole = saved(kind);
        let jump = "-m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG";
        for edit in [
            "-t nat -F FLANNEL-POSTRTG".to_owned(),
            "-t nat -D FLANNEL-POSTRTG 3".to_owned(),
            "-t nat -R FLANNEL-POSTRTG 2 -s 10.5.72.0/24 -j ACCEPT".to_owned(),
            "-A FLANNEL-FWD -j DROP".to_owned(),
            format!("-t nat -D POSTROUTING {jump}"),
            format!("-t nat -A POSTROUTING {jump}"),
            "-I FORWARD -j FLANNEL-FWD".to_owned(),
        ] {
            ipt(&edit);
            assert!(agent.ensure(&dual()), "{kind}: {edit}");
            assert_eq!(saved(kind), whole, "{kind}: {edit}");
            assert!(!agent.ensure(&dual()), "{kind}: {edit}");
        }
        // What somebody else puts first stays, behind us.
        ipt("-I FORWARD -j DROP");
        assert!(agent.ensure(&dual()));
        let forward = ipt("-S FORWARD");
        let targets: Vec<_> = forward
            .lines()
            .filter_map(|line| line.split("-j ").nth(1))
            .collect();
        assert_eq!(targets, ["FLANNEL-FWD", "DROP", "MINE"], "{kind}");
        // All of them at once, as a reload of somebody's firewall does it.
        for table in ["nat", "filter"] {
            ipt(&format!("-t {table} -F"));
            ipt(&format!("-t {table} -X"));
        }
        assert!(agent.ensure(&dual()));
        assert_eq!(
            rules_in(&sh(&format!("iptables-{kind}-save"))),
            rules_in(FLANNEL_V4)
        );
    });
}

#[test]
fn rules_go_with_their_settings() {
    on_both(|installed| {
        let kind = installed.kind();
        let mut agent = Agent::new(Mode::Iptables);
        agent.ensure(&dual());
        assert!(agent.ensure(&Rules {
            masquerade: false,
            random_fully: false,
            ..dual()
        }));
        let left = saved(kind);
        assert!(
            !left.contains("POSTRTG") && left.contains("FLANNEL-FWD"),
            "{left}"
        );
        assert!(agent.ensure(&Rules {
            forward: false,
            random_fully: false,
            v6: None,
            ..dual()
        }));
        let left = saved(kind);
        assert!(
            left.contains("-j MASQUERADE\n") && !left.contains("FWD"),
            "{left}"
        );
        assert!(!left.contains("fd00:5::"), "{left}");
        assert!(agent.ensure(&nothing()));
        assert_eq!(rules_in(&saved(kind)), Vec::<&str>::new());
        assert!(!saved(kind).contains("FLANNEL"));
    });
}

#[test]
fn edits_of_iptables_nft_are_announced_and_those_of_others_are_not() {
    on_host(IptablesNft, || {
        let mut agent = Agent::new(Mode::Iptables);
        agent.ensure(&dual());
        assert!(!agent.ensure(&dual()));
        let mut watcher = agent.watch();
        sh("iptables -N KUBE-SERVICES; iptables -A KUBE-SERVICES -j ACCEPT");
        let half = Duration::from_millis(500);
        assert!(
            !agent.hears_within(&mut watcher, half),
            "woken by kube-proxy's chain"
        );
        for edit in ["-F FLANNEL-FWD", "-I FORWARD -j DROP", "-P FORWARD DROP"] {
            sh(&format!("iptables {edit}"));
            assert!(agent.hears(&mut watcher), "{edit}");
            agent.ensure(&dual());
            while agent.hears_within(&mut watcher, half) {}
        }
    });
}

#[test]
fn look_that_finds_nothing_new_starts_no_program() {
    on_host(IptablesNft, || {
        let mut agent = Agent::new(Mode::Iptables);
        agent.ensure(&dual());
        assert!(!agent.ensure(&dual()));
        for program in [
            "iptables-save",
            "ip6tables-save",
            "iptables-legacy-save",
            "nft",
        ] {
            uninstall(program);
        }
        assert!(!agent.ensure(&dual()));
    });
    // Nobody announces what happens to the old kind: it is looked at.
    on_host(IptablesLegacy, || {
        let mut agent = Agent::new(Mode::Iptables);
        agent.ensure(&dual());
        assert!(!agent.ensure(&dual()));
        sh("iptables -t nat -F");
        assert!(agent.ensure(&dual()));
    });
}

#[test]
fn missing_programs_are_named() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Iptables);
        let error = agent.try_ensure(&dual()).unwrap_err().to_string();
        assert!(
            error.contains("iptables-restore") && error.contains("install iptables"),
            "{error}"
        );
        assert!(!agent.ensure(&nothing()));
    });
    on_host(IptablesNft, || {
        uninstall("ip6tables-restore");
        let mut agent = Agent::new(Mode::Iptables);
        let error = agent.try_ensure(&dual()).unwrap_err().to_string();
        assert!(error.contains("ip6tables-restore"), "{error}");
        // Without IPv6 nobody needs it.
        agent.ensure(&Rules { v6: None, ..dual() });
    });
}
