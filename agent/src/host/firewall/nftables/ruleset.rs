//! The tables that we want, and the changes that create them: pure, with the same rules for both families.

use ipnet::IpNet;

use super::super::{Rules, docker, multicast};
use super::expression::{Action, Match, encode};
use super::{TABLE_FAMILY, flannels_table};
use crate::base::net::{Family, InterfaceName, Leased};
use crate::host::netlink::Attributes;
use crate::host::netlink::netfilter::{Change, Object, TABLE_NAME, TableFamily};

/// The mark that kube-proxy sets on packets that it masquerades itself.
const KUBE_PROXY_MARK: u32 = 0x4000;

/// What people see in a listing of our table.
const COMMENT: &str = "managed by selvage, which reverts edits";

// All of linux/netfilter/nf_tables.h.
const NFTA_TABLE_USERDATA: u16 = 6;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_RULE_USERDATA: u16 = 7;

/// `NF_ACCEPT` of linux/netfilter.h.
const POLICY_ACCEPT: u32 = 1;

/// `NFTNL_UDATA_TABLE_COMMENT` and `NFTNL_UDATA_RULE_COMMENT` of libnftnl's udata.h. The kernel keeps user data as it is.
const UDATA_COMMENT: u8 = 0;

/// A table with all that is in it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) family: TableFamily,
    pub(super) name: String,
    comment: Option<&'static str>,
    pub(super) chains: Vec<Chain>,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    hook: Hook,
    pub(super) rules: Vec<Rule>,
}

/// Where a chain sees packets. Its policy is accept.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Hook {
    kind: &'static str,
    /// `NF_INET_FORWARD` or `NF_INET_POST_ROUTING` of linux/netfilter.h.
    number: u32,
    /// One of `enum nf_ip_hook_priorities` of linux/netfilter_ipv4.h, or beside it.
    priority: i32,
}

const FORWARD: Hook = Hook {
    kind: "filter",
    number: 2,
    priority: 0,
};

/// Docker's own chain has [`FORWARD`]'s priority.
const BEFORE_DOCKER: Hook = Hook {
    priority: -1,
    ..FORWARD
};

const POSTROUTING: Hook = Hook {
    kind: "nat",
    number: 4,
    priority: 100,
};

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Rule {
    matches: Vec<Match>,
    action: Action,
    /// Explains the rule to people.
    comment: &'static str,
}

/// What differs between IPv4 and IPv6.
struct Side<'a> {
    network: IpNet,
    subnet: IpNet,
    multicast: IpNet,
    excluded: Vec<IpNet>,
    outside: Vec<IpNet>,
    devices: &'a [InterfaceName],
}

fn rule<const N: usize>(matches: [Match; N], action: Action, comment: &'static str) -> Rule {
    Rule {
        matches: matches.into(),
        action,
        comment,
    }
}

impl<'a> Side<'a> {
    fn new(rules: &'a Rules, ip: Family, family: Leased<IpNet>) -> Self {
        Self {
            network: family.network,
            subnet: family.subnet,
            multicast: multicast(ip),
            excluded: rules.excluded(ip).collect(),
            outside: rules.outside(ip).collect(),
            devices: &rules.devices,
        }
    }

    /// flannel's iptables rules 2 to 6, in that order; the first match decides, so exclusions come before the rule that
    /// they are excluded from. Parts of the network that are outside the overlay come first.
    fn postrouting(&self, masquerade: Action) -> Vec<Rule> {
        let (network, subnet) = (self.network, self.subnet);
        let mut rules = Vec::new();
        if !self.outside.is_empty() {
            rules.extend(self.of_outside(masquerade));
        }
        rules.extend([
            rule(
                [Match::From(subnet), Match::To(network)],
                Action::Return,
                "local containers to the overlay: do not masquerade",
            ),
            rule(
                [Match::From(network), Match::To(subnet)],
                Action::Return,
                "the overlay to local containers: do not masquerade",
            ),
            rule(
                [Match::NotFrom(network), Match::To(subnet)],
                Action::Return,
                "outside to local containers: keep the source address",
            ),
        ]);
        rules.extend(self.exclusions());
        rules.extend([
            rule(
                [Match::From(network), Match::NotTo(self.multicast)],
                masquerade,
                "the overlay to outside: masquerade",
            ),
            rule(
                [Match::NotFrom(network), Match::To(network)],
                masquerade,
                "outside to remote containers: replies must return through this host",
            ),
        ]);
        rules
    }

    fn exclusions(&self) -> impl Iterator<Item = Rule> {
        self.excluded.iter().map(|net| {
            rule(
                [Match::To(*net)],
                Action::Return,
                "excluded by firewall.masquerade-exclude",
            )
        })
    }

    /// Packets from the underlay are not masqueraded unless they enter the overlay for another node. Packets from the
    /// overlay to the underlay are masqueraded like those to any other destination.
    fn of_outside(&self, masquerade: Action) -> Vec<Rule> {
        let (network, subnet) = (self.network, self.subnet);
        let mut rules = vec![rule(
            [Match::To(subnet)],
            Action::Return,
            "to local containers: keep the source address",
        )];
        rules.extend(self.exclusions());
        for net in self.outside.iter().copied() {
            rules.extend(self.devices.iter().map(|device| {
                rule(
                    [
                        Match::From(net),
                        Match::To(network),
                        Match::Out(device.clone()),
                    ],
                    masquerade,
                    "the underlay to remote containers: replies must return through this host",
                )
            }));
            rules.push(rule(
                [Match::From(net)],
                Action::Return,
                "from the underlay: do not masquerade",
            ));
        }
        for net in self.outside.iter().copied() {
            rules.push(rule(
                [Match::From(network), Match::To(net)],
                masquerade,
                "the overlay to the underlay: masquerade",
            ));
            rules.push(rule(
                [Match::To(net)],
                Action::Return,
                "outside to the underlay: do not masquerade",
            ));
        }
        rules
    }

    fn both_ways(&self, action: Action, [from, to]: [&'static str; 2]) -> [Rule; 2] {
        [
            rule([Match::From(self.network)], action, from),
            rule([Match::To(self.network)], action, to),
        ]
    }
}

impl Table {
    /// Our table; `None` if none is needed. `docker` says whether Docker makes nftables rules itself: it then accepts
    /// packets with its mark.
    pub(super) fn ours(name: &str, rules: &Rules, docker: bool) -> Option<Self> {
        let sides: Vec<Side<'_>> = rules
            .families()
            .map(|(ip, family)| Side::new(rules, ip, family))
            .collect();
        let chains = chains(&sides, rules, docker, "postrouting");
        (!chains.is_empty()).then(|| Self {
            family: TABLE_FAMILY,
            name: name.to_owned(),
            comment: Some(COMMENT),
            chains,
        })
    }

    /// The same rules as flannel has them: a table per family, with flannel's names for tables and chains.
    pub(super) fn flannels(rules: &Rules, docker: bool) -> Vec<Self> {
        let table = |(ip, family): (Family, _)| Self {
            family: ip.into(),
            name: flannels_table(ip).to_owned(),
            comment: None,
            chains: chains(&[Side::new(rules, ip, family)], rules, docker, "postrtg"),
        };
        rules.families().map(table).collect()
    }

    /// The changes that create the table, which must not have anything in it.
    pub(super) fn create(&self) -> Vec<Change> {
        let add = |object, attributes| Change::add(object, self.family, attributes);
        let mut table = self.named();
        if let Some(text) = self.comment {
            table.put(NFTA_TABLE_USERDATA, &comment(text));
        }
        let mut changes = vec![add(Object::Table, table)];
        for chain in &self.chains {
            let mut attributes = self.named();
            chain.encode(&mut attributes);
            changes.push(add(Object::Chain, attributes));
            for rule in &chain.rules {
                let mut attributes = self.named();
                attributes.put_text(NFTA_RULE_CHAIN, chain.name);
                rule.encode(self.family, &mut attributes);
                changes.push(add(Object::Rule, attributes));
            }
        }
        changes
    }

    fn named(&self) -> Attributes {
        let mut attributes = Attributes::default();
        attributes.put_text(TABLE_NAME, &self.name);
        attributes
    }
}

impl Chain {
    /// Appends its own attributes, without the table's name.
    pub(super) fn encode(&self, attributes: &mut Attributes) {
        attributes.put_text(NFTA_CHAIN_NAME, self.name);
        attributes.nest(NFTA_CHAIN_HOOK, |hook| {
            hook.put_number(NFTA_HOOK_HOOKNUM, self.hook.number);
            hook.put_number(NFTA_HOOK_PRIORITY, self.hook.priority.cast_unsigned());
        });
        attributes.put_number(NFTA_CHAIN_POLICY, POLICY_ACCEPT);
        attributes.put_text(NFTA_CHAIN_TYPE, self.hook.kind);
    }
}

impl Rule {
    /// Appends its own attributes, without the names of table and chain.
    pub(super) fn encode(&self, table: TableFamily, attributes: &mut Attributes) {
        let expressions = encode(table, &self.matches, self.action);
        attributes.put_nested(NFTA_RULE_EXPRESSIONS, &expressions);
        attributes.put(NFTA_RULE_USERDATA, &comment(self.comment));
    }
}

/// A comment as `nft` keeps it: type, length, and the text with its NUL.
fn comment(text: &str) -> Vec<u8> {
    // No comment of ours has 255 bytes.
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[UDATA_COMMENT, length], text.as_bytes(), b"\0"].concat()
}

/// The chains for some of the families; the one that masquerades is called `postrouting`.
fn chains(
    sides: &[Side<'_>],
    rules: &Rules,
    docker: bool,
    postrouting: &'static str,
) -> Vec<Chain> {
    if sides.is_empty() {
        return Vec::new();
    }
    let mut chains = Vec::new();
    let both_ways = |action, comments| {
        let of_sides = sides
            .iter()
            .flat_map(|side| side.both_ways(action, comments));
        of_sides.collect()
    };
    if rules.forward && docker {
        let comments = [
            "from the overlay: accepted by Docker",
            "to the overlay: accepted by Docker",
        ];
        chains.push(Chain {
            name: "docker",
            hook: BEFORE_DOCKER,
            rules: both_ways(Action::Mark(docker::MARK), comments),
        });
    }
    if rules.forward {
        chains.push(Chain {
            name: "forward",
            hook: FORWARD,
            rules: both_ways(Action::Accept, ["from the overlay", "to the overlay"]),
        });
    }
    if rules.masquerade {
        let masquerade = Action::Masquerade {
            fully_random: rules.random_fully,
        };
        // Only this bit of the mark counts; the others belong to other programs.
        let marked = rule(
            [Match::Marked(KUBE_PROXY_MARK)],
            Action::Return,
            "marked by kube-proxy, which masquerades it",
        );
        let of_sides = sides.iter().flat_map(|side| side.postrouting(masquerade));
        chains.push(Chain {
            name: postrouting,
            hook: POSTROUTING,
            rules: std::iter::once(marked).chain(of_sides).collect(),
        });
    }
    chains
}

#[cfg(test)]
pub(super) mod tests;
