//! Services as kube-proxy makes them of rules, in each of its modes; in ipvs mode for IPv4 alone. Chains, sets and words are retyped from
//! kubernetes/kubernetes:
//!
//! | mode | from |
//! |---|---|
//! | iptables | `pkg/proxy/iptables`: `TestOverallIPTablesRules` in `proxier_test.go`, `iptablesJumpChains` in `proxier.go` |
//! | nftables | `pkg/proxy/nftables/proxier_test.go`: `baseRules`, `TestOverallNFTablesRules` |
//! | ipvs | `pkg/proxy/ipvs/README.md`: the sets, and the rules with `--cluster-cidr` and for NodePort |

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;

use selvage::base::net::Family;

use crate::namespace::Namespace;
use crate::pods::{Node, PORT};

/// kube-proxy's `--cluster-cidr`.
fn cluster(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:10:244::/56",
    }
}

/// The API server's `--service-cluster-ip-range`.
fn services(family: Family) -> &'static str {
    match family {
        Family::V4 => "172.30.0.0/16",
        Family::V6 => "fd00:10:96::/112",
    }
}

/// What a Service does for whoever is outside the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outside {
    Nothing,
    /// A NodePort with `externalTrafficPolicy: Cluster`.
    Cluster(u16),
    /// A NodePort with `externalTrafficPolicy: Local`.
    Local(u16),
}

/// A Service with the port 80 of TCP, and one endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    /// What the names of its chains end with, in iptables and nftables.
    pub(crate) hashes: [&'static str; 2],
    pub(crate) address: IpAddr,
    pub(crate) outside: Outside,
    pub(crate) endpoint: IpAddr,
}

impl Service {
    fn family(&self) -> Family {
        Family::of(self.address)
    }

    fn is_on(&self, node: &Node) -> bool {
        node.subnet(self.family()).contains(&self.endpoint)
    }

    /// The endpoint with its port.
    fn target(&self) -> String {
        SocketAddr::new(self.endpoint, PORT).to_string()
    }
}

/// kube-proxy's `--proxy-mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Iptables,
    Nftables,
    Ipvs,
}

impl Mode {
    /// Makes the Services, all of one family, on a node.
    pub(crate) fn make(self, node: &Node, family: Family, services: &[Service]) {
        let namespace = node.namespace();
        match self {
            Self::Iptables => restore(namespace, family, &iptables(node, family, services)),
            Self::Nftables => feed(namespace, "nft -f -", &nftables(node, family, services)),
            Self::Ipvs => {
                for line in ipvs_commands(node, services) {
                    namespace.run(&line);
                }
                restore(namespace, family, IPVS_RULES);
            }
        }
    }
}

fn iptables_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// Gives `iptables-restore` rules beside those that are there.
pub(crate) fn restore(namespace: &Namespace, family: Family, rules: &str) {
    let line = format!("{}-restore --noflush --wait", iptables_of(family));
    feed(namespace, &line, rules);
}

fn feed(namespace: &Namespace, line: &str, input: &str) {
    if let Err(words) = try_feed(namespace, line, input) {
        panic!("{words}\n{input}");
    }
}

/// Runs a command with this input. Returns its words if it fails.
pub(crate) fn try_feed(namespace: &Namespace, line: &str, input: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let mut process = namespace
        .command(words.next().expect("a program"))
        .args(words)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("`{line}` did not start: {error}"));
    let mut to = process.stdin.take().expect("its input");
    // It may end before it has read everything.
    let _ = to.write_all(input.as_bytes());
    drop(to);
    let output = process.wait_with_output().expect("its end");
    let words = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("`{line}`: {words}")),
    }
}

/// How many packets have met the rules of a chain with this target.
pub(crate) fn counted(namespace: &Namespace, family: Family, chain: &str, target: &str) -> u64 {
    let saved = namespace.run(&format!("{}-save -c", iptables_of(family)));
    let (chain, target) = (format!(" -A {chain} "), format!(" -j {target}"));
    let rules = saved
        .lines()
        .filter(|line| line.contains(&chain) && line.contains(&target));
    let packets = rules.map(|line| {
        let packets = line.strip_prefix('[').and_then(|rest| rest.split_once(':'));
        let packets = packets.and_then(|(packets, _)| packets.parse::<u64>().ok());
        packets.unwrap_or_else(|| panic!("no counter: {line}"))
    });
    packets.sum()
}

/// What there is without any Service; what the Services have comes in place of the comments.
const IPTABLES: &str = r#"*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I INPUT -j KUBE-FIREWALL
-I OUTPUT -j KUBE-FIREWALL
# FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
# EXTERNAL
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
# SERVICES
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"#;

/// For IPv4 alone, which has more than one loopback address.
const LOCALNET: &str = "-A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 \
                        ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n";

fn iptables(node: &Node, family: Family, services: &[Service]) -> String {
    let (mut external, mut nat) = (String::new(), String::new());
    for service in services {
        let is_here = service.is_on(node);
        iptables_service(&mut nat, service, is_here);
        if let (Outside::Local(port), false) = (service.outside, is_here) {
            let Service { name, .. } = service;
            let _ = writeln!(
                external,
                "-A KUBE-EXTERNAL-SERVICES -m comment --comment \"{name}:p80 has no local endpoints\" -m addrtype \
                 --dst-type LOCAL -m tcp -p tcp --dport {port} -j DROP"
            );
        }
    }
    let firewall = match family {
        Family::V4 => LOCALNET,
        Family::V6 => "",
    };
    IPTABLES
        .replace("# FIREWALL\n", firewall)
        .replace("# EXTERNAL\n", &external)
        .replace("# SERVICES\n", &nat)
}

fn iptables_service(nat: &mut String, service: &Service, is_here: bool) {
    let Service {
        name,
        hashes: [hash, _],
        address,
        endpoint,
        ..
    } = service;
    let (cluster, target) = (cluster(service.family()), service.target());
    let _ = write!(
        nat,
        ":KUBE-SVC-{hash} - [0:0]\n:KUBE-SEP-{hash} - [0:0]\n\
         -A KUBE-SERVICES -m comment --comment \"{name}:p80 cluster IP\" -m tcp -p tcp -d {address} --dport 80 \
         -j KUBE-SVC-{hash}\n\
         -A KUBE-SVC-{hash} -m comment --comment \"{name}:p80 cluster IP\" -m tcp -p tcp -d {address} --dport 80 \
         ! -s {cluster} -j KUBE-MARK-MASQ\n\
         -A KUBE-SVC-{hash} -m comment --comment \"{name}:p80 -> {target}\" -j KUBE-SEP-{hash}\n\
         -A KUBE-SEP-{hash} -m comment --comment {name}:p80 -s {endpoint} -j KUBE-MARK-MASQ\n\
         -A KUBE-SEP-{hash} -m comment --comment {name}:p80 -m tcp -p tcp -j DNAT --to-destination {target}\n"
    );
    let (Outside::Cluster(port) | Outside::Local(port)) = service.outside else {
        return;
    };
    let _ = write!(
        nat,
        ":KUBE-EXT-{hash} - [0:0]\n\
         -A KUBE-NODEPORTS -m comment --comment {name}:p80 -m tcp -p tcp --dport {port} -j KUBE-EXT-{hash}\n"
    );
    let external = format!("{name}:p80 external destinations");
    if let Outside::Cluster(_) = service.outside {
        let _ = write!(
            nat,
            "-A KUBE-EXT-{hash} -m comment --comment \"masquerade traffic for {external}\" -j KUBE-MARK-MASQ\n\
             -A KUBE-EXT-{hash} -j KUBE-SVC-{hash}\n"
        );
        return;
    }
    let _ = write!(
        nat,
        "-A KUBE-EXT-{hash} -m comment --comment \"pod traffic for {external}\" -s {cluster} -j KUBE-SVC-{hash}\n\
         -A KUBE-EXT-{hash} -m comment --comment \"masquerade LOCAL traffic for {external}\" -m addrtype \
         --src-type LOCAL -j KUBE-MARK-MASQ\n\
         -A KUBE-EXT-{hash} -m comment --comment \"route LOCAL traffic for {external}\" -m addrtype \
         --src-type LOCAL -j KUBE-SVC-{hash}\n"
    );
    if is_here {
        let _ = write!(
            nat,
            ":KUBE-SVL-{hash} - [0:0]\n-A KUBE-EXT-{hash} -j KUBE-SVL-{hash}\n\
             -A KUBE-SVL-{hash} -m comment --comment \"{name}:p80 -> {target}\" -j KUBE-SEP-{hash}\n"
        );
    }
}

/// What there is without any Service, each line after `add`.
const NFTABLES: &str = r#"table ip kube-proxy { comment "rules for kube-proxy" ; }
set ip kube-proxy cluster-ips { type ipv4_addr ; comment "Active ClusterIPs" ; }
set ip kube-proxy nodeport-ips { type ipv4_addr ; comment "IPs that accept NodePort traffic" ; }
map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment "destinations that are subject to LoadBalancerSourceRanges" ; }
map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; comment "vmap to drop or reject packets to service nodeports with no endpoints" ; }
map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; comment "vmap to drop or reject packets to services with no endpoints" ; }
map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment "ClusterIP, ExternalIP and LoadBalancer IP traffic" ; }
map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; comment "NodePort traffic" ; }
chain ip kube-proxy cluster-ips-check
chain ip kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }
chain ip kube-proxy filter-output-pre-dnat { type filter hook output priority -110 ; }
chain ip kube-proxy filter-forward { type filter hook forward priority 0 ; }
chain ip kube-proxy filter-input { type filter hook input priority 0 ; }
chain ip kube-proxy filter-output { type filter hook output priority 0 ; }
chain ip kube-proxy firewall-check
chain ip kube-proxy mark-for-masquerade
chain ip kube-proxy masquerading
chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
chain ip kube-proxy nodeport-endpoints-check
chain ip kube-proxy reject-chain { comment "helper for @no-endpoint-services / @no-endpoint-nodeports" ; }
chain ip kube-proxy services
chain ip kube-proxy service-endpoints-check
rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
rule ip kube-proxy cluster-ips-check ip daddr { SERVICE-CIDR } drop comment "Drop traffic to unallocated ClusterIPs"
rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
rule ip kube-proxy filter-input ct state new jump service-endpoints-check
rule ip kube-proxy filter-output ct state new jump service-endpoints-check
rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
rule ip kube-proxy filter-output ct state new jump cluster-ips-check
rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
rule ip kube-proxy masquerading mark and 0x4000 == 0 return
rule ip kube-proxy masquerading mark set mark xor 0x4000
rule ip kube-proxy masquerading masquerade fully-random
rule ip kube-proxy nat-output jump services
rule ip kube-proxy nat-postrouting jump masquerading
rule ip kube-proxy nat-prerouting jump services
rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
rule ip kube-proxy reject-chain reject
rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
element ip kube-proxy nodeport-ips { NODE-IP }
rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
"#;

fn nftables(node: &Node, family: Family, all: &[Service]) -> String {
    let node_ip = node.address(family).to_string();
    let mut lines = NFTABLES
        .replace("SERVICE-CIDR", services(family))
        .replace("NODE-IP", &node_ip);
    for service in all {
        nftables_service(&mut lines, service, service.is_on(node));
    }
    if family == Family::V6 {
        lines = lines
            .replace("ip kube-proxy", "ip6 kube-proxy")
            .replace("ip saddr", "ip6 saddr")
            .replace("ip daddr", "ip6 daddr")
            .replace("ipv4_addr", "ipv6_addr");
    }
    let commands = lines.lines().map(|line| format!("add {line}\n"));
    commands.collect()
}

fn nftables_service(lines: &mut String, service: &Service, is_here: bool) {
    let Service {
        name,
        hashes: [_, hash],
        address,
        endpoint,
        ..
    } = service;
    let of = "ip kube-proxy";
    let chain = format!("{hash}-{name}/tcp/p80");
    // A colon ends a chain's name.
    let named = endpoint.to_string().replace(':', ".");
    let (to, target) = (service.target(), format!("endpoint-{chain}__{named}/80"));
    let cluster = cluster(service.family());
    let _ = write!(
        lines,
        "chain {of} {target}\n\
         rule {of} {target} ip saddr {endpoint} jump mark-for-masquerade\n\
         rule {of} {target} meta l4proto tcp dnat to {to}\n\
         chain {of} service-{chain}\n\
         rule {of} service-{chain} ip daddr {address} ip saddr != {cluster} jump mark-for-masquerade\n\
         rule {of} service-{chain} numgen random mod 1 vmap {{ 0 : goto {target} }}\n\
         element {of} cluster-ips {{ {address} }}\n\
         element {of} service-ips {{ {address} . tcp . 80 : goto service-{chain} }}\n"
    );
    let (Outside::Cluster(port) | Outside::Local(port)) = service.outside else {
        return;
    };
    let _ = write!(
        lines,
        "chain {of} external-{chain}\n\
         element {of} service-nodeports {{ tcp . {port} : goto external-{chain} }}\n"
    );
    if let Outside::Cluster(_) = service.outside {
        let _ = write!(
            lines,
            "rule {of} external-{chain} jump mark-for-masquerade\n\
             rule {of} external-{chain} goto service-{chain}\n"
        );
        return;
    }
    let _ = write!(
        lines,
        "rule {of} external-{chain} ip saddr {cluster} goto service-{chain} comment \"short-circuit pod traffic\"\n\
         rule {of} external-{chain} fib saddr type local jump mark-for-masquerade comment \"masquerade local traffic\"\n\
         rule {of} external-{chain} fib saddr type local goto service-{chain} comment \"short-circuit local traffic\"\n"
    );
    let _ = match is_here {
        true => writeln!(
            lines,
            "rule {of} external-{chain} numgen random mod 1 vmap {{ 0 : goto {target} }}"
        ),
        false => writeln!(
            lines,
            "element {of} no-endpoint-nodeports {{ tcp . {port} comment \"{name}:p80\" : drop }}"
        ),
    };
}

/// The rules of ipvs mode, which are the same whatever Services there are.
const IPVS_RULES: &str = r#"*filter
:KUBE-FORWARD - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port with externalTrafficPolicy=local" -m set --match-set KUBE-NODE-PORT-LOCAL-TCP dst -j RETURN
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES ! -s 10.244.0.0/16 -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
COMMIT
"#;

/// The device with the Services' addresses, the sets that the rules name, and a virtual server for each way in.
fn ipvs_commands(node: &Node, services: &[Service]) -> Vec<String> {
    let mut lines: Vec<String> = [
        "ip link add kube-ipvs0 type dummy",
        "sysctl -qw net.ipv4.vs.conntrack=1 net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2",
        "ipset create KUBE-CLUSTER-IP hash:ip,port",
        "ipset create KUBE-LOOP-BACK hash:ip,port,ip",
        "ipset create KUBE-NODE-PORT-TCP bitmap:port range 0-65535",
        "ipset create KUBE-NODE-PORT-LOCAL-TCP bitmap:port range 0-65535",
    ]
    .map(str::to_owned)
    .to_vec();
    for service in services {
        let Service {
            address, endpoint, ..
        } = service;
        let target = service.target();
        lines.extend([
            format!("ip address add {address}/32 dev kube-ipvs0"),
            format!("ipset add KUBE-CLUSTER-IP {address},tcp:80"),
            format!("ipset -exist add KUBE-LOOP-BACK {endpoint},tcp:80,{endpoint}"),
            format!("ipvsadm -A -t {address}:80 -s rr"),
            format!("ipvsadm -a -t {address}:80 -r {target} -m"),
        ]);
        let (Outside::Cluster(port) | Outside::Local(port)) = service.outside else {
            continue;
        };
        let is_local = service.outside == Outside::Local(port);
        let server = format!("{}:{port}", node.host.address);
        lines.push(format!("ipset add KUBE-NODE-PORT-TCP {port}"));
        lines.push(format!("ipvsadm -A -t {server} -s rr"));
        if is_local {
            lines.push(format!("ipset add KUBE-NODE-PORT-LOCAL-TCP {port}"));
        }
        if !is_local || service.is_on(node) {
            lines.push(format!("ipvsadm -a -t {server} -r {target} -m"));
        }
    }
    lines
}
