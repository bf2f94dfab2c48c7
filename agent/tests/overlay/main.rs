//! The whole agent against the real kernel and the real etcd: hosts are network namespaces on one virtual switch.
//!
//! ```text
//!   node 1            node 2            node 3            store
//!   container .2      container .2      container .2      etcd 10.77.0.1:2379
//!   docker0   .1      docker0   .1      docker0   .1        │
//!   flannel.1 .0      flannel.1 .0      flannel.1 .0        │
//!   eth0 10.77.0.11   eth0 10.77.0.12   eth0 10.77.0.13   eth0
//!        └─────────────────┴──────── switch ──┴──────────────┘
//! ```
//!
//! The tests need root, for the namespaces, and Debian's `etcd-server`, `libfaketime`, `nftables`,
//! `iproute2` and `iputils-ping`.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod advertisements;
mod allocation;
#[path = "../etcd/authority.rs"]
mod authority;
mod backends;
mod boot_check;
mod clock;
mod clouds;
mod cluster;
mod config;
#[expect(dead_code, reason = "the unit tests use all of it")]
#[path = "../clouds/ec2.rs"]
mod ec2;
mod extension;
mod faults;
mod firewall;
mod flanneld;
mod host;
mod hostile;
mod identity;
mod inside;
mod ipsec;
mod kernel;
mod namespace;
mod networks;
mod privileges;
mod readiness;
mod reload;
mod secrets;
#[path = "../clouds/server.rs"]
mod server;
mod status;
mod stuck;
mod survival;
mod sysext;
mod traffic;
mod underlay;
mod wait;
mod wireguard;
