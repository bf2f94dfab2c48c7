//! Route tables of cloud providers: the provider itself routes each node's subnet to the node.
//!
//! A node keeps only its own routes: destination is its subnet, next hop is this instance. Each provider is a
//! [`table::RouteTable`]; [`plan`] compares what a table has with what it should have, [`pass`] makes the
//! difference, and [`worker`] does that again and again, in a task beside the agent's loop.
//!
//! May import: `base`, `settings`, `cluster`, `plan`. Must not: touch the kernel, or know of leases of other nodes beyond
//! their subnets.
//!
//! To add a provider: a file under `providers/`, a line in [`provider`], and its name in `plan::backend::cloud`.

pub(crate) mod access;
pub(crate) mod error;
pub(crate) mod pass;
pub(crate) mod plan;
pub(crate) mod provider;
mod providers;
pub(crate) mod sign;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod transport;
pub(crate) mod worker;
mod xml;
