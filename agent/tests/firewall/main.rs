//! The firewall's rules in a real kernel and with real packets, each case on a host of its own:
//!
//! ```text
//!   test thread ── unshare(CLONE_NEWNET | CLONE_NEWNS) ── nft, iptables (children, same namespaces)
//!                                                      └─ Watcher (netlink socket, same namespace)
//! ```
//!
//! A host has the programs that the case names and no others of their kind. Needs `nft` and both kinds of iptables, and
//! root; without the right to make a namespace a case says so and ends.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends by panicking"
)]

mod edits;
mod host;
mod iptables;
mod masquerade;
mod nftables;
mod passage;
mod switching;
mod topology;
