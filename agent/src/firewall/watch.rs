//! Noticing that somebody else changed our rules, or closed a way that they open, by the kernel's own announcements.
//!
//! What `iptables-nft` changes is announced like any change of nftables; what `iptables-legacy` changes is not at all.

use std::io;
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::iptables::chain_names;
use super::nftables::table_of;
use crate::network_name::NetworkName;

/// Multicast group of nftables changes: `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;

/// How long changes are gathered before they are reported: a flush is one announcement per rule.
const GATHER: Duration = Duration::from_millis(100);

/// `NFPROTO_INET` (linux/netfilter.h), the family of our table and of firewalld's.
const FAMILY_INET: u8 = 1;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`, the families of iptables' tables, and of Docker's own.
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;

/// Sizes of `struct nlmsghdr`, `struct nfgenmsg` and `struct nlattr`, all multiples of the 4 bytes that netlink aligns to.
const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h), the high byte of the message type.
const SUBSYSTEM: u8 = 10;

/// Kinds of messages (linux/netfilter/nf_tables.h, `enum nf_tables_msg_types`). The last one ends every transaction and
/// belongs to no table.
const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const DELETE_CHAIN: u8 = 5;
const NEW_RULE: u8 = 6;
const DELETE_RULE: u8 = 8;
const NEW_GENERATION: u8 = 15;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE` and `NFTA_SET_TABLE` are all 1 (linux/netfilter/nf_tables.h).
const TABLE_NAME: u16 = 1;

/// `NFTA_RULE_CHAIN` and `NFTA_CHAIN_NAME` (linux/netfilter/nf_tables.h).
const RULE_CHAIN: u16 = 2;
const CHAIN_NAME: u16 = 3;

/// firewalld's table, in our family, which it makes anew with each reload.
const FIREWALLD: &[u8] = b"firewalld";

/// Docker's own tables, one for each IP version; what is in them changes with each container and does not matter.
const DOCKER: &[u8] = b"docker-bridges";

/// The tables of iptables that hold our chains, and in them the chains that do: with a jump to ours, or of our own. Those
/// of kube-proxy, for one, change often and do not matter.
const IPTABLES_TABLES: [&[u8]; 3] = [b"filter", b"nat", b"raw"];
const IPTABLES_CHAINS: [&[u8]; 5] = [
    b"FORWARD",
    b"POSTROUTING",
    b"PREROUTING",
    b"DOCKER-USER",
    b"DOCKER-FORWARD",
];

/// The names of one network's table and chains.
struct Names {
    table: String,
    chains: [String; 3],
}

impl Names {
    fn of_network(network: Option<&NetworkName>) -> Self {
        Self {
            table: table_of(network),
            chains: chain_names(network),
        }
    }
}

/// A receive-only socket that hears of changes that concern our rules in the network namespace it was opened in.
pub struct Watcher {
    socket: TokioSocket,
    names: Names,
    /// When to report what was heard; kept here so that a dropped [`Self::changed`] loses nothing.
    due: Option<Instant>,
}

impl Watcher {
    /// Starts to listen.
    ///
    /// # Errors
    /// Without `CAP_NET_ADMIN`, or when the kernel has no nftables.
    pub fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self {
            socket,
            names: Names::of_network(None),
            due: None,
        })
    }

    /// Looks out for the rules of a named network.
    pub fn of_network(mut self, network: Option<&NetworkName>) -> Self {
        self.names = Names::of_network(network);
        self
    }

    /// Returns when our rules may have changed, 100 ms after the first sign of it. The agent's own changes count too,
    /// so compare before changing anything.
    ///
    /// Cancel safe: what was heard by a dropped call is reported by the next.
    pub async fn changed(&mut self) {
        loop {
            let received = match self.due {
                None => self.socket.recv_from_full().await,
                Some(due) => match timeout_at(due, self.socket.recv_from_full()).await {
                    Ok(received) => received,
                    Err(_) => {
                        self.due = None;
                        return;
                    }
                },
            };
            match received {
                Ok((datagram, _)) if !self.names.concern(&datagram) => {}
                Ok(_) => {
                    self.due.get_or_insert_with(|| Instant::now() + GATHER);
                }
                // Announcements were lost (ENOBUFS): any of them may have been about us.
                Err(error) => {
                    tracing::debug!(error = %error, "missed some firewall changes");
                    let due = *self.due.get_or_insert_with(|| Instant::now() + GATHER);
                    // Waiting here keeps an error that persists from becoming a busy loop.
                    sleep_until(due).await;
                }
            }
        }
    }
}

impl Names {
    /// Whether one of the datagram's messages is about our table. What is cut short or unknown counts as ours.
    fn concern(&self, datagram: &[u8]) -> bool {
        let mut rest = datagram;
        while !rest.is_empty() {
            let Some(length) = u32_at(rest, 0).and_then(|length| usize::try_from(length).ok())
            else {
                return true;
            };
            let Some(message) = rest.get(..length).filter(|_| length >= NLMSG_HEADER) else {
                return true;
            };
            if self.concern_message(message) {
                return true;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        false
    }

    fn concern_message(&self, message: &[u8]) -> bool {
        // The type is a host-endian u16: subsystem in the high byte, message in the low one.
        let Some([kind, subsystem]) = u16_at(message, 4).map(u16::to_le_bytes) else {
            return true;
        };
        if subsystem != SUBSYSTEM || kind == NEW_GENERATION {
            return false;
        }
        let Some(family) = message.get(NLMSG_HEADER) else {
            return true;
        };
        let Some(table) = name(message, TABLE_NAME) else {
            return true;
        };
        match *family {
            FAMILY_INET => table == self.table.as_bytes() || table == FIREWALLD,
            FAMILY_IPV4 | FAMILY_IPV6 if table == DOCKER => {
                matches!(kind, NEW_TABLE | DELETE_TABLE)
            }
            FAMILY_IPV4 | FAMILY_IPV6 if IPTABLES_TABLES.contains(&table) => {
                let chain = match kind {
                    NEW_TABLE | DELETE_TABLE => return true,
                    NEW_CHAIN | DELETE_CHAIN => name(message, CHAIN_NAME),
                    NEW_RULE | DELETE_RULE => name(message, RULE_CHAIN),
                    _ => return false,
                };
                chain.is_none_or(|chain| {
                    let mut ours = self.chains.iter().map(String::as_bytes);
                    IPTABLES_CHAINS.contains(&chain) || ours.any(|ours| ours == chain)
                })
            }
            _ => false,
        }
    }
}

/// The name in a message's attribute `wanted`, without the NUL that ends it.
fn name(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = message.get(NLMSG_HEADER + NFGEN_HEADER..)?;
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        if kind == wanted {
            return value.split(|byte| *byte == 0).next();
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(field.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(field.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of `kind` in `family` about `table`, and about `chain` in it where there is one.
    fn message(kind: u8, family: u8, table: &str, chain: Option<&str>) -> Vec<u8> {
        let mut attributes = attribute(TABLE_NAME, table);
        if let Some(chain) = chain {
            let kind = match kind {
                NEW_CHAIN | DELETE_CHAIN => CHAIN_NAME,
                _ => RULE_CHAIN,
            };
            attributes.extend(attribute(kind, chain));
        }
        let length = NLMSG_HEADER + NFGEN_HEADER + attributes.len();
        let mut bytes = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        bytes.extend((u16::from(SUBSYSTEM) << 8 | u16::from(kind)).to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(attributes);
        bytes
    }

    fn attribute(kind: u16, text: &str) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE_HEADER + text.len() + 1).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn only_what_concerns_our_rules_counts() {
        let names = Names::of_network(None);
        for ours in [
            message(NEW_RULE, FAMILY_INET, "selvage", Some("forward")),
            message(DELETE_TABLE, FAMILY_INET, "selvage", None),
            message(NEW_TABLE, FAMILY_INET, "firewalld", None),
            message(NEW_TABLE, FAMILY_IPV6, "docker-bridges", None),
            message(NEW_RULE, FAMILY_IPV4, "filter", Some("FORWARD")),
            message(DELETE_RULE, FAMILY_IPV6, "nat", Some("FLANNEL-POSTRTG")),
            message(NEW_CHAIN, FAMILY_IPV4, "filter", Some("DOCKER-FORWARD")),
            message(DELETE_TABLE, FAMILY_IPV4, "raw", None),
        ] {
            assert!(names.concern(&ours), "{ours:?}");
        }
        for other in [
            message(NEW_RULE, FAMILY_INET, "selvage2", Some("forward")),
            message(NEW_RULE, FAMILY_IPV4, "selvage", Some("forward")),
            message(NEW_RULE, FAMILY_IPV4, "docker-bridges", Some("nat-OUTPUT")),
            message(NEW_RULE, FAMILY_IPV4, "nat", Some("KUBE-SERVICES")),
            message(NEW_CHAIN, FAMILY_IPV4, "nat", Some("KUBE-SEP-X")),
            message(NEW_RULE, FAMILY_IPV4, "mangle", Some("FORWARD")),
            message(NEW_GENERATION, 0, "", None),
            Vec::new(),
        ] {
            assert!(!names.concern(&other), "{other:?}");
        }
        let mut two = message(NEW_RULE, FAMILY_IPV4, "filter", Some("INPUT"));
        assert!(!names.concern(&two));
        two.extend(message(NEW_RULE, FAMILY_INET, "selvage", None));
        assert!(names.concern(&two));
    }

    #[test]
    fn networks_do_not_concern_each_other() {
        let blue = "blue".parse().unwrap();
        let [default, blue] = [None, Some(&blue)].map(Names::of_network);
        for (message, of_default, of_blue) in [
            (
                message(NEW_RULE, FAMILY_INET, "selvage", Some("forward")),
                true,
                false,
            ),
            (
                message(NEW_RULE, FAMILY_INET, "selvage-blue", Some("forward")),
                false,
                true,
            ),
            (
                message(NEW_RULE, FAMILY_INET, "selvage-green", Some("forward")),
                false,
                false,
            ),
            (
                message(NEW_RULE, FAMILY_IPV4, "nat", Some("FLANNEL-POSTRTG")),
                true,
                false,
            ),
            (
                message(NEW_RULE, FAMILY_IPV4, "nat", Some("FLANNEL-POSTRTG-blue")),
                false,
                true,
            ),
            (
                message(NEW_CHAIN, FAMILY_IPV4, "filter", Some("FLANNEL-FWD-blue")),
                false,
                true,
            ),
            (
                message(NEW_RULE, FAMILY_IPV4, "filter", Some("FORWARD")),
                true,
                true,
            ),
        ] {
            assert_eq!(default.concern(&message), of_default, "{message:?}");
            assert_eq!(blue.concern(&message), of_blue, "{message:?}");
        }
    }

    #[test]
    fn what_is_cut_short_counts_and_never_panics() {
        let names = Names::of_network(None);
        let whole = message(NEW_TABLE, FAMILY_INET, "other", None);
        for length in 1..whole.len() {
            assert!(names.concern(&whole[..length]), "cut to {length} bytes");
        }
        for byte in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0xff;
            let _ = names.concern(&damaged);
        }
    }
}
