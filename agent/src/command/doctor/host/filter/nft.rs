//! nftables' tables, in the JSON of `nft -j list ruleset` (libnftables-json(5)).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::iptables::range;
use super::walk::{PORT, SOURCE_PORT};
use super::{Action, Chain, Condition, Hook, Program, Rule, Table, Truth};
use crate::base::net::Family as Ip;

/// The elements of sets and maps, by family, table and name.
type Sets<'a> = BTreeMap<(&'a str, &'a str, &'a str), &'a Value>;

/// All tables for forwarded packets.
///
/// # Errors
/// The text is not what `nft` prints.
pub(super) fn read(text: &str) -> Result<Vec<Table>, serde_json::Error> {
    let ruleset: Value = serde_json::from_str(text)?;
    let objects = ruleset["nftables"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let mut sets = Sets::new();
    let mut tables = BTreeMap::new();
    for object in objects {
        for kind in ["set", "map"] {
            if let Some(found) = object.get(kind)
                && let Some((family, table, name)) = place(found, "table", "name")
            {
                sets.insert((family, table, name), &found["elem"]);
            }
        }
        if let Some(found) = object.get("table")
            && let Some((family, name, _)) = place(found, "name", "name")
            && ["ip", "ip6", "inet"].contains(&family)
            && !is_dormant(found)
        {
            let table = Table {
                program: Program::Nft(family.to_owned()),
                name: name.to_owned(),
                chains: BTreeMap::new(),
            };
            tables.insert((family, name), table);
        }
    }
    for object in objects {
        if let Some(found) = object.get("chain")
            && let Some((family, table, name)) = place(found, "table", "name")
            && let Some(table) = tables.get_mut(&(family, table))
        {
            table.chains.insert(name.to_owned(), chain(found));
        }
    }
    for object in objects {
        if let Some(found) = object.get("rule")
            && let Some((family, table, name)) = place(found, "table", "chain")
            && let Some(chain) = tables
                .get_mut(&(family, table))
                .and_then(|table| table.chains.get_mut(name))
        {
            let reader = Reader {
                sets: &sets,
                family,
                table,
            };
            reader.rule(found, &mut chain.rules);
        }
    }
    Ok(tables.into_values().collect())
}

/// Whether a table is disabled: `flags dormant`.
fn is_dormant(table: &Value) -> bool {
    let flags = &table["flags"];
    let is = |flag: &Value| flag == "dormant";
    is(flags) || flags.as_array().is_some_and(|flags| flags.iter().any(is))
}

/// The family and two names of an object.
fn place<'a>(object: &'a Value, one: &str, other: &str) -> Option<(&'a str, &'a str, &'a str)> {
    Some((
        object["family"].as_str()?,
        object[one].as_str()?,
        object[other].as_str()?,
    ))
}

fn chain(object: &Value) -> Chain {
    let hook = match object["hook"].as_str() {
        Some("prerouting") => Some(Hook::Prerouting),
        Some("forward") => Some(Hook::Forward),
        Some("postrouting") => Some(Hook::Postrouting),
        _ => None,
    };
    // Chains of the type nat see new connections too, and may drop them.
    let priority = object["prio"]
        .as_i64()
        .and_then(|number| i32::try_from(number).ok());
    Chain {
        base: hook.map(|hook| (hook, priority.unwrap_or_default())),
        drops: object["policy"].as_str() == Some("drop"),
        rules: Vec::new(),
    }
}

/// The left side of a comparison.
enum Operand {
    Interface {
        out: bool,
    },
    Address {
        destination: bool,
        ip: Ip,
    },
    Mark {
        mask: u32,
    },
    /// Text that every packet in question has.
    Text(&'static [&'static str]),
    /// The same, by the packet's family.
    Family,
    Number(u16),
    /// A field that such a packet does not have.
    Absent,
    Unknown,
}

struct Reader<'a> {
    sets: &'a Sets<'a>,
    family: &'a str,
    table: &'a str,
}

impl Reader<'_> {
    /// Reads a rule. One with a map of verdicts becomes a rule for each of its elements, of which at most one fits.
    fn rule(&self, object: &Value, rules: &mut Vec<Rule>) {
        let text = format!("handle {}", object["handle"]);
        let statements = object["expr"].as_array().map_or(&[][..], Vec::as_slice);
        let mut action = Action::Continue;
        for (at, statement) in statements.iter().enumerate() {
            let Some((name, value)) = only(statement) else {
                continue;
            };
            if name == "vmap" {
                for (key, verdict) in self.elements(&value["data"]).iter().filter_map(pair) {
                    let mut conditions = self.conditions(&statements[..at]);
                    conditions.extend(self.compare(&value["key"], key, false));
                    rules.push(Rule {
                        conditions,
                        action: only(verdict)
                            .map_or(Action::Other, |(name, value)| verdict_of(name, value)),
                        text: text.clone(),
                    });
                }
                return;
            }
            match verdict_of(name, value) {
                Action::Continue => {}
                found => action = found,
            }
        }
        rules.push(Rule {
            conditions: self.conditions(statements),
            action,
            text,
        });
    }

    fn conditions(&self, statements: &[Value]) -> Vec<Condition> {
        let mut conditions = Vec::new();
        for (name, value) in statements.iter().filter_map(only) {
            match name {
                "match" => {
                    let negated = match value["op"].as_str() {
                        Some("==" | "in") => false,
                        Some("!=") => true,
                        _ => {
                            conditions.push(Condition::Known(Truth::Unknown));
                            continue;
                        }
                    };
                    conditions.extend(self.compare(&value["left"], &value["right"], negated));
                }
                "limit" | "quota" | "ct count" | "meter" | "xt" | "socket" | "osf" => {
                    conditions.push(Condition::Known(Truth::Unknown));
                }
                _ => {}
            }
        }
        conditions
    }

    fn compare(&self, left: &Value, right: &Value, negated: bool) -> Vec<Condition> {
        let values = self.elements(right);
        let texts = || values.iter().filter_map(|value| value.as_str());
        let known = |truth: Truth| vec![Condition::Known(truth.negate(negated))];
        let unknown = || vec![Condition::Known(Truth::Unknown)];
        match operand(left) {
            Operand::Unknown => unknown(),
            Operand::Absent => vec![Condition::Known(Truth::No)],
            Operand::Interface { out } => vec![Condition::Interface {
                out,
                names: texts().map(str::to_owned).collect(),
                negated,
            }],
            Operand::Address { destination, ip } => match values.iter().map(addresses).collect() {
                Some(ranges) => vec![
                    Condition::Family(ip),
                    Condition::Address {
                        destination,
                        ranges,
                        negated,
                    },
                ],
                None => unknown(),
            },
            Operand::Mark { mask } => match values.iter().map(number).collect() {
                Some(values) => vec![Condition::Mark {
                    mask,
                    values,
                    negated,
                }],
                None => unknown(),
            },
            Operand::Text(ours) => known(Truth::of(texts().any(|text| ours.contains(&text)))),
            Operand::Family => {
                let v4 = texts().any(|text| matches!(text, "ipv4" | "ip"));
                let v6 = texts().any(|text| matches!(text, "ipv6" | "ip6"));
                match (v4 ^ negated, v6 ^ negated) {
                    (true, true) => known(Truth::Yes.negate(negated)),
                    (true, false) => vec![Condition::Family(Ip::V4)],
                    (false, true) => vec![Condition::Family(Ip::V6)],
                    (false, false) => vec![Condition::Known(Truth::No)],
                }
            }
            Operand::Number(ours) => known(
                values
                    .iter()
                    .map(|value| is_number(value, ours))
                    .max()
                    .unwrap_or(Truth::No),
            ),
        }
    }

    /// What a value stands for: the elements of a set, or itself.
    fn elements<'v>(&'v self, value: &'v Value) -> Vec<&'v Value> {
        if let Some(name) = value.as_str().and_then(|text| text.strip_prefix('@')) {
            let elements = self.sets.get(&(self.family, self.table, name));
            let list = elements.and_then(|elements| elements.as_array());
            return list.into_iter().flatten().map(element).collect();
        }
        match value.get("set").unwrap_or(value) {
            Value::Array(list) => list.iter().map(element).collect(),
            other => vec![element(other)],
        }
    }
}

/// An element without its timeout and counters.
fn element(value: &Value) -> &Value {
    value
        .get("elem")
        .and_then(|elem| elem.get("val"))
        .unwrap_or(value)
}

/// The only member of an object.
fn only(value: &Value) -> Option<(&str, &Value)> {
    let (name, value) = value.as_object()?.iter().next()?;
    Some((name, value))
}

fn pair<'v>(value: &&'v Value) -> Option<(&'v Value, &'v Value)> {
    match value.as_array()?.as_slice() {
        [key, verdict] => Some((element(key), verdict)),
        _ => None,
    }
}

fn verdict_of(name: &str, value: &Value) -> Action {
    let target = || value["target"].as_str().unwrap_or_default().to_owned();
    match name {
        "accept" => Action::Accept,
        "drop" | "reject" => Action::Drop,
        "return" => Action::Return,
        "jump" => Action::Jump(target()),
        "goto" => Action::Goto(target()),
        "mangle" if value["key"]["meta"]["key"] == "mark" => set_mark(&value["value"]),
        "match" | "counter" | "log" | "limit" | "quota" | "comment" | "mangle" | "notrack"
        | "ct count" | "meter" | "set" | "map" | "flow" | "continue" | "ct helper"
        | "ct timeout" | "ct expectation" | "last" | "dup" | "socket" | "osf" | "reset"
        | "secmark" => Action::Continue,
        _ => Action::Other,
    }
}

fn set_mark(value: &Value) -> Action {
    if let Some(mark) = number(&value) {
        return Action::Mark { and: 0, xor: mark };
    }
    let bits = |operator: &str| {
        let sides = value[operator].as_array()?;
        let is_mark = sides.first()?["meta"]["key"] == "mark";
        sides
            .get(1)
            .and_then(|value| number(&value))
            .filter(|_| is_mark)
    };
    if let Some(bits) = bits("|") {
        return Action::Mark {
            and: !bits,
            xor: bits,
        };
    }
    match (bits("&"), bits("^")) {
        (Some(bits), _) => Action::Mark { and: bits, xor: 0 },
        (_, Some(bits)) => Action::Mark {
            and: u32::MAX,
            xor: bits,
        },
        _ => Action::AnyMark,
    }
}

fn operand(value: &Value) -> Operand {
    if let Some(key) = value["meta"]["key"].as_str() {
        return match key {
            "iifname" | "iif" => Operand::Interface { out: false },
            "oifname" | "oif" => Operand::Interface { out: true },
            "mark" => Operand::Mark { mask: u32::MAX },
            "l4proto" => Operand::Text(&["tcp"]),
            "nfproto" | "protocol" => Operand::Family,
            _ => Operand::Unknown,
        };
    }
    if let Some([left, mask]) = value["&"].as_array().map(Vec::as_slice) {
        return match number(&mask) {
            Some(mask) if left["meta"]["key"] == "mark" => Operand::Mark { mask },
            _ => Operand::Unknown,
        };
    }
    if let Some(key) = value["ct"]["key"].as_str() {
        return match key {
            "state" => Operand::Text(&["new"]),
            "direction" => Operand::Text(&["original"]),
            // A new connection has none of those that rules ask for.
            "status" => Operand::Text(&[]),
            _ => Operand::Unknown,
        };
    }
    let payload = &value["payload"];
    match (payload["protocol"].as_str(), payload["field"].as_str()) {
        (Some(family @ ("ip" | "ip6")), Some(field @ ("saddr" | "daddr"))) => Operand::Address {
            destination: field == "daddr",
            ip: if family == "ip" { Ip::V4 } else { Ip::V6 },
        },
        (Some("ip"), Some("protocol")) | (Some("ip6"), Some("nexthdr")) => Operand::Text(&["tcp"]),
        (Some("tcp" | "th"), Some("dport")) => Operand::Number(PORT),
        (Some("tcp" | "th"), Some("sport")) => Operand::Number(SOURCE_PORT),
        (
            Some("udp" | "udplite" | "sctp" | "dccp" | "icmp" | "icmpv6" | "esp" | "ah" | "igmp"),
            _,
        ) => Operand::Absent,
        _ => Operand::Unknown,
    }
}

/// The first and the last of the addresses that a value stands for.
fn addresses(value: &&Value) -> Option<(IpAddr, IpAddr)> {
    if let Some(text) = value.as_str() {
        let address = text.parse().ok()?;
        return Some((address, address));
    }
    if let Some(prefix) = value.get("prefix") {
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        let net = IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()?;
        return Some(range(net));
    }
    let bounds = value.get("range")?.as_array()?;
    let bound = |at: usize| bounds.get(at)?.as_str()?.parse().ok();
    Some((bound(0)?, bound(1)?))
}

fn number(value: &&Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

fn is_number(value: &Value, ours: u16) -> Truth {
    let ours = u64::from(ours);
    if let Some(number) = value.as_u64() {
        return Truth::of(number == ours);
    }
    let bounds = value["range"].as_array().map(Vec::as_slice);
    match bounds {
        Some([first, last]) => match (first.as_u64(), last.as_u64()) {
            (Some(first), Some(last)) => Truth::of((first..=last).contains(&ours)),
            _ => Truth::Unknown,
        },
        // The name of a service.
        _ => Truth::No,
    }
}
