//! The kernel's packet filter, including other programs' rules: read through the programs that print it, and evaluated
//! for a given packet.
//!
//! Both syntaxes become one [`Table`] form. A condition's result may be unknown (address sets filled by other programs,
//! marks, limits, unsupported modules): a packet counts as dropped only if it is dropped whatever the unknown results
//! are. In doubt a rule is considered harmless.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::NotChecked;
use crate::base::logging::chain;
use crate::base::net::Family as Ip;
use crate::host::firewall::Error;
use crate::host::firewall::iptables::legacy_is_in_use;
use crate::host::firewall::program;

mod iptables;
mod nft;
mod walk;

pub(super) use walk::{Dropped, Packet};

/// All tables that can affect forwarded packets.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub(super) tables: Vec<Table>,
}

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) program: Program,
    pub(super) name: String,
    chains: BTreeMap<String, Chain>,
}

/// The program that prints and changes a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Program {
    /// `iptables`, `ip6tables-legacy` and so on, for one family.
    Iptables(String, Ip),
    /// `nft`; with the table's family: `ip`, `ip6`, `inet`.
    Nft(String),
}

#[derive(Debug, Default)]
struct Chain {
    /// The hook and priority of a base chain.
    base: Option<(Hook, i32)>,
    /// Whether its policy is drop.
    drops: bool,
    rules: Vec<Rule>,
}

/// The hooks of a forwarded packet, in order (`enum nf_inet_hooks`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Hook {
    Prerouting,
    Forward,
    Postrouting,
}

#[derive(Debug)]
struct Rule {
    conditions: Vec<Condition>,
    action: Action,
    /// Its text, or its handle.
    text: String,
}

/// All conditions of a rule must hold.
#[derive(Debug)]
enum Condition {
    /// Known without the packet, or not known at all.
    Known(Truth),
    /// The packet is IPv4, or IPv6.
    Family(Ip),
    /// Its interface is one of these; `*` at the end stands for anything.
    Interface {
        out: bool,
        names: Vec<String>,
        negated: bool,
    },
    /// Its address is in one of these ranges.
    Address {
        destination: bool,
        ranges: Vec<(IpAddr, IpAddr)>,
        negated: bool,
    },
    /// Its mark, under a mask, is one of these.
    Mark {
        mask: u32,
        values: Vec<u32>,
        negated: bool,
    },
}

/// The result of a condition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Truth {
    No,
    Unknown,
    Yes,
}

impl Truth {
    fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
            Self::Yes => Self::No,
        }
    }

    /// The other one, if `negated`.
    fn negate(self, negated: bool) -> Self {
        if negated { self.not() } else { self }
    }
}

/// The action of a rule.
#[derive(Debug)]
enum Action {
    /// Nothing.
    Continue,
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Its mark becomes `mark & and ^ xor`.
    Mark {
        and: u32,
        xor: u32,
    },
    /// Sets its mark to an unknown value.
    AnyMark,
    /// Unknown.
    Other,
}

impl Filter {
    /// Reads all tables of this network namespace.
    ///
    /// # Errors
    /// No program can print them, or we have no permission.
    pub(super) async fn read() -> Result<Self, NotChecked> {
        let mut filter = Self::default();
        let mut by_iptables = false;
        for suffix in suffixes() {
            for ip in Ip::BOTH {
                let command = match ip {
                    Ip::V4 => format!("iptables{suffix}"),
                    Ip::V6 => format!("ip6tables{suffix}"),
                };
                // Skip it: running it would make the kernel load unused modules.
                if suffix == "-legacy" && !legacy_is_in_use(ip) {
                    continue;
                }
                if let Some(text) = print(&format!("{command}-save"), &[]).await? {
                    by_iptables |= suffix != "-legacy";
                    filter.tables.extend(iptables::read(&text, &command, ip));
                }
            }
        }
        match print("nft", &["-j", "list", "ruleset"]).await? {
            Some(text) => {
                let tables = nft::read(&text);
                let tables = tables.map_err(|error| {
                    NotChecked(format!("failed to parse `nft -j list ruleset`: {error}"))
                })?;
                // Print iptables-nft's tables in iptables syntax.
                filter.tables.extend(
                    tables
                        .into_iter()
                        .filter(|table| !(by_iptables && table.is_of_iptables())),
                );
                Ok(filter)
            }
            None if by_iptables => Ok(filter),
            None => Err(NotChecked(
                "failed to read the packet filter: neither nft nor iptables-save is installed; the agent needs neither, but \
                doctor reads by them what others filter: install nftables"
                    .to_owned(),
            )),
        }
    }

    /// Whether kube-proxy has rules here.
    pub(super) fn has_kube_proxy(&self) -> bool {
        self.tables.iter().any(|table| {
            table.name == "kube-proxy"
                || table.name == "nat" && table.chains.contains_key("KUBE-SERVICES")
        })
    }

    /// The single addresses inside `net` that rules of the prerouting hook match.
    pub(super) fn single_destinations(&self, net: IpNet) -> Vec<IpAddr> {
        let chains = self.tables.iter().flat_map(|table| table.chains.values());
        let early = chains.filter(|chain| matches!(chain.base, Some((Hook::Prerouting, _))));
        let conditions = early
            .flat_map(|chain| &chain.rules)
            .flat_map(|rule| &rule.conditions);
        let mut found: Vec<IpAddr> = conditions
            .filter_map(|condition| match condition {
                Condition::Address {
                    destination: true,
                    ranges,
                    negated: false,
                } => match ranges[..] {
                    [(first, last)] if first == last && net.contains(&first) => Some(first),
                    _ => None,
                },
                _ => None,
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Table {
    /// Whether the table handles packets of that family, by rule or policy.
    fn handles(&self, ip: Ip) -> bool {
        match &self.program {
            Program::Iptables(_, of) => *of == ip,
            Program::Nft(family) => match family.as_str() {
                "ip" => ip == Ip::V4,
                "ip6" => ip == Ip::V6,
                _ => true,
            },
        }
    }

    /// Whether it is a table of `iptables-nft`.
    fn is_of_iptables(&self) -> bool {
        let names = ["raw", "mangle", "nat", "filter", "security"];
        matches!(&self.program, Program::Nft(family) if family == "ip" || family == "ip6")
            && names.contains(&self.name.as_str())
    }

    /// Whether it has a chain of that name.
    pub(super) fn has(&self, chain: &str) -> bool {
        self.chains.contains_key(chain)
    }
}

/// The suffixes of the installed `iptables` programs, each kind once.
fn suffixes() -> Vec<&'static str> {
    let mut found: Vec<_> = ["-nft", "-legacy"]
        .into_iter()
        .filter(|suffix| program::find(&format!("iptables{suffix}-save")).is_some())
        .collect();
    if found.is_empty() {
        found.push("");
    }
    found
}

/// A program's output; `None` if it is not installed.
async fn print(name: &str, arguments: &[&str]) -> Result<Option<String>, NotChecked> {
    let Some(path) = program::find(name) else {
        return Ok(None);
    };
    let failed = |error: Error| {
        NotChecked(format!(
            "failed to read the packet filter: {}",
            chain(&error)
        ))
    };
    let output = program::run(path, arguments, "").await.map_err(failed)?;
    let printed = program::printed(name, "print the rules", &output).map_err(failed)?;
    Ok(Some(printed))
}

#[cfg(test)]
mod tests;
