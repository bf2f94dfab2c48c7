//! Notices changes of our rules, or new drops of other programs, by the kernel's nftables notifications.
//!
//! The kernel announces changes by `iptables-nft` like any nftables change, but not changes by `iptables-legacy`.

use std::io;
use std::time::Duration;

use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::firewalld;
use super::iptables::chain_names;
use super::nftables::table_of;
use crate::base::network_name::NetworkName;
use crate::host::netlink::attributes;
use crate::host::netlink::netfilter::{NEW_GENERATION, Object, SUBSYSTEM, TABLE_NAME, TableFamily};

/// Multicast group of nftables changes: `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;

/// How long to collect changes of our own rules before reporting them: a flush is one notification per rule.
const QUICK: Duration = Duration::from_millis(100);

/// Other programs count as finished after this time without a change. A start of Docker, for example, makes a hundred
/// changes within seconds, and a pass in the middle would be wasted.
const QUIET: Duration = Duration::from_secs(1);

/// Report at the latest after this time, even if another program never stops.
const LONGEST: Duration = Duration::from_secs(10);

/// Sizes of `struct nlmsghdr`, `struct nfgenmsg` and `struct nlattr`, all multiples of netlink's alignment of 4 bytes.
const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;

/// Message types (linux/netfilter/nf_tables.h, `enum nf_tables_msg_types`).
const NEW_TABLE: u8 = Object::Table.add_message();
const DELETE_TABLE: u8 = Object::Table.delete_message();
const NEW_CHAIN: u8 = Object::Chain.add_message();
const DELETE_CHAIN: u8 = Object::Chain.delete_message();
const NEW_RULE: u8 = Object::Rule.add_message();
const DELETE_RULE: u8 = Object::Rule.delete_message();

/// `NFTA_RULE_CHAIN` and `NFTA_CHAIN_NAME` (linux/netfilter/nf_tables.h).
const RULE_CHAIN: u16 = 2;
const CHAIN_NAME: u16 = 3;

/// firewalld's table, in the same family as ours. Each reload recreates it.
const FIREWALLD: &[u8] = firewalld::TABLE.as_bytes();

/// Docker's own tables, one per IP version. Their contents change with each container and do not matter.
const DOCKER: &[u8] = b"docker-bridges";

/// The iptables tables that contain our chains, and in them the chains that matter: ours, and those with a jump to
/// ours. Others, such as kube-proxy's, change often and do not matter.
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

/// What a change affects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Affects {
    /// Rules that are before ours or jump to ours.
    Others,
    /// Our own table or chains.
    Ours,
}

/// Changes that are not reported yet.
#[derive(Clone, Copy, Debug)]
struct Debounce {
    first: Instant,
    about: Affects,
    /// When to report them.
    due: Instant,
}

impl Debounce {
    /// Records a change. Ours are reported soon, those of other programs when they have finished.
    fn add(former: Option<Self>, about: Affects, now: Instant) -> Self {
        let first = former.map_or(now, |former| former.first);
        match former {
            Some(former) if former.about == Affects::Ours => former,
            _ => Self {
                first,
                about,
                due: match about {
                    Affects::Ours => now + QUICK,
                    Affects::Others => (now + QUIET).min(first + LONGEST),
                },
            },
        }
    }
}

/// A receive-only socket for changes that affect our rules, in the network namespace it was opened in.
pub struct Watcher {
    /// `None` without notifications.
    socket: Option<TokioSocket>,
    names: Names,
    /// Kept here so that dropping a [`Self::changed`] loses nothing.
    debounce: Option<Debounce>,
}

impl Watcher {
    /// Starts listening.
    ///
    /// # Errors
    /// Without `CAP_NET_ADMIN`, or when the kernel has no nftables.
    pub fn open() -> io::Result<Self> {
        let mut watcher = Self::idle();
        watcher.listen()?;
        Ok(watcher)
    }

    /// Receives nothing before [`Self::listen`].
    pub fn idle() -> Self {
        Self {
            socket: None,
            names: Names::of_network(None),
            debounce: None,
        }
    }

    /// Starts listening unless it does already; returns whether it started now.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn listen(&mut self) -> io::Result<bool> {
        if self.socket.is_some() {
            return Ok(false);
        }
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(GROUP)?;
        self.socket = Some(socket);
        Ok(true)
    }

    /// Whether there are changes that [`Self::changed`] has yet to report.
    pub fn is_pending(&self) -> bool {
        self.debounce.is_some()
    }

    /// Watches the rules of a named network.
    pub fn of_network(mut self, network: Option<&NetworkName>) -> Self {
        self.names = Names::of_network(network);
        self
    }

    /// Returns when our rules may have changed: 100 ms after the first change of our own table and chains, or one
    /// second after the last change of others, ten seconds at most. The agent's own changes are reported too, so
    /// compare before changing anything.
    ///
    /// Cancel safe: changes received by a dropped call are reported by the next one.
    pub async fn changed(&mut self) {
        let Some(socket) = &mut self.socket else {
            return std::future::pending().await;
        };
        loop {
            let received = match self.debounce {
                None => socket.recv_from_full().await,
                Some(Debounce { due, .. }) => {
                    match timeout_at(due, socket.recv_from_full()).await {
                        Ok(received) => received,
                        Err(_) => {
                            self.debounce = None;
                            return;
                        }
                    }
                }
            };
            let (about, failed) = match received {
                Ok((datagram, _)) => (self.names.affects(&datagram), false),
                // The kernel dropped notifications (ENOBUFS): any of them may have affected us.
                Err(error) => {
                    tracing::debug!(error = %error, "the kernel dropped firewall notifications");
                    (Some(Affects::Ours), true)
                }
            };
            let Some(about) = about else { continue };
            let debounce = Debounce::add(self.debounce, about, Instant::now());
            self.debounce = Some(debounce);
            if failed {
                // The pause keeps a persistent error from becoming a busy loop.
                sleep_until(debounce.due).await;
            }
        }
    }
}

impl Names {
    /// What the datagram's messages affect; `None` if they do not concern us. Truncated or unknown messages count as
    /// ours.
    fn affects(&self, datagram: &[u8]) -> Option<Affects> {
        let mut rest = datagram;
        let mut about = None;
        while !rest.is_empty() {
            let length = rest
                .first_chunk()
                .map(|bytes| u32::from_ne_bytes(*bytes) as usize);
            let length = length.filter(|length| *length >= NLMSG_HEADER);
            let Some(message) = length.and_then(|length| rest.get(..length)) else {
                return Some(Affects::Ours);
            };
            let length = message.len();
            about = about.max(self.affects_message(message));
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        about
    }

    fn affects_message(&self, message: &[u8]) -> Option<Affects> {
        let ours = Some(Affects::Ours);
        let others = Some(Affects::Others);
        // The type is a host-endian u16: subsystem in the high byte, message in the low one.
        let Some(&[_, _, _, _, first, second]) = message.first_chunk() else {
            return ours;
        };
        let [kind, subsystem] = u16::from_ne_bytes([first, second]).to_le_bytes();
        if subsystem != SUBSYSTEM || kind == NEW_GENERATION {
            return None;
        }
        let Some(family) = message.get(NLMSG_HEADER) else {
            return ours;
        };
        let Some(table) = name(message, TABLE_NAME) else {
            return ours;
        };
        match TableFamily::of_number(*family)? {
            TableFamily::Inet if table == self.table.as_bytes() => ours,
            TableFamily::Inet if table == FIREWALLD => others,
            TableFamily::Ip | TableFamily::Ip6 if table == DOCKER => {
                others.filter(|_| matches!(kind, NEW_TABLE | DELETE_TABLE))
            }
            TableFamily::Ip | TableFamily::Ip6 if IPTABLES_TABLES.contains(&table) => {
                let chain = match kind {
                    NEW_TABLE => return others,
                    // Our rules went with it.
                    DELETE_TABLE => return ours,
                    NEW_CHAIN | DELETE_CHAIN => name(message, CHAIN_NAME),
                    NEW_RULE | DELETE_RULE => name(message, RULE_CHAIN),
                    _ => return None,
                };
                let is_ours = |chain| self.chains.iter().any(|ours| ours.as_bytes() == chain);
                match chain {
                    None => ours,
                    Some(chain) if is_ours(chain) => ours,
                    Some(chain) => others.filter(|_| IPTABLES_CHAINS.contains(&chain)),
                }
            }
            _ => None,
        }
    }
}

/// The name in a message's attribute `wanted`, without the NUL that ends it.
fn name(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut found = attributes(message.get(NLMSG_HEADER + NFGEN_HEADER..)?);
    let (_, value) = found.find(|(kind, _)| *kind == wanted)?;
    value.split(|byte| *byte == 0).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY_INET: u8 = TableFamily::Inet as u8;
    const FAMILY_IPV4: u8 = TableFamily::Ip as u8;
    const FAMILY_IPV6: u8 = TableFamily::Ip6 as u8;

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
        let length = u16::try_from(4 + text.len() + 1).unwrap();
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
            assert!(names.affects(&ours).is_some(), "{ours:?}");
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
            assert_eq!(names.affects(&other), None, "{other:?}");
        }
        let mut two = message(NEW_RULE, FAMILY_IPV4, "filter", Some("INPUT"));
        assert_eq!(names.affects(&two), None);
        two.extend(message(NEW_RULE, FAMILY_IPV4, "filter", Some("FORWARD")));
        assert_eq!(names.affects(&two), Some(Affects::Others));
        two.extend(message(NEW_RULE, FAMILY_INET, "selvage", None));
        assert_eq!(names.affects(&two), Some(Affects::Ours));
    }

    #[test]
    fn changes_of_others_are_reported_once_when_they_are_over() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let after = |changes: &[(u64, Affects)]| {
            let none: Option<Debounce> = None;
            let debounce = changes.iter().fold(none, |debounce, &(millis, about)| {
                // Everything due by then has been reported.
                let open = debounce.filter(|debounce| debounce.due > at(millis));
                assert_eq!(
                    open.is_some(),
                    debounce.is_some(),
                    "reported before {millis} ms"
                );
                Some(Debounce::add(open, about, at(millis)))
            });
            debounce.unwrap().due
        };
        let others = |times: u64, pause: u64| -> Vec<(u64, Affects)> {
            (0..times).map(|n| (n * pause, Affects::Others)).collect()
        };
        assert_eq!(after(&others(1, 0)), at(1000));
        assert_eq!(after(&others(30, 100)), at(29 * 100 + 1000));
        // Forever is too long.
        assert_eq!(after(&others(99, 101)), at(10_000));
        // Our own changes are reported without waiting for others, or for more of their kind.
        let mut mixed = others(30, 100);
        mixed.extend([
            (2950, Affects::Ours),
            (3000, Affects::Others),
            (3040, Affects::Ours),
        ]);
        assert_eq!(after(&mixed), at(3050));
    }

    #[tokio::test]
    async fn a_watcher_that_hears_nothing_reports_nothing() {
        let mut idle = Watcher::idle();
        let changed = tokio::time::timeout(Duration::from_millis(10), idle.changed());
        assert!(changed.await.is_err() && !idle.is_pending());
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
            assert_eq!(
                default.affects(&message).is_some(),
                of_default,
                "{message:?}"
            );
            assert_eq!(blue.affects(&message).is_some(), of_blue, "{message:?}");
        }
    }

    #[test]
    fn what_is_cut_short_counts_and_never_panics() {
        let names = Names::of_network(None);
        let whole = message(NEW_TABLE, FAMILY_INET, "other", None);
        for length in 1..whole.len() {
            let about = names.affects(&whole[..length]);
            assert_eq!(about, Some(Affects::Ours), "cut to {length} bytes");
        }
        for byte in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[byte] ^= 0xff;
            let _ = names.affects(&damaged);
        }
    }
}
