//! The table as text: pure, with the same rules for both families.

use std::fmt::Write;

use ring::digest;

use super::super::{multicast, protocol};
use super::{FLANNEL_TABLES, Rules, docker};
use crate::base::net::{Family, Leased};

/// The mark that kube-proxy sets on packets that it masquerades itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// The text that creates the table, in parts.
#[derive(PartialEq, Eq)]
pub(super) struct Script {
    /// Its name, in the family `inet`.
    table: String,
    chains: Vec<Chain>,
}

#[derive(PartialEq, Eq)]
struct Chain {
    name: &'static str,
    /// Type, hook, priority and policy.
    hook: &'static str,
    rules: Vec<Rule>,
}

#[derive(PartialEq, Eq)]
struct Rule {
    expression: String,
    /// Explains the rule to people, and identifies it for us however `nft` lists it.
    comment: &'static str,
}

/// What differs between IPv4 and IPv6.
struct Side {
    /// The protocol keyword in rules: `ip` or `ip6`.
    protocol: &'static str,
    network: String,
    subnet: String,
    multicast: &'static str,
    excluded: Vec<String>,
    outside: Vec<String>,
    devices: Vec<String>,
}

impl Side {
    fn new(rules: &Rules, ip: Family, family: Leased<ipnet::IpNet>) -> Self {
        Self {
            protocol: protocol(ip),
            network: family.network.to_string(),
            subnet: family.subnet.to_string(),
            multicast: multicast(ip),
            excluded: rules.excluded(ip).map(|net| net.to_string()).collect(),
            outside: rules.outside(ip).map(|net| net.to_string()).collect(),
            devices: rules.devices.iter().map(ToString::to_string).collect(),
        }
    }

    fn rule(
        &self,
        source: Option<&str>,
        to: Option<&str>,
        verdict: &str,
        comment: &'static str,
    ) -> Rule {
        let protocol = self.protocol;
        let mut expression = String::new();
        for (side, value) in [("saddr", source), ("daddr", to)] {
            if let Some(value) = value {
                // Writing to a `String` cannot fail.
                let _ = write!(expression, "{protocol} {side} {value} ");
            }
        }
        expression.push_str(verdict);
        Rule {
            expression,
            comment,
        }
    }

    /// flannel's iptables rules 2 to 6, in that order; the first match decides, so exclusions come before the rule that
    /// they are excluded from. Parts of the network that are outside the overlay come first.
    fn postrouting(&self, masquerade: &str) -> Vec<Rule> {
        let (network, subnet) = (self.network.as_str(), self.subnet.as_str());
        let not_network = format!("!= {network}");
        let unicast = format!("!= {}", self.multicast);
        let mut rules = Vec::new();
        if !self.outside.is_empty() {
            rules.extend(self.of_outside(masquerade));
        }
        rules.extend([
            self.rule(
                Some(subnet),
                Some(network),
                "return",
                "local containers to the overlay: do not masquerade",
            ),
            self.rule(
                Some(network),
                Some(subnet),
                "return",
                "the overlay to local containers: do not masquerade",
            ),
            self.rule(
                Some(&not_network),
                Some(subnet),
                "return",
                "outside to local containers: keep the source address",
            ),
        ]);
        rules.extend(self.exclusions());
        rules.extend([
            self.rule(
                Some(network),
                Some(&unicast),
                masquerade,
                "the overlay to outside: masquerade",
            ),
            self.rule(
                Some(&not_network),
                Some(network),
                masquerade,
                "outside to remote containers: replies must return through this host",
            ),
        ]);
        rules
    }

    fn exclusions(&self) -> impl Iterator<Item = Rule> {
        self.excluded.iter().map(|net| {
            self.rule(
                None,
                Some(net),
                "return",
                "excluded by firewall.masquerade-exclude",
            )
        })
    }

    /// Packets from the underlay are not masqueraded unless they enter the overlay for another node. Packets from the
    /// overlay to the underlay are masqueraded like those to any other destination.
    fn of_outside(&self, masquerade: &str) -> Vec<Rule> {
        let (network, subnet) = (self.network.as_str(), self.subnet.as_str());
        let mut rules = vec![self.rule(
            None,
            Some(subnet),
            "return",
            "to local containers: keep the source address",
        )];
        rules.extend(self.exclusions());
        for net in &self.outside {
            rules.extend(self.devices.iter().map(|device| {
                self.rule(
                    Some(net),
                    Some(network),
                    &format!("oifname \"{device}\" {masquerade}"),
                    "the underlay to remote containers: replies must return through this host",
                )
            }));
            rules.push(self.rule(
                Some(net),
                None,
                "return",
                "from the underlay: do not masquerade",
            ));
        }
        for net in &self.outside {
            rules.push(self.rule(
                Some(network),
                Some(net),
                masquerade,
                "the overlay to the underlay: masquerade",
            ));
            rules.push(self.rule(
                None,
                Some(net),
                "return",
                "outside to the underlay: do not masquerade",
            ));
        }
        rules
    }

    fn forward(&self) -> [Rule; 2] {
        self.both_ways("accept", ["from the overlay", "to the overlay"])
    }

    fn both_ways(&self, verdict: &str, [from, to]: [&'static str; 2]) -> [Rule; 2] {
        let network = self.network.as_str();
        [
            self.rule(Some(network), None, verdict, from),
            self.rule(None, Some(network), verdict, to),
        ]
    }
}

impl Script {
    /// `docker` says whether Docker makes nftables rules itself: it then accepts packets with its mark.
    pub(super) fn new(table: &str, rules: &Rules, docker: bool) -> Self {
        let sides: Vec<Side> = rules
            .families()
            .map(|(ip, family)| Side::new(rules, ip, family))
            .collect();
        Self {
            table: table.to_owned(),
            chains: chains(&sides, rules, docker, "postrouting"),
        }
    }

    /// Whether no table is needed.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// One transaction that replaces the table, whether it exists or not.
    pub(super) fn replace(&self) -> String {
        removal(&format!("inet {}", self.table)) + &self.text()
    }

    /// One transaction that creates the table, and fails if it exists: otherwise the rules would be added to the old
    /// ones.
    pub(super) fn create(&self) -> String {
        let (table, fingerprint) = (&self.table, self.fingerprint());
        // nft takes the comment only from the first mention of a table.
        let create = format!("create table inet {table} {{ comment \"{fingerprint}\"; }}\n");
        create + &self.text()
    }

    fn text(&self) -> String {
        let (table, fingerprint, body) = (&self.table, self.fingerprint(), self.body());
        format!("table inet {table} {{\n\tcomment \"{fingerprint}\"\n{body}}}\n")
    }

    fn body(&self) -> String {
        body(&self.chains)
    }

    /// The table's comment: a fingerprint of the text that the table was made from.
    fn fingerprint(&self) -> String {
        let hash = digest::digest(&digest::SHA256, self.body().as_bytes());
        let mut text = "managed by selvage, which reverts edits; ".to_owned();
        for byte in hash.as_ref().iter().take(8) {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    /// Whether `listing`, the output of `nft list table`, is a table made from this very text: its comment is the
    /// fingerprint, and its rules have our comments, in our order and number.
    pub(super) fn matches(&self, listing: &str) -> bool {
        let lines: Vec<&str> = listing.lines().map(str::trim).collect();
        let fingerprint = format!("comment \"{}\"", self.fingerprint());
        let wanted = self.chains.iter().flat_map(|chain| &chain.rules);
        let rules = lines.iter().filter(|line| is_rule(line));
        lines.contains(&fingerprint.as_str())
            && rules
                .map(|line| comment_of(line))
                .eq(wanted.map(|rule| Some(rule.comment)))
    }
}

/// The chains for some of the families; the one that masquerades is called `postrouting`.
fn chains(sides: &[Side], rules: &Rules, docker: bool, postrouting: &'static str) -> Vec<Chain> {
    if sides.is_empty() {
        return Vec::new();
    }
    let mut chains = Vec::new();
    if rules.forward && docker {
        let set = format!("meta mark set meta mark | {:#010x}", docker::MARK);
        let comments = [
            "from the overlay: accepted by Docker",
            "to the overlay: accepted by Docker",
        ];
        chains.push(Chain {
            name: "docker",
            // Docker's own chain has priority filter.
            hook: "type filter hook forward priority filter - 1; policy accept;",
            rules: sides
                .iter()
                .flat_map(|side| side.both_ways(&set, comments))
                .collect(),
        });
    }
    if rules.forward {
        chains.push(Chain {
            name: "forward",
            hook: "type filter hook forward priority filter; policy accept;",
            rules: sides.iter().flat_map(Side::forward).collect(),
        });
    }
    if rules.masquerade {
        let verdict = if rules.random_fully {
            "masquerade fully-random"
        } else {
            "masquerade"
        };
        // Only this bit of the mark counts; the others belong to other programs.
        let marked = Rule {
            expression: format!(
                "meta mark & {KUBE_PROXY_MARK:#010x} == {KUBE_PROXY_MARK:#010x} return"
            ),
            comment: "marked by kube-proxy, which masquerades it",
        };
        let of_sides = sides.iter().flat_map(|side| side.postrouting(verdict));
        chains.push(Chain {
            name: postrouting,
            hook: "type nat hook postrouting priority srcnat; policy accept;",
            rules: std::iter::once(marked).chain(of_sides).collect(),
        });
    }
    chains
}

/// One transaction that replaces our table by flannel's tables: one per family, with flannel's names for tables and
/// chains. The rules are the same, so packets see no difference. But a flannel that starts after us replaces these
/// tables, while it knows nothing of ours.
pub(super) fn hand_over(table: &str, rules: &Rules, docker: bool) -> String {
    let mut text = String::new();
    for (ip, family) in rules.families() {
        let side = [Side::new(rules, ip, family)];
        let chains = chains(&side, rules, docker, "postrtg");
        let name = match ip {
            Family::V4 => FLANNEL_TABLES[0],
            Family::V6 => FLANNEL_TABLES[1],
        };
        text += &removal(name);
        let _ = write!(text, "table {name} {{\n{}}}\n", body(&chains));
    }
    text + &removal(&format!("inet {table}"))
}

fn body(chains: &[Chain]) -> String {
    let mut text = String::with_capacity(2048);
    for chain in chains {
        let _ = writeln!(text, "\tchain {} {{\n\t\t{}", chain.name, chain.hook);
        for rule in &chain.rules {
            let _ = writeln!(text, "\t\t{} comment \"{}\"", rule.expression, rule.comment);
        }
        text.push_str("\t}\n");
    }
    text
}

/// Removes a table, whether it exists or not. The `destroy` statement needs a newer nft than the oldest supported one.
pub(super) fn removal(table: &str) -> String {
    format!("add table {table}\ndelete table {table}\n")
}

/// Whether a line of a listing is a rule: neither the frame of a table or chain nor its comment.
fn is_rule(line: &str) -> bool {
    let frame = ["table ", "chain ", "type ", "comment ", "}"];
    !line.is_empty() && !frame.iter().any(|start| line.starts_with(start))
}

fn comment_of(line: &str) -> Option<&str> {
    line.split_once(" comment \"")?.1.strip_suffix('"')
}

#[cfg(test)]
mod tests;
