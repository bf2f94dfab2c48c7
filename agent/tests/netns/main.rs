//! Tests against the real kernel, in network namespaces of their own. They need root: `make test-netns`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on has failed"
)]

mod executor;
mod host;
mod ipsec;
mod monitor;
mod netns;
mod scale;
mod traffic;
mod udp;
mod wireguard;
