//! What the kernel lists of a table, and whether that is what we want. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::expression::{
    NFT_CMP_EQ, NFT_PAYLOAD_NETWORK_HEADER, NFTA_BITWISE_MASK, NFTA_CMP_DATA, NFTA_CMP_OP,
    NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_IMMEDIATE_DATA,
    NFTA_PAYLOAD_BASE, NFTA_PAYLOAD_LEN, NFTA_PAYLOAD_OFFSET, NFTA_VERDICT_CHAIN, source_offset,
};
use super::ruleset::{
    NFTA_CHAIN_NAME, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA, Rule, Table,
};
use crate::base::net::Family;
use crate::host::netlink::{Attributes, attributes, flagged_attributes};

/// `NFTA_TABLE_FLAGS` and `NFTA_TABLE_USE` (linux/netfilter/nf_tables.h).
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_USE: u16 = 3;

/// A table as the kernel lists it.
#[derive(PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) table: Attributes,
    pub(super) chains: Vec<Attributes>,
    pub(super) rules: Vec<Attributes>,
}

impl Listing {
    /// Whether it is `wanted`: with its chains and their rules in that order and with our comments, with nothing else
    /// in it (a set counts in the number of uses, as a chain does), and not dormant.
    pub(super) fn shows(&self, wanted: &Table) -> bool {
        let uses = u32::try_from(wanted.chains.len()).ok();
        let is_awake = number(&self.table, NFTA_TABLE_FLAGS).unwrap_or(0) == 0;
        if !is_awake || number(&self.table, NFTA_TABLE_USE) != uses {
            return false;
        }
        wanted.chains.iter().all(|chain| {
            let is_named = |listed: &&Attributes| listed.has_text(NFTA_CHAIN_NAME, chain.name);
            let Some(listed) = self.chains.iter().find(is_named) else {
                return false;
            };
            let mut sent = Attributes::default();
            chain.encode(&mut sent);
            let in_chain = |rule: &&Attributes| rule.has_text(NFTA_RULE_CHAIN, chain.name);
            let rules = self.rules.iter().filter(in_chain);
            covers(sent.as_bytes(), listed.as_bytes(), Others::Allowed)
                && rules.clone().count() == chain.rules.len()
                && rules
                    .zip(&chain.rules)
                    .all(|(listed, rule)| is_rule(listed, rule, wanted))
        })
    }
}

fn is_rule(listed: &Attributes, rule: &Rule, table: &Table) -> bool {
    let mut sent = Attributes::default();
    rule.encode(table.family, &mut sent);
    let part = |of: &Attributes, kind| of.get(kind).map(<[u8]>::to_vec).unwrap_or_default();
    let [ours, theirs] = [&sent, listed].map(|of| part(of, NFTA_RULE_EXPRESSIONS));
    sent.get(NFTA_RULE_USERDATA) == listed.get(NFTA_RULE_USERDATA)
        && covers(&ours, &theirs, Others::MustBeZero)
}

/// What a listing may have beside what was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    Allowed,
    /// Newer kernels list what older ones do not know, with zero for the meaning that there always was.
    MustBeZero,
}

/// Whether `listed` has each attribute that was sent with the same value, in any order of the kinds; of a kind that occurs
/// more than once, in the same order. The kernel does not flag what is nested, but we do.
fn covers(sent: &[u8], listed: &[u8], others: Others) -> bool {
    let mut rest: Vec<_> = attributes(listed).collect();
    for (kind, is_nested, value) in flagged_attributes(sent) {
        let Some(at) = rest.iter().position(|(listed, _)| *listed == kind) else {
            return false;
        };
        let (_, listed) = rest.remove(at);
        let is_same = match is_nested {
            true => covers(value, listed, others),
            false => value == listed,
        };
        if !is_same {
            return false;
        }
    }
    let is_zero = |(_, value): &(u16, &[u8])| value.iter().all(|byte| *byte == 0);
    others == Others::Allowed || rest.iter().all(is_zero)
}

/// Of a rule that sends the packets from one network to another chain: that network, and the chain's name. `None` for any
/// other rule, and for one with a further condition after that.
pub(super) fn branch(rule: &Attributes) -> Option<(IpNet, String)> {
    let mut condition = Condition::default();
    for (_, expression) in attributes(rule.get(NFTA_RULE_EXPRESSIONS)?) {
        let expression = Attributes::of(expression);
        let data = Attributes::of(expression.get(NFTA_EXPR_DATA).unwrap_or_default());
        match expression.get(NFTA_EXPR_NAME)? {
            b"payload\0" => condition = Condition::load(&data),
            b"bitwise\0" => condition.mask = Some(value(&data, NFTA_BITWISE_MASK)?),
            b"cmp\0" => condition.compare(&data),
            b"immediate\0" => {
                let data = Attributes::of(data.get(NFTA_IMMEDIATE_DATA)?);
                let verdict = Attributes::of(data.get(NFTA_DATA_VERDICT)?);
                let name = verdict.get(NFTA_VERDICT_CHAIN)?.strip_suffix(b"\0")?;
                return Some((condition.source?, String::from_utf8(name.to_vec()).ok()?));
            }
            b"counter\0" => {}
            _ => condition = Condition::default(),
        }
    }
    None
}

/// What is known of a condition on the source address after some of its expressions.
#[derive(Default)]
struct Condition {
    /// The family whose source address was loaded, and how many of its bytes.
    loaded: Option<(Family, usize)>,
    mask: Option<Vec<u8>>,
    source: Option<IpNet>,
}

impl Condition {
    fn load(payload: &Attributes) -> Self {
        let is_in_header = number(payload, NFTA_PAYLOAD_BASE) == Some(NFT_PAYLOAD_NETWORK_HEADER);
        let offset = number(payload, NFTA_PAYLOAD_OFFSET).filter(|_| is_in_header);
        let family = Family::BOTH
            .into_iter()
            .find(|family| Some(source_offset(*family)) == offset);
        let length = number(payload, NFTA_PAYLOAD_LEN).and_then(|length| length.try_into().ok());
        Self {
            loaded: family.zip(length),
            ..Self::default()
        }
    }

    fn compare(&mut self, cmp: &Attributes) {
        let Self { loaded, mask, .. } = std::mem::take(self);
        let is_equal = number(cmp, NFTA_CMP_OP) == Some(NFT_CMP_EQ);
        let value = value(cmp, NFTA_CMP_DATA).filter(|_| is_equal);
        self.source = loaded.zip(value).and_then(|((family, length), value)| {
            let value = value.get(..length)?;
            let prefix = match mask {
                Some(mask) => prefix_of(&mask)?,
                None => u8::try_from(length * 8).ok()?,
            };
            IpNet::new(padded(family, value)?, prefix).ok()
        });
    }
}

/// The address whose first bytes are these, and whose others are zero.
fn padded(family: Family, first: &[u8]) -> Option<IpAddr> {
    let mut bytes = [0; 16];
    bytes.get_mut(..first.len())?.copy_from_slice(first);
    Some(match family {
        Family::V4 => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        Family::V6 => Ipv6Addr::from(bytes).into(),
    })
}

/// The length of the prefix that a mask leaves.
fn prefix_of(mask: &[u8]) -> Option<u8> {
    let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let leading = mask.iter().take_while(|byte| **byte == u8::MAX).count();
    let partial = mask.get(leading).map_or(0, |byte| byte.leading_ones());
    let leading = u32::try_from(leading).ok()? * 8 + partial;
    (leading == ones).then_some(u8::try_from(ones).ok()?)
}

fn number(attributes: &Attributes, kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attributes.get(kind)?.try_into().ok()?))
}

/// The value in nested data.
fn value(attributes: &Attributes, kind: u16) -> Option<Vec<u8>> {
    let data = Attributes::of(attributes.get(kind)?);
    data.get(NFTA_DATA_VALUE).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests;
