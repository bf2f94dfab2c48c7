//! Network policies beside our rules: what a policy drops is dropped, what it allows passes, whoever came first.
//!
//! ```text
//!   n1 ── switch ── n2
//!   ├─ guarded, which only a friend may reach     ├─ friend
//!   └─ open, without a policy                     └─ stranger
//! ```

use std::net::{IpAddr, SocketAddr};

use selvage::base::net::Family;

use crate::fleet::{Fleet, VXLAN};
use crate::host::Host;
use crate::namespace::Namespace;
use crate::pods::{Node, PORT, Pod, is_refused, seen};
use crate::proxy::{Mode, counted, restore, try_feed};
use crate::queue::{Judged, Queue};
use crate::wait::wait_until;

const V4: Family = Family::V4;
const MODES: [&str; 2] = ["nftables", "iptables"];
/// The pods of Calico, and the interfaces to them.
const GUARDED: (&str, &str) = ("cali9d7310e16e7", "10.244.1.10");
const OPEN: (&str, &str) = ("cali26cecacb712", "10.244.1.11");

/// Two nodes with our rules in a mode, and the pods of the second.
fn nodes(firewall: &str) -> (Fleet, [Node; 2], [Pod; 2]) {
    let fleet = Fleet::start(VXLAN);
    let nodes = [1, 2].map(|number| {
        let mut host = fleet.host(number, &[&format!("10.244.{number}.0/24")]);
        host.arguments.push(format!("--firewall-mode={firewall}"));
        host.start_agent();
        host
    });
    let nodes = nodes.map(|mut host: Host| {
        host.wait_ready();
        Node::new(host)
    });
    let pods = ["friend", "stranger"].map(|name| nodes[1].pod(name));
    (fleet, nodes, pods)
}

/// A pod as Calico's plugin makes it with flannel: no bridge, a route to each pod, and the node answers for its gateway.
fn calico_pod(node: &Node, (interface, address): (&str, &str)) -> Pod {
    let pod = Namespace::new();
    let node = node.namespace();
    pod.connect("eth0", node, interface);
    node.sysctl(&format!("net.ipv4.conf.{interface}.proxy_arp"), "1");
    node.sysctl(&format!("net.ipv4.neigh.{interface}.proxy_delay"), "0");
    node.ip(&format!("link set {interface} up"));
    node.ip(&format!(
        "route add {address}/32 dev {interface} scope link"
    ));
    pod.ip(&format!("address add {address}/32 dev eth0"));
    pod.ip("link set eth0 up");
    pod.ip("route add 169.254.1.1 dev eth0 scope link");
    pod.ip("route add default via 169.254.1.1");
    Pod {
        namespace: pod,
        addresses: vec![address.parse().expect("an address")],
    }
}

/// Where Calico puts its rules: its `chainInsertMode`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Insert {
    Insert,
    Append,
}

/// The rules of Calico for these pods, retyped from public dumps (`iptables -S`) of clusters with its policies and
/// kube-proxy, and in kubernetes/kops#6469 with flannel. What concerns the node's own interfaces is left out.
fn calico(insert: Insert, friend: IpAddr) -> String {
    let jump = match insert {
        Insert::Insert => "-I FORWARD 1",
        Insert::Append => "-A FORWARD",
    };
    let mut text = format!(
        r#"*filter
:cali-FORWARD - [0:0]
:cali-cidr-block - [0:0]
:cali-from-hep-forward - [0:0]
:cali-from-wl-dispatch - [0:0]
:cali-pi-_j5sVgQTfF-APgMw0kN9 - [0:0]
:cali-pri-kns.default - [0:0]
:cali-pro-kns.default - [0:0]
:cali-to-hep-forward - [0:0]
:cali-to-wl-dispatch - [0:0]
{jump} -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
-A FORWARD -m comment --comment "cali:S93hcgKJrXEqnTfs" -m comment --comment "Policy explicitly accepted packet." -m mark --mark 0x10000/0x10000 -j ACCEPT
-A FORWARD -m comment --comment "cali:mp77cMpurHhyjLrM" -j MARK --set-xmark 0x10000/0x10000
-A cali-FORWARD -m comment --comment "cali:vjrMJCRpqwy5oRoX" -j MARK --set-xmark 0x0/0xe0000
-A cali-FORWARD -m comment --comment "cali:A_sPAO0mcxbT9mOV" -m mark --mark 0x0/0x10000 -j cali-from-hep-forward
-A cali-FORWARD -i cali+ -m comment --comment "cali:8ZoYfO5HKXWbB3pk" -j cali-from-wl-dispatch
-A cali-FORWARD -o cali+ -m comment --comment "cali:jdEuaPBe14V2hutn" -j cali-to-wl-dispatch
-A cali-FORWARD -m comment --comment "cali:12bc6HljsMKsmfr-" -j cali-to-hep-forward
-A cali-FORWARD -m comment --comment "cali:NOSxoaGx8OIstr1z" -j cali-cidr-block
-A cali-pi-_j5sVgQTfF-APgMw0kN9 -s {friend}/32 -m comment --comment "cali:7z6hujEGudXby9dt" -m comment --comment "Policy default/knp.default.friends ingress" -j MARK --set-xmark 0x10000/0x10000
-A cali-pi-_j5sVgQTfF-APgMw0kN9 -m comment --comment "cali:NTwkPh-Buls_XiN8" -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-pri-kns.default -m comment --comment "cali:wRBTHOraY7-PMOXd" -m comment --comment "Profile kns.default ingress" -j MARK --set-xmark 0x10000/0x10000
-A cali-pro-kns.default -m comment --comment "cali:K0NIAoy4j4QR-b6k" -m comment --comment "Profile kns.default egress" -j MARK --set-xmark 0x10000/0x10000
"#
    );
    for (interface, _) in [GUARDED, OPEN] {
        let policy = (interface == GUARDED.0).then_some("cali-pi-_j5sVgQTfF-APgMw0kN9");
        text += &workload("from", "fw", "-i", interface, "cali-pro-kns.default", None);
        text += &workload("to", "tw", "-o", interface, "cali-pri-kns.default", policy);
    }
    for way in ["from", "to"] {
        text += &format!(
            "-A cali-{way}-wl-dispatch -m comment --comment \"cali:FUqQW1upEuPXcL7s\" -m comment --comment \
             \"Unknown interface\" -j DROP\n"
        );
    }
    text + "COMMIT\n"
}

/// The chain of one pod and one direction, with its policy or, without one, its profile.
fn workload(
    way: &str,
    short: &str,
    option: &str,
    interface: &str,
    profile: &str,
    policy: Option<&str>,
) -> String {
    let chain = format!("cali-{short}-{interface}");
    let judged = match policy {
        Some(policy) => format!(
            r#"-A {chain} -m comment --comment "cali:8ADQ8Jzsc-6WWcVp" -m comment --comment "Start of policies" -j MARK --set-xmark 0x0/0x20000
-A {chain} -m comment --comment "cali:ONY2yOu2M6VeLD-L" -m mark --mark 0x0/0x20000 -j {policy}
-A {chain} -m comment --comment "cali:mkYWmkL7qJzTAXcD" -m comment --comment "Return if policy accepted" -m mark --mark 0x10000/0x10000 -j RETURN
-A {chain} -m comment --comment "cali:d8bepK0owvYXNWJy" -m comment --comment "Drop if no policies passed packet" -m mark --mark 0x0/0x20000 -j DROP
"#
        ),
        None => String::new(),
    };
    format!(
        r#":{chain} - [0:0]
-A cali-{way}-wl-dispatch {option} {interface} -m comment --comment "cali:1f18nv9_J5o_MPL" -g {chain}
-A {chain} -m comment --comment "cali:gxYrST51OJyfBgWw" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A {chain} -m comment --comment "cali:6xENQhO2T0QW5LgN" -m conntrack --ctstate INVALID -j DROP
-A {chain} -m comment --comment "cali:O7MDTYmYN54jUWVF" -j MARK --set-xmark 0x0/0x10000
{judged}-A {chain} -m comment --comment "cali:NlPOXi35nFW5Lm_h" -j {profile}
-A {chain} -m comment --comment "cali:jjbE8lM3Cp7UKfvS" -m comment --comment "Return if profile accepted" -m mark --mark 0x10000/0x10000 -j RETURN
-A {chain} -m comment --comment "cali:iDK9j3m3uFLKJ0J_" -m comment --comment "Drop if no profiles matched" -j DROP
"#
    )
}

/// The targets of the rules in FORWARD, in their order.
fn forward(node: &Node) -> Vec<String> {
    let rules = node.namespace().run("iptables -S FORWARD");
    let target = |line: &str| Some(line.split_once(" -j ")?.1.split(' ').next()?.to_owned());
    rules.lines().filter_map(target).collect()
}

/// Calico's rules judge, in whichever mode ours are, and although FORWARD drops what nobody accepts.
fn calico_judges(firewall: &str, insert: Insert) {
    let (_fleet, nodes, [friend, stranger]) = nodes(firewall);
    let node = &nodes[0];
    let [guarded, open] = [GUARDED, OPEN].map(|pod| calico_pod(node, pod));
    let at = |from: &Pod, to: &Pod| seen(&from.namespace, to.socket(V4), &to.namespace);
    let ip = |pod: &Pod| pod.address(V4);
    for pod in [&guarded, &open] {
        for from in [&friend, &stranger] {
            assert_eq!(at(from, pod), ip(from), "{firewall}: before the rules");
        }
    }
    // Beside Calico alone, nobody else's accept is needed; with kube-proxy's rules there is more than Calico.
    Mode::Iptables.make(node, V4, &[]);
    node.namespace().run("iptables -P FORWARD DROP");
    restore(node.namespace(), V4, &calico(insert, ip(&friend)));
    let ours = || forward(node).iter().position(|to| to == "FLANNEL-FWD");
    match insert {
        // Whoever comes after Calico is not asked about what it has dropped.
        Insert::Insert => {
            wait_until("our accept", || ours().is_some());
            assert_eq!(forward(node)[0], "cali-FORWARD", "{firewall}");
        }
        Insert::Append => wait_until("our accept to go", || ours().is_none()),
    }

    assert_eq!(at(&friend, &guarded), ip(&friend), "{firewall}");
    let to = guarded.socket(V4);
    let is_away = || is_refused(&stranger.namespace, to, &guarded.namespace);
    assert!(is_away(), "{firewall}: what the policy drops");
    assert_eq!(at(&stranger, &open), ip(&stranger), "{firewall}");
    assert_eq!(at(&guarded, &friend), ip(&guarded), "{firewall}: egress");
    assert!(
        is_refused(&open.namespace, to, &guarded.namespace),
        "{firewall}: on the node itself"
    );

    let chain = format!("cali-tw-{}", GUARDED.0);
    let policy = "cali-pi-_j5sVgQTfF-APgMw0kN9";
    let count = |chain: &str, target: &str| counted(node.namespace(), V4, chain, target);
    assert!(count(&chain, "DROP") >= 2, "{firewall}");
    assert!(
        count(policy, "MARK") >= 1,
        "{firewall}: the friend's first packet"
    );

    // Nothing is moved back and forth.
    let order = forward(node);
    assert!(is_away());
    assert_eq!(forward(node), order, "{firewall}");
}

#[test]
fn calico_with_flannel_judges_before_us() {
    for firewall in MODES {
        calico_judges(firewall, Insert::Insert);
    }
}

/// `chainInsertMode: Append`, where flannel's rules make policies void (flannel-io/flannel#938, projectcalico/canal#115).
#[test]
fn calico_that_appends_its_rules_is_not_overridden() {
    for firewall in MODES {
        calico_judges(firewall, Insert::Append);
    }
}

/// The table of kube-network-policies for one pod, retyped from `pkg/dataplane/controller_test.go` of
/// kubernetes-sigs/kube-network-policies, with its defaults: queue 100, and closed when nobody judges.
fn kube_network_policies(pod: IpAddr) -> String {
    format!(
        "table inet kube-network-policies {{
\tset podips-v4 {{
\t\ttype ipv4_addr
\t\telements = {{ {pod} }}
\t}}
\tchain postrouting {{
\t\ttype filter hook postrouting priority srcnat - 5; policy accept;
\t\ticmpv6 type nd-router-solicit accept
\t\ticmpv6 type nd-router-advert accept
\t\ticmpv6 type nd-neighbor-solicit accept
\t\ticmpv6 type nd-neighbor-advert accept
\t\ticmpv6 type nd-redirect accept
\t\tmeta skuid 0 counter accept
\t\tct label 100 ct state established,related counter accept
\t\tip saddr @podips-v4 queue to 100
\t\tip daddr @podips-v4 queue to 100
\t\tct label set 100
\t}}
\tchain input {{
\t\ttype filter hook input priority 101; policy accept;
\t\tiifname \"lo\" accept
\t\tip saddr @podips-v4 ct state new queue to 100
\t}}
}}
"
    )
}

/// Leads the packets of a pod into the queue. A kernel without nftables' expression for that (`CONFIG_NFT_QUEUE`) has
/// iptables' target: at the same hook, and before NAT as well.
fn divert(node: &Node, pod: IpAddr) {
    let namespace = node.namespace();
    match try_feed(namespace, "nft -f -", &kube_network_policies(pod)) {
        Ok(()) => {}
        Err(words) if words.contains("queue to 100") => {
            eprintln!("this kernel has no queue in nftables; taking NFQUEUE of iptables");
            let rules = [("-s", pod), ("-d", pod)].map(|(option, pod)| {
                format!("-A POSTROUTING {option} {pod} -j NFQUEUE --queue-num 100\n")
            });
            restore(
                namespace,
                V4,
                &format!("*mangle\n{}COMMIT\n", rules.concat()),
            );
        }
        Err(words) => panic!("{words}"),
    }
}

#[test]
fn kube_network_policies_judges_what_we_accept() {
    for firewall in MODES {
        let (_fleet, nodes, [friend, stranger]) = nodes(firewall);
        let node = &nodes[0];
        let [guarded, open] = ["guarded", "open"].map(|name| node.pod(name));
        let ip = |pod: &Pod| pod.address(V4);
        let enemy = ip(&stranger);
        let queue = Queue::open(node.namespace(), 100, move |source, _| source != enemy);
        divert(node, ip(&guarded));
        let at = |from: &Pod, to: &Pod| seen(&from.namespace, to.socket(V4), &to.namespace);
        let is_away =
            |from: &Pod| is_refused(&from.namespace, guarded.socket(V4), &guarded.namespace);
        assert_eq!(at(&friend, &guarded), ip(&friend), "{firewall}");
        let Judged { accepted, dropped } = queue.judged();
        assert!(
            accepted > 0 && dropped == 0,
            "{firewall}: {accepted} {dropped}"
        );
        assert!(is_away(&stranger), "{firewall}: what the policy drops");
        assert!(queue.judged().dropped >= 2, "{firewall}");
        // A pod without a policy is nobody's business, and the guarded one's way out is masqueraded by us as ever.
        assert_eq!(at(&stranger, &open), ip(&stranger), "{firewall}");
        let other = &nodes[1];
        let outside = SocketAddr::new(other.address(V4), PORT);
        let source = seen(&guarded.namespace, outside, other.namespace());
        assert_eq!(source, node.address(V4), "{firewall}");
        // All of that came by the queue: closed is closed.
        drop(queue);
        assert!(is_away(&friend), "{firewall}: closed");
    }
}
