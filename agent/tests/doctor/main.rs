//! `selvage doctor` on hosts that are well, and on hosts with a fault planted: network namespaces on one switch, with the
//! real agent and the real etcd, as the overlay's tests have them.
//!
//! The tests need what those need.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

#[path = "../etcd/authority.rs"]
mod authority;
#[path = "../overlay/clock.rs"]
mod clock;
#[expect(dead_code, reason = "the overlay's tests use all of it")]
#[path = "../overlay/cluster.rs"]
mod cluster;
mod cluster_agent;
mod cluster_leases;
mod cluster_networks;
mod cluster_report;
mod diagnosis;
mod healthy;
#[expect(dead_code, reason = "the overlay's tests use all of it")]
#[path = "../overlay/host.rs"]
mod host;
mod host_docker;
mod host_filter;
mod host_objects;
mod host_runtimes;
mod host_world;
#[path = "../overlay/namespace.rs"]
mod namespace;
mod reach;
mod reach_scale;
mod renumber_docker;
#[path = "../overlay/wait.rs"]
mod wait;
