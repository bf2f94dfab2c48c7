//! Others who close the way: the overlay's packets pass all the same, and only those.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use selvage::host::firewall::{Mode, docker};

use crate::host::{
    Agent, Installed, IptablesLegacy, IptablesNft, Nft, dual, nothing, on_host, saved, sh,
};
use crate::topology::{
    CONTAINER, CONTAINER6, ELSEWHERE, ELSEWHERE6, OUTSIDE, OUTSIDE6, Topology, seen_source,
};

/// Every mode with every kind of iptables that somebody else may close the way in.
const COMBINATIONS: [(Installed, Mode); 4] = [
    (IptablesNft, Mode::Iptables),
    (IptablesNft, Mode::Nftables),
    (IptablesLegacy, Mode::Iptables),
    (IptablesLegacy, Mode::Nftables),
];

/// Whether containers reach each other over the overlay, both ways and in both families.
fn ways(net: &Topology) -> [bool; 4] {
    [
        seen_source(&net.elsewhere, &net.container, CONTAINER).as_deref() == Some(ELSEWHERE),
        seen_source(&net.container, &net.elsewhere, ELSEWHERE).as_deref() == Some(CONTAINER),
        seen_source(&net.elsewhere, &net.container, CONTAINER6).as_deref() == Some(ELSEWHERE6),
        seen_source(&net.container, &net.elsewhere, ELSEWHERE6).as_deref() == Some(CONTAINER6),
    ]
}

/// The same; all or none.
fn overlay_works(net: &Topology) -> bool {
    let ways = ways(net);
    assert!(ways.iter().all(|way| *way == ways[0]), "{ways:?}");
    ways[0]
}

/// Runs `rules`, the input of `iptables-restore --noflush`, for both families.
fn restore(kind: &str, v4: &str, v6: &str) {
    for (program, rules) in [("iptables", v4), ("ip6tables", v6)] {
        sh(&format!(
            "{program}-{kind}-restore --noflush <<'END'\n{rules}END"
        ));
    }
}

#[test]
fn forward_policy_drop_does_not_stop_the_overlay() {
    for (installed, mode) in COMBINATIONS {
        on_host(installed, || {
            let what = format!("{installed:?} {mode}");
            let net = Topology::new();
            let drop = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";
            restore(installed.kind(), drop, drop);
            assert!(!overlay_works(&net), "{what}: nothing to open");
            let mut agent = Agent::new(mode);
            agent.ensure(&dual());
            assert!(overlay_works(&net), "{what}");
            assert!(!agent.ensure(&dual()), "{what}");
            agent.ensure(&nothing());
            assert!(!overlay_works(&net), "{what}: still open");
        });
    }
}

/// The rules of Docker 28 with one container, which publishes port 80; `each` stands for the form of the raw rule before
/// and since 28.1.
fn docker_28(container: &str, each: &str) -> String {
    format!(
        "*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d {container} ! -i container {each} -j DROP
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER -d {container} ! -i container -o container -p udp -m udp --dport 80 -j ACCEPT
-A DOCKER ! -i container -o container -j DROP
-A DOCKER-BRIDGE -o container -j DOCKER
-A DOCKER-CT -o container -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i container -j ACCEPT
COMMIT
"
    )
}

#[test]
fn docker_28_lets_the_overlay_in_and_nobody_else() {
    for (installed, mode) in COMBINATIONS {
        // How the raw rule looks does not depend on the kind of iptables.
        let ports = match installed {
            IptablesNft => ["", "-p udp -m udp --dport 7000"].as_slice(),
            _ => &[""],
        };
        for each in ports {
            on_host(installed, || {
                let what = format!("{installed:?} {mode} {each}");
                let net = Topology::new();
                restore(
                    installed.kind(),
                    &docker_28(CONTAINER, each),
                    &docker_28(CONTAINER6, each),
                );
                let from_elsewhere = || {
                    [CONTAINER, CONTAINER6]
                        .map(|to| seen_source(&net.elsewhere, &net.container, to).is_some())
                };
                assert_eq!(from_elsewhere(), [false; 2], "{what}: nothing to open");
                let mut agent = Agent::new(mode);
                agent.ensure(&dual());
                assert_eq!(from_elsewhere(), [true; 2], "{what}");
                assert!(overlay_works(&net), "{what}");
                assert!(!agent.ensure(&dual()), "{what}");
                for to in [CONTAINER, CONTAINER6] {
                    let seen = seen_source(&net.outside, &net.container, to);
                    assert_eq!(seen, None, "{what}: open to others");
                }

                // Docker puts its jumps first again whenever a network is made.
                let again = "*filter\n-D FORWARD -j DOCKER-FORWARD\n-D FORWARD -j DOCKER-USER\n\
                    -I FORWARD -j DOCKER-FORWARD\n-I FORWARD -j DOCKER-USER\nCOMMIT\n";
                restore(installed.kind(), again, again);
                assert_eq!(from_elsewhere(), [false; 2], "{what}: nothing to mend");
                assert!(agent.ensure(&dual()), "{what}");
                assert_eq!(from_elsewhere(), [true; 2], "{what}");

                // What the operator says in DOCKER-USER comes before what we say.
                let user =
                    |drop: &str| format!("*filter\n-A DOCKER-USER -s {drop} -j DROP\nCOMMIT\n");
                restore(installed.kind(), &user(ELSEWHERE), &user(ELSEWHERE6));
                agent.ensure(&dual());
                assert_eq!(
                    from_elsewhere(),
                    [false; 2],
                    "{what}: over the operator's head"
                );
            });
        }
    }
}

#[test]
fn way_is_open_before_dockers_first_container() {
    on_host(IptablesNft, || {
        let mut agent = Agent::new(Mode::Nftables);
        agent.ensure(&dual());
        assert!(!saved("nft").contains("SELVAGE-RAW"));
        let mut watcher = agent.watch();
        sh("iptables -N DOCKER-FORWARD; ip6tables -N DOCKER-FORWARD");
        assert!(agent.hears(&mut watcher));
        assert!(agent.ensure(&dual()));
        assert_eq!(saved("nft").matches("-j SELVAGE-RAW").count(), 2);
        sh("iptables -X DOCKER-FORWARD; ip6tables -X DOCKER-FORWARD");
        assert!(agent.ensure(&dual()));
        assert!(!saved("nft").contains("SELVAGE-RAW"));
    });
}

/// The table of Docker 29's own nftables, as its option `--bridge-accept-fwmark` makes it. With `--allow-direct-routing`
/// it has nothing at the hook prerouting.
fn docker_29(family: &str, mark: &str) -> String {
    format!(
        "table {family} docker-bridges {{
    chain filter-FORWARD {{
        type filter hook forward priority filter; policy accept;
        meta mark & {mark} == {mark} counter accept comment \"ALLOW MARKED\"
        oifname container jump filter-forward-in__docker0
    }}
    chain filter-forward-in__docker0 {{
        ct state established,related counter accept
        iifname container counter accept comment \"ICC\"
        counter drop comment \"UNPUBLISHED PORT DROP\"
    }}
}}
"
    )
}

#[test]
fn docker_29s_nftables_let_in_what_the_agent_marks() {
    on_host(Nft, || {
        let net = Topology::new();
        let version = docker::Version::parse("29.0.0").unwrap();
        let options = docker::options(version, docker::Backend::Nftables);
        let mark = options
            .iter()
            .find_map(|option| option.strip_prefix("--bridge-accept-fwmark="));
        let (value, mask) = mark.and_then(|mark| mark.split_once('/')).unwrap();
        assert_eq!(value, mask);
        let mut agent = Agent::new(Mode::Nftables);
        agent.ensure(&dual());
        let mut watcher = agent.watch();
        for family in ["ip", "ip6"] {
            let table = docker_29(family, value);
            sh(&format!("nft -f - <<'END'\n{table}END"));
        }
        assert_eq!(seen_source(&net.elsewhere, &net.container, CONTAINER), None);
        assert!(agent.hears(&mut watcher));
        assert!(agent.ensure(&dual()));
        assert!(overlay_works(&net));
        assert!(!agent.ensure(&dual()));
    });
}

/// What firewalld 1.3 makes of its zones at the hook forward, with `source` in the zone trusted.
const FIREWALLD: &str = "table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        jump filter_FORWARD_ZONES
        reject with icmpx type admin-prohibited
    }
    chain filter_FORWARD_ZONES { }
    chain filter_FWD_trusted { accept; }
}
";

/// A `firewall-cmd` that does to that table what firewalld does for the only call it knows.
const FIREWALL_CMD: &str = "#!/bin/sh -e
[ \"$1\" = --zone=trusted ] && net=${2#--add-source=} && [ \"$net\" != \"$2\" ]
case $net in *:*) family=ip6 ;; *) family=ip ;; esac
nft add rule inet firewalld filter_FORWARD_ZONES $family saddr $net goto filter_FWD_trusted
echo success
";

#[test]
fn firewalld_trusts_the_overlay_also_after_a_reload() {
    for (installed, mode) in [(Nft, Mode::Nftables), (IptablesNft, Mode::Iptables)] {
        on_host(installed, || {
            let net = Topology::new();
            let program = "/usr/sbin/firewall-cmd";
            fs::write(program, FIREWALL_CMD).unwrap();
            fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
            let mut agent = Agent::new(mode);
            agent.ensure(&dual());
            let mut watcher = agent.watch();
            for _reload in 0..2 {
                sh(&format!(
                    "nft -f - <<'END'\nadd table inet firewalld\ndelete table inet firewalld\n{FIREWALLD}END"
                ));
                assert!(!overlay_works(&net), "{mode}: nothing to open");
                assert!(agent.hears(&mut watcher), "{mode}");
                // firewalld is asked beside everything else; what it does is announced.
                let mut rounds = 0;
                while ways(&net) != [true; 4] {
                    agent.ensure(&dual());
                    agent.hears_within(&mut watcher, Duration::from_secs(1));
                    rounds += 1;
                    assert!(rounds < 60, "{mode}");
                }
                agent.ensure(&dual());
                let table = sh("nft list table inet firewalld");
                assert_eq!(
                    table.matches("goto filter_FWD_trusted").count(),
                    2,
                    "{table}"
                );
                while agent.hears_within(&mut watcher, Duration::from_millis(300)) {}
            }
            for (address, outside) in [(CONTAINER, OUTSIDE), (CONTAINER6, OUTSIDE6)] {
                let seen = seen_source(&net.outside, &net.container, address);
                assert_eq!(seen, None, "{mode}: {outside} is not trusted");
            }
        });
    }
}

#[test]
fn firewalld_that_cannot_be_asked_stops_nothing() {
    on_host(Nft, || {
        sh(&format!("nft -f - <<'END'\n{FIREWALLD}END"));
        let mut agent = Agent::new(Mode::Nftables);
        assert!(agent.ensure(&dual()));
        assert!(!agent.ensure(&dual()));
        assert!(sh("nft list tables").contains("inet selvage"));
    });
}
