//! What all nodes share: the network config, the leases and where they are kept, and which of them are refused.
//!
//! May import: `base`, `settings`. Must not: touch the kernel or a file of this host, or know a backend.

pub mod host_nets;
pub mod lease;
pub mod network_config;
pub mod peers;
pub mod refusal;
pub mod serve;
