//! Changing the mode, and taking over from flannel: what the other one made is removed, and nothing else.

use selvage::host::firewall::{Mode, Rules};

use crate::host::{
    Agent, Installed, IptablesLegacy, IptablesNft, Nft, dual, everything, made, on_host, saved, sh,
};

/// What flannel makes in its iptables mode: the jumps are last.
fn flannel_in_iptables(kind: &str) {
    for (program, network, subnet) in [
        ("iptables", "10.5.0.0/16", "10.5.72.0/24"),
        ("ip6tables", "fd00:5::/48", "fd00:5:0:48::/64"),
    ] {
        sh(&format!(
            "{program}-{kind}-restore --noflush <<'END'
*nat
:FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s {subnet} -d {network} -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s {network} -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
COMMIT
*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FLANNEL-FWD -s {network} -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d {network} -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
END"
        ));
    }
}

/// Makes rules as Docker does: `FORWARD` lets nothing through but what is sent to a container that was asked for.
fn docker_closes(kind: &str) {
    sh(&format!(
        "iptables-{kind}-restore --noflush <<'END'
*filter
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
:DOCKER-FORWARD - [0:0]
-I FORWARD 1 -j DOCKER-FORWARD
-I FORWARD 1 -j DOCKER-USER
-A DOCKER-USER -j RETURN
COMMIT
END"
    ));
}

/// The rules of `iptables-save` that name flannel.
fn flannels(kind: &str) -> Vec<String> {
    let rules = saved(kind);
    let named = rules.lines().filter(|line| {
        line.starts_with("-A ") && (line.contains("FLANNEL") || line.contains("flanneld"))
    });
    named.map(str::to_owned).collect()
}

/// In whatever order flannel and the agent come: while flannel runs, which puts its rules back, and after it.
#[test]
fn nothing_of_flannels_in_iptables_is_left_in_nftables_mode() {
    for installed in BOTH {
        on_host(installed, || {
            let kind = installed.kind();
            for stray in [
                "",
                // Its jumps twice, and where an administrator has put one.
                "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A INPUT -j FLANNEL-FWD",
            ] {
                flannel_in_iptables(kind);
                sh(&format!(
                    "iptables-{kind}-restore --noflush <<'END'\n*filter\n{stray}\nCOMMIT\nEND"
                ));
                let mut agent = Agent::new(Mode::Nftables);
                assert!(agent.ensure(&dual()));
                assert_eq!(flannels(kind), [""; 0], "at the start");
                // It ran still.
                flannel_in_iptables(kind);
                assert!(agent.ensure(&dual()));
                assert!(!agent.ensure(&dual()));
                assert_eq!(flannels(kind), [""; 0], "while it ran");
                flannel_in_iptables(kind);
                let mut again = Agent::new(Mode::Nftables);
                assert!(again.ensure(&dual()));
                assert_eq!(flannels(kind), [""; 0], "after a restart");
            }

            // Where Docker closes the way, the chain of that name is ours, in front of Docker's, for as long as that is so.
            flannel_in_iptables(kind);
            docker_closes(kind);
            let mut agent = Agent::new(Mode::Nftables);
            assert!(agent.ensure(&dual()));
            let ours = [
                "-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD",
                "-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT",
                "-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT",
            ];
            assert_eq!(flannels(kind), ours);
            let rules = saved(kind);
            let forward = rules.lines().filter(|line| line.starts_with("-A FORWARD "));
            let targets: Vec<_> = forward.filter_map(|line| line.rsplit(' ').next()).collect();
            assert_eq!(targets, ["DOCKER-USER", "FLANNEL-FWD", "DOCKER-FORWARD"]);
            sh(&format!(
                "iptables-{kind} -P FORWARD ACCEPT; iptables-{kind} -D FORWARD -j DOCKER-USER; iptables-{kind} -D FORWARD -j DOCKER-FORWARD"
            ));
            assert!(agent.ensure(&dual()));
            assert_eq!(flannels(kind), [""; 0], "when the way is open");
        });
    }
}

/// What flannel makes in its nftables mode: both tables, always.
fn flannel_in_nftables() {
    for (family, table) in [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")] {
        sh(&format!(
            "nft -f - <<'END'
table {family} {table} {{
    comment \"rules for {table}\"
    chain forward {{ type filter hook forward priority filter; policy accept; }}
    chain postrtg {{ type nat hook postrouting priority srcnat; policy accept; meta mark 0x4000 return; }}
}}
END"
        ));
    }
}

/// Rules of somebody else, which must outlive all we do.
fn others(kind: &str) {
    sh(&format!(
        "nft 'add table inet other; add chain inet other keep'
        iptables-{kind} -N KEEP; iptables-{kind} -A KEEP -j DROP; iptables-{kind} -A FORWARD -i eth7 -j KEEP
        iptables-{kind} -t nat -A POSTROUTING -o eth7 -j MASQUERADE"
    ));
}

fn assert_others_are_there(kind: &str) {
    assert!(sh("nft list table inet other").contains("chain keep"));
    let rules = saved(kind);
    for rule in [
        "-A FORWARD -i eth7 -j KEEP\n",
        "-A KEEP -j DROP\n",
        "-A POSTROUTING -o eth7 -j MASQUERADE\n",
    ] {
        assert_eq!(rules.matches(rule).count(), 1, "{rule} in {rules}");
    }
}

/// The nftables tables, but for those of iptables.
fn native_tables() -> Vec<String> {
    let tables = sh("nft list tables");
    let native = |line: &&str| !line.ends_with("filter") && !line.ends_with("nat");
    let mut tables: Vec<_> = tables.lines().filter(native).map(str::to_owned).collect();
    tables.sort();
    tables
}

const BOTH: [Installed; 2] = [IptablesNft, IptablesLegacy];

#[test]
fn each_mode_removes_what_the_other_made() {
    for installed in BOTH {
        on_host(installed, || {
            let kind = installed.kind();
            let mut iptables = Agent::new(Mode::Iptables);
            iptables.ensure(&dual());
            let by_iptables = everything();
            assert!(
                by_iptables.contains("FLANNEL-POSTRTG") && !by_iptables.contains("inet selvage")
            );

            let mut nftables = Agent::new(Mode::Nftables);
            assert!(nftables.ensure(&dual()));
            assert!(!nftables.ensure(&dual()));
            let by_nftables = everything();
            assert!(by_nftables.contains("table inet selvage"), "{by_nftables}");
            assert!(!saved(kind).contains("FLANNEL"), "{by_nftables}");

            assert!(iptables.ensure(&dual()));
            assert!(!iptables.ensure(&dual()));
            assert!(!sh("nft list tables").contains("selvage"));
            assert!(saved(kind).contains("FLANNEL-POSTRTG"));
        });
    }
}

#[test]
fn flannels_own_rules_are_taken_over_in_either_mode() {
    for installed in BOTH {
        for (mode, flannel_by_nft) in [
            (Mode::Iptables, false),
            (Mode::Iptables, true),
            (Mode::Nftables, false),
            (Mode::Nftables, true),
        ] {
            on_host(installed, || {
                let kind = installed.kind();
                // What would be there without flannel.
                others(kind);
                Agent::new(mode).ensure(&dual());
                let ruleset = || (made("nft"), made("legacy"), native_tables());
                let expected = ruleset();
                Agent::new(mode).clear(&[]);

                match flannel_by_nft {
                    true => flannel_in_nftables(),
                    false => flannel_in_iptables(kind),
                }
                let mut agent = Agent::new(mode);
                assert!(agent.ensure(&dual()));
                let what = format!("{installed:?} {mode} {flannel_by_nft}");
                assert_eq!(ruleset(), expected, "{what}");
                assert!(!agent.ensure(&dual()), "{what}");
                assert_others_are_there(kind);
            });
        }
    }
}

#[test]
fn flannels_rules_of_the_other_kind_of_iptables_are_found() {
    for (installed, other) in [(IptablesNft, "legacy"), (IptablesLegacy, "nft")] {
        on_host(installed, || {
            flannel_in_iptables(other);
            let mut agent = Agent::new(Mode::Iptables);
            assert!(agent.ensure(&dual()));
            assert!(!saved(other).contains("FLANNEL"), "{}", saved(other));
            assert!(saved(installed.kind()).contains("FLANNEL-POSTRTG"));
        });
    }
}

#[test]
fn clear_leaves_nothing_of_ours_and_all_of_others() {
    for installed in BOTH {
        for mode in [Mode::Iptables, Mode::Nftables] {
            on_host(installed, || {
                let kind = installed.kind();
                others(kind);
                sh(&format!(
                    "iptables-{kind} -N DOCKER-FORWARD; iptables-{kind} -t raw -S"
                ));
                flannel_in_nftables();
                let mut agent = Agent::new(mode);
                agent.ensure(&dual());
                assert!(saved(kind).contains("SELVAGE-RAW"), "{}", saved(kind));
                // One that was not there before, as a program of its own: selvage cleanup.
                let mut cleanup = Agent::new(Mode::Auto);
                assert!(cleanup.clear(&[]));
                let left = everything();
                for ours in ["FLANNEL", "SELVAGE", "selvage", "flannel"] {
                    assert!(!left.contains(ours), "{ours} in {left}");
                }
                assert_others_are_there(kind);
                assert!(!cleanup.clear(&[]));
            });
        }
    }
}

#[test]
fn nftables_mode_needs_no_iptables() {
    on_host(Nft, || {
        let mut agent = Agent::new(Mode::Nftables);
        assert!(agent.ensure(&dual()));
        assert!(!agent.ensure(&dual()));
        assert!(agent.clear(&[]));
    });
}

#[test]
fn auto_is_flannels_choice() {
    let prefer = Rules {
        prefer_nftables: true,
        ..dual()
    };
    for (installed, rules, table) in [
        (Nft, dual(), true),
        (IptablesNft, dual(), false),
        (IptablesLegacy, dual(), false),
        (IptablesNft, prefer, true),
    ] {
        on_host(installed, || {
            Agent::new(Mode::Auto).ensure(&rules);
            let ours = sh("nft list tables").contains("inet selvage");
            assert_eq!(ours, table, "{installed:?}");
        });
    }
}
