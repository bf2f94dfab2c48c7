//! The overlay network agent of the Selvage appliance image.
//!
//! The agent *decides*, then *programs*. Deciding is pure: a backend turns the own lease, the accepted peers and the
//! underlay into a [`plan::state::State`], the complete set of kernel objects that should exist. Programming is one
//! executor: it observes the kernel, diffs the observation against the wanted state, and applies the difference in
//! pipelined netlink batches. The same path serves the start, every event, the restart after a crash and the periodic
//! resync.
//!
//! What other nodes publish is untrusted input: it passes the peer table before any backend sees it.
//!
//! The folders, from the ground up: [`base`], [`settings`], [`cluster`], [`plan`], `cloud`, [`host`], [`telemetry`], then [`agent`],
//! [`flannel`], [`appliance`] and [`command`]. `README.md` draws them.

pub mod agent;
pub mod appliance;
pub mod base;
mod cloud;
pub mod cluster;
pub mod command;
pub mod flannel;
pub mod host;
#[cfg(test)]
mod layering;
pub mod plan;
pub mod settings;
pub mod telemetry;
