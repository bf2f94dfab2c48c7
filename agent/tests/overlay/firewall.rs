//! The firewall: that it masquerades what it should, and comes back when somebody flushes it.

use std::io::Read;
use std::net::Ipv4Addr;
use std::process::Stdio;

use crate::cluster::{NETWORK, Store, pair_in};
use crate::host::Host;
use crate::namespace::Namespace;
use crate::wait::wait_until;

/// A network that asks for nftables, as it does in flannel; the other one gets iptables where it is installed.
const NFTABLES: &str =
    r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;

/// The source address that a listener in `server` sees when a TCP connection to `address` is made in `client`.
fn seen_source(server: &Namespace, address: Ipv4Addr, client: &Namespace) -> String {
    let mut listener = server
        .command("python3")
        .args(["-c", "import socket; s = socket.create_server(('', 8080)); print('up', flush=True); print(s.accept()[1][0])"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a listener");
    let mut out = listener.stdout.take().expect("its output");
    let mut up = [0; 3];
    out.read_exact(&mut up).expect("the listener to come up");
    let program =
        format!("import socket; socket.create_connection(('{address}', 8080), timeout=5)");
    let connected = client
        .command("python3")
        .args(["-c", &program])
        .status()
        .expect("a client");
    assert!(connected.success(), "no connection to {address}");
    let mut seen = String::new();
    out.read_to_string(&mut seen)
        .expect("what the listener saw");
    listener.wait().expect("the listener's end");
    seen.trim().to_owned()
}

#[test]
fn container_is_seen_by_its_own_address_inside_and_by_its_hosts_outside() {
    for network in [NETWORK, NFTABLES] {
        let (_store, one, two) = pair_in(network);
        let inside = seen_source(two.container(), two.container_address(), one.container());
        assert_eq!(inside, one.container_address().to_string());
        let outside = seen_source(&two.namespace, two.address, one.container());
        assert_eq!(outside, one.address.to_string());
    }
}

#[test]
fn flushed_rules_come_back() {
    for (network, mark, flush) in [
        (NFTABLES, "table inet selvage", "nft flush ruleset"),
        (NETWORK, "FLANNEL-POSTRTG", "iptables -t nat -F"),
    ] {
        let (_store, one, two) = pair_in(network);
        // Without the counters.
        let rules = || one.namespace.run("nft -s list ruleset");
        let before = rules();
        assert!(before.contains(mark), "{before}");
        // The agent may be faster than a look at what is missing.
        let programmed = || one.log().matches("firewall programmed").count();
        let times = programmed();
        one.namespace.run(flush);
        wait_until("the rules", || programmed() > times && rules() == before);
        let outside = seen_source(&two.namespace, two.address, one.container());
        assert_eq!(outside, one.address.to_string());
    }
}

/// Not for the rules, not for their repair, and not to look for other programs' rules where there are none: although `nft`
/// and iptables are installed.
#[test]
fn nftables_mode_starts_no_program() {
    let (_store, one, two) = pair_in(NFTABLES);
    let programmed = || one.log().matches("firewall programmed").count();
    let listed = || one.namespace.run("nft list table inet selvage");
    let before = listed();
    for edit in [
        "flush ruleset",
        "insert rule inet selvage postrouting accept",
    ] {
        let times = programmed();
        one.namespace.run(&format!("nft {edit}"));
        wait_until("the rules", || programmed() > times && listed() == before);
    }
    let outside = seen_source(&two.namespace, two.address, one.container());
    assert_eq!(outside, one.address.to_string());
    assert_eq!(children_faults(one.agent_id()), 0, "{}", one.log());
}

/// The page faults of the children that a process has had, which is 0 only if it never had one (`cminflt` of
/// proc_pid_stat(5)); those that are not over yet are counted as one each.
fn children_faults(process: u32) -> usize {
    let read = |file: String| std::fs::read_to_string(file).expect("a process that runs");
    let stat = read(format!("/proc/{process}/stat"));
    // After the name, which may have spaces, the third field comes first.
    let (_, fields) = stat.rsplit_once(") ").expect("a name");
    let faults = fields.split(' ').nth(11 - 3).expect("a field");
    let running = read(format!("/proc/{process}/task/{process}/children"));
    faults.parse::<usize>().expect("a number") + running.split_whitespace().count()
}

/// A real flannel makes its own tables anew, removes them where it uses iptables, and knows no others.
#[test]
fn a_stopped_agent_leaves_its_rules_in_flannels_tables_and_takes_them_back() {
    let dual = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    for (network, left) in [
        (NFTABLES, &["table ip flannel-ipv4"][..]),
        (dual, &["table ip flannel-ipv4", "table ip6 flannel-ipv6"]),
    ] {
        let (_store, mut one, two) = pair_in(network);
        // Some families of tables are another program's.
        let tables = |one: &Host| {
            let listing = one.namespace.run("nft list tables");
            let ours = |line: &&str| line.contains("selvage") || line.contains("flannel");
            listing
                .lines()
                .filter(ours)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(tables(&one), ["table inet selvage"]);
        assert_eq!(one.stop_agent(), Some(0));
        assert_eq!(tables(&one), left);
        let outside = seen_source(&two.namespace, two.address, one.container());
        assert_eq!(outside, one.address.to_string());
        for chain in ["forward", "postrtg"] {
            let chain = format!("nft list chain ip flannel-ipv4 {chain}");
            assert!(one.namespace.run(&chain).contains("hook"), "{chain}");
        }
        one.start_agent();
        one.wait_ready();
        assert_eq!(tables(&one), ["table inet selvage"]);
    }
}

/// An agent that was killed leaves its own table. The next one may never get as far as to change it.
#[test]
fn an_agent_that_waits_leaves_the_rules_of_a_killed_one_in_flannels_tables() {
    let (mut store, mut one, two) = pair_in(NFTABLES);
    let tables = |one: &Host| {
        let listing = one.namespace.run("nft list tables");
        listing
            .lines()
            .filter(|line| line.contains("selvage") || line.contains("flannel"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    one.kill_agent();
    assert_eq!(tables(&one), ["table inet selvage"]);
    store.stop_etcd();
    one.start_agent();
    one.wait_told("that it waits", |line| {
        line.starts_with("STATUS=waiting to join: etcd")
    });
    assert_eq!(tables(&one), ["table inet selvage"]);
    assert_eq!(one.stop_agent(), Some(0));
    assert_eq!(tables(&one), ["table ip flannel-ipv4"]);
    let outside = seen_source(&two.namespace, two.address, one.container());
    assert_eq!(outside, one.address.to_string());
    let inside = seen_source(two.container(), two.container_address(), one.container());
    assert_eq!(inside, one.container_address().to_string());
    store.start_etcd();
    one.start_agent();
    one.wait_ready();
    assert_eq!(tables(&one), ["table inet selvage"]);
}

#[test]
fn foreign_tables_are_left_alone() {
    let store = Store::start(NETWORK);
    let mut one = store.host(1);
    one.namespace.run("nft add table inet other");
    one.namespace.run("nft add chain inet other keep");
    one.start_agent();
    one.wait_ready();
    assert_eq!(one.stop_agent(), Some(0));
    assert!(
        one.selvage("cleanup")
            .status()
            .expect("selvage cleanup")
            .success()
    );
    let ruleset = one.namespace.run("nft list ruleset");
    assert!(
        ruleset.contains("chain keep")
            && !ruleset.contains("selvage")
            && !ruleset.contains("FLANNEL"),
        "{ruleset}"
    );
}
