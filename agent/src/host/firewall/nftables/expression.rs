//! The expressions that rules are made of, in the bytes that `nft` makes of the same words: so it lists our rules as if
//! they were its own.
//!
//! Each expression reads or writes a register; a comparison that fails ends the rule.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::base::net::{Family, InterfaceName};
use crate::host::netlink::Attributes;
use crate::host::netlink::netfilter::TableFamily;

// All of linux/netfilter/nf_tables.h unless stated otherwise.
pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_EXPR_DATA: u16 = 2;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
pub(super) const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
pub(super) const NFTA_VERDICT_CHAIN: u16 = 2;

const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFT_META_MARK: u32 = 3;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_NFPROTO: u32 = 15;

const NFTA_PAYLOAD_DREG: u16 = 1;
pub(super) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(super) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(super) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(super) const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;

pub(super) const NFTA_CMP_SREG: u16 = 1;
pub(super) const NFTA_CMP_OP: u16 = 2;
pub(super) const NFTA_CMP_DATA: u16 = 3;
pub(super) const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;

const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
pub(super) const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;

const NFTA_IMMEDIATE_DREG: u16 = 1;
pub(super) const NFTA_IMMEDIATE_DATA: u16 = 2;

const NFTA_MASQ_FLAGS: u16 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of linux/netfilter/nf_nat.h.
const RANDOM_FULLY: u32 = 1 << 4;

/// `NFT_REG_VERDICT`, which ends the rule, and the first register of 16 bytes, as `nft` chooses it for one value.
const VERDICT: u32 = 0;
const REGISTER: u32 = 1;

/// `NF_ACCEPT` of linux/netfilter.h, and `NFT_RETURN`, which is -5.
const ACCEPT: u32 = 1;
const RETURN: u32 = (-5_i32).cast_unsigned();

/// Length of an interface's name with its NUL: `IFNAMSIZ` of linux/if.h.
const NAME_LEN: usize = 16;

/// Where an IP header has the source address (RFC 791 §3.1, RFC 8200 §3); the destination address follows it.
pub(super) const fn source_offset(family: Family) -> u32 {
    match family {
        Family::V4 => 12,
        Family::V6 => 8,
    }
}

/// What a packet must be like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Match {
    /// Comes from there.
    From(IpNet),
    /// Comes from anywhere else.
    NotFrom(IpNet),
    /// Goes there.
    To(IpNet),
    /// Goes anywhere else.
    NotTo(IpNet),
    /// Has all of these bits in its mark.
    Marked(u32),
    /// Leaves by this device.
    Out(InterfaceName),
}

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// The chain is done with it.
    Accept,
    /// The chain's other rules do not see it.
    Return,
    /// It gets an address of this host as its source.
    Masquerade { fully_random: bool },
    /// Its mark gets these bits.
    Mark(u32),
}

/// The expressions of a rule in a table of that family.
pub(super) fn encode(table: TableFamily, matches: &[Match], action: Action) -> Attributes {
    let mut rule = Expressions::default();
    let mut known = table != TableFamily::Inet;
    for condition in matches {
        let (net, is_source, equal) = match condition {
            Match::From(net) => (net, true, true),
            Match::NotFrom(net) => (net, true, false),
            Match::To(net) => (net, false, true),
            Match::NotTo(net) => (net, false, false),
            Match::Marked(bits) => {
                rule.load(NFT_META_MARK);
                rule.mask(&bits.to_ne_bytes(), &[0; 4]);
                rule.compare(true, &bits.to_ne_bytes());
                continue;
            }
            Match::Out(device) => {
                let mut name = device.as_str().as_bytes().to_vec();
                name.resize(NAME_LEN, 0);
                rule.load(NFT_META_OIFNAME);
                rule.compare(true, &name);
                continue;
            }
        };
        if !known {
            rule.load(NFT_META_NFPROTO);
            let family = TableFamily::from(Family::of(net.addr()));
            rule.compare(true, &[family as u8]);
            known = true;
        }
        rule.address(*net, is_source, equal);
    }
    rule.act(action);
    rule.0
}

#[derive(Default)]
struct Expressions(Attributes);

impl Expressions {
    fn push(&mut self, name: &str, fill: impl FnOnce(&mut Attributes)) {
        self.0.nest(NFTA_LIST_ELEM, |expression| {
            expression.put_text(NFTA_EXPR_NAME, name);
            expression.nest(NFTA_EXPR_DATA, fill);
        });
    }

    /// Loads what the kernel knows of the packet.
    fn load(&mut self, key: u32) {
        self.push("meta", |meta| {
            meta.put_number(NFTA_META_DREG, REGISTER);
            meta.put_number(NFTA_META_KEY, key);
        });
    }

    /// Compares an address with a network: by its first bytes alone if the prefix ends between two.
    fn address(&mut self, net: IpNet, is_source: bool, equal: bool) {
        let address = match net.network() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let prefix = usize::from(net.prefix_len());
        let is_whole = prefix > 0 && prefix.is_multiple_of(8);
        let length = if is_whole { prefix / 8 } else { address.len() };
        let source = source_offset(Family::of(net.addr()));
        // At most 24 and 16.
        let [offset, bytes] = [if is_source { 0 } else { address.len() }, length]
            .map(|number| u32::try_from(number).unwrap_or_default());
        self.push("payload", |payload| {
            payload.put_number(NFTA_PAYLOAD_DREG, REGISTER);
            payload.put_number(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_NETWORK_HEADER);
            payload.put_number(NFTA_PAYLOAD_OFFSET, source + offset);
            payload.put_number(NFTA_PAYLOAD_LEN, bytes);
        });
        if !is_whole {
            let mask = match net.netmask() {
                IpAddr::V4(mask) => mask.octets().to_vec(),
                IpAddr::V6(mask) => mask.octets().to_vec(),
            };
            self.mask(&mask, &vec![0; length]);
        }
        self.compare(equal, &address[..length]);
    }

    fn mask(&mut self, mask: &[u8], xor: &[u8]) {
        self.push("bitwise", |bitwise| {
            bitwise.put_number(NFTA_BITWISE_SREG, REGISTER);
            bitwise.put_number(NFTA_BITWISE_DREG, REGISTER);
            // At most 16.
            let length = u32::try_from(mask.len()).unwrap_or_default();
            bitwise.put_number(NFTA_BITWISE_LEN, length);
            bitwise.nest(NFTA_BITWISE_MASK, |data| data.put(NFTA_DATA_VALUE, mask));
            bitwise.nest(NFTA_BITWISE_XOR, |data| data.put(NFTA_DATA_VALUE, xor));
        });
    }

    fn compare(&mut self, equal: bool, value: &[u8]) {
        self.push("cmp", |cmp| {
            cmp.put_number(NFTA_CMP_SREG, REGISTER);
            cmp.put_number(NFTA_CMP_OP, if equal { NFT_CMP_EQ } else { NFT_CMP_NEQ });
            cmp.nest(NFTA_CMP_DATA, |data| data.put(NFTA_DATA_VALUE, value));
        });
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Accept => self.verdict(ACCEPT),
            Action::Return => self.verdict(RETURN),
            Action::Masquerade { fully_random } => self.push("masq", |masquerade| {
                if fully_random {
                    masquerade.put_number(NFTA_MASQ_FLAGS, RANDOM_FULLY);
                }
            }),
            Action::Mark(bits) => {
                self.load(NFT_META_MARK);
                self.mask(&(!bits).to_ne_bytes(), &bits.to_ne_bytes());
                self.push("meta", |meta| {
                    meta.put_number(NFTA_META_KEY, NFT_META_MARK);
                    meta.put_number(NFTA_META_SREG, REGISTER);
                });
            }
        }
    }

    fn verdict(&mut self, code: u32) {
        self.push("immediate", |immediate| {
            immediate.put_number(NFTA_IMMEDIATE_DREG, VERDICT);
            immediate.nest(NFTA_IMMEDIATE_DATA, |data| {
                data.nest(NFTA_DATA_VERDICT, |verdict| {
                    verdict.put_number(NFTA_VERDICT_CODE, code);
                });
            });
        });
    }
}
