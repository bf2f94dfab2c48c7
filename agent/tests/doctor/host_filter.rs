//! Faults that drop packets on their way through a host, each beside the rules that healthy hosts have: Docker's,
//! kube-proxy's, firewalld's. What the doctor says is done, and must help.

use crate::cluster::NETWORK;
use crate::host::Host;
use crate::host_world::{finds, is_silent, obey, pair};
use crate::wait::wait_until;

const NFTABLES: &str =
    r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;

fn restore(host: &Host, rules: &str) {
    obey(
        host,
        &format!("iptables-restore --noflush <<'END'\n{rules}END"),
    );
}

fn nft(host: &Host, rules: &str) {
    obey(host, &format!("nft -f - <<'END'\n{rules}\nEND"));
}

/// The rules that Docker 28 and kube-proxy make, with a published port and a container of their own.
fn usual(host: &Host) {
    let container = host.container_address();
    restore(
        host,
        &format!(
            "*raw\n-A PREROUTING -d {container}/32 ! -i docker0 -j DROP\nCOMMIT\n\
             *filter\n:FORWARD DROP\n:DOCKER -\n:DOCKER-USER -\n:DOCKER-FORWARD -\n:DOCKER-BRIDGE -\n:DOCKER-CT -\n\
             :KUBE-FORWARD -\n\
             -I FORWARD -j DOCKER-FORWARD\n-I FORWARD -j DOCKER-USER\n\
             -I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
             -A DOCKER-USER -j RETURN\n\
             -A DOCKER-FORWARD -j DOCKER-CT\n-A DOCKER-FORWARD -j DOCKER-BRIDGE\n-A DOCKER-FORWARD -i docker0 -j ACCEPT\n\
             -A DOCKER-BRIDGE -o docker0 -j DOCKER\n\
             -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A DOCKER -d {container}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT\n\
             -A DOCKER ! -i docker0 -o docker0 -j DROP\n\
             -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
             -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
             -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             COMMIT\n"
        ),
    );
}

#[test]
fn forward_drop_of_iptables_is_told_among_the_rules_of_a_usual_host() {
    for network in [NETWORK, NFTABLES] {
        let (_store, one, two) = pair(network);
        usual(&one);
        one.wait_reaches(&two);
        is_silent(&one);
        // What is about some packets only is the operator's affair.
        restore(
            &one,
            "*filter\n-I DOCKER-USER -p tcp -m tcp --dport 25 -j DROP\n-I DOCKER-USER -i eth0 -j DROP\nCOMMIT\n",
        );
        one.wait_reaches(&two);
        is_silent(&one);
        restore(&one, "*filter\n-I DOCKER-USER -j DROP\nCOMMIT\n");
        wait_until("the fault", || !one.reaches(&two));
        let finding = finds(
            &one,
            "forward-drop",
            "-t filter -I DOCKER-USER -s 10.5.0.0/16 -j ACCEPT",
        );
        assert!(finding.what.contains("DOCKER-USER"), "{finding:#?}");
        for remedy in &finding.remedy[..2] {
            obey(&one, remedy);
        }
        one.wait_reaches(&two);
        is_silent(&one);
    }
}

#[test]
fn forward_drop_by_policy_is_told_where_the_agent_must_not_open_it() {
    let (_store, mut one, two) = pair(NETWORK);
    one.kill_agent();
    one.environment
        .push(("FLANNELD_IPTABLES_FORWARD_RULES", "false".to_owned()));
    one.start_agent();
    one.wait_ready();
    is_silent(&one);
    obey(&one, "iptables -P FORWARD DROP");
    wait_until("the fault", || !one.reaches(&two));
    let finding = finds(&one, "forward-drop", "firewall.forward = true");
    assert!(
        finding.what.starts_with("the policy of the chain FORWARD"),
        "{finding:#?}"
    );
    for remedy in &finding.remedy[1..3] {
        obey(&one, remedy);
    }
    one.wait_reaches(&two);
    is_silent(&one);
}

#[test]
fn forward_drop_of_nftables_is_told_with_the_chain() {
    let (_store, one, two) = pair(NFTABLES);
    let open = "table inet guard {
        set trusted { type ipv4_addr; flags interval; elements = { 10.5.0.0/16, 192.0.2.1-192.0.2.9 }; }
        chain forward {
            type filter hook forward priority 10; policy drop;
            ct state vmap { invalid : drop, established : accept, related : accept }
            iifname vmap { \"lo\" : accept, \"br-*\" : jump inner }
            ip saddr @trusted accept
            meta l4proto { udp } th dport 53 accept
        }
        chain inner { return; }
    }";
    nft(&one, open);
    one.wait_reaches(&two);
    is_silent(&one);
    nft(&one, "flush set inet guard trusted");
    wait_until("the fault", || !one.reaches(&two));
    let finding = finds(
        &one,
        "forward-drop",
        "nft insert rule inet guard forward ip saddr 10.5.0.0/16 accept",
    );
    assert!(
        finding
            .what
            .starts_with("the policy of the chain forward (nftables inet, table guard)"),
        "{finding:#?}"
    );
    for remedy in &finding.remedy {
        obey(&one, remedy);
    }
    one.wait_reaches(&two);
    is_silent(&one);
    nft(&one, "delete table inet guard");

    // firewalld that nobody could ask: firewall-cmd is not installed here.
    nft(
        &one,
        "table inet firewalld {
        chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            ct state { established, related } accept
            ct status dnat accept
            iifname \"lo\" accept
            jump filter_FORWARD_ZONES
            reject with icmpx type admin-prohibited
        }
        chain filter_FORWARD_ZONES { iifname \"eth0\" goto filter_FWD_public; }
        chain filter_FWD_public { reject with icmpx type admin-prohibited; }
        chain filter_FWD_trusted { accept; }
    }",
    );
    wait_until("the fault", || !one.reaches(&two));
    finds(
        &one,
        "forward-drop",
        "firewall-cmd --permanent --zone=trusted --add-source=10.5.0.0/16",
    );
    // What firewalld itself does then.
    nft(
        &one,
        "insert rule inet firewalld filter_FORWARD_ZONES ip saddr 10.5.0.0/16 goto filter_FWD_trusted",
    );
    one.wait_reaches(&two);
    is_silent(&one);
    nft(&one, "delete table inet firewalld");

    // Docker 29 with rules of its own in nftables, and without the options for the overlay.
    let docker = |mark: &str| {
        format!(
            "table ip docker-bridges {{
            map jumps {{ type ifname : verdict; elements = {{ \"docker0\" : jump in_docker0 }}; }}
            chain filter-FORWARD {{ type filter hook forward priority filter; policy accept; {mark} oifname vmap @jumps; }}
            chain in_docker0 {{
                ct state established,related counter accept
                iifname docker0 counter accept
                counter drop comment \"UNPUBLISHED PORT DROP\"
            }}
        }}"
        )
    };
    nft(&one, &docker(""));
    wait_until("the fault", || !two.reaches(&one));
    finds(&one, "forward-drop", "selvage options docker");
    nft(&one, "delete table ip docker-bridges");
    nft(
        &one,
        &docker("meta mark & 0x1000 == 0x1000 counter accept;"),
    );
    one.wait_reaches(&two);
    is_silent(&one);
}

#[test]
fn forward_drop_by_dockers_raw_rules_is_told_for_the_container() {
    let (_store, one, two) = pair(NETWORK);
    let container = one.container_address();
    // Docker 28's rule for a container; without its chains in filter, the agent opens only what drops already. Here the
    // drop comes before whatever the agent puts first.
    nft(
        &one,
        &format!(
            "table ip early {{\n chain pre {{\n type filter hook prerouting priority -400;\n \
             ip daddr {container} iifname != docker0 drop\n }}\n }}"
        ),
    );
    wait_until("the fault", || !two.reaches(&one));
    let finding = finds(
        &one,
        "forward-drop",
        "or nft delete rule ip early pre handle",
    );
    assert!(
        finding.what.contains(&container.to_string()),
        "{finding:#?}"
    );
    let remedy = finding
        .remedy
        .last()
        .and_then(|line| line.strip_prefix("or "));
    obey(&one, remedy.expect("a command"));
    two.wait_reaches(&one);
    is_silent(&one);
}

#[test]
fn forward_drop_by_switches_is_told_with_the_switch() {
    let (_store, one, two) = pair(NETWORK);
    for switch in [
        "net.ipv4.ip_forward",
        "net.ipv4.conf.flannel/1.forwarding",
        "net.ipv4.conf.docker0.forwarding",
    ] {
        one.namespace.sysctl(switch, "0");
        wait_until("the fault", || !one.reaches(&two));
        let command = format!("sysctl -w {switch}=1");
        let finding = finds(&one, "forward-drop", &command);
        obey(&one, &finding.remedy[0]);
        one.wait_reaches(&two);
        is_silent(&one);
    }
}

#[test]
fn forward_drop_by_the_reverse_path_filter_is_told_with_where_answers_go() {
    let (_store, one, two) = pair(NETWORK);
    let set = |value: &str| {
        for name in ["all", "flannel/1"] {
            one.namespace
                .sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), value);
        }
    };
    // Strictness alone harms nobody.
    set("1");
    one.wait_reaches(&two);
    is_silent(&one);
    one.namespace.ip("link add vpn0 type veth peer name vpn1");
    one.namespace.ip("link set vpn0 up");
    one.namespace.ip("link set vpn1 up");
    one.namespace.ip("route add 10.5.0.0/16 dev vpn0 table 99");
    one.namespace.ip("rule add pref 99 iif lo lookup 99");
    let finding = finds(&one, "forward-drop", "net.ipv4.conf.flannel/1.rp_filter=2");
    assert!(finding.what.contains("vpn0"), "{finding:#?}");
    set("0");
    is_silent(&one);
}
