//! Noticing that somebody else changed our table, by the kernel's own announcements.

use std::io;
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::nftables::TABLE;

/// Multicast group of nftables changes: `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;

/// How long changes are gathered before they are reported: a flush is one announcement per rule.
const GATHER: Duration = Duration::from_millis(100);

/// `NFPROTO_INET` (linux/netfilter.h), the family of our table.
const FAMILY_INET: u8 = 1;

/// Sizes of `struct nlmsghdr`, `struct nfgenmsg` and `struct nlattr`, all multiples of the 4 bytes that netlink aligns to.
const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h), the high byte of the message type.
const SUBSYSTEM: u8 = 10;

/// `NFT_MSG_NEWGEN` (linux/netfilter/nf_tables.h), which ends every transaction and belongs to no table.
const NEW_GENERATION: u8 = 15;

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE` and `NFTA_SET_TABLE` are all 1 (linux/netfilter/nf_tables.h).
const TABLE_NAME: u16 = 1;

/// A receive-only socket that hears of changes of our table in the network namespace it was opened in.
pub struct Watcher {
    socket: TokioSocket,
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
        Ok(Self { socket, due: None })
    }

    /// Returns when our table may have changed, 100 ms after the first sign of it. The agent's own changes count too,
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
                Ok((datagram, _)) if !concerns_us(&datagram) => {}
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

/// Whether one of the datagram's messages is about our table. What is cut short or unknown counts as ours.
fn concerns_us(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while !rest.is_empty() {
        let Some(length) = u32_at(rest, 0).and_then(|length| usize::try_from(length).ok()) else {
            return true;
        };
        let Some(message) = rest.get(..length).filter(|_| length >= NLMSG_HEADER) else {
            return true;
        };
        if message_concerns_us(message) {
            return true;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn message_concerns_us(message: &[u8]) -> bool {
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
    *family == FAMILY_INET && table_name(message).is_none_or(|name| name == TABLE.as_bytes())
}

/// The table that a message is about, without the NUL that ends it.
fn table_name(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message.get(NLMSG_HEADER + NFGEN_HEADER..)?;
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)?;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        if kind == TABLE_NAME {
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

    /// `NFT_MSG_NEWRULE` (6) or another, in `family`, about `table`.
    fn message(kind: u8, family: u8, table: &str) -> Vec<u8> {
        let mut value = table.as_bytes().to_vec();
        value.push(0);
        let attribute = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap();
        value.resize(value.len().next_multiple_of(4), 0);
        let length = NLMSG_HEADER + NFGEN_HEADER + ATTRIBUTE_HEADER + value.len();
        let mut bytes = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
        bytes.extend((u16::from(SUBSYSTEM) << 8 | u16::from(kind)).to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(attribute.to_ne_bytes());
        bytes.extend(TABLE_NAME.to_ne_bytes());
        bytes.extend(value);
        bytes
    }

    #[test]
    fn only_our_table_counts() {
        assert!(concerns_us(&message(6, FAMILY_INET, "selvage")));
        for other in [
            message(6, FAMILY_INET, "selvage2"),
            message(6, 2, "selvage"),
            message(NEW_GENERATION, 0, ""),
            Vec::new(),
        ] {
            assert!(!concerns_us(&other));
        }
        let mut two = message(6, 2, "filter");
        two.extend(message(6, FAMILY_INET, "selvage"));
        assert!(concerns_us(&two));
    }

    #[test]
    fn what_is_cut_short_counts_and_never_panics() {
        let whole = message(6, FAMILY_INET, "other");
        for length in 1..whole.len() {
            assert!(concerns_us(&whole[..length]), "cut to {length} bytes");
        }
        for byte in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0xff;
            let _ = concerns_us(&damaged);
        }
    }
}
