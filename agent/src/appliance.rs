//! This machine as an appliance: Ignition configs and their outcome, and the root that the initrd prepares.
//!
//! May import: `base` to `host`. Must not: need an agent that runs.

pub mod ignition;
pub mod sysroot;
