//! Evaluates the tables for a packet.

use std::net::IpAddr;

use super::{Action, Condition, Filter, Hook, Rule, Table, Truth};
use crate::base::net::Family as Ip;

/// How deep chains may call each other; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: u32 = 32;

/// Maximum number of rules per packet; beyond that the result is unknown.
const MAX_STEPS: u32 = 200_000;

/// The first packet of a TCP connection, to a port that rules match only by ranges.
#[derive(Clone, Debug)]
pub(in crate::command::doctor::host) struct Packet {
    pub(in crate::command::doctor::host) source: IpAddr,
    pub(in crate::command::doctor::host) destination: IpAddr,
    /// The input interface; `None` if it does not exist yet.
    pub(in crate::command::doctor::host) from: Option<String>,
    /// The output interface.
    pub(in crate::command::doctor::host) to: Option<String>,
}

impl Packet {
    fn ip(&self) -> Ip {
        if self.source.is_ipv4() {
            Ip::V4
        } else {
            Ip::V6
        }
    }
}

/// The packet's ports, of no known service.
pub(super) const SOURCE_PORT: u16 = 49_151;
pub(super) const PORT: u16 = 33_433;

/// Where a packet is certainly dropped.
#[derive(Clone, Copy, Debug)]
pub(in crate::command::doctor::host) struct Dropped<'a> {
    pub(in crate::command::doctor::host) table: &'a Table,
    /// The chain with the rule.
    pub(in crate::command::doctor::host) chain: &'a str,
    /// The rule; `None` for the chain's policy.
    pub(in crate::command::doctor::host) rule: Option<&'a str>,
}

/// The possible results of a chain.
#[derive(Default)]
struct ChainResult<'a> {
    /// It may come to the chain's end, or be sent back.
    continues: bool,
    /// It may be accepted, or something that is not known may happen to it.
    accepted: bool,
    /// What may drop it first.
    dropped: Option<(&'a str, &'a str)>,
}

struct Walk<'a, 'p> {
    table: &'a Table,
    packet: &'p Packet,
    /// The packet's mark, if known.
    mark: Option<u32>,
    steps: u32,
}

impl Filter {
    /// Where a packet is dropped for certain, if anywhere.
    pub(in crate::command::doctor::host) fn dropped<'a>(
        &'a self,
        packet: &Packet,
    ) -> Option<Dropped<'a>> {
        let mut bases: Vec<(Hook, i32, &'a Table, &'a str)> = Vec::new();
        let ip = packet.ip();
        for table in self.tables.iter().filter(|table| table.handles(ip)) {
            for (name, chain) in &table.chains {
                if let Some((hook, priority)) = chain.base {
                    bases.push((hook, priority, table, name));
                }
            }
        }
        bases.sort_by_key(|(hook, priority, ..)| (*hook, *priority));
        let mut mark = Some(0);
        for (_, _, table, name) in bases {
            let mut walk = Walk {
                table,
                packet,
                mark,
                steps: 0,
            };
            let result = walk.chain(name, 0);
            mark = walk.mark;
            if result.accepted || walk.steps > MAX_STEPS {
                continue;
            }
            // A chain that lets through what comes to its end has accepted it.
            let by_policy = table.chains.get(name).is_some_and(|chain| chain.drops);
            let (chain, rule) = match result.dropped {
                Some((chain, rule)) if !result.continues => (chain, Some(rule)),
                _ if by_policy => (name, None),
                _ => continue,
            };
            return Some(Dropped { table, chain, rule });
        }
        None
    }
}

impl<'a> Walk<'a, '_> {
    fn chain(&mut self, name: &'a str, depth: u32) -> ChainResult<'a> {
        let mut result = ChainResult::default();
        let Some(chain) = self.table.chains.get(name).filter(|_| depth < MAX_DEPTH) else {
            return ChainResult {
                continues: true,
                accepted: true,
                dropped: None,
            };
        };
        for rule in &chain.rules {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                result.accepted = true;
                return result;
            }
            let matches = self.matches(rule);
            if matches == Truth::No {
                continue;
            }
            let certain = matches == Truth::Yes;
            match &rule.action {
                Action::Continue => continue,
                Action::Mark { and, xor } => {
                    let marked = self.mark.map(|mark| mark & and ^ xor);
                    self.mark = if certain { marked } else { None };
                    continue;
                }
                Action::AnyMark => {
                    self.mark = None;
                    continue;
                }
                Action::Accept => result.accepted = true,
                Action::Other => {
                    result.accepted = true;
                    continue;
                }
                // What drops for certain is named before what may.
                Action::Drop if certain => result.dropped = Some((name, &rule.text)),
                Action::Drop => {
                    result.dropped.get_or_insert((name, &rule.text));
                }
                Action::Return => result.continues = true,
                Action::Jump(target) | Action::Goto(target) => {
                    let before = self.mark;
                    let inner = self.chain(target, depth + 1);
                    if !certain && self.mark != before {
                        self.mark = None;
                    }
                    result.accepted |= inner.accepted;
                    result.dropped = result.dropped.or(inner.dropped);
                    let returns = inner.continues;
                    if matches!(rule.action, Action::Goto(_)) {
                        result.continues |= returns;
                    } else if returns {
                        continue;
                    }
                }
            }
            if certain {
                return result;
            }
        }
        result.continues = true;
        result
    }

    fn matches(&self, rule: &Rule) -> Truth {
        let all = rule
            .conditions
            .iter()
            .map(|condition| self.holds(condition));
        all.min().unwrap_or(Truth::Yes)
    }

    fn holds(&self, condition: &Condition) -> Truth {
        match condition {
            Condition::Known(truth) => *truth,
            Condition::Family(ip) => Truth::of(self.packet.ip() == *ip),
            Condition::Interface {
                out,
                names,
                negated,
            } => {
                let interface = if *out {
                    &self.packet.to
                } else {
                    &self.packet.from
                };
                let fits = |name: &str| {
                    let one_of = names.iter().any(|wanted| match wanted.strip_suffix('*') {
                        Some(start) => name.starts_with(start),
                        None => name == wanted,
                    });
                    Truth::of(one_of)
                };
                let truth = interface.as_deref().map_or(Truth::Unknown, fits);
                truth.negate(*negated)
            }
            Condition::Address {
                destination,
                ranges,
                negated,
            } => {
                let address = match destination {
                    true => self.packet.destination,
                    false => self.packet.source,
                };
                let inside = |(first, last): &(IpAddr, IpAddr)| (*first..=*last).contains(&address);
                Truth::of(ranges.iter().any(inside)).negate(*negated)
            }
            Condition::Mark {
                mask,
                values,
                negated,
            } => {
                let fits = |mark: u32| Truth::of(values.contains(&(mark & mask)));
                self.mark.map_or(Truth::Unknown, fits).negate(*negated)
            }
        }
    }
}
