//! flannel's client and server mode: hosts that know a server of leases and no etcd.
//!
//! `rest` and `limits` talk to a server on loopback, byte by byte; `stores` and `old` by the agent's own client; `fleet` has
//! whole hosts in network namespaces, with the real agent, etcd and kernel:
//!
//! ```text
//!   node 1            node 2            node 3            server 1, 2       store
//!   agent --remote    agent --remote    agent --etcd      selvage serve     etcd 10.77.0.1:2379
//!   eth0 10.77.0.11   eth0 10.77.0.12   eth0 10.77.0.13   eth0 10.77.0.21   eth0
//!        └─────────────────┴────── switch ──┴─────────────────┴──────────────┘
//! ```
//!
//! The tests need root, for the namespaces, and Debian's `etcd-server`, `etcd-client`, `iproute2` and `iputils-ping`.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]
#![expect(
    dead_code,
    reason = "the hosts of the overlay tests can do more than is needed here"
)]

#[path = "../etcd/authority.rs"]
mod authority;
#[path = "../overlay/cluster.rs"]
mod cluster;
#[path = "../etcd/dice.rs"]
mod dice;
#[path = "../etcd/server.rs"]
mod etcd;
mod fleet;
#[path = "../overlay/host.rs"]
mod host;
mod keeper;
#[path = "../overlay/kernel.rs"]
mod kernel;
mod limits;
#[path = "../overlay/namespace.rs"]
mod namespace;
mod old;
mod program;
#[path = "../etcd/proxy.rs"]
mod proxy;
mod rest;
mod stores;
mod unfinished;
#[path = "../overlay/wait.rs"]
mod wait;
