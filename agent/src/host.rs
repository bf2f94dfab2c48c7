//! What touches this machine: netlink and the executor, the packet filter, the udp data plane, hooks, the subnet file.
//!
//! May import: all above it down to `plan`. Must not: decide what should exist, or ask a lease store.

pub mod claim;
pub mod executor;
pub mod firewall;
pub mod hooks;
pub(crate) mod identity;
pub mod ike;
pub mod netlink;
pub mod open;
pub mod privileges;
pub(crate) mod probe;
pub mod reconcile;
pub mod subnet_file;
pub mod udp;
pub mod underlay;
