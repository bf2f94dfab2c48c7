//! The data plane of the udp backend against the real kernel: two hosts, a cable, and a TUN device on each. They need
//! root: `make test-netns`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod errors;
mod hosts;
#[path = "../netns/netns.rs"]
mod netns;
mod plain_peer;
mod traffic;
