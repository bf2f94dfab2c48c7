//! What our chains should contain, and the `iptables-restore` input that makes them so. Pure.

use std::fmt::Write;

use ipnet::IpNet;

use super::super::{Rules, multicast};
use super::save::{Rule, Save, Table};
use crate::base::net::{Family, InterfaceName, Leased};
use crate::base::network_name::{NetworkName, suffixed};

/// A chain of ours, and the only jump to it.
pub(super) struct Chain {
    table: &'static str,
    /// The prefix of such names; the default network's name is the prefix alone.
    base: &'static str,
    name: String,
    /// Where the jump is.
    parent: &'static str,
    /// The comment of the jump and of all rules.
    comment: &'static str,
}

/// The chains of one network.
pub(super) struct Chains {
    raw: Chain,
    postrouting: Chain,
    forward: Chain,
}

impl Chains {
    /// flannel's names for the default network; for a named one the same with a suffix.
    pub(super) fn new(network: Option<&NetworkName>) -> Self {
        let chain = |table, base, parent, comment| Chain {
            table,
            base,
            name: suffixed(base, network),
            parent,
            comment,
        };
        Self {
            raw: chain("raw", RAW, "PREROUTING", "selvage direct"),
            postrouting: chain("nat", POSTROUTING, "POSTROUTING", "flanneld masq"),
            forward: chain("filter", FORWARD, "FORWARD", "flanneld forward"),
        }
    }

    fn all(&self) -> [&Chain; 3] {
        [&self.raw, &self.postrouting, &self.forward]
    }

    /// Their names.
    pub(super) fn names(&self) -> [&str; 3] {
        self.all().map(|chain| chain.name.as_str())
    }
}

const RAW: &str = "SELVAGE-RAW";
const POSTROUTING: &str = "FLANNEL-POSTRTG";
const FORWARD: &str = "FLANNEL-FWD";

/// The tables that hold our chains.
pub(super) const TABLES: [&str; 3] = ["raw", "nat", "filter"];

/// Chains that stay before ours if they are first. They implement policies (network policies, the user's own rules for
/// Docker, `ufw route`) that our accept would override. Everything after them comes after our jump, in particular the
/// drops.
///
/// flannel appends its jumps, so any earlier drop wins. At the very top, ours would defeat policies, and we would fight
/// forever with any other program that insists on the top.
const BEFORE_OURS: [&str; 8] = [
    "DOCKER-USER",
    "KUBE-",
    "cali-",
    "CILIUM_",
    "ANTREA-",
    "WEAVE-",
    "ufw-before-",
    "ufw6-before-",
];

/// Calico's chain of policies, and what its comments begin with. It is the one that may be told to come after everybody
/// else (`chainInsertMode: Append`), and then insists on being last, with its own accept of what policies allow.
const CALICO: &str = "cali-FORWARD";
const CALICOS_COMMENT: &str = "cali:";

/// The rules of each of our chains; a chain that is not listed should not exist.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Wanted(Vec<(String, Vec<String>)>);

/// Properties of the programs, and their role.
#[derive(Clone, Copy)]
pub(super) struct Role {
    /// Whether these programs hold the rules, or only accepts in other programs' chains.
    pub(super) main: bool,
    /// Whether they support `--random-fully`.
    pub(super) random_fully: bool,
    /// Whether the raw table can be created. Every kernel with nftables has it; some lack the legacy one
    /// (`CONFIG_IP_NF_RAW`), and Docker must then run without its raw rules.
    pub(super) raw: bool,
}

impl Wanted {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What `rules` require on a host whose current rules are `save`.
    pub(super) fn new(chains: &Chains, rules: &Rules, ip: Family, role: Role, save: &Save) -> Self {
        let Some(family) = rules.family(ip) else {
            return Self::default();
        };
        let mut wanted = Vec::new();
        if rules.forward && docker_drops(chains, save, family.subnet, role.raw) {
            let raw = &chains.raw;
            let rule = raw.rule(Some(is(family.network)), Some(is(family.subnet)), "ACCEPT");
            wanted.push((raw.name.clone(), vec![rule]));
        }
        if rules.masquerade && role.main {
            let random = rules.random_fully && role.random_fully;
            let masquerade = Masquerade {
                family,
                multicast: multicast(ip),
                excluded: rules.excluded(ip).collect(),
                outside: rules.outside(ip).collect(),
                devices: &rules.devices,
                random_fully: random,
            };
            let chain = &chains.postrouting;
            wanted.push((chain.name.clone(), masquerade.rules(chain)));
        }
        let chain = &chains.forward;
        let opens = (role.main || is_closed(chain, save)) && !is_calicos(chain, save);
        if rules.forward && opens {
            let network = Some(is(family.network));
            let rules = [
                chain.rule(network, None, "ACCEPT"),
                chain.rule(None, network, "ACCEPT"),
            ];
            wanted.push((chain.name.clone(), rules.into()));
        }
        Self(wanted)
    }

    fn rules(&self, chain: &Chain) -> Option<&[String]> {
        let (_, rules) = self.0.iter().find(|(name, _)| *name == chain.name)?;
        Some(rules)
    }
}

/// An address condition, and whether it is negated.
type Condition = Option<(bool, IpNet)>;

fn is(net: IpNet) -> (bool, IpNet) {
    (true, net)
}

fn is_not(net: IpNet) -> (bool, IpNet) {
    (false, net)
}

impl Chain {
    /// A rule as `iptables-save` prints it: without conditions that always hold.
    fn rule(&self, source: Condition, destination: Condition, target: &str) -> String {
        self.rule_by(source, destination, "", target)
    }

    /// The same with a further condition, which `iptables-save` prints after the addresses.
    fn rule_by(
        &self,
        source: Condition,
        destination: Condition,
        further: &str,
        target: &str,
    ) -> String {
        let mut text = String::new();
        for (option, condition) in [("-s", source), ("-d", destination)] {
            match condition {
                Some((true, net)) if net.prefix_len() == 0 => {}
                // Writing to a `String` cannot fail.
                Some((holds, net)) => {
                    let not = if holds { "" } else { "! " };
                    let _ = write!(text, "{not}{option} {net} ");
                }
                None => {}
            }
        }
        let comment = self.comment;
        let _ = write!(
            text,
            "{further}-m comment --comment \"{comment}\" -j {target}"
        );
        text
    }

    fn jump(&self) -> String {
        self.rule(None, None, &self.name)
    }

    fn marked(&self, target: &str) -> String {
        format!(
            "-m mark --mark 0x4000/0x4000 {}",
            self.rule(None, None, target)
        )
    }
}

/// The input for masquerading rules.
struct Masquerade<'a> {
    family: Leased<IpNet>,
    multicast: IpNet,
    excluded: Vec<IpNet>,
    outside: Vec<IpNet>,
    devices: &'a [InterfaceName],
    random_fully: bool,
}

impl Masquerade<'_> {
    /// flannel's rules; the first match decides, so exclusions come before the rule that they are excluded from. Parts
    /// of the network that are outside the overlay come first.
    fn rules(&self, chain: &Chain) -> Vec<String> {
        let Leased { network, subnet } = self.family;
        let target = match self.random_fully {
            true => "MASQUERADE --random-fully",
            false => "MASQUERADE",
        };
        let rule = |source, destination, target| chain.rule(source, destination, target);
        let multicast = Some(is_not(self.multicast));
        // kube-proxy masquerades packets with its mark itself.
        let mut rules = vec![chain.marked("RETURN")];
        let excluded = self.excluded.iter();
        let excluded: Vec<_> = excluded
            .map(|net| rule(None, Some(is(*net)), "RETURN"))
            .collect();
        if !self.outside.is_empty() {
            rules.extend(self.of_outside(chain, target, &excluded));
        }
        rules.extend([
            rule(Some(is(subnet)), Some(is(network)), "RETURN"),
            rule(Some(is(network)), Some(is(subnet)), "RETURN"),
            rule(Some(is_not(network)), Some(is(subnet)), "RETURN"),
        ]);
        rules.extend(excluded);
        rules.push(rule(Some(is(network)), multicast, target));
        rules.push(rule(Some(is_not(network)), Some(is(network)), target));
        rules
    }

    /// Packets from the underlay are not masqueraded unless they enter the overlay for another node. Packets from the
    /// overlay to the underlay are masqueraded like those to any other destination.
    fn of_outside(&self, chain: &Chain, target: &str, excluded: &[String]) -> Vec<String> {
        let Leased { network, subnet } = self.family;
        let mut rules = vec![chain.rule(None, Some(is(subnet)), "RETURN")];
        rules.extend_from_slice(excluded);
        for net in &self.outside {
            rules.extend(self.devices.iter().map(|device| {
                let into = format!("-o {device} ");
                chain.rule_by(Some(is(*net)), Some(is(network)), &into, target)
            }));
            rules.push(chain.rule(Some(is(*net)), None, "RETURN"));
        }
        for net in &self.outside {
            rules.push(chain.rule(Some(is(network)), Some(is(*net)), target));
            rules.push(chain.rule(None, Some(is(*net)), "RETURN"));
        }
        rules
    }
}

/// Whether a Docker that drops packets sent directly to its containers (28.0 and later) runs or ran here. If there is
/// a raw table, or one is possible, Docker's chain in filter shows it before the first container exists.
fn docker_drops(chains: &Chains, save: &Save, subnet: IpNet, raw_possible: bool) -> bool {
    let raw = save.table(chains.raw.table);
    let works = save
        .table(chains.forward.table)
        .is_some_and(|filter| filter.has("DOCKER-FORWARD"));
    let drops = |rule: &Rule| {
        let destination = rule.after("-d").and_then(|net| net.parse::<IpNet>().ok());
        rule.target() == Some("DROP")
            && rule.negates("-i")
            && destination.is_some_and(|net| subnet.contains(&net))
    };
    works && (raw_possible || raw.is_some())
        || raw.is_some_and(|raw| raw.of(chains.raw.parent).any(drops))
}

/// Whether another program may drop forwarded packets. Other networks' chains only ever accept, like ours.
fn is_closed(chain: &Chain, save: &Save) -> bool {
    save.table(chain.table).is_some_and(|filter| {
        let policy = filter.policy(chain.parent);
        let is_harmless = |rule: &Rule| chain.is_jump_to_kind(rule) || chain.is_unchained(rule);
        policy.is_some_and(|policy| policy != "ACCEPT")
            || filter.of(chain.parent).any(|rule| !is_harmless(rule))
    })
}

/// Whether nobody but Calico judges forwarded packets in the end. It accepts what its policies allow; an accept of ours
/// would come before it, and override them.
fn is_calicos(chain: &Chain, save: &Save) -> bool {
    save.table(chain.table).is_some_and(|filter| {
        let rules = filter.of(chain.parent);
        let mut rules = rules.filter(|rule| !chain.is_jump_to_kind(rule));
        let is_its = |rule: &Rule| {
            let comment = rule.after("--comment");
            comment.is_some_and(|comment| comment.starts_with(CALICOS_COMMENT))
        };
        rules.any(|rule| rule.target() == Some(CALICO)) && rules.all(is_its)
    })
}

/// Our chains with their rules and jumps, as printed.
pub(super) fn ours(chains: &Chains, save: &Save) -> Vec<String> {
    let mut lines = Vec::new();
    for chain in chains.all() {
        let Some(table) = save.table(chain.table).filter(|t| t.has(&chain.name)) else {
            continue;
        };
        lines.push(chain.name.clone());
        lines.extend(chain.jumps(table).map(|jump| jump.text.clone()));
        lines.extend(table.of(&chain.name).map(|rule| rule.text.clone()));
    }
    lines
}

/// The input for `iptables-restore --noflush` that corrects our chains; `None` if they are correct.
///
/// `printed` is the output of [`ours`] right after `wanted` was written: some versions of iptables print a rule
/// differently.
pub(super) fn restore(
    chains: &Chains,
    save: &Save,
    wanted: &Wanted,
    printed: Option<&[String]>,
) -> Option<String> {
    let same = printed.is_some_and(|printed| ours(chains, save) == printed);
    let mut text = String::new();
    let nothing = Table::default();
    for name in save.names(&TABLES) {
        let table = save.table(name).unwrap_or(&nothing);
        let mut changes = String::new();
        for chain in chains.all() {
            match wanted.rules(chain).filter(|_| chain.table == name) {
                Some(rules) => {
                    if !((same || chain.holds(table, rules)) && chain.is_in_front(table)) {
                        chain.put(table, rules, &mut changes);
                    }
                }
                None => chain.remove(table, &mut changes),
            }
            if chain.table == name {
                chain.remove_unchained(table, &mut changes);
            }
        }
        if !changes.is_empty() {
            let _ = write!(text, "*{name}\n{changes}COMMIT\n");
        }
    }
    (!text.is_empty()).then_some(text)
}

impl Chain {
    fn is_jump(&self, rule: &Rule) -> bool {
        rule.target() == Some(self.name.as_str())
    }

    fn jumps<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a Rule> {
        table.of(self.parent).filter(|rule| self.is_jump(rule))
    }

    /// Whether the chain has exactly these rules and one jump.
    fn holds(&self, table: &Table, rules: &[String]) -> bool {
        table.has(&self.name)
            && table.of(&self.name).map(|rule| &rule.text).eq(rules)
            && self
                .jumps(table)
                .map(|jump| jump.text.as_str())
                .eq([self.jump()])
    }

    /// How many rules stay before our jump: those that jump to the chains in [`BEFORE_OURS`], or to other networks'
    /// chains. Otherwise two agents would each move their jump before the other's forever.
    fn before(&self, table: &Table) -> usize {
        table
            .of(self.parent)
            .filter(|rule| !self.is_jump(rule))
            .take_while(|rule| {
                let target = rule.target().unwrap_or_default();
                let mut starts = BEFORE_OURS.iter().chain([&self.base]);
                starts.any(|start| target.starts_with(start))
            })
            .count()
    }

    fn is_in_front(&self, table: &Table) -> bool {
        let position = table.of(self.parent).position(|rule| self.is_jump(rule));
        position.is_some_and(|position| position <= self.before(table))
    }

    /// Rewrites the chain, and moves its jump to the right place.
    fn put(&self, table: &Table, rules: &[String], text: &mut String) {
        let Self { name, parent, .. } = self;
        // With --noflush this line creates the chain, or empties it.
        let _ = writeln!(text, ":{name} - [0:0]");
        for jump in self.jumps(table) {
            let _ = writeln!(text, "-D {parent} {}", jump.text);
        }
        let at = self.before(table) + 1;
        let _ = writeln!(text, "-I {parent} {at} {}", self.jump());
        for rule in rules {
            let _ = writeln!(text, "-A {name} {rule}");
        }
    }

    /// Removes the rules of a flannel before 0.19, which had no chains: they have flannel's comments, in the chain that
    /// has its jump today. Jumps to networks' chains stay, and only the default network does this.
    fn remove_unchained(&self, table: &Table, text: &mut String) {
        if self.name != self.base {
            return;
        }
        for rule in table.of(self.parent).filter(|rule| self.is_unchained(rule)) {
            let _ = writeln!(text, "-D {} {}", self.parent, rule.text);
        }
    }

    /// Whether a rule in the parent chain comes from a flannel without chains.
    fn is_unchained(&self, rule: &Rule) -> bool {
        rule.after("--comment") == Some(self.comment) && !self.is_jump_to_kind(rule)
    }

    /// Whether a rule jumps to any network's chain of this kind.
    fn is_jump_to_kind(&self, rule: &Rule) -> bool {
        rule.target().is_some_and(|to| to.starts_with(self.base))
    }

    /// Removes the chain and every jump to it, in any table: flannel looks for its chains in the wrong one.
    fn remove(&self, table: &Table, text: &mut String) {
        let name = self.name.as_str();
        if !table.has(name) {
            return;
        }
        let _ = writeln!(text, ":{name} - [0:0]");
        for rule in table.rules() {
            if rule.target() == Some(name) && rule.chain != name {
                let _ = writeln!(text, "-D {} {}", rule.chain, rule.text);
            }
        }
        let _ = writeln!(text, "-X {name}");
    }
}

#[cfg(test)]
mod tests;
