//! This machine as an appliance: Ignition configs and their effect, the root file system that the initrd prepares, updates
//! of the image, and its place in a fleet.
//!
//! May import: `base` to `host`. Must not: need a running agent.

pub mod fleet;
pub mod ignition;
pub mod sysroot;
pub mod update;
