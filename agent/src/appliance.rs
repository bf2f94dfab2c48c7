//! This machine as an appliance: Ignition configs and their effect, and the root file system that the initrd prepares.
//!
//! May import: `base` to `host`. Must not: need a running agent.

pub mod ignition;
pub mod sysroot;
