//! iptables' tables, in the syntax of `iptables-save`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::walk::{PORT, SOURCE_PORT};
use super::{Action, Chain, Condition, Hook, Program, Rule, Table, Truth};
use crate::base::net::Family as Ip;
use crate::host::firewall::iptables::save::{self, Save};

/// The chains that the kernel calls for forwarded packets, with their priorities (linux/netfilter_ipv4.h). Those of nat
/// cannot drop.
const BASES: [(&str, &str, Hook, i32); 6] = [
    ("raw", "PREROUTING", Hook::Prerouting, -300),
    ("mangle", "PREROUTING", Hook::Prerouting, -150),
    ("mangle", "FORWARD", Hook::Forward, -150),
    ("filter", "FORWARD", Hook::Forward, 0),
    ("security", "FORWARD", Hook::Forward, 50),
    ("mangle", "POSTROUTING", Hook::Postrouting, -150),
];

/// Targets after which the next rule is evaluated.
const HARMLESS: [&str; 16] = [
    "LOG",
    "NFLOG",
    "ULOG",
    "TRACE",
    "CT",
    "NOTRACK",
    "CONNMARK",
    "TCPMSS",
    "CHECKSUM",
    "SET",
    "AUDIT",
    "TTL",
    "DSCP",
    "TOS",
    "CLASSIFY",
    "CONNSECMARK",
];

/// All tables that `command` prints.
pub(super) fn read(text: &str, command: &str, ip: Ip) -> Vec<Table> {
    let save = Save::parse(text);
    let mut tables = Vec::new();
    for name in save.names(&[]) {
        let Some(printed) = save.table(name) else {
            continue;
        };
        let mut chains = std::collections::BTreeMap::<String, Chain>::new();
        for chain in printed.chains() {
            let base = BASES
                .iter()
                .find(|(table, base, ..)| *table == name && *base == chain);
            chains.insert(
                chain.to_owned(),
                Chain {
                    base: base.map(|(_, _, hook, priority)| (*hook, *priority)),
                    drops: printed.policy(chain) == Some("DROP"),
                    rules: Vec::new(),
                },
            );
        }
        for line in printed.rules() {
            let known = printed.has(line.target().unwrap_or_default());
            chains
                .entry(line.chain.clone())
                .or_default()
                .rules
                .push(rule(line, known));
        }
        tables.push(Table {
            program: Program::Iptables(command.to_owned(), ip),
            name: name.to_owned(),
            chains,
        });
    }
    tables
}

/// `is_chain`: whether its target is a chain of the table.
fn rule(line: &save::Rule, is_chain: bool) -> Rule {
    let mut conditions = Vec::new();
    let mut words = line.words().iter().map(String::as_str).peekable();
    let mut negated = false;
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        // What follows the target is the target's.
        if word == "-j" || word == "-g" {
            break;
        }
        let mut arguments = Vec::new();
        while let Some(argument) = words.next_if(|next| *next != "!" && !is_option(next)) {
            arguments.push(argument);
        }
        let argument = arguments.first().copied().unwrap_or_default();
        conditions.extend(condition(word, argument, negated));
        negated = false;
    }
    Rule {
        conditions,
        action: action(line, is_chain),
        text: line.text.clone(),
    }
}

fn is_option(word: &str) -> bool {
    word.strip_prefix('-')
        .is_some_and(|rest| rest.starts_with(|c: char| c == '-' || c.is_ascii_alphabetic()))
}

fn condition(option: &str, argument: &str, negated: bool) -> Option<Condition> {
    let known = |truth: Truth| Some(Condition::Known(truth.negate(negated)));
    match option {
        // It only gives the following options their meaning.
        "-m" | "--comment" => None,
        "-s" | "-d" => Some(match argument.parse::<IpNet>() {
            Ok(net) => Condition::Address {
                destination: option == "-d",
                ranges: vec![range(net)],
                negated,
            },
            Err(_) => Condition::Known(Truth::Unknown),
        }),
        "-i" | "-o" => Some(Condition::Interface {
            out: option == "-o",
            names: vec![
                argument
                    .strip_suffix('+')
                    .map_or_else(|| argument.to_owned(), |start| format!("{start}*")),
            ],
            negated,
        }),
        "-p" => known(Truth::of(matches!(argument, "tcp" | "6" | "all" | "0"))),
        "--ctstate" | "--state" => {
            known(Truth::of(argument.split(',').any(|state| state == "NEW")))
        }
        // A new connection has no status yet that rules ask for.
        "--ctstatus" => known(Truth::of(
            argument.split(',').any(|status| status == "NONE"),
        )),
        "--dport" | "--destination-port" | "--dports" => known(ports(argument, PORT)),
        "--sport" | "--source-port" | "--sports" => known(ports(argument, SOURCE_PORT)),
        "--syn" => known(Truth::Yes),
        // Neither end of a forwarded packet is this host's.
        "--dst-type" | "--src-type" => {
            known(Truth::of(argument.split(',').any(|kind| kind == "UNICAST")))
        }
        "--mark" => Some(mark(argument).map_or(
            Condition::Known(Truth::Unknown),
            |(value, mask)| Condition::Mark {
                mask,
                values: vec![value],
                negated,
            },
        )),
        _ => Some(Condition::Known(Truth::Unknown)),
    }
}

pub(super) fn range(net: IpNet) -> (IpAddr, IpAddr) {
    (net.network(), net.broadcast())
}

/// Whether a port is in a list such as `80,8000:8080`.
fn ports(list: &str, port: u16) -> Truth {
    let mut truth = Truth::No;
    for part in list.split(',') {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        let bound = |text: &str, open| {
            if text.is_empty() {
                Ok(open)
            } else {
                text.parse()
            }
        };
        match (bound(first, 0), bound(last, u16::MAX)) {
            (Ok(first), Ok(last)) if (first..=last).contains(&port) => return Truth::Yes,
            (Ok(_), Ok(_)) => {}
            _ => truth = Truth::Unknown,
        }
    }
    truth
}

/// A value and its mask, such as `0x4000/0x4000`.
fn mark(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn action(line: &save::Rule, is_chain: bool) -> Action {
    let Some(target) = line.target() else {
        return Action::Continue;
    };
    match target {
        "ACCEPT" => Action::Accept,
        "DROP" | "REJECT" => Action::Drop,
        "RETURN" => Action::Return,
        "MARK" => match line.after("--set-xmark").and_then(mark) {
            Some((value, mask)) => Action::Mark {
                and: !mask,
                xor: value,
            },
            None => Action::AnyMark,
        },
        _ if is_chain && line.after("-g") == Some(target) => Action::Goto(target.to_owned()),
        _ if is_chain => Action::Jump(target.to_owned()),
        _ if HARMLESS.contains(&target) => Action::Continue,
        _ => Action::Other,
    }
}
